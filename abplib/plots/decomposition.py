"""Chapter 3: the proxy's attention taken apart (Figures 5 and 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from abplib.plots.style import ACCENT, INK, QUIET, canvas, lift_legend, plain, styled
from abplib.samples.words import ADJECTIVE, FUNCTION, NOUN, OTHER, SPATIAL
from abplib.sections.decomposition import Example

CLASS_COLOURS: Mapping[str, str] = {
    NOUN: "#3f72b0",
    ADJECTIVE: "#8a5a9e",
    SPATIAL: "#d9632b",
    FUNCTION: "#9aa3ad",
    OTHER: "#cfd5db",
}
"""Of each class of words."""

_PART = PercentFormatter(1.0, decimals=0, symbol=" %")
_GROUPS = {"decisive heads": ACCENT, "all other heads": QUIET}


@styled
def scheme(example: Example, threshold: float) -> Figure:
    """Figure 5 with the masses of one sample.

    Left: one head's masses over the layers, r_1 and r_2. Right: the preferred layers of all
    decisive heads and their vote. Below: the head's weights in l*, query by token.
    """
    n_heads, n_queries = len(example.masses), len(example.weights)
    upper, lower = max(2.3, 0.9 + 0.17 * n_heads), 1.25 + 0.13 * n_queries
    figure = canvas(upper + lower)
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=(upper, lower))
    bars, votes = parts[0, 0].subplots(1, 2)
    _head(bars, example, threshold)
    sns.heatmap(
        example.masses, ax=votes, cmap="Blues", vmin=0, vmax=1, cbar=False, yticklabels=True
    )
    preferred = example.masses.columns.get_indexer(pd.Index(example.masses.idxmax(axis=1)))
    dots: Any = {"color": INK, "markeredgecolor": "white", "markersize": 6}
    votes.plot(preferred + 0.5, np.arange(n_heads) + 0.5, "o", **dots)
    votes.set(xlabel="VLM layer", ylabel="block.head")
    votes.set_title(f"A  the vote: $l^*$ = {example.layer}", parse_math=True)
    grid = parts[1, 0].subplots()
    sns.heatmap(
        example.weights, ax=grid, cmap="Blues", vmin=0, yticklabels=False, xticklabels=True,
        cbar_kws={"label": "attention", "fraction": 0.04, "pad": 0.02},
    )  # fmt: skip
    grid.set(xlabel="", ylabel="query")
    grid.set_title(f"B  head {example.head} in layer {example.layer}, token by token")
    for axes in (votes, grid):
        plain(axes)
        axes.tick_params(axis="y", labelrotation=0)
    grid.set_xticklabels(grid.get_xticklabels(), rotation=50, ha="right", rotation_mode="anchor")
    return figure


def _head(axes: Axes, example: Example, threshold: float) -> None:
    """Bars of the shown head's masses, with the drop from the largest to the second."""
    masses: pd.Series = example.masses.T[example.head]
    ranked = masses.sort_values(ascending=False, kind="stable")
    colours = [ACCENT if layer == ranked.index[0] else "#b9c8da" for layer in masses.index]
    places = dict(zip(masses.index, range(len(masses)), strict=True))
    axes.bar(list(places.values()), masses, color=colours, width=0.7)
    for rank, (layer, mass) in enumerate(ranked.head(2).items(), start=1):
        axes.annotate(
            f"$r_{rank}$ = {mass:.2f}", (places[layer], mass), xytext=(0, 2),
            textcoords="offset points", ha="center", fontsize=9, parse_math=True,
        )  # fmt: skip
    drop = ranked.iloc[0] - (ranked.iloc[1] if len(ranked) > 1 else 0.0)
    axes.set_xticks(list(places.values()), [str(layer) for layer in places])
    axes.set(ylim=(0, 1.12), ylabel="attention mass", title=f"A  head {example.head}")
    axes.set_xlabel(f"VLM layer\n$r_1 - r_2$ = {drop:.2f}, T = {threshold:g}", parse_math=True)
    axes.grid(axis="x", visible=False)


