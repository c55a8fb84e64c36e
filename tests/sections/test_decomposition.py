"""Masses, decisive heads, l* and dominant tokens on attention whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from xarray import DataArray

from abplib.core.stats import Interval
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.proxies.attention import ProxyAttention
from abplib.samples.words import ADJECTIVE, FUNCTION, NOUN, OTHER, SPATIAL
from abplib.sections import decomposition, dominant_tokens
from abplib.sections.claims import HOLDS, REVERSED, UNDECIDED
from abplib.sections.decomposition import Decomposition, Dependence, decompose, labelled, rank

TEXTS = ["Turn", " left", "most", " cup", " blue", "."]


def attention(weights: np.ndarray, n_heads: int = 2) -> ProxyAttention:
    """Weights [n, H, N, L, T] over the first T of `TEXTS`, for layers 5, 6, ..."""
    n, _, _, n_layers, n_tokens = weights.shape
    rows = [
        {"sample_id": f"s{i}", "slot": t, "token": 20 + t, "span": "prompt", "text": TEXTS[t]}
        for i in range(n)
        for t in range(n_tokens)
    ]
    layers = tuple(range(5, 5 + n_layers))
    return ProxyAttention(weights.astype(np.float32), pd.DataFrame(rows), layers, n_heads)


def of_masses(masses: list[list[list[float]]]) -> ProxyAttention:
    """Two equal queries a head with these masses [n][H][L], all on the first of two tokens."""
    weights = np.zeros((len(masses), len(masses[0]), 2, len(masses[0][0]), 2))
    weights[..., 0] = np.array(masses)[:, :, None]
    return attention(weights)


ROUTED = of_masses(
    [
        [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 0.1, 0.9], [0.4, 0.3, 0.3]],
        [[0.0, 0.9, 0.1], [0.0, 0.8, 0.2], [0.7, 0.1, 0.2], [0.3, 0.3, 0.4]],
    ]
)
"""Heads 0.0 and 0.1 follow the sample, 1.0 goes against them, 1.1 does not decide."""
A = labelled(ROUTED).sum("token")


def drop(of: ProxyAttention) -> DataArray:
    r = rank(labelled(of).sum("token"), "layer")
    return r[..., 0] - r[..., 1]


def weights_in(split: Decomposition) -> DataArray:
    """a of the decisive heads in l*, [sample, head, query, token]."""
    return split.a.sel(head=split.heads, layer=split.l_star)


def test_ranks_are_sorted_in_each_sample_whatever_the_layer() -> None:
    assert labelled(ROUTED).dims == ("sample", "head", "query", "layer", "token")
    r = rank(A, "layer")
    assert r["rank"].values.tolist() == [1, 2, 3] and "layer" not in r.dims
    assert r.sel(sample="s1", head="0.0", query=0).values == pytest.approx([0.9, 0.1, 0.0])
    assert r.mean("sample").sel(head="0.0", query=1).values == pytest.approx([0.9, 0.1, 0.0])
    assert rank(A.isel(layer=[0]), "layer")[..., 1].max() == 0  # one layer has no second


def test_heads_are_decisive_by_their_mean_drop() -> None:
    table = decomposition.head_table(A, ["0.0", "1.0"])
    assert table.index.tolist() == ["0.0", "1.0", "0.1", "1.1"]  # from the steepest
    assert table.index.name == "block.head"
    assert table["mean drop"].to_numpy() == pytest.approx([0.8, 0.65, 0.6, 0.1])
    assert table["decisive"].tolist() == ["yes", "yes", "no", "no"]
    assert table["part of samples"].to_numpy() == pytest.approx([0.5] * 4)
    assert decompose(ROUTED, 0.62).heads == ["0.0", "1.0"]
    assert decompose(ROUTED, 0.5).heads == ["0.0", "0.1", "1.0"]
    assert decompose(ROUTED, 0.5).n_decisive == 3
    assert decompose(ROUTED, 0.5).l_star.to_series().to_dict() == {"s0": 5, "s1": 6}


def test_the_least_drop_is_that_of_the_least_decided_query() -> None:
    weights = np.zeros((3, 1, 2, 2, 1))
    weights[:, 0, :, :, 0] = [[0.9, 0.1], [0.4, 0.6]]
    table = decomposition.head_table(labelled(attention(weights, 1)).sum("token"), ["0.0"])
    assert table.loc["0.0", ["mean drop", "least query"]].tolist() == pytest.approx([0.5, 0.2])
    assert table.loc["0.0", ["layer", "part of samples"]].tolist() == [5, 1.0]


def test_of_layers_with_equal_votes_the_larger_mass_wins() -> None:
    tied = decompose(ROUTED, 0.62)  # of 0.0 and 1.0
    assert tied.l_star.values.tolist() == [5, 6]  # masses 0.9, 0.2, 0.9 and 0.7, 1.0, 0.3
    assert tied.l_star.dtype.kind == "i"


def test_a_layer_without_a_vote_never_wins_by_its_mass() -> None:
    second_everywhere = of_masses(
        [[[0.55, 0.45, 0.0], [0.55, 0.45, 0.0], [0.0, 0.45, 0.55], [0.0, 0.45, 0.55]]]
    )
    assert decompose(second_everywhere, 0.05).l_star.item() in (5, 7)


def test_permuting_the_layers_permutes_the_choice() -> None:
    weights = np.random.default_rng(0).dirichlet(np.full(3 * 4, 0.2), (30, 4, 2))
    straight = attention(weights.reshape(30, 4, 2, 3, 4))
    order = [2, 0, 1]
    turned = attention(straight.weights[:, :, :, order])
    threshold = float(drop(straight).mean(("sample", "query")).median())
    a, b = decompose(straight, threshold), decompose(turned, threshold)
    assert a.heads == b.heads and len(a.heads) == 2
    place = {5 + old: 5 + new for new, old in enumerate(order)}
    assert [place[layer] for layer in a.l_star.values] == b.l_star.values.tolist()
    assert len(set(a.l_star.values)) == 3
    np.testing.assert_array_equal(weights_in(a), weights_in(b))
    columns = ["token", "share", "rank", "word_class"]
    pd.testing.assert_frame_equal(a.shares[columns], b.shares[columns])
    np.testing.assert_allclose(drop(straight), drop(turned), atol=1e-6)


def test_without_a_decisive_head_the_steepest_stands_in() -> None:
    split = decompose(ROUTED, 0.9)
    assert (split.n_decisive, split.heads) == (0, ["0.0"])
    assert split.l_star.values.tolist() == [5, 6]
    assert "no head is decisive" in decomposition.who(0, 4, 0.9)
    assert "2 of 4 heads" in decomposition.who(2, 4, 0.62)
    assert decompose(of_masses([[[1.0], [1.0]]]), 0.5).n_decisive == 2  # of a single layer


@pytest.fixture
def looking() -> ProxyAttention:
    """Two samples; head 0 puts 0.9 on l* = 6 or 5, head 1 does not decide and looks elsewhere."""
    weights = np.zeros((2, 2, 1, 2, 6))
    weights[0, 0, 0, 1] = [0.0, 0.2, 0.1, 0.6, 0.0, 0.0]
    weights[0, 0, 0, 0, 4] = 0.1
    weights[1, 0, 0, 0] = [0.0, 0.5, 0.0, 0.1, 0.3, 0.0]
    weights[1, 0, 0, 1, 5] = 0.1
    weights[:, 1, 0, :, 5] = 0.5
    return attention(weights)


def test_dominant_tokens_are_those_of_decisive_heads_in_the_best_layer(
    looking: ProxyAttention,
) -> None:
    split = decompose(looking, 0.5)
    assert weights_in(split).sizes == {"sample": 2, "head": 1, "query": 1, "token": 6}
    shares = split.shares
    by_sample = shares.groupby("sample_id")
    assert by_sample["share"].sum().tolist() == pytest.approx([1, 1])
    assert by_sample["layer"].first().tolist() == [6, 5]
    ranked = shares.sort_values(["sample_id", "rank"])
    assert ranked["rank"].tolist() == [1, 2, 3, 4, 5, 6] * 2
    assert ranked["token"].tolist()[:3] == [23, 21, 22]
    assert ranked["token"].tolist()[6:9] == [21, 24, 23]
    assert ranked["share"].tolist()[:3] == pytest.approx([6 / 9, 2 / 9, 1 / 9])
    first = shares[shares["sample_id"] == "s0"]
    assert first["word"].tolist() == ["Turn", "leftmost", "leftmost", "cup", "blue", "."]
    expected = [FUNCTION, SPATIAL, SPATIAL, NOUN, ADJECTIVE, OTHER]
    assert first["word_class"].tolist() == expected
    ranks = rank(weights_in(split), "token").mean("sample")[0, 0]  # sorted, then averaged
    assert ranks.values[:3] == pytest.approx([0.55, 0.25, 0.1])
    tokens = looking.tokens.assign(
        span=looking.tokens["span"].mask(looking.tokens["slot"] == 1, "image")
    )
    shares = decompose(replace(looking, tokens=tokens), 0.5).shares
    image = shares[shares["span"] == "image"]
    assert image["share"].tolist() == pytest.approx([2 / 9, 5 / 9])
    assert (image[["word", "word_class"]] == "").all(axis=None)


def test_curves_are_sorted_in_each_sample_and_parted_by_group() -> None:
    curves, lines = decomposition.sorted_curves(rank(A, "layer")[..., :2], ["0.0", "0.1"])
    decisive = curves[curves["group"] == "decisive heads"]
    assert decisive["rank"].tolist() == [1, 2]
    assert decisive["mean"].to_numpy() == pytest.approx([0.85, 0.15])
    other = curves[curves["group"] == "all other heads"]
    assert other["mean"].to_numpy() == pytest.approx([(0.9 + 0.7 + 0.4 + 0.4) / 4, 0.225])
    assert (curves["low"] <= curves["mean"]).all() and (curves["mean"] <= curves["high"]).all()
    assert len(lines) == 2 * 2 * 2 and set(lines["head"]) == {"0.0", "0.1"}
    everyone, _ = decomposition.sorted_curves(rank(A, "layer"), A["head"].values.tolist())
    assert set(everyone["group"]) == {"decisive heads"}


def test_steepness_is_that_of_the_decisive_heads() -> None:
    split = decompose(ROUTED, 0.5)  # heads 0.0, 0.1 and 1.0
    steep = decomposition.steepness(drop(ROUTED), weights_in(split), split.heads, 0.75, seed=0)
    value = steep["value"]
    assert value["mean_drop_layer"] == pytest.approx((0.8 + 0.6 + 0.65) / 3)
    assert value["strongest_head"] == pytest.approx(0.8)
    assert value["least_query"] == pytest.approx(0.6)
    assert value["samples_above"] == 0  # 0.73 and 0.63
    assert value["top_token"] == pytest.approx(1)  # all on one of two tokens
    assert value["mean_drop_token"] < value["mean_drop_layer"]  # a head prefers another layer
    assert steep.loc["mean_drop_layer", "paper"] == 0.6 and (steep["n"] == 2).all()


def kinds(*names: str) -> pd.Series:
    return pd.Series(names, index=[f"s{i}" for i in range(len(names))])


def layers(*chosen: int) -> DataArray:
    return DataArray(list(chosen), dims="sample", coords={"sample": kinds(*map(str, chosen)).index})


def test_layers_that_follow_the_kind_are_told_from_those_that_do_not() -> None:
    sides = kinds(*["left", "right"] * 20)
    follows = decomposition.dependence(layers(*[5, 6] * 20), sides, seed=0)
    assert follows.overall == pytest.approx(1)
    assert follows.within == 0
    assert follows.shuffled > 0.8
    assert follows.p == pytest.approx(0.001)
    apart = decomposition.dependence(layers(*[5, 5, 6, 6] * 10), sides, seed=0)
    assert apart.within == pytest.approx(1) and apart.p > 0.5
    fixed = decomposition.dependence(layers(*[5] * 40), sides, seed=0)
    assert fixed == (0, 0, 0, 1)


def test_layers_are_counted_by_kind_the_largest_first() -> None:
    sides = kinds("down", "up", "up")
    counts = decomposition.layers_by_kind(layers(6, 5, 5), sides, A.layer)
    assert counts.columns.tolist() == [5, 6, 7] and counts.index.tolist() == ["up", "down"]
    assert counts.loc["up"].tolist() == [2, 0, 0] and counts.loc["down"].tolist() == [0, 1, 0]
    samples = Experiment(Profile.load("smoke")).evaluation
    told = decomposition.kinds(samples, 3)
    assert told.index.tolist() == [samples[i].id for i in range(3)]
    assert told.iloc[0] == samples[0].facts["spatial_term"]


def words() -> pd.DataFrame:
    """Two samples: `Turn left most cup`, of which the proxy looks at the cup, then to the left."""
    weights = np.zeros((2, 1, 1, 1, 4))
    weights[0, ..., :] = [0.1, 0.0, 0.0, 0.9]
    weights[1, ..., :] = [0.0, 0.6, 0.0, 0.4]
    return decompose(attention(weights, n_heads=1), 0.5).shares


def test_words_are_weighed_against_their_part_of_the_tokens() -> None:
    table = dominant_tokens.word_classes(words(), 1, seed=0)
    assert table["value"].to_dict() == pytest.approx(
        {NOUN: 0.65, "adjective": 0, SPATIAL: 0.3, FUNCTION: 0.05, "other": 0}
    )
    assert table["tokens"].to_dict() == pytest.approx(
        {NOUN: 0.25, "adjective": 0, SPATIAL: 0.5, FUNCTION: 0.25, "other": 0}
    )
    assert table["dominant"].to_dict() == pytest.approx(
        {NOUN: 0.5, "adjective": 0, SPATIAL: 0.5, FUNCTION: 0, "other": 0}
    )
    two = dominant_tokens.word_classes(words(), 2, seed=0)["dominant"]
    assert two[[NOUN, SPATIAL, FUNCTION]].tolist() == pytest.approx([0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    ("value", "varies", "expected"),
    [
        (0.7, Dependence(1.0, 0.2, 0.9, 0.001), (HOLDS, HOLDS, HOLDS)),
        (0.55, Dependence(1.0, 0.9, 0.9, 0.5), (HOLDS, REVERSED, UNDECIDED)),
        (0.2, Dependence(0.0, 0.0, 0.0, 1.0), (REVERSED, REVERSED, REVERSED)),
        (0.505, Dependence(1.0, 0.2, 0.9, 0.06), (UNDECIDED, REVERSED, UNDECIDED)),
    ],
)
def test_claims_are_decided_by_rule(
    value: float, varies: Dependence, expected: tuple[str, str, str]
) -> None:
    names = ["mean_drop_layer", "strongest_head", "least_query", "samples_above", "top_token"]
    found = Interval(value, value - 0.01, value + 0.01, 200)
    steep = pd.DataFrame([found._asdict()] * len(names), index=names)
    checks = decomposition.check_claims(steep, varies, words(), 0.5, 3, seed=0)
    decided = {check.key: check.verdict for check in checks}
    assert (decided["decisive"], decided["drop"], decided["input"]) == expected
    assert decided["nouns"] == HOLDS  # 0.9 and 0.4 of the mass on one of four tokens
    assert decided["places"] == UNDECIDED  # nothing and 0.6 on two
    without = decomposition.check_claims(steep, varies, words(), 0.5, 0, seed=0)
    assert without[0].verdict == decided["decisive"]
    assert {check.verdict for check in without[1:]} == {UNDECIDED}


def shown(of: ProxyAttention, threshold: float, index: int) -> decomposition.Example:
    split = decompose(of, threshold)
    return decomposition.example(split.a, split.heads, split.l_star, of.tokens, index)


def test_the_example_is_of_the_steepest_head_that_prefers_the_layer() -> None:
    example = shown(ROUTED, 0.5, 1)
    assert example.masses.index.tolist() == ["0.0", "0.1", "1.0"]
    assert (example.head, example.layer) == ("0.0", 6)
    assert example.masses.loc["0.0"].tolist() == pytest.approx([0.0, 0.9, 0.1])
    assert example.masses.idxmax(axis=1).tolist() == [6, 6, 5]
    assert example.weights.columns.tolist() == ["Turn", "left"]
    assert example.weights.to_numpy() == pytest.approx(np.array([[0.9, 0.0], [0.9, 0.0]]))
    outvoted = of_masses([[[0.0, 1.0, 0.0], [0.75, 0.25, 0.0], [0.8, 0.1, 0.1]]])
    example = shown(outvoted, 0.4, 0)
    assert (example.layer, example.head) == (5, "1.0")
    assert example.masses.idxmax(axis=1).tolist() == [6, 5, 5]
