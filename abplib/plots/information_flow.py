"""Chapter 4: where instruction tokens look (Figures 7 and 12), and how well that points."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from abplib.core.stats import Interval
from abplib.plots.decomposition import CLASS_COLOURS
from abplib.plots.pictures import outline
from abplib.plots.style import ACCENT, INK, QUIET, RULE, TARGET, WIDTH, canvas, plain, styled
from abplib.sections.pointing import SCORES, SOURCES, Example

_HEAT = "inferno"


@styled
def maps(examples: Sequence[Example]) -> Figure:
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


def overlay(axes: Axes, image: Image.Image, values: Tensor | None) -> None:
    """The image, and a map [rows, columns] over it, from its least to its largest value."""
    width, height = image.size
    if values is None:
        axes.imshow(image, interpolation="lanczos")
    else:
        axes.imshow(image.convert("L"), cmap="gray", vmin=-80, vmax=335, interpolation="lanczos")
        axes.imshow(
            values.numpy(), cmap=_HEAT, alpha=0.68, interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )  # fmt: skip
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


@styled
def token_bars(examples: Sequence[Example]) -> Figure:
    """Figure 7b: each sample's attention in l* over the words of its instruction, top to bottom."""
    longest = max(len(example.tokens) for example in examples)
    figure = canvas(1.0 + 0.19 * longest)
    grid = figure.subplots(1, len(examples), squeeze=False)[0]
    for axes, example in zip(grid, examples, strict=True):
        places = np.arange(len(example.tokens))
        colours = [CLASS_COLOURS[name] for name in example.tokens["word_class"]]
        axes.barh(places, example.tokens["share"], 0.74, color=colours)
        axes.set_yticks(places, example.words, fontsize=9)
        axes.set(xlim=(0, 1), xticks=(0, 0.5, 1), ylim=(longest - 0.4, -0.6))
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
def scores(found: Mapping[tuple[str, str], Interval]) -> Figure:
    """How well each source's maps point, from `pointing.means`: a panel a score."""
    shown = ("hit", "energy", "auroc")
    figure = canvas(0.85 + 0.27 * len(SOURCES))
    grid = figure.subplots(1, len(shown), sharey=True)
    places = np.arange(len(SOURCES))
    for axes, score in zip(grid, shown, strict=True):
        for place, source in zip(places, SOURCES, strict=True):
            value, low, high, _ = found[source, score]
            colour = TARGET if source == "dominant" else ACCENT
            axes.hlines(place, low, high, color=colour, linewidth=2.4, alpha=0.45)
            axes.plot(value, place, "o", color=colour, markersize=5.5, clip_on=False)
        axes.axvline(found["chance", score].value, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(xlim=(-0.02, 1.02), ylim=(len(SOURCES) - 0.5, -0.5))
        axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        axes.set_title(SCORES[score][1], fontsize=9.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    grid[0].set_yticks(places, [SOURCES[source] for source in SOURCES], fontsize=9)
    return figure


@styled
def layers_and_tokens(grid: pd.DataFrame, chosen: pd.Series, label: str) -> Figure:
    """Mean score of every layer's maps by the token's rank with the proxy, as a heat map.

    Args:
        grid: `pointing.token_grid`.
        chosen: in what part of the samples each layer is l*, by layer.
        label: of the colours.
    """
    rows, columns = grid.shape
    figure = canvas(1.1 + 0.28 * rows)
    axes = figure.subplots()
    values = grid.to_numpy()
    reach = max(0.05, float(np.abs(values - 0.5).max()))
    shown = axes.imshow(values, cmap="RdBu_r", vmin=0.5 - reach, vmax=0.5 + reach, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(value - 0.5) > 0.7 * reach else INK
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    labels = [
        f"{layer}  ({chosen[layer]:.0%})" if layer in chosen.index else str(layer)
        for layer in grid.index
    ]
    axes.set_yticks(range(rows), labels)
    axes.set_xticks(range(columns), grid.columns)
    axes.set(xlabel="rank of the token with the proxy", ylabel="VLM layer")
    axes.axvline(columns - 1.5, color="white", linewidth=3)
    plain(axes)
    figure.colorbar(shown, ax=axes, fraction=0.04, pad=0.02, label=label)
    axes.spines[:].set_color(RULE)
    return figure
