"""What all figures share: size, type, the paper's colours, text drawn as it was typed.

Figures are 560 px wide in the book, so that their type is still legible when a phone shows them at
350 px. Labels may hold anything that people wrote: `$` starts no formula (a label that is one says
so with `parse_math=True`), and scripts beyond the book's font are looked for in the machine's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text
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
    "final": "#c8322b",
    "outer": "#3f72b0",
    "middle": "#d99a00",
    "middle_prompt": "#2b8a4b",
    "between": "#8b939d",
    "prompt": "#7fb894",
    "control": "#8a5a9e",
}
"""Colours of Figure 4's groups, of layers in none of them, and of controls."""

_FONT = "DejaVu Sans"
_MISSING = "□"

_RC: Any = {
    "font.family": _FONT,
    "text.parse_math": False,
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
    """Make a plotting function draw in the book's style, in letters that the machine has."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_RC):
            figure = draw(*args, **kwargs)
            _in_known_letters(figure)
            return figure

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


def plain(axes: Axes) -> None:
    """No grid over an image, and a quiet frame around it."""
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize=9.5)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(RULE)


def lift_legend(axes: Axes, n_columns: int) -> None:
    """Set the legend that seaborn drew into axes above the figure."""
    key, figure = axes.get_legend(), axes.get_figure(root=True)
    assert key is not None and figure is not None
    handles = [handle for handle in key.legend_handles if handle is not None]
    names = [text.get_text() for text in key.get_texts()]
    key.remove()
    figure.legend(handles, names, loc="outside upper left", ncols=n_columns, columnspacing=1.4)


def _in_known_letters(figure: Figure) -> None:
    """Set what the book's font lacks in one that has it; squares and a note where none does."""
    ticks = {
        axis: axis.get_ticklabels()
        for axes in figure.findobj(Axes)
        for axis in (axes.xaxis, axes.yaxis)
    }
    texts = [*figure.findobj(Text), *(text for labels in ticks.values() for text in labels)]
    lacking = frozenset("".join(text.get_text() for text in texts)) - {"\n"}
    lacking -= _letters(findfont(_FONT))
    if not lacking:
        return
    fonts = _fonts(lacking)
    unknown = lacking - frozenset().union(*map(_letters, fonts.values()))
    squares = str.maketrans(dict.fromkeys(unknown, _MISSING))
    for text in texts:
        text.set_fontfamily([_FONT, *fonts])
        text.set_text(text.get_text().translate(squares))
    if unknown:
        for axis, labels in ticks.items():
            if any(_MISSING in text.get_text() for text in labels):
                axis.set_ticks(axis.get_ticklocs(), [text.get_text() for text in labels])
        note = f"{_MISSING}: a letter that no font of the machine has"
        under = f"{figure.get_supxlabel()}\n{note}".strip()
        figure.supxlabel(under, fontsize=8, color=QUIET)


@functools.cache
def _letters(path: str) -> frozenset[str]:
    """What the font of a file can draw; nothing where it is broken or cannot be scaled."""
    try:
        return frozenset(map(chr, get_font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def _fonts(lacking: frozenset[str]) -> dict[str, str]:
    """Files, by family, of installed fonts that have these letters between them, as far as any."""
    chosen = {}
    for font in sorted(fontManager.ttflist, key=lambda font: font.name):
        usual = (font.style, str(font.weight), font.stretch) == ("normal", "400", "normal")
        special = "Last Resort" in font.name or "Color" in font.name
        if usual and not special and lacking & _letters(font.fname):
            chosen[font.name] = font.fname
            lacking -= _letters(font.fname)
    return chosen
