"""Masses, decisive heads, l* and dominant tokens on attention whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from abplib.core.errors import AbpError
from abplib.proxies.attention import ProxyAttention
from abplib.samples.words import ADJECTIVE, FUNCTION, NOUN, OTHER, SPATIAL
from abplib.sections import decomposition
from abplib.sections.decomposition import decompose

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
"""Heads 0 and 1 follow the sample, head 2 goes against them, head 3 does not decide."""


def test_heads_are_decisive_by_their_mean_drop() -> None:
    heads = decomposition.head_table(ROUTED)
    assert heads["drop"].to_numpy() == pytest.approx([0.8, 0.6, 0.65, 0.1])
    assert heads[["block", "head"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert heads["layer_part"].to_numpy() == pytest.approx([0.5] * 4)
    assert decompose(ROUTED, 0.62).decisive.tolist() == [0, 2]
    assert decompose(ROUTED, 0.5).decisive.tolist() == [0, 1, 2]
    counts = decomposition.sensitivity(heads, [0, 0.5, 0.62, 0.7, 0.9])
    assert counts["n_heads"].tolist() == [4, 3, 2, 1, 0]


def test_the_least_drop_is_that_of_the_least_decided_query() -> None:
    weights = np.zeros((3, 1, 2, 2, 1))
    weights[:, 0, 0, :, 0] = [0.9, 0.1]
    weights[:, 0, 1, :, 0] = [0.4, 0.6]
    heads = decomposition.head_table(attention(weights, n_heads=1))
    assert heads.loc[0, ["drop", "least_drop"]].tolist() == pytest.approx([0.5, 0.2])
    assert heads.loc[0, ["layer", "layer_part"]].tolist() == [5, 1.0]


def test_the_best_layer_is_the_decisive_heads_majority() -> None:
    layers = decompose(ROUTED, 0.5).layers
    assert layers["layer"].tolist() == [5, 6]
    assert layers["votes"].tolist() == [2, 2] and layers["n_heads"].tolist() == [3, 3]
    assert not layers["tie"].any()


def test_of_layers_with_equal_votes_the_larger_mass_wins_and_it_is_said() -> None:
    tied = decompose(ROUTED, 0.62)
    assert tied.decisive.tolist() == [0, 2]
    assert tied.layers["tie"].tolist() == [True, True]
    assert tied.layers["layer"].tolist() == [5, 6]  # masses 0.9, 0.2, 0.9 and 0.7, 1.0, 0.3


def test_a_layer_without_a_vote_never_wins_by_its_mass() -> None:
    second_everywhere = of_masses(
        [[[0.55, 0.45, 0.0], [0.55, 0.45, 0.0], [0.0, 0.45, 0.55], [0.0, 0.45, 0.55]]]
    )
    found = decompose(second_everywhere, 0.05)
    assert found.layers["layer"].item() in (5, 7) and found.layers["tie"].item()


def test_what_a_head_prefers_is_summed_over_its_queries() -> None:
    weights = np.zeros((1, 1, 3, 2, 1))
    weights[0, 0, :, :, 0] = [[0.55, 0.45], [0.55, 0.45], [0.0, 1.0]]
    masses = attention(weights).masses
    assert decomposition.preferred_layers(masses).tolist() == [[1]]


def test_permuting_the_layers_permutes_the_choice() -> None:
    weights = np.random.default_rng(0).dirichlet(np.full(3 * 4, 0.2), (30, 4, 2))
    straight = attention(weights.reshape(30, 4, 2, 3, 4))
    order = [2, 0, 1]
    turned = attention(straight.weights[:, :, :, order])
    threshold = float(decomposition.head_table(straight)["drop"].median())
    a, b = decompose(straight, threshold), decompose(turned, threshold)
    assert a.decisive.tolist() == b.decisive.tolist() and len(a.decisive) == 2
    place = {5 + old: 5 + new for new, old in enumerate(order)}
    assert a.layers["layer"].map(place).tolist() == b.layers["layer"].tolist()
    assert a.layers["layer"].nunique() == 3
    np.testing.assert_array_equal(a.token_weights, b.token_weights)
    columns = ["token", "share", "rank", "word_class"]
    pd.testing.assert_frame_equal(a.token_shares()[columns], b.token_shares()[columns])
    pd.testing.assert_frame_equal(
        decomposition.ranked_masses(straight), decomposition.ranked_masses(turned)
    )


def test_ranked_masses_are_sorted_before_they_are_averaged() -> None:
    ranked = decomposition.ranked_masses(ROUTED)
    first = ranked[(ranked["h"] == 0) & (ranked["query"] == 1)]
    assert first["rank"].tolist() == [1, 2, 3]
    assert first["mass"].tolist() == pytest.approx([0.9, 0.1, 0.0])  # not 0.45, 0.5, 0.05
    assert len(ranked) == 4 * 2 * 3


def test_a_proxy_of_one_layer_has_no_second_mass() -> None:
    found = decompose(of_masses([[[1.0], [1.0]]]), 0.5)
    assert found.decisive.tolist() == [0, 1] and found.layers["layer"].tolist() == [5]


def test_without_a_decisive_head_there_is_no_best_layer() -> None:
    with pytest.raises(
        AbpError, match=r"decisive at threshold 0\.9: its largest mean drop is 0\.8"
    ):
        decompose(ROUTED, 0.9)


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
    found = decompose(looking, 0.5)
    assert found.token_weights.shape == (2, 1, 1, 6)
    shares = found.token_shares()
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


def test_of_equal_shares_the_earlier_token_ranks_first() -> None:
    weights = np.full((1, 1, 1, 1, 4), 0.25)
    assert decompose(attention(weights), 0.5).token_shares()["rank"].tolist() == [1, 2, 3, 4]


def test_ranked_tokens_are_sorted_before_they_are_averaged(looking: ProxyAttention) -> None:
    ranked = decompose(looking, 0.5).ranked_tokens(3)
    assert ranked["h"].unique().tolist() == [0] and ranked["rank"].tolist() == [1, 2, 3]
    assert ranked["weight"].tolist() == pytest.approx([0.55, 0.25, 0.1])


def test_image_tokens_have_a_share_and_no_word(looking: ProxyAttention) -> None:
    tokens = looking.tokens.assign(
        span=np.where(looking.tokens["slot"] == 1, "image", looking.tokens["span"])
    )
    shares = decompose(replace(looking, tokens=tokens), 0.5).token_shares()
    image = shares[shares["span"] == "image"]
    assert image["share"].tolist() == pytest.approx([2 / 9, 5 / 9])
    assert (image[["word", "word_class"]] == "").all(axis=None)


def test_layers_are_counted_and_their_spread_is_in_bits() -> None:
    counts = decomposition.layer_counts(decompose(ROUTED, 0.5))
    assert counts["samples"].to_dict() == {5: 1, 6: 1, 7: 0}
    assert decomposition.entropy(counts["part"]) == pytest.approx(1)
    assert decomposition.entropy([1.0, 0.0]) == 0
    assert decomposition.entropy([0.2] * 5) == pytest.approx(math.log2(5))
