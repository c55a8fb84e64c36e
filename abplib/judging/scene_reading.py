"""Reading an image of a known scene: what each object looks like, and what else has changed.

No learning: at each object's place every look (kind and colour, or nothing at all) is rendered on
the known ground among its neighbours, and the look nearest in colour is what is there. Editors
blur and shift, so all pictures are compared small and soft, and after a correction of their tone.

The thresholds were set on the multi-entity set's training split, on edited scenes blurred (standard
deviation 5 px), 4 to 6 times smaller and up again, noisy (12 levels), as JPEG of quality 15, with a
gamma or brightness off by 5 %, and moved by 2 px. There a crop is within 15 levels of what it shows
and every other look at least 1.5 times as far; the ground within 14 levels, 8 all but everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import cdist

from abplib.core.errors import AbpError
from abplib.samples.scenes.objects import COLOURS, KINDS
from abplib.samples.scenes.render import SIDE, Look, render, render_looks
from abplib.samples.scenes.scene import Scene, Thing

GRID = 96
"""Side in pixels at which pictures are compared; lengths below are in these pixels."""
BLUR = 1.2
"""Standard deviation of the blur before they are."""
TONE = 0.1
"""Largest change of a channel's brightness over the whole picture that is put right."""
CLEARLY = 1.2
"""Another look must be so many times nearer than an object's own to count."""
UNLIKE = 22.0
"""RMS difference in levels of 255 from which on a crop does not show its nearest look clearly."""
STRONG = 18.0
"""Difference in levels of 255 that a pixel of the ground must have to show something new."""
APPEARED_SHARE = 0.2
"""Least area of connected such pixels, in squares of the smallest object's side."""
FAINT = 8.0
"""Difference in levels of 255 that a pixel of a changed ground must have."""
GROUND_SHARE = 0.25
"""Part of the ground that must have it for the ground itself to count as changed."""

LOOKS: tuple[Look | None, ...] = (*((kind, c) for kind in KINDS for c in COLOURS), None)

_STEP = SIDE // GRID
_RADIUS = 3
Slices = tuple[slice, slice]


@dataclass(frozen=True)
class Reading:
    """What an image shows of a scene."""

    looks: tuple[Look | None, ...]
    """Of each object: its own unless another is clearly nearer; None where nothing is left."""
    clear: tuple[bool, ...]
    """Whether each crop really is like that look, not something between or beyond all looks; on
    a changed ground, which no crop is like, taken for granted."""
    appeared: int
    """Regions of the ground where something is that was not there; 0 on a changed ground."""
    ground_kept: bool


def read(scene: Scene, images: Sequence[Image.Image]) -> list[Reading]:
    """What each of several square images shows of one scene; raises AbpError if one is not square.

    An object counts as altered only where another look is `CLEARLY` nearer, so a blend less than
    half-way to another look is the object itself; one half-way between very different looks shows
    neither clearly (`UNLIKE`).
    """
    source = _soft([render(scene)])[0]
    seen = _seen(scene, images, source)
    errors = _errors(scene, seen)
    return [
        _reading(scene, source, picture, rows) for picture, rows in zip(seen, errors, strict=True)
    ]


def _reading(scene: Scene, source: np.ndarray, seen: np.ndarray, errors: np.ndarray) -> Reading:
    """From one picture [GRID, GRID, 3] and its errors [objects, looks]."""
    looks, distances = [], []
    for thing, row in zip(scene.things, errors, strict=True):
        own, nearest = LOOKS.index((thing.kind, thing.colour)), int(row.argmin())
        if row[own] <= CLEARLY * row[nearest]:
            nearest = own
        looks.append(LOOKS[nearest])
        distances.append(row[nearest])
    explained = _soft([render(_as_read(scene, looks))])[0]
    ground = _ground(scene)
    difference = np.minimum(_difference(seen, explained), _difference(seen, source))
    if (difference[ground] > FAINT).mean() > GROUND_SHARE:
        return Reading(tuple(looks), (True,) * len(looks), 0, False)
    clear = tuple(bool(distance < UNLIKE) for distance in distances)
    return Reading(tuple(looks), clear, _regions(scene, (difference > STRONG) & ground), True)


