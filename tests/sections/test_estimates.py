"""Means with their intervals, and the claims that they decide."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from abplib.core.stats import Interval, bootstrap_mean, bootstrap_nested, wilson
from abplib.sections.claims import (
    HOLDS,
    REVERSED,
    UNDECIDED,
    against,
    agreed,
    claims_table,
    decide,
    differences,
)
from abplib.sections.estimates import beside_paper, estimate, estimates, measure, table, written


def test_answers_are_rates_and_numbers_are_means() -> None:
    answers = pd.Series([True, None, False, True])  # of unknown kind, as an open verdict makes it
    assert estimate(answers) == estimate(answers.astype("boolean")) == wilson(2, 3)
    lengths = pd.Series([0.0, 1.0, np.nan, 1.0])
    assert estimate(lengths).value == pytest.approx(2 / 3) and estimate(lengths).n == 3
    assert estimate(pd.Series([1.0, 1.0])) == Interval(1, 1, 1, 2)  # where Wilson's would be wider


def test_a_table_keeps_the_order_of_its_rows() -> None:
    frame = pd.DataFrame({"of": list("zaza"), "in": list("yyxx"), "value": [0.5, 1.0, 0.0, 0.25]})
    found = estimates(frame.groupby(["of", "in"], sort=False)["value"])
    found = found.rename_axis(["of", "in"]).reset_index()
    shown = table(found, "of", "in", pd.Series([".1f", ".2f", ".1f", ".2f"]))
    assert (shown.index.tolist(), shown.columns.tolist()) == (["z", "a"], ["y", "x"])
    assert shown.to_numpy().tolist() == [["0.5", "0.0"], ["1.00", "0.25"]]  # one value, no interval
    known = found.assign(low=0.0, high=1.0, p=0.0001)
    assert written(known, ".1%")[0] == "50.0% [0.0%, 100.0%], p < 0.001"


def test_the_table_sets_the_paper_beside_the_run() -> None:
    here = Interval(0.8, 0.7, 0.9, 200)
    numbers = [measure("a", "one", here, "fraction", 0.89), measure("b", "two", here, "fraction")]
    shown = beside_paper(pd.DataFrame(numbers))
    assert list(shown.index) == ["one", "two"] and shown.loc["one", "this run"] == 0.8
    assert shown.loc["one", "paper"] == 0.89 and math.isnan(shown.loc["two", "paper"])


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0.6, 0.7, HOLDS, REVERSED),
        (0.3, 0.4, REVERSED, HOLDS),
        (0.4, 0.6, UNDECIDED, UNDECIDED),
        (0.5, 0.6, UNDECIDED, UNDECIDED),
        (math.nan, math.nan, UNDECIDED, UNDECIDED),
    ],
)
def test_a_claim_holds_where_the_whole_interval_does(
    low: float, high: float, above: str, below: str
) -> None:
    interval = Interval(0.5, low, high, 9)
    assert decide(interval, 0.5) == above
    assert decide(interval, 0.5, above=False) == below
    assert decide(Interval(0.1, 0.05, 0.2, 9)) == HOLDS  # against nothing at all


def of_seeds(*means: float) -> pd.Series:
    """Forty samples of each seed: its mean and noise of their own, indexed by seed and sample."""
    noise = np.random.default_rng(0).normal(0, 0.1, 40)
    index = pd.MultiIndex.from_product([range(len(means)), range(40)], names=["seed", "sample_id"])
    return pd.Series(np.concatenate([mean + noise - noise.mean() for mean in means]), index)


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        ((0.5, 0.6, 0.7), HOLDS),
        ((-0.5, -0.6, -0.7), REVERSED),
        ((0.5, 0.6, -0.7), UNDECIDED),  # seeds are on either side
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, -0.1), UNDECIDED),  # one of eight, beyond the interval
        ((0.01, 0.02, 0.03), UNDECIDED),  # seeds agree and samples do not
        ((0.01, 0.01, 0.7), UNDECIDED),  # most seeds give next to nothing
        ((0.5,), HOLDS),
    ],
)
def test_a_claim_is_decided_over_seeds_and_samples(means: tuple[float, ...], verdict: str) -> None:
    found = estimate(of_seeds(*means))
    assert decide(found) == verdict
    assert found.seeds == pytest.approx(means if len(means) > 1 else ())
    assert (found.value, found.n) == (pytest.approx(np.mean(means)), 40)


def test_one_seed_has_the_interval_of_its_samples() -> None:
    alone = of_seeds(0.5)
    assert estimate(alone) == estimate(alone.droplevel("seed")) == bootstrap_mean(alone, seed=0)
    assert bootstrap_nested(alone.to_numpy()[None], seed=0) == bootstrap_mean(alone, seed=0)
    assert estimate(alone > 0.5) == wilson(int((alone > 0.5).sum()), 40)


def test_samples_that_a_seed_does_not_know_are_left_out() -> None:
    values = of_seeds(0.5, 0.6)
    values.loc[1, 7] = np.nan
    assert estimate(values).n == 39
    assert estimate(values.sample(frac=1, random_state=0)) == estimate(values)


def test_what_seeds_decide_by_themselves_counts_where_they_agree() -> None:
    assert agreed([HOLDS, HOLDS]) == HOLDS and agreed([REVERSED]) == REVERSED
    assert agreed([HOLDS, REVERSED]) == agreed([HOLDS, UNDECIDED]) == UNDECIDED


BETTER, LEVEL, WORSE = (Interval(v, v - 0.1, v + 0.1, 9) for v in (0.5, 0.05, -0.5))


@pytest.mark.parametrize(
    ("rivals", "above", "verdict", "shown"),
    [
        ({"a": BETTER, "b": BETTER}, True, HOLDS, "a"),
        ({"a": BETTER, "b": LEVEL}, True, UNDECIDED, "b"),
        ({"a": LEVEL, "b": WORSE, "c": BETTER}, True, REVERSED, "b"),
        ({"a": WORSE, "b": LEVEL}, False, UNDECIDED, "b"),
        ({"a": WORSE}, False, HOLDS, "a"),
    ],
)
def test_a_claim_about_rivals_is_as_good_as_its_hardest(
    rivals: dict[str, Interval], above: bool, verdict: str, shown: str
) -> None:
    found = against("key", "a claim", "4.1", rivals, above=above, of="AUROC ")
    assert (found.verdict, found.found) == (verdict, rivals[shown])
    assert found.measured.startswith("AUROC ") and found.measured.endswith(f"] against {shown}")
    assert claims_table([found]).loc["a claim", "verdict"] == verdict
    assert differences([found], "sides").loc["difference.key", "value"] == rivals[shown].value
