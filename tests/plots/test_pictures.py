"""Pictures with boxes: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import keys
from PIL import Image

from abplib.plots import pictures
from abplib.plots.pictures import Panel

PICTURE = Image.new("RGB", (100, 50), "gray")


def test_a_grid_shows_titles_texts_and_boxes_in_pixels() -> None:
    marked = Panel(PICTURE, "Source", "turn it " * 20, {"exact box": (0.1, 0.2, 0.5, 0.6)})
    figure = pictures.grid([marked, Panel(PICTURE, "Edit", "a\nb"), marked, marked])
    figure.draw_without_rendering()
    assert [axes.get_title(loc="left") for axes in figure.axes][:2] == ["Source", "Edit"]
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False] * 2
    assert figure.axes[1].get_xlabel() == "a\nb"
    lines = figure.axes[0].get_xlabel().split("\n")
    assert len(lines) > 3 and max(map(len, lines)) <= 24
    (outline,) = figure.axes[0].patches
    assert outline.get_bbox().bounds == pytest.approx((9.5, 9.5, 40, 20))
    assert keys(figure) == ["exact box"]  # once
    assert keys(pictures.grid([Panel(PICTURE, "Edit")])) == []


def test_the_kinds_of_boxes_differ_in_colour_or_dashes() -> None:
    boxes = dict.fromkeys(pictures.OUTLINES, (0.1, 0.2, 0.5, 0.6))
    figure = pictures.grid([Panel(PICTURE, "Source", boxes=boxes)], columns=1)
    looks = {(patch.get_edgecolor(), patch.get_linestyle()) for patch in figure.axes[0].patches}
    assert len(looks) == len(boxes) == 3
    assert keys(figure) == list(boxes)


def test_what_became_of_an_edit_is_told_with_its_mean_score() -> None:
    done = {"success": True, "edit": 4, "accuracy": 4, "leakage": 3, "failure": None}
    failed = {"success": False, "edit": 0, "accuracy": 0, "leakage": 4, "failure": "no edit"}
    assert pictures.outcome(done) == "success\nVQA 3.7"
    assert pictures.outcome(failed) == "no edit\nVQA 1.3"
    scores = dict.fromkeys(("edit", "accuracy", "leakage"), np.nan)
    assert pictures.outcome({"success": None, "failure": None, **scores}) == "left open\nno score"
