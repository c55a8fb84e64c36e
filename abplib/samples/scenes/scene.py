"""Scenes as data: objects on a ground in one of five layouts, and the spatial terms that hold.

Positions and sizes are fractions of the picture's side; y grows downwards.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np

from abplib.samples.scenes.objects import COLOURS, KINDS, RGB

BACKGROUNDS: dict[str, RGB] = {
    "wood": (204, 156, 112),
    "cloth": (172, 184, 204),
    "grass": (140, 172, 108),
    "sand": (232, 210, 164),
    "paper": (230, 228, 226),
}

LAYOUTS = ("row", "column", "arc", "grid", "scattered")
Random = np.random.Generator
T = TypeVar("T")
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Thing:
    """One object: kind and colour, its centre, and its longer side."""

    kind: str
    colour: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows, back to front."""

    background: str
    layout: str
    things: tuple[Thing, ...]
    seed: int
    style: str | None = None

    def digest(self) -> str:
        """Hash of the scene's content (not of its pixels); places count to the sixth decimal."""
        facts = asdict(self)
        facts["things"] = [
            [t.kind, t.colour, *(round(v, 6) for v in (t.x, t.y, t.size))] for t in self.things
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def multi_entity_scene(seed: int, layout: str | None = None) -> Scene:
    """Four to nine objects alike in kind and colour (appendix A.2), in any layout or this one."""
    random = generator(seed)
    kind, colour = choose(random, KINDS), choose(random, COLOURS)
    any_layout = choose(random, LAYOUTS)
    layout = layout or any_layout
    things = tuple(Thing(kind, colour, *place) for place in _PLACES[layout](random))
    return Scene(choose(random, BACKGROUNDS), layout, things, seed)


def general_scene(seed: int, layout: str | None = None) -> Scene:
    """Two to seven objects of mixed kinds and colours, in any layout or a given one."""
    random = generator(seed)
    any_layout = choose(random, LAYOUTS)
    layout = layout or any_layout
    places = _PLACES[layout](random)
    keep = int(random.integers(2, min(len(places), 7) + 1))
    chosen = sorted(random.permutation(len(places))[:keep]) if layout != "row" else range(keep)
    palette = [choose(random, KINDS) for _ in range(int(random.integers(1, 4)))]
    things = tuple(
        Thing(choose(random, palette), choose(random, COLOURS), *places[i]) for i in chosen
    )
    return Scene(choose(random, BACKGROUNDS), layout, things, seed)


def generator(seed: int) -> Random:
    """The random numbers of one seed."""
    return np.random.Generator(np.random.PCG64(seed))


def choose(random: Random, options: Iterable[T]) -> T:
    """One of the options, uniformly."""
    pool = list(options)
    return pool[int(random.integers(len(pool)))]


def _row(random: Random) -> list[Point]:
    n = int(random.integers(4, 7))
    pitch = float(random.uniform(0.8, 0.94)) / n
    size = min(pitch * float(random.uniform(0.82, 0.92)), 0.21)
    start = 0.5 - pitch * (n - 1) / 2
    height = float(random.uniform(0.3, 0.7))
    tilt = float(random.uniform(-0.15, 0.15))
    return [
        (start + pitch * i, height + tilt * (start + pitch * i - 0.5) + _wobble(random, 0.02), size)
        for i in range(n)
    ]


def _column(random: Random) -> list[Point]:
    return [(y, x, size) for x, y, size in _row(random)]


def _arc(random: Random) -> list[Point]:
    n = int(random.integers(4, 8))
    half = math.pi * float(random.uniform(0.36, 0.46))
    radius = float(random.uniform(0.34, 0.38))
    up = 1 if random.random() < 0.5 else -1
    middle = 0.5 + up * float(random.uniform(0.12, 0.2))
    step = 2 * half / (n - 1)
    size = min(2 * radius * math.sin(step / 2) * float(random.uniform(0.8, 0.92)), 0.2)
    turns = [-half + step * i for i in range(n)]
    return [(0.5 + radius * math.sin(a), middle - up * radius * math.cos(a), size) for a in turns]


def _grid(random: Random) -> list[Point]:
    columns, rows = ((2, 2), (3, 2), (2, 3), (4, 2), (3, 3))[int(random.integers(5))]
    pitch = min(0.9 / columns, 0.9 / rows) * float(random.uniform(0.88, 1.0))
    size = min(pitch * float(random.uniform(0.62, 0.78)), 0.23)
    dx, dy = _wobble(random, 0.04), _wobble(random, 0.04)
    return [
        (0.5 + dx + pitch * (c - (columns - 1) / 2), 0.5 + dy + pitch * (r - (rows - 1) / 2), size)
        for r in range(rows)
        for c in range(columns)
    ]


def _scattered(random: Random) -> list[Point]:
    """Anywhere on a floor seen from above its edge: the nearer (lower), the larger."""
    n = int(random.integers(4, 9))
    places: list[Point] = []
    while len(places) < n:
        places = []
        for _ in range(80):
            y = float(random.uniform(0.12, 0.86))
            size = 0.125 + 0.1 * (y - 0.12) / 0.74
            x = float(random.uniform(size / 2 + 0.03, 0.97 - size / 2))
            if all(max(abs(x - a), abs(y - b)) > 0.54 * (size + other) for a, b, other in places):
                places.append((x, y, size))
            if len(places) == n:
                break
    return sorted(places, key=lambda p: p[1])


def _wobble(random: Random, reach: float) -> float:
    return float(random.uniform(-reach, reach))


_PLACES: dict[str, Callable[[Random], list[Point]]] = {
    "row": _row,
    "column": _column,
    "arc": _arc,
    "grid": _grid,
    "scattered": _scattered,
}
