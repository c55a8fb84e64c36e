"""Chapter 5's figures: what is drawn is what was given."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from abplib import paper as reported
from abplib.editing.methods import METHODS
from abplib.plots import editing_validation as plots


def keys(figure: Figure) -> list[str]:
    return [text.get_text() for key in figure.legends for text in key.get_texts()]


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
