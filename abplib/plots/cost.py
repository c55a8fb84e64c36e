"""Chapter 7: where a sweep's time goes."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from abplib.plots.style import ACCENT, canvas, styled

_STAGES: Any = ["#9aa5b1", ACCENT, "#d99a00", "#c8322b"]
_LEGIBLE = 0.06
"""Part of a bar that has room for its percentage."""


@styled
def breakdown(stages: pd.DataFrame) -> Figure:
    """Shares of the time and of the operations by stage; rows as of `sections.cost.breakdown`."""
    parts = pd.DataFrame({"time": stages["share"], "operations": stages["operations"]}).fillna(0)
    figure = canvas(2.0)
    axes = (parts / parts.sum()).T.plot.barh(
        stacked=True, ax=figure.subplots(), color=_STAGES, width=0.6, legend=False
    )
    bars: Any
    for bars in axes.containers:
        shown = [f"{share:.0%}" if share > _LEGIBLE else "" for share in bars.datavalues]
        axes.bar_label(bars, labels=shown, label_type="center", color="white")
    axes.set(xlim=(0, 1), ylim=(1.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=2)
    return figure
