"""What chapter 3 counts, on attention whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_decomposition import ROUTED, attention, of_masses

from abplib.core.errors import AbpError
from abplib.core.stats import Interval
from abplib.experiment import Experiment
from abplib.profiles import Profile, parse
from abplib.samples.words import FUNCTION, NOUN, SPATIAL
from abplib.sections import dependence, routing
from abplib.sections.decodability import HOLDS, REVERSED, UNDECIDED
from abplib.sections.decomposition import decompose, head_table
from abplib.sections.dependence import Dependence
from abplib.sections.routing import Steepness


def test_without_a_decisive_head_the_steepest_stands_in() -> None:
    split, n_decisive = routing.decide(ROUTED, 0.62)
    assert (n_decisive, split.decisive.tolist()) == (2, [0, 2])
    split, n_decisive = routing.decide(ROUTED, 0.9)
    assert (n_decisive, split.decisive.tolist()) == (0, [0])
    assert "no head is decisive" in routing.who(0, 4, 0.9)
    assert "2 of 4 heads" in routing.who(2, 4, 0.62)


def test_curves_are_sorted_in_each_sample_and_parted_by_group() -> None:
    curves = routing.sorted_curves(ROUTED.masses, np.array([0, 1]), 2)
    decisive = curves[curves["group"] == "decisive"]
    assert decisive["rank"].tolist() == [1, 2]
    assert decisive["mean"].to_numpy() == pytest.approx([0.85, 0.15])
    other = curves[curves["group"] == "other"]
    assert other["mean"].to_numpy() == pytest.approx([(0.9 + 0.7 + 0.4 + 0.4) / 4, 0.225])
    assert (curves["low"] <= curves["mean"]).all() and (curves["mean"] <= curves["high"]).all()
    everyone = routing.sorted_curves(ROUTED.masses, np.arange(4), 3)
    assert set(everyone["group"]) == {"decisive"}


def test_steepness_is_that_of_the_decisive_heads() -> None:
    split = decompose(ROUTED, 0.5)  # heads 0, 1 and 2
    found = routing.steepness(split, 0.75, seed=0)
    assert found.layer.value == pytest.approx((0.8 + 0.6 + 0.65) / 3)
    assert found.strongest.value == pytest.approx(0.8)
    assert found.least_query.value == pytest.approx(0.6)
    assert found.samples_above.value == 0  # 0.73 and 0.63
    assert found.top_token.value == pytest.approx(1)  # all on one of two tokens
    assert found.token.value < found.layer.value  # where a head prefers another layer than l*


def test_the_tokens_of_other_heads_are_read_in_the_same_layer() -> None:
    split = decompose(ROUTED, 0.75)  # head 0 alone: layers 5 and 6
    masses = routing.token_masses(split)
    assert masses.shape == (2, 4, 2, 2)
    assert masses[:, 2, 0, 0] == pytest.approx([0.0, 0.1])
    assert masses[:, split.decisive] == pytest.approx(split.token_weights)


def test_layers_that_follow_the_kind_are_told_from_those_that_do_not() -> None:
    kinds = ["left", "right"] * 20
    follows = dependence.entropies([5, 6] * 20, kinds, seed=0)
    assert follows.overall == pytest.approx(1)
    assert follows.within == 0
    assert follows.shuffled > 0.8
    assert follows.p == pytest.approx(0.001)
    apart = dependence.entropies([5, 5, 6, 6] * 10, kinds, seed=0)
    assert apart.within == pytest.approx(1) and apart.p > 0.5
    fixed = dependence.entropies([5] * 40, kinds, seed=0)
    assert (fixed.overall, fixed.within, fixed.shuffled, fixed.p) == (0, 0, 0, 1)


def test_layers_are_counted_by_kind_the_largest_first() -> None:
    split = decompose(ROUTED, 0.75)
    counts = dependence.layers_by_kind(split, pd.Series(["up", "down"], index=["s0", "s1"]))
    assert counts.columns.tolist() == [5, 6, 7]
    assert counts.loc["up"].tolist() == [1, 0, 0] and counts.loc["down"].tolist() == [0, 1, 0]
    table = dependence.layer_table(counts)
    assert table["all"].tolist() == [1, 1] and table.columns.name is None


def words() -> pd.DataFrame:
    """Two samples: `Turn left most cup`, of which the proxy looks at the cup, then to the left."""
    weights = np.zeros((2, 1, 1, 1, 4))
    weights[0, ..., :] = [0.1, 0.0, 0.0, 0.9]
    weights[1, ..., :] = [0.0, 0.6, 0.0, 0.4]
    return decompose(attention(weights, n_heads=1), 0.5).token_shares()


def test_words_are_weighed_against_their_part_of_the_tokens() -> None:
    table = routing.word_classes(words(), 1, seed=0)
    assert table["mass"].to_dict() == pytest.approx(
        {NOUN: 0.65, "adjective": 0, SPATIAL: 0.3, FUNCTION: 0.05, "other": 0}
    )
    assert table["tokens"].to_dict() == pytest.approx(
        {NOUN: 0.25, "adjective": 0, SPATIAL: 0.5, FUNCTION: 0.25, "other": 0}
    )
    assert table["dominant"].to_dict() == pytest.approx(
        {NOUN: 0.5, "adjective": 0, SPATIAL: 0.5, FUNCTION: 0, "other": 0}
    )
    two = routing.word_classes(words(), 2, seed=0)["dominant"]
    assert two[[NOUN, SPATIAL, FUNCTION]].tolist() == pytest.approx([0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    ("drop", "varies", "expected"),
    [
        (0.7, Dependence(1.0, 0.2, 0.9, 0.001), (HOLDS, HOLDS, HOLDS)),
        (0.55, Dependence(1.0, 0.9, 0.9, 0.5), (HOLDS, REVERSED, UNDECIDED)),
        (0.2, Dependence(0.0, 0.0, 0.0, 1.0), (REVERSED, REVERSED, REVERSED)),
        (0.505, Dependence(1.0, 0.2, 0.9, 0.06), (UNDECIDED, REVERSED, UNDECIDED)),
    ],
)
def test_verdicts_go_by_rule(
    drop: float, varies: Dependence, expected: tuple[str, str, str]
) -> None:
    found = Interval(drop, drop - 0.01, drop + 0.01, 200)
    steep = Steepness(found, found, found, found, found, found)
    verdicts = routing.verdicts(steep, varies, words(), 0.5, 3, seed=0)
    decided = {v.key: v.verdict for v in verdicts}
    assert (decided["decisive"], decided["drop"], decided["input"]) == expected
    assert decided["nouns"] == HOLDS  # 0.9 and 0.4 of the mass on one of four tokens
    assert decided["places"] == UNDECIDED  # nothing and 0.6 on two
    without = routing.verdicts(steep, varies, words(), 0.5, 0, seed=0)
    assert without[0].verdict == decided["decisive"]
    assert {v.verdict for v in without[1:]} == {UNDECIDED}


def test_the_example_is_of_the_steepest_head_that_prefers_the_layer() -> None:
    shown = routing.example(decompose(ROUTED, 0.5), 1)
    assert (shown.heads, shown.shown, shown.best) == (["0.0", "0.1", "1.0"], 0, 6)
    assert shown.masses[0] == pytest.approx([0.0, 0.9, 0.1])
    assert shown.preferred.tolist() == [1, 1, 0]
    assert shown.words == ["Turn", "left"]
    assert shown.weights == pytest.approx(np.array([[0.9, 0.0], [0.9, 0.0]]))
    outvoted = of_masses([[[0.0, 1.0, 0.0], [0.75, 0.25, 0.0], [0.8, 0.1, 0.1]]])
    shown = routing.example(decompose(outvoted, 0.4), 0)
    assert (shown.best, shown.shown, shown.preferred.tolist()) == (5, 2, [1, 0, 0])


def test_heads_are_listed_from_the_steepest() -> None:
    split = decompose(ROUTED, 0.62)
    table = routing.head_rows(head_table(ROUTED), split.decisive)
    assert list(table.index) == ["0.0", "1.0", "0.1", "1.1"] and table.index.name == "block.head"
    assert table["decisive"].tolist() == ["yes", "yes", "no", "no"]
    assert table["mean drop"].tolist() == pytest.approx([0.8, 0.65, 0.6, 0.1])


def test_a_single_layer_is_said_to_leave_no_choice() -> None:
    alone = of_masses([[[1.0]], [[1.0]]])
    split, n_decisive = routing.decide(alone, 0.5)
    assert n_decisive == 1 and split.layers["layer"].tolist() == [5, 5]
    assert "by construction" in routing.caveat(1)
    assert "by construction" not in routing.caveat(3)


def test_kinds_fall_back_from_place_to_task() -> None:
    samples = Experiment(Profile.load("smoke")).evaluation
    found = dependence.kinds(samples, 3)
    assert found.index.tolist() == [samples[i].id for i in range(3)]
    assert found.iloc[0] == samples[0].facts["spatial_term"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layers": [6, 5]}, "layers = [6, 5] is refused, it should name each layer once, in asc"),
        ({"layers": [5, 5]}, "layers = [5, 5] is refused"),
        ({"layers": []}, "layers = [] is refused"),
        ({"layers": "5"}, "layers = '5' is refused, it should be a valid list"),
        ({"threshold": 1.0}, "threshold = 1.0 is refused, it should be less than 1"),
        ({"n_tokens": 0}, "n_tokens = 0 is refused"),
    ],
)
def test_parameters_are_refused_by_name(given: dict[str, Any], said: str) -> None:
    for chapter in ("03_decomposition", "04_information_flow"):
        with pytest.raises(AbpError) as caught:
            parse(chapter, given)
        assert said in str(caught.value)
    with pytest.raises(AbpError, match="02_proxies has no parameter"):
        parse("02_proxies", given)
