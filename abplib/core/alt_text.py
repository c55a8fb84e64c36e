"""A figure in words, for who cannot see it: its axes, and the numbers that it is drawn from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text

LONGEST = 1500
"""Letters of a description; what is beyond is told by the chapter's tables and CSV files."""
_POINTS = 8
"""Of a line that are told; of a longer one, its ends and its least value."""


def in_words(figure: Figure) -> str:
    """Each panel: title, axes, then lines, bars, boxes, cells and what is written beside them."""
    names = {
        _colour(handle): text.get_text()
        for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes))
        if legend is not None
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=False)
        if handle is not None
    }
    told = " ".join(filter(None, (_panel(axes, names) for axes in figure.axes)))
    return told if len(told) <= LONGEST else told[:LONGEST].rsplit(" ", 1)[0] + " …"


def _panel(axes: Axes, names: dict[str, str]) -> str:
    if not axes.axison or not axes.get_visible():
        return " ".join(filter(None, (_one_line(text) for text in axes.texts)))
    title = _plain(axes.get_title(loc="left") or axes.get_title())
    over = [_one_line(axis.label) for axis in (axes.yaxis, axes.xaxis)]
    about = " against ".join(filter(None, over))
    facts = "; ".join(dict.fromkeys(fact for fact in _facts(axes, names) if fact))
    return ". ".join(part for part in (title, about, facts) if part) + "."


def _facts(axes: Axes, names: dict[str, str]) -> Iterator[str]:
    x, y = _ticks(axes.xaxis), _ticks(axes.yaxis)
    dots: dict[tuple[str, str], list[float]] = {}
    for line in axes.lines:
        drawn = np.asarray(line.get_xydata(), dtype=float)
        points: list[list[float]] = drawn[np.isfinite(drawn).all(1)].tolist()
        if line.get_transform() != axes.transData or not points:
            continue
        if y:  # a dot and its interval on the line of a word
            for value, place in points:
                dots.setdefault((_name(line, names), _at(place, y)), []).append(value)
            continue
        if len(points) > _POINTS:
            points = [points[0], min(points, key=lambda point: point[1]), points[-1]]
        yield _series(line, names, [f"{_at(a, x)}: {b:.3g}" for a, b in points])
    for (name, word), (value, *ends) in dots.items():
        span = f" ({min(ends):.3g} to {max(ends):.3g})" if ends else ""
        yield f"{name} {word}: {value:.3g}{span}".strip()
    for bars in axes.containers:
        if isinstance(bars, BarContainer):
            flat = bars.orientation == "horizontal"
            places = [
                (bar.get_y() + bar.get_height() / 2, bar.get_width())
                if flat
                else (bar.get_x() + bar.get_width() / 2, bar.get_height())
                for bar in bars.patches
            ]
            ticks = y if flat else x
            yield _series(bars.patches[0], names, [f"{_at(p, ticks)}: {v:.3g}" for p, v in places])
    for patch in axes.patches:
        if isinstance(patch, Rectangle) and not patch.get_fill():
            (left, top), right = patch.get_xy(), patch.get_x() + patch.get_width()
            corners = f"{left:.0f}, {top:.0f} to {right:.0f}, {top + patch.get_height():.0f}"
            yield f"{patch.get_label()} at pixels {corners}"
    for cells in axes.collections:
        values = cells.get_array() if isinstance(cells, QuadMesh) else None
        if values is not None and values.size:
            peak = np.unravel_index(int(np.argmax(values)), values.shape)
            least, most = float(np.min(values)), float(np.max(values))
            where = f"{_at(peak[-1] + 0.5, x)}, {_at(peak[0] + 0.5, y)}" if values.ndim > 1 else ""
            yield f"{values.shape} cells from {least:.3g} to {most:.3g}, the largest at {where}"
    cellwise = any(isinstance(cells, QuadMesh) for cells in axes.collections)
    for text in () if cellwise else axes.texts:
        said = _one_line(text)
        named = isinstance(text, Annotation) and text.xy[1] not in (0, 1) and axes.lines
        yield f"{said} ({_at(text.xy[1], y)})" if named and said else said  # type: ignore[attr-defined]


def _series(artist: Artist, names: dict[str, str], values: list[str]) -> str:
    return f"{_name(artist, names)} {', '.join(values)}".strip()


def _name(artist: Artist, names: dict[str, str]) -> str:
    """Its own label, or that of the key's entry of its colour."""
    label = str(artist.get_label())
    return names.get(_colour(artist), "") if label.startswith("_") else label


def _colour(artist: Artist) -> str:
    if isinstance(artist, Line2D):
        return to_hex(artist.get_color())
    get = getattr(artist, "get_facecolor", None)
    found: Any = np.ravel(get())[:4] if get else ()
    return to_hex(found) if np.size(found) > 2 else ""


def _ticks(axis: Axis) -> dict[float, str]:
    """Words that stand for places; none where an axis counts."""
    known = dict(
        zip(axis.get_ticklocs(), (_one_line(t) for t in axis.get_ticklabels()), strict=False)
    )
    counts = all(text.strip(" %").replace("−", "-").lstrip("-").replace(".", "").isdigit()
                 for text in known.values() if text)  # fmt: skip
    return {} if counts else {float(place): text for place, text in known.items() if text}


def _at(place: float, ticks: dict[float, str]) -> str:
    near = min(ticks, key=lambda tick: abs(tick - place), default=None)
    return ticks[near] if near is not None and abs(near - place) < 0.5 else f"{place:.3g}"


def _one_line(text: Text) -> str:
    return _plain(text.get_text())


def _plain(text: str) -> str:
    return " ".join(text.replace("$", "").split())
