"""Boxes: geometry, pixels at the edges, drawing.

A box is `(x1, y1, x2, y2)` with x1 <= x2 and y1 <= y2, as fractions of the source image
(0 = left or top edge, 1 = right or bottom edge), except where a name says pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

Box = tuple[float, float, float, float]
CORNERS = ["x1", "y1", "x2", "y2"]
"""Columns of a box in tables."""

_TINY = 1e-9  # keeps the ratios of empty boxes finite


def area(boxes: Tensor) -> Tensor:
    """Area of boxes [..., 4] -> [...]; 0 where a side is reversed."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    shared = torch.cat(
        [torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], dim=-1
    )
    intersection = area(shared)
    return intersection, area(a) + area(b) - intersection


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of paired boxes [..., 4] -> [...] in [0, 1]."""
    intersection, union = _intersection_and_union(a, b)
    return intersection / union.clamp(min=_TINY)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (Rezatofighi et al. 2019) of paired boxes [..., 4] -> [...] in [-1, 1]."""
    intersection, union = _intersection_and_union(a, b)
    hull = area(
        torch.cat(
            [torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], dim=-1
        )
    )
    return intersection / union.clamp(min=_TINY) - (hull - union) / hull.clamp(min=_TINY)


def center_distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of the centres of paired boxes [..., 4] -> [...], in sides of the image.

    The localization error of the paper's Figure 4.
    """
    return ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).norm(dim=-1)


def order_and_clamp(box: Box) -> Box:
    """Swap reversed corners and clamp to the image, as the paper does with answers (A.1)."""
    x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in box)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def to_pixels(box: Box, size: tuple[int, int]) -> Box:
    """Fractions -> pixels of an image of `size` = (width, height)."""
    width, height = size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def from_pixels(box: Box, size: tuple[int, int]) -> Box:
    """Pixels of an image of `size` = (width, height) -> fractions, ordered and clamped."""
    width, height = size
    return order_and_clamp((box[0] / width, box[1] / height, box[2] / width, box[3] / height))


def pixels_inside(box: Box, height: int, width: int) -> np.ndarray:
    """Bool [height, width]: the pixels whose centres lie in a box."""
    x1, y1, x2, y2 = box
    xs, ys = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    return np.outer((ys >= y1) & (ys <= y2), (xs >= x1) & (xs <= x2))


def draw_overlay(image: Image.Image, box: Box, width: int = 3, colour: str = "red") -> Image.Image:
    """A copy of the image with an outline of `width` pixels around the box, which hides none.

    Where the image ends there is no room outside, and the outline keeps to the image's edge.
    """
    drawn = image.convert("RGB")
    x1, y1, x2, y2 = to_pixels(order_and_clamp(box), image.size)
    outer = (
        max(0, math.floor(x1) - width),
        max(0, math.floor(y1) - width),
        min(image.width, math.ceil(x2) + width) - 1,
        min(image.height, math.ceil(y2) + width) - 1,
    )
    ImageDraw.Draw(drawn).rectangle(outer, outline=colour, width=width)
    return drawn
