"""Chapter 5: what became of the edits of transformers trained on different conditions."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from abplib.plots.style import ACCENT, QUIET, TARGET, canvas, styled
from abplib.sections.trained_conditions import LABELS, RATES, Rates

_MARKS = {
    "target_altered": (ACCENT, "o"),
    "others_altered": (QUIET, "X"),
    "edit_success": (TARGET, "D"),
}
"""Colour and marker of each measure."""

_APART = 0.22
"""Between the measures of one condition, where conditions are 1 apart."""


@styled
def trained_conditions(found: Rates) -> Figure:
    """The measures of each condition with their intervals, conditions from top to bottom."""
    figure = canvas(1.2 + 0.6 * len(LABELS))
    axes = figure.subplots()
    for row, (measure, name) in enumerate(RATES.items()):
        colour, marker = _MARKS[measure]
        own = [found[condition, measure] for condition in LABELS]
        places = [place + _APART * (row - 1) for place in range(len(LABELS))]
        axes.hlines(
            places, [rate.low for rate in own], [rate.high for rate in own],
            color=colour, linewidth=2.4, alpha=0.45,
        )  # fmt: skip
        axes.plot(
            [rate.value for rate in own], places, marker, color=colour, markersize=6.5,
            markeredgecolor="white", markeredgewidth=0.6, label=name, clip_on=False, zorder=3,
        )  # fmt: skip
    axes.set(
        xlim=(0, 1),
        ylim=(len(LABELS) - 0.5, -0.5),
        yticks=range(len(LABELS)),
        xlabel="part of the edits (of the other objects)",
    )
    axes.set_yticklabels(LABELS.values())
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, pad=9)
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=len(RATES), handletextpad=0.3)
    return figure
