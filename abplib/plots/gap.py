"""Chapter 1: what the VLM answered beside what the editor did (Figures 1 and 2), and how often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from abplib.plots.pictures import Card, card
from abplib.plots.style import ACCENT, ANSWER, QUIET, canvas, styled
from abplib.samples.base import Sample

_MARKS = ((ANSWER, "o", -0.15), (ACCENT, "D", 0.15))
"""Colour, mark and place within the line: of the VLM, of the editor."""


def pair(sample: Sample, edit: Image.Image, row: Mapping[str, Any]) -> list[Card]:
    """Source and edit of one row of `gap.beside`, side by side in a gallery of two columns."""
    source = card(sample, row)
    title = f"edit: {row['edit_outcome']}"
    return [
        replace(source, title=f"VLM: {row['outcome']}"),
        replace(source, image=edit, answer=None, title=title, text=""),
    ]


@styled
def both(
    halves: Mapping[str, pd.DataFrame], groups: str = "", label: str = "part of the samples"
) -> Figure:
    """Two rates on the same samples, one line a group, top to bottom.

    Args:
        halves: of the VLM and then of the editor, or of two methods, by name: label, value, low,
            high (fractions; nan where no interval is known) and note, written at the right; equal
            labels and notes.
        groups: label of the vertical axis, where what the lines are called does not say it.
        label: of the horizontal axis.
    """
    lines = next(iter(halves.values()))
    places = range(len(lines))
    figure = canvas(1.2 + 0.38 * len(lines))
    axes = figure.subplots()
    for (name, rows), (colour, mark, shift) in zip(halves.items(), _MARKS, strict=True):
        at = [place + shift for place in places]
        axes.hlines(at, rows["low"], rows["high"], color=colour, linewidth=2.2, alpha=0.4)
        axes.plot(
            rows["value"], at, mark, color=colour, markersize=6, clip_on=False, zorder=3, label=name
        )
    for place, note in zip(places, lines["note"], strict=True):
        axes.annotate(
            str(note), (1.05, place), xycoords=("axes fraction", "data"), va="center",
            fontsize=9.5, color=QUIET, annotation_clip=False,
        )  # fmt: skip
    axes.set(
        xlim=(0, 1), ylim=(len(lines) - 0.4, -0.6), yticks=list(places), xlabel=label, ylabel=groups
    )
    axes.set_yticklabels(lines["label"])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, pad=9)
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, handletextpad=0.3, columnspacing=1.6)
    return figure
