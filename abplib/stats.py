"""Intervals for proportions and means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from abplib.errors import AbpError


class Interval(NamedTuple):
    """An estimate and its confidence interval."""

    value: float
    low: float
    high: float
    n: int
    """Samples behind the estimate."""


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of the proportion of k successes among n trials."""
    if not 0 <= k <= n or n == 0:
        raise AbpError(f"{k} successes of {n} trials make no proportion; count at least one trial.")
    interval = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    return Interval(k / n, float(interval.low), float(interval.high), n)


def mean_sem(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and its standard error (ddof = 1, as in Table 1); the error of one value is nan."""
    finite = _checked(values)
    error = finite.std(ddof=1) / math.sqrt(len(finite)) if len(finite) > 1 else math.nan
    return float(finite.mean()), float(error)


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    *,
    seed: int,
    confidence: float = 0.95,
    n_resamples: int = 9999,
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of a mean.

    Equal values give an interval of no width, one value an unknown (nan) one.
    """
    finite = _checked(values)
    mean = float(finite.mean())
    if len(finite) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    if np.ptp(finite) == 0:
        return Interval(mean, mean, mean, len(finite))
    low, high = stats.bootstrap(
        (finite,),
        np.mean,
        confidence_level=confidence,
        n_resamples=n_resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(low), float(high), len(finite))


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array):
        raise AbpError(f"Values of shape {array.shape} have no mean; give one or more in a row.")
    if not np.isfinite(array).all():
        raise AbpError(
            f"{int((~np.isfinite(array)).sum())} of {len(array)} values are not finite; count and "
            "leave out the samples that have no value."
        )
    return array
