"""The objects of the mini world: twelve kinds, drawn from simple parts, in eight colours.

A kind is a list of parts in the unit square (x right, y down). A part is filled with the
object's colour (`TINT`), a darker tone of it (`SHADE`), or a fixed RGB of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (214, 40, 44),
    "orange": (243, 131, 26),
    "yellow": (246, 211, 46),
    "green": (58, 158, 70),
    "blue": (42, 98, 208),
    "purple": (128, 62, 176),
    "pink": (246, 138, 184),
    "white": (244, 243, 238),
}

TINT, SHADE = "tint", "shade"
WOOD: RGB = (124, 82, 46)
LEAF: RGB = (74, 132, 58)
CREAM: RGB = (250, 238, 212)
GLASS: RGB = (176, 214, 232)
DARK: RGB = (44, 42, 48)
GREY: RGB = (190, 192, 196)

Fill = str | RGB
Point = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """One filled shape: a polygon, an ellipse given by its two corners, or a thick line."""

    shape: str
    points: tuple[Point, ...]
    fill: Fill
    width: float = 0.0


def _polygon(fill: Fill, *points: Point) -> Part:
    return Part("polygon", points, fill)


def _ellipse(fill: Fill, x1: float, y1: float, x2: float, y2: float) -> Part:
    return Part("ellipse", ((x1, y1), (x2, y2)), fill)


def _line(fill: Fill, width: float, *points: Point) -> Part:
    return Part("line", points, fill, width)


def _disc(fill: Fill, x: float, y: float, r: float) -> Part:
    return _ellipse(fill, x - r, y - r, x + r, y + r)


def _half_disc(fill: Fill, x: float, y: float, rx: float, ry: float) -> Part:
    turns = [math.pi * i / 32 for i in range(33)]
    return _polygon(fill, *((x + rx * math.cos(a), y - ry * math.sin(a)) for a in turns))


def _star(fill: Fill, x: float, y: float, outer: float, inner: float) -> Part:
    corners = []
    for i in range(10):
        r, a = (outer, inner)[i % 2], math.pi * (i / 5 - 0.5)
        corners.append((x + r * math.cos(a), y + r * math.sin(a)))
    return _polygon(fill, *corners)


def _petals(fill: Fill, x: float, y: float, ring: float, r: float, n: int = 6) -> list[Part]:
    turns = [2 * math.pi * i / n for i in range(n)]
    return [_disc(fill, x + ring * math.cos(a), y + ring * math.sin(a), r) for a in turns]


KINDS: dict[str, list[Part]] = {
    "apple": [
        _ellipse(TINT, 0.06, 0.24, 0.64, 0.96),
        _ellipse(TINT, 0.36, 0.24, 0.94, 0.96),
        _line(WOOD, 0.07, (0.50, 0.34), (0.56, 0.06)),
        _polygon(LEAF, (0.56, 0.2), (0.66, 0.07), (0.9, 0.04), (0.82, 0.18), (0.68, 0.24)),
    ],
    "balloon": [
        _line(GREY, 0.035, (0.5, 0.78), (0.46, 0.88), (0.53, 0.98)),
        _polygon(SHADE, (0.5, 0.7), (0.4, 0.83), (0.6, 0.83)),
        _ellipse(TINT, 0.17, 0.02, 0.83, 0.76),
    ],
    "boat": [
        _line(WOOD, 0.05, (0.47, 0.66), (0.47, 0.04)),
        _polygon(CREAM, (0.52, 0.06), (0.92, 0.56), (0.52, 0.56)),
        _polygon(GREY, (0.42, 0.16), (0.42, 0.56), (0.12, 0.56)),
        _polygon(TINT, (0.02, 0.62), (0.98, 0.62), (0.82, 0.95), (0.18, 0.95)),
    ],
    "car": [
        _polygon(TINT, (0.2, 0.5), (0.33, 0.22), (0.68, 0.22), (0.84, 0.5)),
        _polygon(TINT, (0.04, 0.48), (0.9, 0.46), (0.98, 0.56), (0.98, 0.76), (0.02, 0.76)),
        _polygon(GLASS, (0.29, 0.46), (0.37, 0.28), (0.49, 0.28), (0.49, 0.46)),
        _polygon(GLASS, (0.54, 0.46), (0.54, 0.28), (0.65, 0.28), (0.74, 0.46)),
        _disc(DARK, 0.25, 0.77, 0.14),
        _disc(GREY, 0.25, 0.77, 0.06),
        _disc(DARK, 0.75, 0.77, 0.14),
        _disc(GREY, 0.75, 0.77, 0.06),
    ],
    "cup": [
        _ellipse(TINT, 0.52, 0.3, 0.97, 0.74),
        _ellipse((0, 0, 0), 0.62, 0.41, 0.86, 0.63),
        _polygon(TINT, (0.06, 0.2), (0.74, 0.2), (0.66, 0.86), (0.14, 0.86)),
        _ellipse(TINT, 0.14, 0.76, 0.66, 0.95),
        _ellipse(SHADE, 0.06, 0.1, 0.74, 0.3),
    ],
    "fish": [
        _polygon(SHADE, (0.64, 0.5), (0.97, 0.2), (0.9, 0.5), (0.97, 0.82)),
        _polygon(SHADE, (0.3, 0.3), (0.42, 0.1), (0.58, 0.34)),
        _ellipse(TINT, 0.02, 0.22, 0.78, 0.8),
        _disc(CREAM, 0.2, 0.44, 0.075),
        _disc(DARK, 0.19, 0.44, 0.042),
    ],
    "flower": [
        _line(LEAF, 0.07, (0.5, 0.5), (0.5, 0.98)),
        _polygon(LEAF, (0.5, 0.88), (0.62, 0.7), (0.84, 0.66), (0.74, 0.84)),
        _polygon(LEAF, (0.5, 0.92), (0.38, 0.74), (0.16, 0.7), (0.26, 0.88)),
        *_petals(TINT, 0.5, 0.36, 0.21, 0.15),
        _disc(WOOD, 0.5, 0.36, 0.12),
    ],
    "house": [
        _polygon(TINT, (0.12, 0.44), (0.88, 0.44), (0.88, 0.97), (0.12, 0.97)),
        _polygon((96, 70, 66), (0.5, 0.03), (0.99, 0.48), (0.01, 0.48)),
        _polygon(WOOD, (0.2, 0.62), (0.42, 0.62), (0.42, 0.97), (0.2, 0.97)),
        _polygon(GLASS, (0.55, 0.6), (0.78, 0.6), (0.78, 0.8), (0.55, 0.8)),
    ],
    "mushroom": [
        _polygon(CREAM, (0.38, 0.5), (0.62, 0.5), (0.68, 0.96), (0.32, 0.96)),
        _half_disc(TINT, 0.5, 0.6, 0.47, 0.54),
        _disc(CREAM, 0.32, 0.4, 0.07),
        _disc(CREAM, 0.55, 0.24, 0.075),
        _disc(CREAM, 0.72, 0.44, 0.065),
    ],
    "star": [_star(TINT, 0.5, 0.53, 0.51, 0.22)],
    "tree": [
        _polygon(WOOD, (0.43, 0.55), (0.57, 0.55), (0.62, 0.98), (0.38, 0.98)),
        _disc(TINT, 0.29, 0.46, 0.25),
        _disc(TINT, 0.71, 0.46, 0.25),
        _disc(TINT, 0.5, 0.27, 0.26),
        _disc(TINT, 0.5, 0.52, 0.2),
    ],
    "umbrella": [
        _line(WOOD, 0.06, (0.5, 0.1), (0.5, 0.88), (0.56, 0.95), (0.66, 0.92), (0.68, 0.82)),
        _half_disc(TINT, 0.5, 0.6, 0.49, 0.56),
        _polygon(SHADE, (0.01, 0.6), (0.34, 0.6), (0.5, 0.06)),
        _polygon(SHADE, (0.99, 0.6), (0.66, 0.6), (0.5, 0.06)),
    ],
}

SPRITE = 192
"""Side of a finished sprite in pixels; objects are drawn from it by down-scaling."""


@cache
def sprite(kind: str, colour: str) -> Image.Image:
    """A shaded object on transparent ground: RGBA, `SPRITE` pixels square, tightly cropped."""
    tint = COLOURS[colour]
    tones: dict[str, RGB] = {TINT: tint, SHADE: _scale(tint, 0.74)}
    side = 3 * SPRITE
    paint = Image.new("RGB", (side, side))
    alpha = Image.new("L", (side, side))
    for part in KINDS[kind]:
        fill = tones[part.fill] if isinstance(part.fill, str) else part.fill
        hole = fill == (0, 0, 0)
        _draw(ImageDraw.Draw(paint), part, side, fill)
        _draw(ImageDraw.Draw(alpha), part, side, 0 if hole else 255)
    paint, alpha = paint.reduce(3), alpha.reduce(3)
    shaded = _emboss(paint, alpha)
    shaded.putalpha(alpha)
    return shaded.crop(alpha.point(lambda v: 255 if v > 127 else 0).getbbox())


def _draw(canvas: ImageDraw.ImageDraw, part: Part, side: int, fill: RGB | int) -> None:
    points = [(x * side, y * side) for x, y in part.points]
    if part.shape == "polygon":
        canvas.polygon(points, fill=fill)
    elif part.shape == "ellipse":
        canvas.ellipse([*points[0], *points[1]], fill=fill)
    else:
        canvas.line(points, fill=fill, width=round(part.width * side), joint="curve")


def _emboss(paint: Image.Image, alpha: Image.Image) -> Image.Image:
    """Light a flat drawing from the upper left, its height being its blurred outline."""
    grey = ImageChops.multiply(alpha, paint.convert("L").point(lambda v: 190 + v // 4))
    height = (
        np.asarray(grey.filter(ImageFilter.GaussianBlur(SPRITE * 0.06)), np.float32)
        + np.asarray(grey.filter(ImageFilter.GaussianBlur(SPRITE * 0.015)), np.float32) * 0.35
    )
    down, right = np.gradient(height)
    slope = np.clip((right * 0.7 + down) * 0.16, -1, 1)
    light = 1.08 + 0.32 * slope
    gloss = np.clip(slope - 0.35, 0, 1) * 110
    rgb = np.asarray(paint, np.float32) * light[..., None] + gloss[..., None]
    return Image.fromarray(np.clip(np.rint(rgb), 0, 255).astype(np.uint8))


def _scale(rgb: RGB, factor: float) -> RGB:
    r, g, b = (round(v * factor) for v in rgb)
    return r, g, b
