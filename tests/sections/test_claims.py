"""Claims decided by the interval of what was measured."""

from __future__ import annotations

import math

import pytest

from abplib.core.stats import Interval
from abplib.sections.claims import (
    HOLDS,
    REVERSED,
    UNDECIDED,
    Measure,
    against,
    beside_paper,
    claims_table,
    decide,
)


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


def test_the_table_sets_the_paper_beside_the_run() -> None:
    here = Interval(0.8, 0.7, 0.9, 200)
    measures = [Measure("a", "one", here, "fraction", 0.89), Measure("b", "two", here, "fraction")]
    table = beside_paper(measures)
    assert list(table.index) == ["one", "two"]
    assert table.loc["one", "paper"] == 0.89
    assert math.isnan(table.loc["two", "paper"])
    assert table.loc["two", "this run"] == 0.8
