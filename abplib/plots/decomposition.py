"""Chapter 3: the proxy's attention taken apart (Figures 5 and 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from abplib.plots.style import ACCENT, INK, QUIET, canvas, plain, styled
from abplib.samples.words import ADJECTIVE, FUNCTION, NOUN, OTHER, SPATIAL
from abplib.sections.routing import Example

CLASS_COLOURS: Mapping[str, str] = {
    NOUN: "#3f72b0",
    ADJECTIVE: "#8a5a9e",
    SPATIAL: "#d9632b",
    FUNCTION: "#9aa3ad",
    OTHER: "#cfd5db",
}
"""Of each class of words."""

_HEAT = "Blues"
_PART = PercentFormatter(1.0, decimals=0, symbol=" %")


@styled
def scheme(example: Example, threshold: float) -> Figure:
    """Figure 5 with the masses of one sample.

    Left: one head's masses over the layers, r_1 and r_2. Right: the preferred layers of all
    decisive heads and their vote. Below: the head's weights in l*, query by token.
    """
    n_heads, n_layers = example.masses.shape
    n_queries, n_tokens = example.weights.shape
    upper, lower = max(2.3, 0.9 + 0.17 * n_heads), 1.25 + 0.13 * n_queries
    figure = canvas(upper + lower)
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=(upper, lower))
    upper_part, lower_part = parts[:, 0]
    bars, votes = upper_part.subplots(1, 2)
    _head(bars, example, threshold)
    votes.imshow(example.masses, cmap=_HEAT, vmin=0, vmax=1, aspect="auto")
    votes.plot(
        example.preferred, range(n_heads), "o", color=INK, markeredgecolor="white", markersize=6
    )
    votes.set(
        xticks=range(n_layers), xticklabels=example.layers, xlabel="VLM layer",
        yticks=range(n_heads), yticklabels=example.heads, ylabel="block.head",
    )  # fmt: skip
    votes.set_title(f"A  the vote: $l^*$ = {example.best}", parse_math=True)
    plain(votes)
    grid = lower_part.subplots()
    shown = grid.imshow(example.weights, cmap=_HEAT, vmin=0, aspect="auto")
    grid.set(
        xticks=range(n_tokens), yticks=[], ylabel="query",
        title=f"B  head {example.heads[example.shown]} in layer {example.best}, token by token",
    )  # fmt: skip
    grid.set_xticklabels(example.words, rotation=50, ha="right", rotation_mode="anchor")
    plain(grid)
    lower_part.colorbar(shown, ax=grid, fraction=0.04, pad=0.02, label="attention")
    return figure


def _head(axes: Axes, example: Example, threshold: float) -> None:
    """Bars of the shown head's masses, with the drop from the largest to the second."""
    masses = example.masses[example.shown]
    places = np.arange(len(masses))
    order = masses.argsort()[::-1]
    colours = [ACCENT if place == order[0] else "#b9c8da" for place in places]
    axes.bar(places, masses, color=colours, width=0.7)
    for rank, place in enumerate(order[:2], start=1):
        axes.annotate(
            f"$r_{rank}$ = {masses[place]:.2f}", (place, masses[place]), xytext=(0, 2),
            textcoords="offset points", ha="center", fontsize=9, parse_math=True,
        )  # fmt: skip
    drop = masses[order[0]] - (masses[order[1]] if len(order) > 1 else 0.0)
    axes.set(
        xticks=places, xticklabels=example.layers, ylim=(0, 1.12),
        ylabel="attention mass", title=f"A  head {example.heads[example.shown]}",
    )  # fmt: skip
    axes.set_xlabel(f"VLM layer\n$r_1 - r_2$ = {drop:.2f}, T = {threshold:g}", parse_math=True)
    axes.grid(axis="x", visible=False)


