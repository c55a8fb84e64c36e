from __future__ import annotations

import io

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from abplib.core.alt_text import LONGEST, in_words
from abplib.plots import decodability, pictures
from abplib.plots.intervals import intervals
from abplib.sections.decodability import GROUPS


def told(figure: Figure) -> str:
    figure.savefig(io.BytesIO())
    return in_words(figure)


def test_dots_are_told_with_their_intervals_by_group() -> None:
    one = {"label": ["first", "second"], "value": [0.3, 0.5], "low": [0.2, 0.4], "high": [0.4, 0.7]}
    rows = pd.DataFrame(one).assign(half="VLM")
    words = told(intervals(pd.concat([rows, rows.assign(half="editor")]), "half", xlabel="rate"))
    assert words.startswith("rate.")
    assert "VLM first: 0.3 (0.2 to 0.4)" in words and "editor second: 0.5 (0.4 to 0.7)" in words


def test_curves_are_told_by_what_the_key_calls_them() -> None:
    group = GROUPS["final"]
    curve = {"step": range(20), "center_error": [0.5 - s / 100 for s in range(20)]}
    rows = pd.DataFrame(curve).assign(label="final states", group=group, low=0.1, high=0.6)
    baselines = pd.DataFrame({"label": ["chance"], "value": [0.52]})
    words = told(decodability.learning_curves(rows, baselines))
    assert f"{group} 0: 0.5, 19: 0.31" in words and "chance (0.52)" in words


def test_pictures_are_told_by_title_text_and_boxes() -> None:
    panel = pictures.Panel(
        Image.new("RGB", (100, 50)), "Source", "turn it", {"exact box": (0.1, 0.2, 0.3, 0.4)}
    )
    words = told(pictures.grid([panel]))
    assert "Source. turn it. exact box at pixels 10, 10 to 30, 20" in words
    assert len(told(pictures.grid([panel] * 90))) <= LONGEST + 2


def test_cells_and_bars_are_told_by_their_names() -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    grid = pd.DataFrame(
        [[0.1, 0.2], [0.9, 0.3]], index=["early", "late"], columns=["first", "last"]
    )
    sns.heatmap(grid, ax=left, cbar=False)
    right.bar(["noun", "verb"], [0.25, 0.5])
    words = told(figure)
    assert "from 0.1 to 0.9, the largest at first, late" in words
    assert "noun: 0.25, verb: 0.5" in words
