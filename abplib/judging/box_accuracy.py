"""How well a box localizes an edit: one tidy row a sample.

The paper's annotators call a box accurate when it "wholly encompasses only the target subject and
nothing else" (section 4.1). With exact masks that is: at least 90 % of the target's visible pixels
lie in the box, and at most 20 % of any other object's.

A set of photographs knows no masks. There the sample's box alone stands for the target: an answer
is accurate from an IoU of 0.5 with it, and about another object where its centre lies outside it.
"""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
import torch
from torchvision.ops import masks_to_boxes

from abplib.core.boxes import Box, center_distance, iou, pixels_inside
from abplib.samples.base import Sample

MIN_COVERAGE = 0.9
MAX_SPILL = 0.2


class BoxRow(TypedDict):
    """Localization of one sample; nan where the sample or the answer leaves it open."""

    answered: bool
    """Whether there is a box at all; without one the row counts as a miss."""
    iou: float
    """With the exact box."""
    acc50: bool
    """Whether iou >= 0.5."""
    center_error: float
    """Distance of the centres in sides of the image; nan without a box."""
    coverage: float
    """Part of the target's visible pixels (without masks, of its box) in the box; nan without."""
    spill: float
    """Largest part of another object's visible pixels in the box; nan without masks or box."""
    accurate: bool
    """The paper's criterion, made exact with masks and by IoU without (see the module)."""
    wrong_entity: bool
    """Whether the object nearest to the box is not the target; without masks, see the module."""


def evaluate_box(sample: Sample, box: Box | None) -> BoxRow:
    """Compare an answered box (fractions of the source image) with the sample's ground truth."""
    exact, given = torch.tensor(sample.box), torch.tensor(box or (math.nan,) * 4)
    overlap = float(iou(given, exact)) if box else 0.0
    row = BoxRow(
        answered=box is not None,
        iou=overlap,
        acc50=overlap >= 0.5,
        center_error=float(center_distance(given, exact)),
        coverage=math.nan,
        spill=math.nan,
        accurate=overlap >= 0.5,
        wrong_entity=False,
    )
    if box is None:
        return row
    if sample.masks is None or sample.target is None:
        elsewhere = not centre_inside(box, sample.box)
        return {**row, "coverage": _covered(sample.box, box), "wrong_entity": elsewhere}
    parts = _parts_inside(sample.masks, box)
    coverage = float(parts[sample.target])
    spill = float(np.delete(parts, sample.target).max(initial=0.0))
    return {
        **row,
        "coverage": coverage,
        "spill": spill,
        "accurate": coverage >= MIN_COVERAGE and spill <= MAX_SPILL,
        "wrong_entity": _nearest(sample.masks, box) != sample.target,
    }


def centre_inside(box: Box, exact: Box) -> bool:
    """Whether the centre of a box lies in the exact one."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return exact[0] <= x <= exact[2] and exact[1] <= y <= exact[3]


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """Tight boxes of masks, Bool [n, height, width] -> [n, 4] fractions; nan for an empty mask."""
    _, height, width = masks.shape
    boxes = np.full((len(masks), 4), np.nan)
    there = masks.any(axis=(1, 2))
    pixels = masks_to_boxes(torch.from_numpy(masks[there])).double().numpy()
    pixels[:, 2:] += 1  # the last pixel lies inside
    boxes[there] = pixels / [width, height, width, height]
    return boxes


def _covered(exact: Box, box: Box) -> float:
    """Part of the exact box's area that lies in a box; 0 where it has none."""
    width, height = (min(exact[k + 2], box[k + 2]) - max(exact[k], box[k]) for k in (0, 1))
    whole = (exact[2] - exact[0]) * (exact[3] - exact[1])
    return max(0.0, width) * max(0.0, height) / whole if whole > 0 else 0.0


def _parts_inside(masks: np.ndarray, box: Box) -> np.ndarray:
    """Part of each mask's pixels whose centres lie in the box, [n]; 0 for an empty mask."""
    inside = pixels_inside(box, *masks.shape[1:])
    return (masks & inside).sum(axis=(1, 2)) / masks.sum(axis=(1, 2)).clip(min=1)


def _nearest(masks: np.ndarray, box: Box) -> int:
    """The visible object that the box is about: most IoU, else, touching none, nearest centre."""
    objects = torch.from_numpy(mask_boxes(masks))
    answer = torch.tensor(box, dtype=objects.dtype).expand_as(objects)
    overlaps = iou(answer, objects).nan_to_num(nan=-1)
    if overlaps.max() > 0:
        return int(overlaps.argmax())
    return int(center_distance(answer, objects).nan_to_num(nan=math.inf).argmin())
