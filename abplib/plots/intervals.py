"""Numbers with their intervals: one dot and bar a line, as most of the book's figures need them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from abplib.plots.style import ACCENT, ANSWER, INK, QUIET, TARGET, canvas, styled

COLOURS = (ANSWER, ACCENT, TARGET, QUIET)
"""Of the groups of `hue`, in the order in which they appear."""

_MARKERS = ("o", "D", "X", "s")
_LETTERS = 60
"""What a key may hold in three columns."""
_APART = 0.22
"""Between the groups of one line, where lines are 1 apart."""


@styled
def intervals(
    frame: pd.DataFrame,
    hue: str | None = None,
    *,
    xlabel: str = "",
    ylabel: str = "",
    scale: Literal["part", "number", "factor"] = "part",
    palette: Mapping[str, str] | None = None,
) -> Figure:
    """Values with their intervals, a line for each label, top to bottom in the frame's order.

    Args:
        frame: label, value, low, high (NaN where no interval is known). If present: `note`, written
            at the right of the line; `target`, an open diamond; `seeds`, a tick for each seed's
            value; `reference`, a dashed line (one a panel); `panel`, which deals the rows to axes
            side by side.
        hue: column that tells groups of one label apart, by colour and marker.
        scale: `part` of a whole, 0 to 100 %; `number`; or `factor`, logarithmic.
        palette: colour of each group, where not `COLOURS`.
    """
    rows = frame.assign(label=frame["label"].astype(str))
    panels = list(rows.groupby("panel", sort=False)) if "panel" in rows else [("", rows)]
    several = len(panels) > 1
    groups = list(dict.fromkeys(rows[hue])) if hue else [""]
    lines = rows["label"].nunique()
    together = max(part["label"].value_counts().max() for _, part in panels)
    figure = canvas(1.0 + 0.3 * bool(hue) + (0.22 + 0.05 * together) * lines)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    colours = dict(zip(groups, (ACCENT,) if hue is None else COLOURS, strict=False))
    for axes, (title, part) in zip(grid, panels, strict=True):
        _dots(axes, part, hue, palette or colours)
        _marks(axes, part)
        axes.set_title(str(title), fontsize=9.5)
        axes.set(xlabel="" if several else xlabel, ylabel=ylabel)
        axes.label_outer()
        _scaled(axes, part, scale, narrow=several)
    if several:  # one for all, as it is longer than a panel is wide
        figure.supxlabel(xlabel, fontsize=grid[0].xaxis.label.get_size())
    if hue:
        handles, names = grid[0].get_legend_handles_labels()
        n_columns = 3 if sum(map(len, names)) < _LETTERS else 2
        for axes in grid:
            axes.get_legend().remove()
            for handle in axes.get_legend_handles_labels()[0]:  # at (0, 0), outside of the axes
                handle.remove()
        figure.legend(handles, names, loc="outside upper left", ncols=n_columns, handletextpad=0.3)
    return figure


def _dots(axes: Axes, rows: pd.DataFrame, hue: str | None, palette: Mapping[str, str]) -> None:
    """The values and their bars; seaborn takes value, low and high for three observations."""
    columns = ["label", *([hue] if hue else [])]
    long = pd.concat(
        [rows[columns].assign(x=rows[name]) for name in ("value", "low", "high")], ignore_index=True
    )
    groups = list(dict.fromkeys(rows[hue])) if hue else []
    drawn: dict[str, Any] = {"color": palette.get("", ACCENT)}
    if hue:
        drawn = {
            "hue": hue, "hue_order": groups, "palette": dict(palette),
            "dodge": rows["label"].duplicated().any() and _APART * (len(groups) - 1),
            "markers": [*_MARKERS * len(groups)][: len(groups)],
        }  # fmt: skip
    sns.pointplot(
        long, x="x", y="label", order=list(dict.fromkeys(rows["label"])), orient="h", ax=axes,
        estimator=lambda seen: seen.iloc[0], errorbar=lambda seen: (seen.min(), seen.max()),
        linestyle="none", markersize=6, markeredgewidth=0.6, clip_on=False,
        err_kws={"alpha": 0.45, "linewidth": 2.4}, **drawn,
    )  # fmt: skip


def _marks(axes: Axes, rows: pd.DataFrame) -> None:
    """Notes, targets, seeds and the reference."""
    places = {label: place for place, label in enumerate(dict.fromkeys(rows["label"]))}
    if "reference" in rows:
        dashes: Any = {"color": QUIET, "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 0}
        axes.axvline(rows["reference"].iloc[0], **dashes)
    if "target" in rows:
        axes.plot(
            rows["target"], rows["label"].map(places), "D", color=INK, fillstyle="none",
            markersize=9, zorder=4,
        )  # fmt: skip
    if "seeds" in rows:
        each = rows.explode("seeds").dropna(subset="seeds")
        ticks: Any = {"marker": "|", "s": 42, "color": INK, "linewidth": 1, "zorder": 4}
        axes.scatter(each["seeds"].astype(float), each["label"].map(places), **ticks)
    if "note" in rows:
        for label, note in rows.drop_duplicates("label").set_index("label")["note"].items():
            axes.annotate(
                str(note), (1.05, places[str(label)]), xycoords=("axes fraction", "data"),
                va="center", fontsize=9.5, color=QUIET, annotation_clip=False,
            )  # fmt: skip
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.tick_params(axis="y", length=0, pad=9)
    axes.spines["left"].set_visible(False)


def _scaled(axes: Axes, rows: pd.DataFrame, scale: str, *, narrow: bool) -> None:
    if scale == "part":
        axes.set_xlim(0, max(1.0, np.nanmax(rows[["value", "high"]].to_numpy())))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        if narrow:
            axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
    if scale == "factor":
        axes.axvline(1, color=QUIET, linewidth=1, zorder=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
