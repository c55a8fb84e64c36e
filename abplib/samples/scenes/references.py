"""Which spatial terms single out which object (appendix A.2), and never by a hair's breadth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from abplib.samples.scenes.scene import Scene

MARGIN = 0.045
"""Two places closer than this along an axis (fraction of the side) nearly tie: not asked for."""

_ORDINALS = ("", "second ", "third ")
_SIDES = {"left": ("x", 1), "right": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}
_AXES = {"row": ("left", "right"), "column": ("top", "bottom")}
_CORNERS = {
    "top left": (1, 1),
    "top right": (-1, 1),
    "bottom left": (1, -1),
    "bottom right": (-1, -1),
}


@dataclass(frozen=True)
class Reference:
    """A phrase that names one object of a scene, such as "second cup from the left"."""

    phrase: str
    term: str
    index: int


def references(scene: Scene, group: Sequence[int]) -> list[Reference]:
    """Every unambiguous spatial reference among the objects `group`, all of one kind.

    Rows are asked along x, columns along y, grids by corner and centre, arcs and scattered
    layouts along both axes; front and back only where nearer objects are drawn larger.
    """
    kind = scene.things[group[0]].kind
    named: list[Reference] = []
    if scene.layout == "grid" and len(group) == len(scene.things):
        named += _corners(scene, group, kind)
    else:
        for side in _AXES.get(scene.layout, tuple(_SIDES)):
            named += _from_side(scene, group, kind, side)
        named += _middle(scene, group, kind)
    return named


def _from_side(scene: Scene, group: Sequence[int], kind: str, side: str) -> list[Reference]:
    axis, sign = _SIDES[side]
    place = {i: sign * float(getattr(scene.things[i], axis)) for i in group}
    order = sorted(group, key=place.__getitem__)
    gaps = [place[b] - place[a] for a, b in itertools.pairwise(order)]
    named = []
    for rank, ordinal in enumerate(_ORDINALS[: (len(order) + 1) // 2]):
        clear_before = rank == 0 or gaps[rank - 1] >= MARGIN
        clear_after = rank >= len(gaps) or gaps[rank] >= MARGIN
        if not (clear_before and clear_after) or len(order) < 2:
            continue
        if rank == 0:
            named.append(Reference(f"{side}most {kind}", f"{side}most", order[0]))
            depth = {"bottom": "frontmost", "top": "backmost"}.get(side)
            if scene.layout == "scattered" and depth:
                named.append(Reference(f"{depth} {kind}", depth, order[0]))
        else:
            term = f"{ordinal}from the {side}"
            named.append(Reference(f"{ordinal}{kind} from the {side}", term, order[rank]))
    return named


def _middle(scene: Scene, group: Sequence[int], kind: str) -> list[Reference]:
    if scene.layout not in _AXES or len(group) % 2 == 0 or len(group) < 3:
        return []
    axis = _SIDES[_AXES[scene.layout][0]][0]
    order = sorted(group, key=lambda i: getattr(scene.things[i], axis))
    return [Reference(f"middle {kind}", "middle", order[len(order) // 2])]


def _corners(scene: Scene, group: Sequence[int], kind: str) -> list[Reference]:
    named = []
    for corner, (right, down) in _CORNERS.items():
        nearest = min(group, key=lambda i: right * scene.things[i].x + down * scene.things[i].y)
        named.append(Reference(f"{corner} {kind}", corner, nearest))
    if len(group) == 9:
        centre = min(group, key=lambda i: _offset(scene, group, i))
        named.append(Reference(f"center {kind}", "center", centre))
    return named


def _offset(scene: Scene, group: Sequence[int], index: int) -> float:
    """City-block distance of one object from the group's middle."""
    things = [scene.things[i] for i in group]
    x, y = (sum(getattr(t, axis) for t in things) / len(things) for axis in ("x", "y"))
    return abs(scene.things[index].x - x) + abs(scene.things[index].y - y)
