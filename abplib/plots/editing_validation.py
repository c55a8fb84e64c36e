"""Chapter 5: boxes and edits in pictures (Figures 9 to 11), quality against preservation (8)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from abplib.core.boxes import Box
from abplib.editing.methods import label
from abplib.plots.pictures import outline
from abplib.plots.style import ACCENT, INK, QUIET, TARGET, WIDTH, canvas, styled

_LETTERS = 74
"""Of a small line that is as wide as a figure."""

_OUTLINES: Mapping[str, tuple[str, object]] = {
    "exact box": (INK, (0, (2.4, 1.6))),
    "box of the proxy": (TARGET, "-"),
}
"""Colour and dashes of each kind of box."""

_MARKS = {
    "ours": (TARGET, "*", 15),
    "baseline": ("#c8322b", "o", 9),
    "full_description": (ACCENT, "s", 8),
    "norm_avg": ("#d99a00", "D", 8),
    "fibo_edit": ("#8a5a9e", "^", 9),
    "flux2_dev": ("#5b8f9b", "v", 9),
    "flux_kontext": ("#8c6d4f", "P", 9),
    "qwen_image_edit_2509": ("#c06c84", "D", 9),
    "lora_no_box": ("#7ccb97", "o", 9),
    "vlm_box": ("#7ccb97", "^", 9),
    "gt_box": ("#0b6b32", "v", 9),
    "identity": (QUIET, "X", 9),
    "paste": (INK, "P", 9),
}
_MARKS["qwen_image_edit"] = _MARKS["baseline"]
"""Colour, marker and its size of each method, by this run's and the paper's keys."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a grid."""

    image: Image.Image
    title: str
    text: str = ""
    """Under the picture, its lines wrapped."""
    boxes: Mapping[str, Box] = field(default_factory=dict)
    """Fractions of the image, by the name that the key gives them."""


def compared(
    source: Panel, edits: Mapping[str, tuple[Image.Image, Mapping[str, Any]]]
) -> list[Panel]:
    """A sample's panels: the source, then each method's edit with what became of it.

    Args:
        source: drawn first.
        edits: by method: the edit, and its row of `edits.judged`.
    """
    return [source] + [
        Panel(image, label(name), outcome(row)) for name, (image, row) in edits.items()
    ]


def outcome(row: Mapping[str, Any]) -> str:
    """What became of an edit, from its row of `edits.judged`: success or kind of failure, VQA."""
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
            colour, dashes = _OUTLINES[name]
            outline(axes, box, panel.image.size, colour, dashes, name)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("\n".join(text), loc="left", fontsize=9, color=INK)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes in drawn[len(panels) :]:
        axes.axis("off")
    if keys:
        found = {
            key: line
            for axes in drawn
            for line, key in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend([found[key] for key in keys], keys, loc="outside upper left", ncols=2)
    return figure


@styled
def trade_off(points: pd.DataFrame, name_of_lpips: str) -> Figure:
    """Figure 8: mean VQA score over the distance outside the box; up and to the left is better.

    Args:
        points: a row a method, indexed by its key: name, lpips, vqa and, where intervals are
            known, lpips_low, lpips_high, vqa_low, vqa_high.
        name_of_lpips: of the horizontal axis.
    """
    keys = -(-len(points) // 2)
    figure = canvas(3.6 + 0.2 * keys)
    axes = figure.subplots()
    for method, row in points.iterrows():
        colour, marker, size = _MARKS[str(method)]
        if "lpips_low" in points:
            bars: Any = {"color": colour, "linewidth": 2, "alpha": 0.45}
            axes.hlines(row["vqa"], row["lpips_low"], row["lpips_high"], **bars)
            axes.vlines(row["lpips"], row["vqa_low"], row["vqa_high"], **bars)
        axes.plot(
            row["lpips"], row["vqa"], marker, color=colour, markersize=size, label=row["name"],
            markeredgecolor="white", markeredgewidth=0.7, linestyle="none", clip_on=False,
        )  # fmt: skip
    axes.margins(0.07)
    axes.set(
        xlabel=f"{name_of_lpips}, outside the exact box (lower is better)",
        ylabel="mean VQA score, 0 to 4 (higher is better)",
    )
    figure.legend(loc="outside upper left", ncols=2, handletextpad=0.3, columnspacing=1.6)
    return figure
