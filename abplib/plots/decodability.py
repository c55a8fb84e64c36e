"""Chapter 2: the proxies' localization error, along training (Figure 4) and at its end."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from abplib.plots.style import GROUPS, INK, QUIET, canvas, spread, styled
from abplib.sections.decodability import name_of

_AXIS = "centre error (image sides)"
_FONT = 9


@styled
def learning_curves(
    curves: pd.DataFrame, groups: Mapping[str, str], baselines: Mapping[str, float]
) -> Figure:
    """Figure 4: mean centre error on the evaluation samples along training.

    Args:
        curves: `Sweep.curves`.
        groups: each configuration's key in `style.GROUPS`; those named first are drawn first.
        baselines: errors drawn as dashed lines, by name.
    """
    figure = canvas(4.6)
    axes = figure.subplots()
    ends = {}
    for name, group in groups.items():
        line = curves[curves["configuration"] == name].sort_values("step")
        main = group in ("final", "middle_prompt")
        axes.plot(
            line["step"], line["center_error"], color=GROUPS[group][0],
            linewidth=2.6 if main else 1.6, marker="o", markersize=4 if main else 2.5,
            alpha=1 if main else 0.85,
        )  # fmt: skip
        ends[name_of(name)] = (float(line["center_error"].iloc[-1]), GROUPS[group][0])
    last = float(curves["step"].max())
    _baselines(axes, baselines)
    axes.set(xlabel="batches that the proxies were trained on", ylabel=_AXIS, xlim=(0, last))
    _leave_room(axes)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _label_ends(axes, last, ends, height=3.5)
    _key(figure, groups)
    return figure


@styled
def final_errors(
    errors: pd.DataFrame, groups: Mapping[str, str], baselines: Mapping[str, float]
) -> Figure:
    """Centre error at the end of training, layer by layer, with intervals.

    Args:
        errors: indexed by configuration; value, low and high of the mean centre error.
        groups: each configuration's key in `style.GROUPS`; single layers stand in this order.
        baselines: errors drawn as dashed lines, by name.
    """
    figure = canvas(3.9)
    axes = figure.subplots()
    layers = [name for name in groups if name.startswith("layer_")]
    others = [name for name in groups if name not in layers]
    room = max(1.0, 0.16 * len(layers))
    places = [float(place) for place in range(len(layers))]
    places += [len(layers) - 1 + room * (1 + place) for place in range(len(others))]
    for place, name in zip(places, layers + others, strict=True):
        row, colour = errors.loc[name], GROUPS[groups[name]][0]
        axes.vlines(place, row["low"], row["high"], color=colour, linewidth=2.6, alpha=0.5)
        axes.plot(place, row["value"], "o", color=colour, markersize=6.5)
    _baselines(axes, baselines)
    every = max(1, len(layers) // 10)
    shown = [place for place in range(len(layers)) if place % every == 0]
    ticks = {float(place): layers[place].removeprefix("layer_") for place in shown}
    words = {"final": "final\nstates", "middle_prompt": "middle,\nprompt"}
    ticks |= {
        place: words.get(name, name)
        for place, name in zip(places[len(layers) :], others, strict=True)
    }
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set(xlabel="decoder block whose output the proxy reads, or set of states", ylabel=_AXIS)
    axes.set_xlim(-0.6, places[-1] + 0.7 * room)
    _leave_room(axes)
    axes.grid(axis="x", visible=False)
    _key(figure, groups)
    return figure


def _baselines(axes: Axes, baselines: Mapping[str, float]) -> None:
    """Dashed lines over the whole width, named above, each at a place of its own."""
    for place, (name, error) in enumerate(baselines.items()):
        axes.axhline(error, color=QUIET, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
        axes.annotate(
            name_of(name), (0.01 + 0.25 * place, error), xycoords=("axes fraction", "data"),
            xytext=(0, 2.5), textcoords="offset points", fontsize=_FONT, color=QUIET,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _leave_room(axes: Axes) -> None:
    """Space above the uppermost baseline for its name."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), high + 0.05 * (high - low))


def _label_ends(
    axes: Axes, last: float, ends: Mapping[str, tuple[float, str]], height: float
) -> None:
    """Name each line at its right end, moving names apart; the axes are `height` inches high."""
    low, high = axes.get_ylim()
    gap = 1.25 * _FONT / 72 * (high - low) / height
    places = spread([error for error, _ in ends.values()], gap)
    for (name, (error, colour)), place in zip(ends.items(), places, strict=True):
        axes.annotate(
            name, (last, error), xytext=(1.055, place), textcoords=("axes fraction", "data"),
            va="center", fontsize=_FONT, color=colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1},
        )  # fmt: skip


def _key(figure: Figure, groups: Mapping[str, str]) -> None:
    used = [group for group in GROUPS if group in groups.values()]
    lines = [Line2D([], [], color=GROUPS[group][0], linewidth=3) for group in used]
    figure.legend(
        lines, [GROUPS[group][1] for group in used], loc="outside upper left", ncols=2,
        handlelength=1.2, columnspacing=1.4, labelcolor=INK,
    )  # fmt: skip
