from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import noise

from abplib.core.boxes import Box
from abplib.judging.box_accuracy import evaluate_box, mask_boxes
from abplib.samples.base import Sample


def row_of_three(target: int = 1) -> Sample:
    """Three 10 x 10 squares in a row on 60 x 20 pixels, 10 pixels apart."""
    masks = np.zeros((3, 20, 60), dtype=bool)
    for index in range(3):
        masks[index, 5:15, 5 + 20 * index : 15 + 20 * index] = True
    x1, y1, x2, y2 = mask_boxes(masks)[target].tolist()
    return Sample("row", noise(60, 20), "remove it", (x1, y1, x2, y2), masks, target)


def pixels(x1: float, y1: float, x2: float, y2: float) -> Box:
    return x1 / 60, y1 / 20, x2 / 60, y2 / 20


@pytest.mark.parametrize(
    ("box", "coverage", "spill", "accurate", "wrong"),
    [
        (pixels(25, 5, 35, 15), 1.0, 0.0, True, False),
        (pixels(26, 5, 37, 15), 0.9, 0.0, True, False),  # just holds enough of the target
        (pixels(27, 5, 37, 15), 0.8, 0.0, False, False),
        (pixels(25, 5, 47, 15), 1.0, 0.2, True, False),  # just not too much of another
        (pixels(25, 5, 48, 15), 1.0, 0.3, False, False),
        (pixels(0, 0, 60, 20), 1.0, 1.0, False, True),
        (pixels(13, 5, 47, 15), 1.0, 0.2, True, False),  # the most of any other, not their sum
        (pixels(5, 5, 15, 15), 0.0, 1.0, False, True),  # another object
        (pixels(15, 0, 21, 2), 0.0, 0.0, False, True),  # touches none, the first is nearest
        (pixels(19, 0, 25, 2), 0.0, 0.0, False, False),  # touches none, the target is nearest
    ],
)
def test_a_box_is_weighed_against_the_target_and_all_other_objects(
    box: Box, coverage: float, spill: float, accurate: bool, wrong: bool
) -> None:
    row = evaluate_box(row_of_three(), box)
    assert (row["coverage"], row["spill"]) == (coverage, spill)
    assert (row["answered"], row["accurate"], row["wrong_entity"]) == (True, accurate, wrong)


def test_distance_and_overlap_are_those_of_the_boxes() -> None:
    row = evaluate_box(row_of_three(), pixels(25, 10, 35, 20))
    assert row["center_error"] == pytest.approx(0.25)
    assert row["iou"] == pytest.approx(1 / 3) and row["acc50"] is False
    exact = evaluate_box(row_of_three(), pixels(25, 5, 35, 15))
    assert exact["iou"] == pytest.approx(1) and exact["acc50"] is True


def test_no_answer_counts_as_a_miss() -> None:
    row = evaluate_box(row_of_three(), None)
    assert not row["answered"] and row["accurate"] is False and row["wrong_entity"] is False
    assert row["iou"] == 0 and row["acc50"] is False and math.isnan(row["center_error"])
    assert math.isnan(row["coverage"]) and math.isnan(row["spill"])


@pytest.mark.parametrize(
    ("box", "accurate", "wrong", "coverage"),
    [
        ((0.0, 0.0, 0.5, 1.0), True, False, 1.0),
        ((0.0, 0.0, 0.25, 1.0), True, False, 0.5),  # an IoU of one half
        ((0.0, 0.0, 0.24, 1.0), False, False, 0.48),
        ((0.0, 0.0, 1.0, 1.0), True, False, 1.0),
        ((0.1, 0.0, 1.0, 1.0), False, True, 0.8),  # the centre is beside the target
        ((0.6, 0.2, 0.9, 0.4), False, True, 0.0),
    ],
)
def test_without_masks_the_exact_box_stands_for_the_target(
    box: Box, accurate: bool, wrong: bool, coverage: float
) -> None:
    sample = Sample("bare", noise(60, 20), "remove it", (0.0, 0.0, 0.5, 1.0))
    row = evaluate_box(sample, box)
    assert (row["accurate"], row["wrong_entity"]) == (accurate, wrong)
    assert row["coverage"] == pytest.approx(coverage) and math.isnan(row["spill"])
    assert not evaluate_box(sample, None)["accurate"]


def test_a_hidden_object_is_neither_spilled_on_nor_near() -> None:
    sample = row_of_three()
    assert sample.masks is not None
    sample.masks[0] = False
    assert np.isnan(mask_boxes(sample.masks)[0]).all()
    row = evaluate_box(sample, pixels(5, 5, 15, 15))
    assert row["spill"] == 0 and row["wrong_entity"] is False
