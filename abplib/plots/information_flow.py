"""Chapter 4: where instruction tokens look (Figures 7 and 12), and how well that points."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from abplib.plots.decomposition import CLASS_COLOURS
from abplib.plots.pictures import outline, overlay
from abplib.plots.style import INK, TARGET, WIDTH, canvas, plain, styled
from abplib.sections.information_flow import MappedSample


@styled
def maps(examples: Sequence[MappedSample]) -> Figure:
    """Figure 7a: each sample's source, and the raw and relative map of its dominant tokens."""
    side = WIDTH / 3
    texts = [textwrap.wrap(example.sample.instruction, 26) for example in examples]
    lines = sum(max(2, len(text)) for text in texts)
    figure = canvas(len(examples) * (side + 0.28) + 0.17 * lines + 0.3)
    grid = figure.subplots(len(examples), 3, squeeze=False)
    for axes, example, text in zip(grid, examples, texts, strict=True):
        said = ", ".join(f"“{example.words[row]}”" for row in example.dominant)
        titles = ("source", f"{said}, layer {example.best}", "relative map")
        shown = (None, example.dominant_map(), example.dominant_map("relative"))
        for panel, title, values in zip(axes, titles, shown, strict=True):
            overlay(panel, example.sample.image, values)
            outline(panel, example.sample.box, example.sample.image.size, TARGET, "-", "exact box")
            panel.set_title(title, fontsize=9.5)
        axes[0].set_xlabel("\n".join(text), loc="left", fontsize=9, color=INK)
        axes[1].set_xlabel(f"AUROC {example.auroc:.2f}", loc="left", fontsize=9, color=INK)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left")
    return figure


@styled
def token_bars(examples: Sequence[MappedSample]) -> Figure:
    """Figure 7b: each sample's attention in l* over the words of its instruction, top to bottom."""
    longest = max(len(example.tokens) for example in examples)
    figure = canvas(1.0 + 0.19 * longest)
    grid = figure.subplots(1, len(examples), squeeze=False)[0]
    for axes, example in zip(grid, examples, strict=True):
        places = np.arange(len(example.tokens))
        colours = [CLASS_COLOURS[name] for name in example.tokens["word_class"]]
        axes.barh(places, example.tokens["share"], 0.74, color=colours)
        axes.set_yticks(places, example.words, fontsize=9)
        axes.set(xlim=(0, 1), ylim=(longest - 0.4, -0.6))
        axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        axes.set_xlabel("part of attention", fontsize=9)
        axes.set_title(f"$l^*$ = {example.best}", fontsize=9.5, parse_math=True)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    used = {name for example in examples for name in example.tokens["word_class"]}
    keys = [
        Patch(color=colour, label=name) for name, colour in CLASS_COLOURS.items() if name in used
    ]
    figure.legend(handles=keys, loc="outside upper left", ncols=2, handlelength=1)
    return figure


@styled
def layers_and_tokens(grid: pd.DataFrame, chosen: pd.Series, label: str) -> Figure:
    """Mean score of every layer's maps by the token's rank with the proxy, as a heat map.

    Args:
        grid: of `sections.information_flow.token_grid`.
        chosen: in what part of the samples each layer is l*, by layer.
        label: of the colours.
    """
    figure = canvas(1.1 + 0.28 * len(grid))
    axes = figure.subplots()
    reach = max(0.05, float(np.abs(grid.to_numpy() - 0.5).max()))
    named = grid.rename(
        index=lambda layer: f"{layer}  ({chosen[layer]:.0%})" if layer in chosen else str(layer)
    )
    sns.heatmap(
        named, ax=axes, cmap="RdBu_r", vmin=0.5 - reach, vmax=0.5 + reach, annot=True, fmt=".2f",
        annot_kws={"fontsize": 8}, yticklabels=True,
        cbar_kws={"label": label, "fraction": 0.04, "pad": 0.02},
    )  # fmt: skip
    axes.set(xlabel="rank of the token with the proxy", ylabel="VLM layer")
    axes.axvline(grid.shape[1] - 1, color="white", linewidth=3)
    axes.tick_params(axis="y", labelrotation=0)
    plain(axes)
    return figure
