"""Chapter 1: pictures with boxes, and rates with their intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter
from PIL import Image

from abplib.core.boxes import Box, to_pixels
from abplib.plots.style import ACCENT, ANSWER, INK, QUIET, TARGET, WIDTH, canvas, styled
from abplib.samples.base import Sample


@dataclass(frozen=True, eq=False)
class Card:
    """One picture of a gallery."""

    image: Image.Image
    target: Box
    """Exact box, fractions of the image."""
    answer: Box | None
    """The VLM's box; None where it gave none."""
    title: str
    text: str
    """Under the picture, wrapped: the instruction."""


def card(sample: Sample, row: Mapping[str, Any]) -> Card:
    """The picture of one row of `localization.ask`."""
    answer = (row["x1"], row["y1"], row["x2"], row["y2"]) if row["answered"] else None
    title = f"{row['outcome']}, IoU {row['iou']:.2f}" if answer else str(row["outcome"])
    return Card(sample.image, sample.box, answer, title, sample.instruction)


@styled
def gallery(cards: Sequence[Card], columns: int = 2) -> Figure:
    """Pictures with the exact box (solid) and the VLM's (dashed)."""
    rows = -(-len(cards) // columns)
    side = WIDTH / columns
    figure = canvas(rows * (side + 0.62) + 0.35)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, card in zip(grid, cards, strict=False):
        axes.imshow(card.image, interpolation="lanczos")
        outline(axes, card.target, card.image.size, TARGET, "-", "exact box")
        if card.answer is not None:
            outline(axes, card.answer, card.image.size, ANSWER, (0, (3.2, 1.8)), "box of the VLM")
        axes.set_title(card.title, fontsize=10.5)
        axes.set_xlabel(
            textwrap.fill(card.text, 74 // columns), loc="left", fontsize=9.5, color=INK
        )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes in grid[len(cards) :]:
        axes.axis("off")
    keys = {
        label: line
        for axes in grid
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(keys.values(), keys.keys(), loc="outside upper left", ncols=2)
    return figure


@styled
def rates(rows: pd.DataFrame, label: str, reference: float | None = None) -> Figure:
    """Proportions with intervals, one line each, top to bottom.

    Args:
        rows: label, value, low, high (fractions) and note, which is written at the right.
        label: of the horizontal axis.
        reference: a proportion drawn as a vertical line.
    """
    figure = canvas(0.9 + 0.29 * len(rows))
    axes = figure.subplots()
    places = range(len(rows))
    if reference is not None:
        axes.axvline(reference, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.hlines(places, rows["low"], rows["high"], color=ACCENT, linewidth=2.4, alpha=0.45)
    axes.plot(rows["value"], places, "o", color=ACCENT, markersize=6, clip_on=False, zorder=3)
    for place, note in zip(places, rows["note"], strict=True):
        axes.annotate(
            str(note), (1.05, place), xycoords=("axes fraction", "data"), va="center",
            fontsize=9.5, color=QUIET, annotation_clip=False,
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6), yticks=list(places), xlabel=label)
    axes.set_yticklabels(rows["label"])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, pad=9)
    axes.spines["left"].set_visible(False)
    return figure


def outline(
    axes: Axes, box: Box, size: tuple[int, int], colour: str, dashes: object, label: str
) -> None:
    """Draw a box (fractions of an image of `size` pixels) over the image, with its key's label."""
    x1, y1, x2, y2 = (value - 0.5 for value in to_pixels(box, size))
    frame = Rectangle(
        (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=dashes, linewidth=2.2,
        label=label, clip_on=False, path_effects=[withStroke(linewidth=4.2, foreground="white")],
    )  # fmt: skip
    axes.add_patch(frame)