@styled
def planted(rates: pd.DataFrame, chance: float) -> Figure:
    """How often what was planted is named, by the samples learned from: a line for each strength.

    Args:
        rates: rows of `sections.instrument.rates`.
        chance: of a right answer.
    """
    figure = canvas(3.3)
    axes = figure.subplots()
    names = rates["strength"].map(lambda length: f"length {length:g}" if length else "no plant")
    shades = [*sns.color_palette("Blues_r", 5)[: names.nunique() - 1], QUIET]
    palette = dict(zip(names.unique(), shades, strict=True))
    sns.lineplot(
        rates.assign(plant=names), x="samples", y="value", hue="plant", palette=palette, marker="o",
        markeredgewidth=0, estimator=None, ax=axes,
    )  # fmt: skip
    for name, part in rates.groupby(names, sort=False):
        ends = part["samples"], part["low"], part["high"]
        axes.vlines(*ends, color=palette[str(name)], linewidth=1.4)
    axes.axhline(chance, color=QUIET, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
    axes.set(xlabel="samples learned from", ylabel="layer and token both right", ylim=(0, 1.02))
    axes.set_xscale("log", base=2)
    budgets = sorted(rates["samples"].unique())
    axes.set_xticks(budgets, [f"{n:,}" for n in budgets])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(_PART)
    lift_legend(axes, 4)
    return figure


@styled
def sorted_curves(curves: pd.DataFrame, heads: pd.DataFrame, label: str) -> Figure:
    """Figure 6: sorted attention, the decisive heads of each seed against all others.

    Args:
        curves: mean of each group and seed, a thick line, and the groups' bands, as
            `sections.decomposition.sorted_curves` has both.
        heads: mean over the samples of each decisive head and query: a thin line.
        label: of the horizontal axis.
    """
    figure = canvas(3.3)
    axes = figure.subplots()
    sns.lineplot(
        heads.assign(line=heads[["seed", "head", "query"]].astype(str).agg(" ".join, axis=1)),
        x="rank", y="value", units="line", estimator=None, color=ACCENT, linewidth=0.7, alpha=0.3,
        ax=axes,
    )  # fmt: skip
    sns.lineplot(
        curves, x="rank", y="mean", hue="group", palette=_GROUPS, style="group", dashes=False,
        markers=True, linewidth=1.8, units="seed", estimator=None, ax=axes,
    )  # fmt: skip
    for group, part in curves.drop_duplicates(["group", "rank"]).groupby("group", sort=False):
        band: Any = {"color": _GROUPS[str(group)], "alpha": 0.14, "linewidth": 0}
        axes.fill_between(part["rank"], part["low"], part["high"], **band)
    axes.set(xlabel=label, ylabel="attention", ylim=(0, 1.02))
    axes.set_xlim(0.8, curves["rank"].max() + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    lift_legend(axes, 2)
    return figure


@styled
def heads_above(drops: pd.Series, threshold: float) -> Figure:
    """How many heads have a mean drop above each threshold, by seed and head: a line a seed."""
    figure = canvas(2.6)
    axes = figure.subplots()
    n_heads = drops.groupby("seed").size().max()
    for _, of_seed in drops.groupby("seed"):
        edges = [0, *sorted(of_seed), 1]
        axes.stairs(np.arange(n_heads, -1, -1), edges, baseline=None, color=ACCENT, linewidth=1.6)
    axes.axvline(threshold, color=QUIET, linewidth=1.1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"T = {threshold:g}", (threshold, 1), xycoords=("data", "axes fraction"), xytext=(5, -12),
        textcoords="offset points", va="top", fontsize=9.5, color=QUIET,
    )  # fmt: skip
    axes.set(xlabel="threshold on the mean drop", ylabel="decisive heads", xlim=(0, 1))
    axes.set_ylim(0, 1.05 * n_heads)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


@styled
def layer_histogram(counts: pd.DataFrame) -> Figure:
    """Which layer is l*, a line a row.

    Args:
        counts: of `sections.decomposition.layers_by_kind`.
    """
    long = counts.rename_axis("kind").melt(var_name="layer", value_name="n", ignore_index=False)
    long["layer"] = "layer " + long["layer"].astype(str)
    figure = canvas(0.95 + 0.22 * -(-len(counts.columns) // 5) + 0.215 * len(counts))
    axes = figure.subplots()
    palette = sns.color_palette("viridis", len(counts.columns))
    sns.histplot(
        long.reset_index(), y="kind", weights="n", hue="layer", multiple="fill", shrink=0.78,
        palette=palette, alpha=1, linewidth=0, ax=axes,
        hue_order=[f"layer {layer}" for layer in counts.columns],
    )  # fmt: skip
    for place, size in enumerate(counts.sum(axis=1)):
        axes.annotate(
            f"n = {size}", (1.02, place), xycoords=("axes fraction", "data"), va="center",
            fontsize=9, color=QUIET, annotation_clip=False,
        )  # fmt: skip
    axes.set(xlim=(0, 1), xlabel="part of the samples", ylabel="")
    axes.xaxis.set_major_formatter(_PART)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    lift_legend(axes, 5)
    return figure


@styled
def word_classes(table: pd.DataFrame) -> Figure:
    """What part of the attention each class of words gets, beside its part of the tokens.

    Args:
        table: of `sections.decomposition.word_classes`.
    """
    figure = canvas(0.9 + 0.36 * len(table))
    axes = figure.subplots()
    names, places = table.index.tolist(), np.arange(len(table))
    sns.barplot(
        x=table["value"].to_numpy(), y=names, hue=names, palette=dict(CLASS_COLOURS), width=0.6,
        saturation=1, ax=axes, orient="h",
    )  # fmt: skip
    axes.hlines(places, table["low"], table["high"], color=INK, linewidth=1.6)
    each = table.assign(place=places).explode("seeds").dropna(subset="seeds")
    axes.scatter(each["seeds"].astype(float), each["place"], marker="|", s=90, color=INK, lw=1)
    axes.plot(
        table["tokens"], places, "D", color="white", markeredgecolor=INK, markersize=6,
        label="part of the prompt's tokens", clip_on=False,
    )  # fmt: skip
    axes.set_xlabel("part of the decisive heads' attention in $l^*$", parse_math=True)
    axes.set_xlim(0, 1.02 * max(table["high"].max(), table["tokens"].max()))
    axes.xaxis.set_major_formatter(_PART)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper left")
    return figure
