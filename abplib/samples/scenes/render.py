"""Scenes to pixels: ground, soft shadows, shaded objects, one lamp. The same on every machine.

The lamp stands upper left and its warm light falls off smoothly: as in a photograph, the tone
of a patch then tells roughly where in the picture it lies, which a vision tower with relative
positions alone could not know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from abplib.samples.scenes.objects import COLOURS, sprite
from abplib.samples.scenes.scene import BACKGROUNDS, Scene, Thing

SIDE = 384
"""Side of a rendered scene in pixels."""

Look = tuple[str, str]
"""Kind and colour of an object."""
Window = tuple[int, int, int, int]

_VARIANTS = 8


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB image, `SIDE` pixels square."""
    picture = _ground(scene.background, scene.seed % _VARIANTS).copy()
    for thing in scene.things:
        _place(picture, thing)
    image = ImageChops.multiply(picture, _lamp())
    return image if scene.style is None else _STYLES[scene.style](image)


def render_looks(
    scene: Scene, index: int, looks: Iterable[Look | None], window: Window
) -> list[Image.Image]:
    """A window of the scene with object `index` in each of some looks; None leaves it out.

    `window` is (left, top, right, bottom) in pixels of the whole picture; the style is left out.
    """
    left, top = window[:2]
    under = _ground(scene.background, scene.seed % _VARIANTS).crop(window)
    for thing in scene.things[:index]:
        _place(under, thing, left, top)
    lamp = _lamp().crop(window)
    pictures = []
    for look in looks:
        picture = under.copy()
        if look is not None:
            kind, colour = look
            _place(picture, replace(scene.things[index], kind=kind, colour=colour), left, top)
        for thing in scene.things[index + 1 :]:
            _place(picture, thing, left, top)
        pictures.append(ImageChops.multiply(picture, lamp))
    return pictures


@lru_cache(maxsize=16)
def masks(scene: Scene) -> np.ndarray:
    """Visible pixels of every object: bool [n_objects, SIDE, SIDE], read-only."""
    out = np.zeros((len(scene.things), SIDE, SIDE), bool)
    for i, thing in enumerate(scene.things):
        body = _body(thing.kind, thing.colour, round(thing.size * SIDE))
        x, y = _corner(thing, body)
        solid = np.asarray(body.getchannel("A")) > 127
        h, w = solid.shape
        top, left = max(0, -y), max(0, -x)
        bottom, right = min(h, SIDE - y), min(w, SIDE - x)
        solid = solid[top:bottom, left:right]
        window = (slice(y + top, y + bottom), slice(x + left, x + right))
        for earlier in range(i):
            out[(earlier, *window)] &= ~solid
        out[(i, *window)] = solid
    out.setflags(write=False)
    return out


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The tight box of a bool mask [H, W], normalised (x1, y1, x2, y2)."""
    height, width = mask.shape
    (x1, x2), (y1, y2) = (np.flatnonzero(mask.any(axis))[[0, -1]].tolist() for axis in (0, 1))
    return x1 / width, y1 / height, (x2 + 1) / width, (y2 + 1) / height  # corners inclusive


@lru_cache(maxsize=1024)
def _body(kind: str, colour: str, side: int) -> Image.Image:
    """An object's RGBA picture with its longer side in pixels."""
    source = sprite(kind, colour)
    width, height = (max(1, round(v * side / max(source.size))) for v in source.size)
    return source.resize((width, height), Image.Resampling.BOX)


