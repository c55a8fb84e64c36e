"""Chapter 5: quality against preservation (Figure 8)."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from abplib.plots.style import ACCENT, INK, QUIET, TARGET, canvas, styled

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
