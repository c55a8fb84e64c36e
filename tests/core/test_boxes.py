from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import noise

from abplib.core import boxes

SIDE = 12


def random_boxes(n: int, seed: int) -> torch.Tensor:
    """Boxes on the pixel grid of a SIDE x SIDE image, some of them empty."""
    corners = torch.randint(0, SIDE + 1, (n, 2, 2), generator=torch.Generator().manual_seed(seed))
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def cells(box: torch.Tensor) -> np.ndarray:
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    x1, y1, x2, y2 = box.tolist()
    inside[y1:y2, x1:x2] = True
    return inside


def test_overlaps_agree_with_counting_cells() -> None:
    first, second = random_boxes(300, 0), random_boxes(300, 1)
    measured_iou = boxes.iou(first / SIDE, second / SIDE)
    measured_giou = boxes.giou(first / SIDE, second / SIDE)
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        both, either = (cells(a) & cells(b)).sum(), (cells(a) | cells(b)).sum()
        hull = cells(torch.cat([torch.minimum(a, b)[:2], torch.maximum(a, b)[2:]])).sum()
        iou = both / either if either else 0.0
        giou = iou - (hull - either) / hull if hull else 0.0
        assert measured_iou[row].item() == pytest.approx(iou, abs=1e-5)
        assert measured_giou[row].item() == pytest.approx(giou, abs=1e-5)
    assert torch.equal(boxes.area(first), torch.tensor([int(cells(b).sum()) for b in first]))


def test_giou_pulls_disjoint_boxes_together_and_has_a_gradient_on_empty_ones() -> None:
    box = torch.tensor([[0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0.3, 0.3]], requires_grad=True)
    boxes.giou(box, torch.tensor([[0.7, 0.1, 0.9, 0.2], [0.5, 0.5, 0.8, 0.8]])).sum().backward()
    assert box.grad is not None and torch.isfinite(box.grad).all()
    assert box.grad[0, 2] > 0  # growing towards the other box


def test_center_distance_is_euclidean_in_sides() -> None:
    a = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.0, 0.0, 1.0, 1.0]])
    b = torch.tensor([[0.3, 0.4, 0.5, 0.6], [0.4, 0.4, 0.6, 0.6]])
    assert boxes.center_distance(a, b).tolist() == pytest.approx([0.5, 0.0])


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.8, 0.9, 0.2, 0.1), (0.2, 0.1, 0.8, 0.9)),
        ((-0.5, 0.2, 1.5, 0.4), (0.0, 0.2, 1.0, 0.4)),
        ((2.0, 2.0, 3.0, 3.0), (1.0, 1.0, 1.0, 1.0)),
        ((1.2, 0.5, -0.1, 0.5), (0.0, 0.5, 1.0, 0.5)),
    ],
)
def test_corners_are_swapped_and_clamped(box: boxes.Box, expected: boxes.Box) -> None:
    assert boxes.order_and_clamp(box) == expected


def test_pixels_are_a_matter_of_the_image_size() -> None:
    assert boxes.to_pixels((0.1, 0.2, 0.5, 1.0), (200, 50)) == pytest.approx((20, 10, 100, 50))
    assert boxes.from_pixels((20, 10, 100, 50), (200, 50)) == pytest.approx((0.1, 0.2, 0.5, 1.0))
    assert boxes.from_pixels((100, 60, 20, 10), (200, 50)) == pytest.approx((0.1, 0.2, 0.5, 1.0))


def test_overlay_goes_around_the_box_on_a_copy_and_hides_none_of_it() -> None:
    source = noise(40, 20)
    before = np.array(source)
    drawn = np.array(boxes.draw_overlay(source, (0.26, 0.25, 0.76, 0.8), width=2))
    expected = before.copy()
    expected[3:18, 8:33] = 255, 0, 0  # two pixels around those that the box touches
    expected[5:16, 10:31] = before[5:16, 10:31]
    assert (drawn == expected).all() and (np.array(source) == before).all()
    whole = np.array(boxes.draw_overlay(source, (0.0, 0.0, 1.0, 1.0), width=1))
    assert (whole[[0, -1]] == (255, 0, 0)).all() and (whole[:, [0, -1]] == (255, 0, 0)).all()
    assert (whole[1:-1, 1:-1] == before[1:-1, 1:-1]).all()  # where there is no room outside