@lru_cache(maxsize=256)
def _shadow(kind: str, side: int) -> Image.Image:
    """The soft shadow (L) of an object of any colour."""
    body = _body(kind, next(iter(COLOURS)), side)
    reach = max(body.size) // 3
    shadow = Image.new("L", (body.width + 2 * reach, body.height + 2 * reach))
    shade = body.getchannel("A").point(lambda v: v * 3 // 7)
    shadow.paste(shade, (reach + reach // 2 - reach // 3, reach))
    small = shadow.resize((shadow.width // 4 + 1, shadow.height // 4 + 1), Image.Resampling.BOX)
    return small.filter(ImageFilter.BoxBlur(reach / 16)).resize(shadow.size)


def _place(picture: Image.Image, thing: Thing, left: int = 0, top: int = 0) -> None:
    """Paint an object and its shadow on a picture whose own corner is at (left, top)."""
    side = round(thing.size * SIDE)
    body = _body(thing.kind, thing.colour, side)
    x, y = _corner(thing, body)
    x, y, reach = x - left, y - top, max(body.size) // 3
    corner = (x - reach // 2, y - reach // 3)
    picture.paste((22, 18, 30), corner, _shadow(thing.kind, side))
    picture.paste(body, (x, y), body)


def _corner(thing: Thing, body: Image.Image) -> tuple[int, int]:
    """Where the upper left corner of an object's picture goes."""
    return round(thing.x * SIDE - body.width / 2), round(thing.y * SIDE - body.height / 2)


@cache
def _lamp() -> Image.Image:
    """Share of the light that reaches each place: warm on the left, cooler downwards."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    red, green, blue = 1 - 0.32 * x - 0.12 * y, 0.97 - 0.14 * x - 0.2 * y, 0.84 - 0.24 * y
    return Image.fromarray(np.rint(np.stack([red, green, blue], -1) * 255).astype(np.uint8))


@cache
def _ground(name: str, variant: int) -> Image.Image:
    """A ground texture of low contrast, in one of a few variants."""
    base = np.array(BACKGROUNDS[name], np.float32)
    noise = np.random.Generator(np.random.PCG64([7, *name.encode(), variant]))
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    fine = _clouds(noise, 96)
    if name == "wood":
        plank = np.floor(y * 6)
        tone = ((plank * 7 + variant) % 4 - 1.5) * 0.03 + 0.05 * (_clouds(noise, 48, 3) - 0.5)
        tone = tone - 0.16 * (np.abs(y * 6 - np.rint(y * 6)) < 0.025)
    elif name == "cloth":
        squares = (np.floor(x * 8) + np.floor(y * 8)) % 2
        tone = 0.045 * (squares - 0.5) + 0.03 * (fine - 0.5)
    elif name == "grass":
        tone = 0.2 * (_clouds(noise, 128) - 0.5) + 0.16 * (_clouds(noise, 24) - 0.5)
    elif name == "sand":
        waves = _clouds(noise, 6, 24)
        tone = 0.12 * (waves - 0.5) + 0.07 * (fine - 0.5)
    else:
        tone = 0.05 * (_clouds(noise, 12) - 0.5) + 0.03 * (fine - 0.5)
    rgb = base * (1 + tone[..., None])
    return Image.fromarray(np.clip(np.rint(rgb), 0, 255).astype(np.uint8))


def _clouds(noise: np.random.Generator, columns: int, rows: int | None = None) -> np.ndarray:
    """Smooth noise in [0, 1]: float32 [SIDE, SIDE]."""
    seeds = noise.integers(0, 256, (rows or columns, columns), dtype=np.uint8)
    smooth = Image.fromarray(seeds).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / 255


def _sketch(image: Image.Image) -> Image.Image:
    grey = image.convert("L")
    blurred = np.asarray(grey.filter(ImageFilter.GaussianBlur(4)), np.float32)
    lines = np.asarray(grey, np.float32) / np.maximum(blurred, 1)
    return Image.fromarray(np.clip(np.rint(lines * 250), 0, 255).astype(np.uint8)).convert("RGB")


def _sepia(image: Image.Image) -> Image.Image:
    grey = np.asarray(image.convert("L"), np.float32)[..., None] / 255
    tone = grey * np.array([255, 226, 176]) * 1.04
    return Image.fromarray(np.clip(np.rint(tone), 0, 255).astype(np.uint8))


def _poster(image: Image.Image) -> Image.Image:
    smooth = image.filter(ImageFilter.ModeFilter(7))
    return smooth.point(lambda v: min(255, v // 48 * 48 + 24))


_STYLES = {"pencil sketch": _sketch, "old photograph": _sepia, "poster": _poster}
STYLES = tuple(_STYLES)
