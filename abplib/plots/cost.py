"""Chapter 7: ratios of the benchmarks, and where a sweep's time goes."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from abplib.plots.style import ACCENT, INK, QUIET, canvas, styled

_STAGES = ("#9aa5b1", ACCENT, "#d99a00", "#c8322b")
_LEGIBLE = 0.06
"""Part of a bar that has room for its percentage."""


@styled
def ratios(found: pd.DataFrame) -> Figure:
    """Medians with quartiles and targets on a scale of factors; rows as of
    `abplib.sections.cost.ratios`."""
    figure = canvas(1.0 + 0.33 * len(found))
    axes = figure.subplots()
    places = range(len(found))
    axes.axvline(1, color=QUIET, linewidth=1)
    axes.hlines(places, found["low"], found["high"], color=ACCENT, linewidth=4, alpha=0.35)
    axes.plot(found["ratio"], places, "o", color=ACCENT, markersize=6, zorder=3)
    for place, (bound, sign) in enumerate(zip(found["bound"], found["target"], strict=True)):
        marker = ">" if sign.startswith("≥") else "<"
        axes.plot(bound, place, marker, color=INK, fillstyle="none", markersize=9, zorder=4)
    labels = found["compared"] + ", " + found["of"].str.replace("peak ", "")
    axes.set_yticks(places, labels, fontsize=9)
    top = max(found[["high", "bound"]].max()) * 1.2
    axes.set(xscale="log", xlim=(min(0.9, found["low"].min() * 0.95), top))
    axes.set_ylim(len(found) - 0.4, -0.6)
    ticks = [tick for tick in (0.5, 1, 1.5, 2, 3, 5, 10, 20, 50) if tick < top]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel("ratio")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure


@styled
def breakdown(found: pd.DataFrame) -> Figure:
    """Shares of the time and of the operations by stage; rows as of
    `abplib.sections.cost.breakdown`."""
    figure = canvas(2.0)
    axes = figure.subplots()
    bars = {"time": found["share"], "operations": found["operations"].fillna(0)}
    for place, shares in enumerate(bars.values()):
        left = 0.0
        for (stage, share), colour in zip((shares / shares.sum()).items(), _STAGES, strict=True):
            label = str(stage) if place == 0 else None
            axes.barh(place, share, left=left, color=colour, height=0.6, label=label)
            if share > _LEGIBLE:
                middle = left + share / 2
                axes.text(middle, place, f"{share:.0%}", ha="center", va="center", color="white")
            left += share
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set(xlim=(0, 1), ylim=(1.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=2)
    return figure
