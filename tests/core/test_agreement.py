"""Kappas against published examples and by their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from abplib.core.errors import AbpError
from abplib.core.stats import cohen_kappa, fleiss_kappa

FLEISS_1971 = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip
"""The worked example that textbooks give: ten subjects, fourteen raters, kappa 0.210."""


def test_fleiss_kappa_is_the_textbooks() -> None:
    assert fleiss_kappa(FLEISS_1971) == pytest.approx(0.210, abs=5e-4)


def test_cohen_kappa_is_the_textbooks() -> None:
    """Fifty proposals, two readers: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no; kappa 0.4."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second, ("yes", "no")) == pytest.approx(0.4)


def test_weights_forgive_the_near_more_than_the_far() -> None:
    truth, near, far = [0, 1, 2, 3, 4] * 4, [0, 1, 2, 3, 3] * 4, [0, 1, 2, 3, 0] * 4
    weighted = [cohen_kappa(truth, other, range(5), quadratic=True) for other in (near, far)]
    assert weighted == pytest.approx([1 - 0.2 / 3.4, 1 - 3.2 / 4])
    plain = [cohen_kappa(truth, other, range(5)) for other in (near, far)]
    assert plain[0] == pytest.approx(plain[1])


def test_the_extremes_are_one_and_about_zero() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 3, (2, 20_000))
    assert cohen_kappa(first, first, range(3)) == 1
    assert abs(cohen_kappa(first, second, range(3), quadratic=True)) < 0.02
    assert fleiss_kappa([[3, 0], [0, 3]]) == 1
    assert math.isnan(cohen_kappa([1, 1], [1, 1], range(3)))
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [([], [], "0 and 0 answers"), ([1], [1, 2], "1 and 2"), ([1], [7], "7 is none of")],
)
def test_answers_that_do_not_pair_are_refused(
    first: list[int], second: list[int], said: str
) -> None:
    with pytest.raises(AbpError, match=said):
        cohen_kappa(first, second, (1, 2))


@pytest.mark.parametrize("counts", [[], [[1, 0]], [[2, 0], [2, 1]]])
def test_uneven_raters_are_refused(counts: list[list[int]]) -> None:
    with pytest.raises(AbpError, match="same number of raters"):
        fleiss_kappa(counts)
