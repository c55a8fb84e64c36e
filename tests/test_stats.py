from __future__ import annotations

import math

import numpy as np
import pytest

from abplib import stats
from abplib.errors import AbpError


@pytest.mark.parametrize(("k", "n"), [(178, 200), (0, 20), (20, 20), (1, 1)])
def test_wilson_is_the_closed_form(k: int, n: int) -> None:
    z, p = 1.959963984540054, k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = stats.wilson(k, n)
    assert interval == pytest.approx((p, middle - half, middle + half, n), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(k: int, n: int) -> None:
    with pytest.raises(AbpError, match=f"{k} successes of {n} trials"):
        stats.wilson(k, n)


def test_mean_and_its_standard_error() -> None:
    assert stats.mean_sem([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, math.sqrt(5 / 3) / 2))
    mean, error = stats.mean_sem([0.25])
    assert mean == 0.25 and math.isnan(error)


def test_bootstrap_agrees_with_the_normal_interval_of_many_values() -> None:
    values = np.random.default_rng(0).normal(1.0, 0.5, 1000)
    interval = stats.bootstrap_mean(values, seed=1, n_resamples=2000)
    mean, error = stats.mean_sem(values)
    assert interval.value == mean and interval.n == 1000
    assert interval.low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_bootstrap_follows_its_seed_and_the_skew() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    first, again, other = (stats.bootstrap_mean(values, seed=s, n_resamples=500) for s in (1, 1, 2))
    assert first == again != other
    assert first.high - first.value > first.value - first.low


def test_bootstrap_of_hardly_any_values() -> None:
    assert stats.bootstrap_mean([0.3, 0.3, 0.3], seed=0) == pytest.approx((0.3, 0.3, 0.3, 3))
    lonely = stats.bootstrap_mean([0.3], seed=0)
    assert lonely.value == 0.3 and math.isnan(lonely.low) and math.isnan(lonely.high)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0, 2.0]]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(AbpError):
        stats.mean_sem(values)
    with pytest.raises(AbpError):
        stats.bootstrap_mean(values, seed=0)