@styled
def sorted_curves(curves: pd.DataFrame, heads: pd.DataFrame, label: str) -> Figure:
    """Figure 6: sorted attention, mean over samples, the decisive heads against all others.

    Args:
        curves: rows of `routing.sorted_curves`.
        heads: one thin line for each decisive head and query: h, query, rank, value.
        label: of the horizontal axis.
    """
    figure = canvas(3.3)
    axes = figure.subplots()
    for _, line in heads.groupby(["h", "query"]):
        axes.plot(line["rank"], line["value"], color=ACCENT, linewidth=0.7, alpha=0.3)
    words = {"decisive": (ACCENT, "decisive heads", "o"), "other": (QUIET, "all other heads", "s")}
    for group, part in curves.groupby("group", sort=False):
        colour, name, marker = words[str(group)]
        band: Any = {"color": colour, "alpha": 0.14, "linewidth": 0}
        axes.fill_between(part["rank"], part["low"], part["high"], **band)
        axes.plot(
            part["rank"], part["mean"], color=colour, linewidth=2.4, marker=marker, label=name
        )
    last = curves["rank"].max()
    axes.set(xlabel=label, ylabel="attention", xlim=(0.8, last + 0.2), ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    figure.legend(loc="outside upper left", ncols=2)
    return figure


@styled
def sensitivity(counts: pd.DataFrame, threshold: float) -> Figure:
    """How many heads are decisive at each threshold, from `decomposition.sensitivity`."""
    figure = canvas(2.6)
    axes = figure.subplots()
    axes.step(counts["threshold"], counts["n_heads"], where="post", color=ACCENT, linewidth=2.2)
    axes.axvline(threshold, color=QUIET, linewidth=1.1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"T = {threshold:g}", (threshold, 1), xycoords=("data", "axes fraction"), xytext=(5, -12),
        textcoords="offset points", va="top", fontsize=9.5, color=QUIET,
    )  # fmt: skip
    axes.set(xlabel="threshold on the mean drop", ylabel="decisive heads", xlim=(0, 1))
    axes.set_ylim(0, 1.05 * max(1, counts["n_heads"].max()))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


@styled
def layer_histogram(counts: pd.DataFrame) -> Figure:
    """Which layer is l*: all samples, then each kind of instruction.

    Args:
        counts: samples of each kind (rows) and layer (columns), `dependence.layers_by_kind`.
    """
    everything = counts.sum().to_frame("all samples").T
    shown = pd.concat([everything, counts])
    sizes = shown.sum(axis=1)
    parts = shown.div(sizes, axis=0)
    rows = -(-len(counts.columns) // 5)
    figure = canvas(0.95 + 0.22 * rows + 0.215 * len(shown))
    axes = figure.subplots()
    palette = matplotlib.colormaps["viridis"](np.linspace(0.12, 0.92, len(counts.columns)))
    places = np.r_[0, np.arange(len(counts)) + 1.5]
    left = np.zeros(len(shown))
    for layer, colour in zip(counts.columns, palette, strict=True):
        axes.barh(places, parts[layer], 0.78, left=left, color=colour, label=f"layer {layer}")
        left += parts[layer].to_numpy()
    for place, size in zip(places, sizes, strict=True):
        axes.annotate(
            f"n = {size}", (1.02, place), xycoords=("axes fraction", "data"), va="center",
            fontsize=9, color=QUIET, annotation_clip=False,
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(places[-1] + 0.6, -0.6), xlabel="part of the samples")
    axes.set_yticks(places, shown.index, fontsize=9.5)
    axes.xaxis.set_major_formatter(_PART)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    figure.legend(loc="outside upper left", ncols=5, handlelength=1, columnspacing=1.2)
    return figure


@styled
def word_classes(table: pd.DataFrame) -> Figure:
    """What part of the attention each class of words gets, beside its part of the tokens.

    Args:
        table: `routing.word_classes`.
    """
    figure = canvas(0.9 + 0.36 * len(table))
    axes = figure.subplots()
    places = np.arange(len(table))
    colours = [CLASS_COLOURS[str(name)] for name in table.index]
    axes.barh(places, table["mass"], 0.6, color=colours)
    axes.hlines(places, table["low"], table["high"], color=INK, linewidth=1.6)
    axes.plot(
        table["tokens"], places, "D", color="white", markeredgecolor=INK, markersize=6,
        label="part of the prompt's tokens", clip_on=False,
    )  # fmt: skip
    axes.set(ylim=(len(table) - 0.5, -0.5))
    axes.set_xlabel("part of the decisive heads' attention in $l^*$", parse_math=True)
    axes.set_xlim(0, 1.02 * max(table["high"].max(), table["tokens"].max()))
    axes.set_yticks(places, table.index)
    axes.xaxis.set_major_formatter(_PART)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper left")
    return figure
