"""What all figures share: size, type, the paper's colours, labels that do not collide.

Figures are 560 px wide in the book, so that their type is still legible when a phone shows them at
350 px.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

P = ParamSpec("P")

WIDTH = 5.6
"""Of every figure, in inches of 100 px."""

INK = "#22272e"
QUIET = "#6b7480"
RULE = "#d9dee4"
ACCENT = "#2f5d8c"
TARGET = "#15a34a"
"""The exact box."""
ANSWER = "#e0147b"
"""The VLM's box."""

GROUPS = {
    "final": ("#c8322b", "final states"),
    "outer": ("#3f72b0", "early and late layers"),
    "middle": ("#d99a00", "middle layers"),
    "middle_prompt": ("#2b8a4b", "prompt tokens of the middle layers"),
}
"""Figure 4's colour groups: colour and how a key calls them."""

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.solid_capstyle": "round",
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a plotting function draw in the book's style."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return drawn


def canvas(height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure of the book's width, `height` inches high."""
    return Figure(figsize=(WIDTH, height), dpi=100, layout=layout)


def spread(places: Sequence[float], gap: float) -> np.ndarray:
    """Places at least `gap` apart, in the order of the given ones, as near to them as can be."""
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(order))
    moved = np.empty(len(order))
    moved[order] = isotonic_regression(np.asarray(places, dtype=float)[order] - steps).x + steps
    return moved
