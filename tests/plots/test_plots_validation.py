"""Chapter 5's figures: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from abplib import paper as reported
from abplib.editing.methods import METHODS
from abplib.plots import editing_validation as plots
from abplib.plots.editing_validation import Panel

PICTURE = Image.new("RGB", (100, 50), "gray")


def keys(figure: Figure) -> list[str]:
    return [text.get_text() for key in figure.legends for text in key.get_texts()]


def test_a_grid_shows_titles_texts_and_boxes_in_pixels() -> None:
    marked = Panel(PICTURE, "Source", "turn it " * 20, {"exact box": (0.1, 0.2, 0.5, 0.6)})
    figure = plots.grid([marked, Panel(PICTURE, "Edit", "a\nb"), marked, marked])
    figure.draw_without_rendering()
    assert [axes.get_title(loc="left") for axes in figure.axes][:2] == ["Source", "Edit"]
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False] * 2
    assert figure.axes[1].get_xlabel() == "a\nb"
    lines = figure.axes[0].get_xlabel().split("\n")
    assert len(lines) > 3 and max(map(len, lines)) <= 24
    (outline,) = figure.axes[0].patches
    assert outline.get_bbox().bounds == pytest.approx((9.5, 9.5, 40, 20))
    assert keys(figure) == ["exact box"]  # once


def test_a_grid_without_boxes_needs_no_key() -> None:
    assert keys(plots.grid([Panel(PICTURE, "Edit")])) == []


def test_the_two_kinds_of_boxes_differ() -> None:
    both = {"exact box": (0.1, 0.2, 0.5, 0.6), "box of the proxy": (0.2, 0.2, 0.5, 0.6)}
    figure = plots.grid([Panel(PICTURE, "Source", boxes=both)], columns=1)
    first, second = figure.axes[0].patches
    assert first.get_edgecolor() != second.get_edgecolor()
    assert first.get_linestyle() != second.get_linestyle()
    assert keys(figure) == list(both)


def test_a_sample_is_followed_by_what_became_of_each_edit() -> None:
    done = {"success": True, "edit": 4, "accuracy": 4, "leakage": 3, "failure": None}
    failed = {"success": False, "edit": 0, "accuracy": 0, "leakage": 4, "failure": "no edit"}
    made = {"baseline": (PICTURE, failed), "ours": (PICTURE, done)}
    panels = plots.compared(Panel(PICTURE, "Source"), made)
    assert [panel.title for panel in panels] == ["Source", "Qwen-Image-Edit", "Ours"]
    assert [panel.text for panel in panels[1:]] == ["no edit\nVQA 1.3", "success\nVQA 3.7"]
    scores = dict.fromkeys(("edit", "accuracy", "leakage"), np.nan)
    refused = {"success": None, "failure": None, **scores}
    assert plots.outcome(refused) == "left open\nno score"


def test_figure_8_puts_every_method_at_its_point() -> None:
    points = reported.figure_8()
    figure = plots.trade_off(points, "LPIPS")
    (axes,) = figure.axes
    drawn = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines]
    assert drawn == list(zip(points["lpips"], points["vqa"], strict=True))
    assert keys(figure) == list(points["name"])
    assert not axes.collections  # no intervals
    assert axes.get_xlabel().startswith("LPIPS, outside")


def test_measured_points_carry_their_intervals_and_the_papers_marks() -> None:
    rows = [
        {"name": METHODS[m].label, "lpips": 0.1, "lpips_low": 0.05, "lpips_high": 0.2,
         "vqa": 2.0, "vqa_low": 1.5, "vqa_high": 2.25}
        for m in METHODS
    ]  # fmt: skip
    figure = plots.trade_off(pd.DataFrame(rows, index=list(METHODS)), "LPIPS, of some network")
    (axes,) = figure.axes
    across, up = axes.collections[0].get_segments()[0], axes.collections[1].get_segments()[0]
    assert across.tolist() == [[0.05, 2.0], [0.2, 2.0]]
    assert up.tolist() == [[0.1, 1.5], [0.1, 2.25]]
    colours = {text: line.get_color() for text, line in zip(keys(figure), axes.lines, strict=True)}
    paper = plots.trade_off(reported.figure_8(), "LPIPS")
    for name, line in zip(keys(paper), paper.axes[0].lines, strict=True):
        if name in colours:
            assert line.get_color() == colours[name]
    marks = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(marks) == len(METHODS)
