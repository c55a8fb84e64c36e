"""Chapter 6: what a fault that says nothing does to the states."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from abplib.plots.style import ACCENT, canvas, styled


@styled
def change_by_layer(found: pd.DataFrame) -> Figure:
    """The mean change of each layer's states with its interval; rows as of `change_by_layer`."""
    figure = canvas(0.9 + 0.3 * len(found))
    axes = figure.subplots()
    places = range(len(found))
    axes.hlines(places, found["low"], found["high"], color=ACCENT, linewidth=2.2, alpha=0.4)
    axes.plot(found["value"], places, "o", color=ACCENT, markersize=6, zorder=3)
    labels = [f"layer {layer}" if layer.isdigit() else layer for layer in found.index]
    axes.set_yticks(places, labels)
    axes.set(xlim=(0, None), ylim=(len(found) - 0.4, -0.6))
    axes.set_xlabel("change of the states, as a part of their size")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure
