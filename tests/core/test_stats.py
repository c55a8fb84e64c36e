from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from abplib.core import stats
from abplib.core.stats import PairedTable, fleiss_kappa


@pytest.mark.parametrize(("k", "n"), [(178, 200), (0, 20), (20, 20), (1, 1)])
def test_wilson_is_the_closed_form(k: int, n: int) -> None:
    z, p = 1.959963984540054, k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = stats.wilson(k, n)
    assert interval[:4] == pytest.approx((p, middle - half, middle + half, n), abs=1e-12)


def test_bootstrap_agrees_with_the_normal_interval_of_many_values() -> None:
    values = np.random.default_rng(0).normal(1.0, 0.5, 1000)
    interval = stats.bootstrap_mean(values, seed=1, n_resamples=2000)
    mean, error = values.mean(), scipy.stats.sem(values)
    assert interval.value == pytest.approx(mean) and interval.n == 1000
    assert interval.low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_bootstrap_follows_its_seed_and_the_skew() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    first, again, other = (stats.bootstrap_mean(values, seed=s, n_resamples=500) for s in (1, 1, 2))
    assert first == again != other
    assert first.high - first.value > first.value - first.low


def test_bootstrap_of_hardly_any_values() -> None:
    assert stats.bootstrap_mean([0.3, 0.3, 0.3], seed=0)[:4] == pytest.approx((0.3, 0.3, 0.3, 3))
    lonely = stats.bootstrap_mean([0.3], seed=0)
    assert lonely.value == 0.3 and math.isnan(lonely.low) and math.isnan(lonely.high)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0, 2.0]]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="not one or more finite values"):
        stats.bootstrap_mean(values, seed=0)


def test_a_paired_difference_is_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    first = rng.exponential(size=60)
    second = first + rng.exponential(0.3, size=60) - 0.4
    found = stats.paired_difference(first, second, seed=3, n_resamples=999)
    paired = scipy.stats.bootstrap(
        (first, second),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        paired=True,
        n_resamples=999,
        method="BCa",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert found[:4] == pytest.approx((np.mean(first - second), paired.low, paired.high, 60))


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 4], 2 / 8),  # of the sums of +-1 +-2 +-4 only 7 and -7 are as far from zero
        ([-1, 2, 4], 4 / 8),  # 5, 7 and their negatives
        ([1, 2, -4], 1.0),  # none is nearer to zero
        ([1, 1, 1, 1, 1], 2 / 32),
        ([0, 0, 0], 1.0),
    ],
)
def test_sign_flips_of_a_few_pairs_are_counted(differences: list[float], p: float) -> None:
    second = np.full(len(differences), 10.0)
    assert stats.sign_flip_test(second + differences, second, seed=0) == pytest.approx(p)
    assert stats.sign_flip_test(second, second + differences, seed=0) == pytest.approx(p)


def test_sign_flips_of_many_pairs_agree_with_the_t_test() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=200)
    change = rng.normal(0, 0.8, size=200)
    second = first + change - change.mean() + 0.1
    p, again, other = (
        stats.sign_flip_test(first, second, seed=s, n_resamples=4999) for s in (1, 1, 2)
    )
    assert p == again != other
    assert p == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue, abs=0.02)
    assert 0.01 < p < 0.5


def test_holm_by_hand() -> None:
    adjusted = stats.holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == pytest.approx([1, 1])
    assert stats.holm([0.02]) == pytest.approx([0.02])


def test_mcnemar_counts_the_binomial_tail() -> None:
    tail = sum(math.comb(22, k) for k in range(7))
    assert stats.mcnemar(PairedTable(59, 6, 16, 80)) == pytest.approx(2 * tail / 2**22)
    assert stats.mcnemar(PairedTable(80, 16, 6, 59)) == pytest.approx(2 * tail / 2**22)
    assert stats.mcnemar(PairedTable(9, 0, 0, 1)) == 1


@pytest.mark.parametrize(
    ("table", "published"),
    [
        # Newcombe 1998, an example of his
        (PairedTable(36, 12, 2, 0), (0.2, 0.0569, 0.3404)),
        # Cavo et al. 2012, as in Fagerland, Lydersen and Laake's book on 2 x 2 tables
        (PairedTable(59, 6, 16, 80), (-0.0621, -0.1186, -0.0046)),
    ],
)
def test_a_difference_of_paired_proportions_is_newcombes(
    table: PairedTable, published: tuple[float, float, float]
) -> None:
    found = stats.proportion_difference(table)
    assert found[:4] == pytest.approx((*published, table.n), abs=5e-5)
    both, first, second, neither = table
    swapped = stats.proportion_difference(PairedTable(both, second, first, neither))
    assert (-swapped.value, -swapped.high, -swapped.low) == pytest.approx(found[:3])


def test_a_difference_is_never_sure_where_the_answers_never_differ() -> None:
    for table in (PairedTable(20, 0, 0, 0), PairedTable(10, 0, 0, 10)):
        found = stats.proportion_difference(table)
        assert found.low < found.value == 0 < found.high


def test_answers_are_counted_in_pairs() -> None:
    first, second = [True, True, True, False, False, True], [True, True, False, True, False, False]
    table = PairedTable.of(first, second)
    assert table == (2, 2, 1, 1) and table.n == 6


@pytest.mark.parametrize(
    ("first", "second"),
    [([True], [True, False]), ([True, None], [True, True]), ([1, 0], [True, False])],
)
def test_what_makes_no_table_is_refused(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(ValueError, match="no answers in pairs"):
        PairedTable.of(first, second)


def test_seeds_that_agree_leave_the_samples_interval() -> None:
    values = np.random.default_rng(0).normal(1.0, 0.5, 400)
    nested = stats.bootstrap_nested(np.stack([values] * 3), seed=1)
    alone = stats.bootstrap_mean(values, seed=1)
    assert nested[:3] == pytest.approx(alone[:3], abs=0.005) and nested.n == 400


def test_seeds_that_disagree_widen_the_interval() -> None:
    """Three seeds of constant values 0, 1, 2: a draw of seeds has a mean of 0 in 1 of 27 cases."""
    nested = stats.bootstrap_nested(np.repeat([[0.0], [1.0], [2.0]], 50, axis=1), seed=0)
    assert nested[:4] == pytest.approx((1.0, 0.0, 2.0, 50)) and nested.seeds == (0, 1, 2)
    two = np.repeat([[0.0], [1.0]], 50, axis=1)  # a mean of 0 in a quarter of the draws
    for confidence, low in ((0.6, 0.0), (0.4, 0.5)):
        nested = stats.bootstrap_nested(two, seed=0, confidence=confidence)
        assert nested[:4] == pytest.approx((0.5, low, 1 - low, 50))


FLEISS_1971 = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip
"""The worked example that textbooks give: ten subjects, fourteen raters, kappa 0.210."""


def test_fleiss_kappa_is_the_textbooks() -> None:
    assert fleiss_kappa(FLEISS_1971) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([[3, 0], [0, 3]]) == 1
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]))
