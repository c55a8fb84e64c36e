"""Pictures with boxes and maps: Figures 1, 2 and 9 to 11, and a person's own picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from abplib.core.boxes import Box, to_pixels
from abplib.plots.style import ACCENT, ANSWER, INK, TARGET, WIDTH, canvas, styled
from abplib.samples.base import Sample
from abplib.sections.own_image import Located

OUTLINES: Mapping[str, tuple[str, object]] = {
    "exact box": (INK, (0, (2.4, 1.6))),
    "box of the proxy": (TARGET, "-"),
    "box of the VLM": (ANSWER, "-"),
}
"""Colour and dashes of each kind of box, by what keys call it."""

HEAT = "inferno"
VEIL = 0.68
"""How a map is coloured, and how opaque it lies over the picture."""

_LETTERS = 74
"""Of a small line that is as wide as a figure."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a grid."""

    image: Image.Image
    title: str
    text: str = ""
    """Under the picture, its lines wrapped."""
    boxes: Mapping[str, Box] = field(default_factory=dict)
    """Fractions of the image, by their names in `OUTLINES`."""


def answered(sample: Sample, row: Mapping[str, Any]) -> Panel:
    """A sample with the box that the VLM gave in a row of `vlm_boxes.ask`."""
    boxes = {"exact box": sample.box}
    if row["answered"]:
        boxes["box of the VLM"] = (row["x1"], row["y1"], row["x2"], row["y2"])
    overlap = f", IoU {row['iou']:.2f}" if row["answered"] else ""
    return Panel(sample.image, f"{row['outcome']}{overlap}", sample.instruction, boxes)


def pair(sample: Sample, edit: Image.Image, row: Mapping[str, Any]) -> list[Panel]:
    """Source and edit of one row of `localization_gap.beside`, for a grid of two columns."""
    source = answered(sample, row)
    return [
        Panel(source.image, f"VLM: {row['outcome']}", source.text, source.boxes),
        Panel(edit, f"edit: {row['edit_outcome']}", boxes={"exact box": sample.box}),
    ]


def outcome(row: Mapping[str, Any]) -> str:
    """What became of an edit, from its row of `verdicts.judged`: kind, mean VQA score."""
    verdict = row["failure"] or ("success" if row["success"] else "left open")
    mean = (row["edit"] + row["accuracy"] + row["leakage"]) / 3
    return f"{verdict}\n" + ("no score" if pd.isna(mean) else f"VQA {mean:.1f}")


@styled
def grid(panels: Sequence[Panel], columns: int = 3) -> Figure:
    """Pictures in rows, each with its title above and its text below."""
    rows = -(-len(panels) // columns)
    side, letters = WIDTH / columns, _LETTERS // columns
    texts = [
        [line for part in panel.text.splitlines() for line in textwrap.wrap(part, letters)]
        for panel in panels
    ]
    lines = [
        max(len(text) for text in texts[row * columns : (row + 1) * columns]) for row in range(rows)
    ]
    keys = list(dict.fromkeys(name for panel in panels for name in panel.boxes))
    figure = canvas(rows * (side + 0.22) + 0.17 * sum(lines) + 0.3 * bool(keys))
    drawn = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel, text in zip(drawn, panels, texts, strict=False):
        axes.imshow(panel.image, interpolation="lanczos")
        for name, box in panel.boxes.items():
            outline(axes, box, panel.image.size, *OUTLINES[name], name)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("\n".join(text), loc="left", fontsize=9, color=INK)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes in drawn[len(panels) :]:
        axes.axis("off")
    if keys:
        handles = {
            name: handle
            for axes in drawn
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend([handles[key] for key in keys], keys, loc="outside upper left", ncols=2)
    return figure


@styled
def located(picture: Image.Image, instruction: str, place: Located) -> Figure:
    """`abp locate`: a picture with the proxy's box, as it is and under the two maps."""
    side = WIDTH / 3 * picture.height / picture.width
    figure = canvas(min(3 * WIDTH, side + 0.9))
    panels = (
        ("the proxy's box", None),
        (f"“{place.token}”, layer {place.layer}", place.dominant_map),
        (f"last token, layer {place.layer}", place.last_map),
    )
    for axes, (title, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        overlay(axes, picture, values)
        outline(axes, place.box, picture.size, ACCENT, "-", "the proxy's box")
        axes.set_title(title, fontsize=9.5)
    figure.suptitle(textwrap.fill(instruction, 70), x=0.01, ha="left", fontsize=9.5, color=INK)
    return figure


def overlay(axes: Axes, image: Image.Image, values: Tensor | None) -> None:
    """The image, and a map [rows, columns] over it, from its least to its largest value."""
    width, height = image.size
    if values is None:
        axes.imshow(image, interpolation="lanczos")
    else:
        axes.imshow(image.convert("L"), cmap="gray", vmin=-80, vmax=335, interpolation="lanczos")
        axes.imshow(
            values.numpy(), cmap=HEAT, alpha=VEIL, interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )  # fmt: skip
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


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