def _seen(scene: Scene, images: Sequence[Image.Image], source: np.ndarray) -> np.ndarray:
    """Images as they are compared, their tone put right: [n, GRID, GRID, 3]."""
    for image in images:
        if image.width != image.height:
            raise AbpError(
                f"An edited image is {image.width} x {image.height} px, but scenes are square: "
                "give it with its source's proportions."
            )
    soft = _soft([image.convert("RGB").resize((SIDE, SIDE)) for image in images])
    ground = _ground(scene)
    tone = np.median(soft[:, ground] / source[ground].clip(min=1), axis=1)
    return soft / tone.clip(1 - TONE, 1 + TONE)[:, None, None]


def _errors(scene: Scene, seen: np.ndarray) -> np.ndarray:
    """RMS difference of each object's crop from each of `LOOKS`: [images, objects, looks]."""
    errors = []
    for index, thing in enumerate(scene.things):
        rows, columns = _square(thing)
        crops = seen[:, rows, columns]
        there = _templates(scene, index, rows, columns)
        flat = cdist(crops.reshape(len(crops), -1), there.reshape(len(there), -1))
        errors.append(flat / math.sqrt(there[0].size))
    return np.stack(errors, axis=1)


def _templates(scene: Scene, index: int, rows: slice, columns: slice) -> np.ndarray:
    """Each of `LOOKS` at an object's place: [looks, height, width, 3]."""
    top, left = max(0, rows.start - _RADIUS), max(0, columns.start - _RADIUS)
    bottom, right = min(GRID, rows.stop + _RADIUS), min(GRID, columns.stop + _RADIUS)
    window = (left * _STEP, top * _STEP, right * _STEP, bottom * _STEP)
    soft = _soft(render_looks(scene, index, LOOKS, window))
    return soft[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def _square(thing: Thing) -> Slices:
    """Rows and columns of the square that holds the object whatever its kind."""
    half = thing.size / 2

    def span(centre: float) -> slice:
        return slice(
            max(0, math.floor((centre - half) * GRID)), min(GRID, math.ceil((centre + half) * GRID))
        )

    return span(thing.y), span(thing.x)


def _ground(scene: Scene) -> np.ndarray:
    """Where no object is, with a pixel of room around each: bool [GRID, GRID]."""
    taken = np.zeros((GRID, GRID), bool)
    for thing in scene.things:
        taken[_square(thing)] = True
    return ~ndimage.binary_dilation(taken, np.ones((3, 3), bool))


def _soft(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Pictures of equal size, `_STEP` times smaller and blurred: float32 [n, height, width, 3]."""
    small = np.stack([np.asarray(picture.reduce(_STEP), np.float32) for picture in pictures])
    return ndimage.gaussian_filter(small, BLUR, axes=(1, 2), radius=_RADIUS, mode="nearest")


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """RMS over the channels: [GRID, GRID]."""
    return np.sqrt(((a - b) ** 2).mean(-1))


def _as_read(scene: Scene, looks: Sequence[Look | None]) -> Scene:
    """The scene with its objects in other looks."""
    there = [
        replace(thing, kind=look[0], colour=look[1])
        for thing, look in zip(scene.things, looks, strict=True)
        if look is not None
    ]
    return replace(scene, things=tuple(there))


def _regions(scene: Scene, changed: np.ndarray) -> int:
    """How many regions of changed pixels, near ones taken together, could hold an object."""
    regions, _ = ndimage.label(ndimage.binary_dilation(changed, np.ones((3, 3), bool), 2))
    least = APPEARED_SHARE * min(thing.size * GRID for thing in scene.things) ** 2
    return int((np.bincount(regions[changed]) >= least).sum())
