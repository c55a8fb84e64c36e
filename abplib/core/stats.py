"""Intervals and tests for proportions and means, single and paired by sample; raters' agreement.

All methods of Table 1 edit the same samples, so they are compared sample by sample.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats import contingency_tables, inter_rater, multitest


class Interval(NamedTuple):
    """An estimate and its confidence interval."""

    value: float
    low: float
    high: float
    n: int
    """Samples behind the estimate."""
    seeds: tuple[float, ...] = ()
    """What each seed alone gives, where the estimate is a mean over several."""


def wilson(k: int, n: int) -> Interval:
    """Wilson score interval of the proportion of k successes among n trials."""
    interval = stats.binomtest(k, n).proportion_ci(method="wilson")
    return Interval(k / n, float(interval.low), float(interval.high), n)


def bootstrap_mean(values: ArrayLike, *, seed: int, n_resamples: int = 9999) -> Interval:
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
        n_resamples=n_resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(low), float(high), len(finite))


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, seed: int, n_resamples: int = 9999
) -> Interval:
    """Mean of `first` less that of `second` over the same samples, as `bootstrap_mean` does it.

    Samples are drawn in pairs, which is to draw their differences.
    """
    return bootstrap_mean(np.subtract(first, second), seed=seed, n_resamples=n_resamples)


def sign_flip_test(
    first: ArrayLike, second: ArrayLike, *, seed: int, n_resamples: int = 9999
) -> float:
    """Two-sided p-value of equal means over the same samples.

    The null distribution exchanges the two values of a pair, which flips the sign of their
    difference: at random, or in all ways where there are no more of them than `n_resamples`.
    """
    test = stats.permutation_test(
        (_checked(first), _checked(second)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's (1979) adjusted p-values of a family of tests, in the order given."""
    return np.asarray(multitest.multipletests(p_values, method="holm")[1])


class PairedTable(NamedTuple):
    """Two yes-or-no answers on the same samples, counted: the 2 x 2 table of section 4.1."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: ArrayLike, second: ArrayLike) -> Self:
        """Count the answers; `first[i]` and `second[i]` are about the same sample."""
        a, b = np.asarray(first), np.asarray(second)
        if a.dtype != bool or b.dtype != bool or a.shape != b.shape:
            raise ValueError(f"{a.dtype} {a.shape} and {b.dtype} {b.shape} are no answers in pairs")
        return cls(*(int(cell.sum()) for cell in (a & b, a & ~b, ~a & b, ~a & ~b)))

    @property
    def n(self) -> int:
        """Samples in the table."""
        return sum(self)


def p_words(p: float) -> str:
    """A p-value with its sign as pages write it: = 0.012, or < 0.001."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def mcnemar(table: PairedTable) -> float:
    """Two-sided p-value of McNemar's exact test that both answers are equally often yes."""
    counts = [[table.both, table.only_first], [table.only_second, table.neither]]
    return float(contingency_tables.mcnemar(counts, exact=True).pvalue)


def proportion_difference(table: PairedTable) -> Interval:
    """How much more often the first answer is yes than the second, as a fraction of the samples.

    Newcombe's (1998, Statistics in Medicine 17, 2635-2650) method 10: the Wilson intervals of the
    two proportions, combined under the correlation of the answers (continuity-corrected).
    """
    a, b, c, d = table
    first, second = wilson(a + b, table.n), wilson(a + c, table.n)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    agreement: float = a * d - b * c
    if agreement > 0:
        agreement = max(agreement - table.n / 2, 0)
    phi = agreement / math.sqrt(margins) if margins else 0.0

    def width(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0))

    value = (b - c) / table.n
    low = value - width(first.value - first.low, second.high - second.value)
    high = value + width(first.high - first.value, second.value - second.low)
    return Interval(value, low, high, table.n)


def fleiss_kappa(counts: ArrayLike) -> float:
    """Fleiss' (1971) kappa of `counts` [questions, categories], how many raters gave which answer.

    All questions have as many raters, two or more. NaN where all answers are the same, since chance
    alone then gives perfect agreement.
    """
    table = np.asarray(counts, dtype=float)
    alike = (table.sum(axis=0) > 0).sum() == 1
    return math.nan if alike else float(inter_rater.fleiss_kappa(table))


def _checked(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"not one or more finite values in a row: {array}")
    return array


def with_interval(found: Interval, fmt: str = ".3f") -> str:
    """A number and, where it is known, its interval in words."""
    if np.isnan(found.low):
        return f"{found.value:{fmt}}"
    return f"{found.value:{fmt}} [{found.low:{fmt}}, {found.high:{fmt}}]"


def bootstrap_nested(
    values: np.ndarray, *, seed: int, confidence: float = 0.95, n_resamples: int = 9999
) -> Interval:
    """Percentile interval of the mean of values [seeds, samples]: seeds are drawn, then samples.

    Every seed answers for the same samples, so one draw of samples serves all drawn seeds. One seed
    alone has the interval of `bootstrap_mean`.
    """
    n_seeds, n = values.shape
    if n_seeds == 1:
        return bootstrap_mean(values[0], seed=seed, n_resamples=n_resamples)
    random = np.random.default_rng(seed)
    weights = random.multinomial(n, np.full(n, 1 / n), n_resamples) / n
    each = weights @ values.T  # [resamples, seeds]
    drawn = random.integers(n_seeds, size=(n_resamples, n_seeds))
    means = np.take_along_axis(each, drawn, 1).mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values.mean()), float(low), float(high), n, (*values.mean(1).tolist(),))
