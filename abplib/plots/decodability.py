"""Chapter 2: the proxies' localization error along training (Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from abplib.plots import style
from abplib.plots.style import QUIET, canvas, lift_legend, spread, styled
from abplib.sections.decodability import GROUPS, UNREAD

PALETTE = {words: style.GROUPS[group] for group, words in GROUPS.items()} | {UNREAD: QUIET}
"""Colour of each group, by what figures call it."""

_FONT = 9


@styled
def learning_curves(curves: pd.DataFrame, baselines: pd.DataFrame) -> Figure:
    """Figure 4: mean centre error on the evaluation samples along training.

    Bands go from the least to the largest of the seeds.

    Args:
        curves: rows of `sections.decodability.curve_rows`.
        baselines: label and value of the errors drawn as dashed lines.
    """
    figure = canvas(4.6)
    axes = figure.subplots()
    groups = [words for words in GROUPS.values() if words in set(curves["group"])]
    main = (GROUPS["final"], GROUPS["middle_prompt"])
    sns.lineplot(
        curves, x="step", y="center_error", units="label", estimator=None, sort=False, ax=axes,
        hue="group", hue_order=groups, palette=PALETTE, marker="o", markersize=4,
        markeredgewidth=0, size="group", sizes={g: 2.6 if g in main else 1.6 for g in groups},
    )  # fmt: skip
    for (_, group), part in curves.groupby(["label", "group"], sort=False):
        band: Any = {"color": PALETTE[str(group)], "alpha": 0.16, "linewidth": 0}
        axes.fill_between(part["step"], part["low"], part["high"], **band)
    last = float(curves["step"].max())
    named = baselines.set_index("label")["value"]
    for place, (label, error) in enumerate(named.items()):
        axes.axhline(error, color=QUIET, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
        axes.annotate(
            str(label), (0.01 + 0.25 * place, error), xycoords=("axes fraction", "data"),
            xytext=(0, 2.5), textcoords="offset points", fontsize=_FONT, color=QUIET,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
    axes.set(xlabel="batches that the proxies were trained on", xlim=(0, last))
    axes.set_ylabel("centre error (image sides)")
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), high + 0.05 * (high - low))  # room above the uppermost baseline
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ends = curves.groupby("label", sort=False).last()
    _label_ends(axes, last, ends["center_error"], ends["group"].map(PALETTE).to_dict(), height=3.5)
    lift_legend(axes, 2)
    return figure


def _label_ends(
    axes: Axes, last: float, ends: pd.Series, colours: Mapping[Any, str], height: float
) -> None:
    """Name each line at its right end, moving names apart; the axes are `height` inches high."""
    low, high = axes.get_ylim()
    gap = 1.25 * _FONT / 72 * (high - low) / height
    for (name, error), place in zip(ends.items(), spread(ends.tolist(), gap), strict=True):
        colour = colours[name]
        axes.annotate(
            str(name), (last, error), xytext=(1.055, place), textcoords=("axes fraction", "data"),
            va="center", fontsize=_FONT, color=colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "relpos": (0, 0.5)},
        )  # fmt: skip
