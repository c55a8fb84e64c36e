"""Masses, decisive heads, l* and dominant tokens on attention whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from xarray import DataArray

from abplib.core.stats import Interval
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.proxies.attention import ProxyAttention
from abplib.samples.words import ADJECTIVE, FUNCTION, NOUN, OTHER, SPATIAL
from abplib.sections import decomposition, dominant_tokens
from abplib.sections.claims import HOLDS, REVERSED, UNDECIDED
from abplib.sections.decomposition import Decomposition, decompose, labelled, rank

TEXTS = ["Turn", " left", "most", " cup", " blue", "."]


def attention(*seeds: np.ndarray, n_heads: int = 2) -> ProxyAttention:
    """Of each seed weights [n, H, N, L, T] over the first T of `TEXTS`, for layers 5, 6, ..."""
    n, _, _, n_layers, n_tokens = seeds[0].shape
    rows = [
        {"sample_id": f"s{i}", "slot": t, "token": 20 + t, "span": "prompt", "text": TEXTS[t]}
        for i in range(n)
        for t in range(n_tokens)
    ]
    layers = tuple(range(5, 5 + n_layers))
    weights = np.stack(seeds).astype(np.float32)
    return ProxyAttention(weights, pd.DataFrame(rows), layers, n_heads)


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


def heads(split: Decomposition) -> list[str]:
    """H of seed 0."""
    names: list[str] = split.H["head"][split.H[0].values].values.tolist()
    return names


def of(*names: str) -> DataArray:
    """H of these heads of `ROUTED`."""
    return A["head"].isin(names).expand_dims(seed=[0])


def test_ranks_are_sorted_in_each_sample_whatever_the_layer() -> None:
    assert labelled(ROUTED).dims == ("seed", "sample", "head", "query", "layer", "token")
    r = rank(A, "layer")
    assert r["rank"].values.tolist() == [1, 2, 3] and "layer" not in r.dims
    assert r.sel(seed=0, sample="s1", head="0.0", query=0).values == pytest.approx([0.9, 0.1, 0.0])
    assert r.mean("sample").sel(seed=0, head="0.0", query=1).values == pytest.approx(
        [0.9, 0.1, 0.0]
    )
    assert rank(A.isel(layer=[0]), "layer")[..., 1].max() == 0  # one layer has no second


def test_heads_are_decisive_by_their_mean_drop() -> None:
    assert heads(decompose(ROUTED, 0.62)) == ["0.0", "1.0"]
    assert heads(decompose(ROUTED, 0.5)) == ["0.0", "0.1", "1.0"]
    assert decompose(ROUTED, 0.5).n_decisive.values.tolist() == [3]
    assert decompose(ROUTED, 0.5).l_star[0].to_series().to_dict() == {"s0": 5, "s1": 6}


def test_each_seed_is_taken_apart_by_itself() -> None:
    """The second seed's heads and layers are the first one's in another order."""
    first = ROUTED.weights[0]
    both = attention(first, first[:, [3, 2, 1, 0]][:, :, :, [2, 0, 1]])
    alone, split = decompose(ROUTED, 0.5), decompose(both, 0.5)
    assert split.n_decisive.values.tolist() == [3, 3]
    assert split.H.values.tolist() == [alone.H[0].values.tolist(), alone.H[0].values[::-1].tolist()]
    assert split.l_star.values.tolist() == [[5, 6], [6, 7]]
    rows = split.shares.drop(columns=["seed", "layer"])
    halves = [rows[split.shares["seed"] == seed].reset_index(drop=True) for seed in (0, 1)]
    pd.testing.assert_frame_equal(*halves)
    mean_drop = drop(both).mean(("sample", "query"))
    told = decomposition.by_seed(split.n_decisive, mean_drop, split.l_star, split.shares)
    assert told["decisive heads"].tolist() == [3, 3] and told["layer"].tolist() == [5, 6]
    assert told["part with this layer"].tolist() == [0.5, 0.5]
    assert told["word"].tolist() == ["turn", "turn"] and (told["part with this word"] == 1).all()
    steep = decomposition.steepness(drop(both), split.w, split.H, 0.5, seed=0)
    assert steep.loc["mean_drop_layer", "seeds"] == pytest.approx(((0.8 + 0.6 + 0.65) / 3,) * 2)
    one_of_two = decompose(both, 0.7)  # 0.8 and 0.65
    assert one_of_two.H.sum("head").values.tolist() == [1, 1]


def test_of_layers_with_equal_votes_the_larger_mass_wins() -> None:
    tied = decompose(ROUTED, 0.62)  # of 0.0 and 1.0
    assert tied.l_star[0].values.tolist() == [5, 6]  # masses 0.9, 0.2, 0.9 and 0.7, 1.0, 0.3
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
    turned = attention(straight.weights[0][:, :, :, order])
    threshold = float(drop(straight).mean(("sample", "query")).median())
    a, b = decompose(straight, threshold), decompose(turned, threshold)
    assert heads(a) == heads(b) and len(heads(a)) == 2
    place = {5 + old: 5 + new for new, old in enumerate(order)}
    assert [place[layer] for layer in a.l_star[0].values] == b.l_star[0].values.tolist()
    assert len(set(a.l_star[0].values)) == 3
    np.testing.assert_array_equal(a.w, b.w)
    columns = ["token", "share", "rank", "word_class"]
    pd.testing.assert_frame_equal(a.shares[columns], b.shares[columns])
    np.testing.assert_allclose(drop(straight), drop(turned), atol=1e-6)


def test_without_a_decisive_head_the_steepest_stands_in() -> None:
    split = decompose(ROUTED, 0.9)
    assert (split.n_decisive.item(), heads(split)) == (0, ["0.0"])
    assert split.l_star[0].values.tolist() == [5, 6]
    assert "the head with the largest stands in" in decomposition.who(counts(0, 2), 4, 0.9)
    assert decomposition.who(counts(3, 2), 4, 0.62).endswith(
        "3, 2 of 4 heads are decisive, seed by seed."
    )
    assert decompose(of_masses([[[1.0], [1.0]]]), 0.5).n_decisive.item() == 2  # of a single layer


def counts(*of_seeds: int) -> DataArray:
    return DataArray(list(of_seeds), dims="seed")


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
    assert heads(split) == ["0.0"] and split.w.dims == ("seed", "sample", "head", "query", "token")
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
    ranks = rank(split.w, "token").mean("sample")[0, 0, 0]  # sorted, then averaged
    assert ranks.values[:3] == pytest.approx([0.55, 0.25, 0.1])
    tokens = looking.tokens.assign(
        span=looking.tokens["span"].mask(looking.tokens["slot"] == 1, "image")
    )
    shares = decompose(replace(looking, tokens=tokens), 0.5).shares
    image = shares[shares["span"] == "image"]
    assert image["share"].tolist() == pytest.approx([2 / 9, 5 / 9])
    assert (image[["word", "word_class"]] == "").all(axis=None)


def test_curves_are_sorted_in_each_sample_and_parted_by_group() -> None:
    curves, lines = decomposition.sorted_curves(rank(A, "layer")[..., :2], of("0.0", "0.1"))
    decisive = curves[curves["group"] == "decisive heads"]
    assert decisive["rank"].tolist() == [1, 2]
    assert decisive["mean"].to_numpy() == pytest.approx([0.85, 0.15])
    other = curves[curves["group"] == "all other heads"]
    assert other["mean"].to_numpy() == pytest.approx([(0.9 + 0.7 + 0.4 + 0.4) / 4, 0.225])
    assert (curves["low"] <= curves["mean"]).all() and (curves["mean"] <= curves["high"]).all()
    assert len(lines) == 2 * 2 * 2 and set(lines["head"]) == {"0.0", "0.1"}
    everyone, _ = decomposition.sorted_curves(rank(A, "layer"), of(*A["head"].values))
    assert set(everyone["group"]) == {"decisive heads"}


def test_steepness_is_that_of_the_decisive_heads() -> None:
    split = decompose(ROUTED, 0.5)  # heads 0.0, 0.1 and 1.0
    steep = decomposition.steepness(drop(ROUTED), split.w, split.H, 0.75, seed=0)
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
    """l* of one seed."""
    names = {"seed": [0], "sample": kinds(*map(str, chosen)).index}
    return DataArray([list(chosen)], dims=("seed", "sample"), coords=names)


def test_layers_that_follow_the_kind_are_told_from_those_that_do_not() -> None:
    sides = kinds(*["left", "right"] * 20)
    chosen = [layers(*few * 10) for few in ([5, 6, 5, 6], [5, 5, 6, 6], [5, 5, 5, 5])]
    three = xr.concat(chosen, "seed")
    found = decomposition.dependence(three, sides, seed=0)
    follows, apart, fixed = found.to_dict("records")
    assert follows["overall"] == pytest.approx(1)
    assert follows["within"] == 0
    assert follows["shuffled"] > 0.8
    assert follows["p"] == pytest.approx(0.001)
    assert apart["within"] == pytest.approx(1) and apart["p"] > 0.5
    assert list(fixed.values()) == [0, 0, 0, 1]


def test_layers_are_counted_by_kind_the_largest_first() -> None:
    sides = kinds("down", "up", "up")
    counts = decomposition.layers_by_kind(layers(6, 5, 5), sides, A.layer)
    assert counts.columns.tolist() == [5, 6, 7]
    assert counts.index.tolist() == ["all, seed 0", "up", "down"]
    assert counts.loc["all, seed 0"].tolist() == [2, 1, 0]
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
        (0.7, [(1.0, 0.001), (1.0, 0.02)], (HOLDS, HOLDS, HOLDS)),
        (0.7, [(1.0, 0.001), (1.0, 0.2)], (HOLDS, HOLDS, UNDECIDED)),  # seeds disagree
        (0.55, [(1.0, 0.5)], (HOLDS, REVERSED, UNDECIDED)),
        (0.2, [(0.0, 1.0)], (REVERSED, REVERSED, REVERSED)),
        (0.505, [(1.0, 0.06)], (UNDECIDED, REVERSED, UNDECIDED)),
    ],
)
def test_claims_are_decided_by_rule(
    value: float, varies: list[tuple[float, float]], expected: tuple[str, str, str]
) -> None:
    dependence = pd.DataFrame(varies, columns=["overall", "p"]).assign(within=0.2, shuffled=0.9)
    names = ["mean_drop_layer", "strongest_head", "least_query", "samples_above", "top_token"]
    found = Interval(value, value - 0.01, value + 0.01, 200)
    steep = pd.DataFrame([found._asdict()] * len(names), index=names)
    checks = decomposition.check_claims(steep, dependence, words(), 0.5, counts(3, 1), seed=0)
    decided = {check.key: check.verdict for check in checks}
    assert (decided["decisive"], decided["drop"], decided["input"]) == expected
    assert decided["nouns"] == HOLDS  # 0.9 and 0.4 of the mass on one of four tokens
    assert decided["places"] == UNDECIDED  # nothing and 0.6 on two
    without = decomposition.check_claims(steep, dependence, words(), 0.5, counts(3, 0), seed=0)
    assert without[0].verdict == decided["decisive"]
    assert {check.verdict for check in without[1:]} == {UNDECIDED}


def shown(of: ProxyAttention, threshold: float, index: int) -> decomposition.Example:
    split = decompose(of, threshold)
    return decomposition.example(labelled(of), split.H, split.l_star, of.tokens, index)


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
