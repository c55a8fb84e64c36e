"""Maps compared: which rows each source takes, tests in pairs, verdicts by rule."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import noise

from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.sections import information_flow, pointing
from abplib.sections.decodability import HOLDS, REVERSED, UNDECIDED
from abplib.sections.information_flow import FlowScores
from abplib.vlm.encoder import ConditionEncoder

LAYERS = (5, 6)


def shares(n: int) -> pd.DataFrame:
    """Three prompt tokens a sample, 20 to 22; the second is dominant, then the first; l* = 5."""
    rows = [
        {"sample_id": f"s{i}", "layer": 5, "token": 20 + t, "span": "prompt", "share": share}
        for i in range(n)
        for t, share in enumerate((0.3, 0.6, 0.1))
    ]
    return pd.DataFrame(rows)


def scores(value: dict[tuple[int, int], float], n: int) -> FlowScores:
    """Every score by (layer, token), 0 where not given; token 23 closes the template."""
    tokens = [
        {"sample_id": f"s{i}", "layer": layer, "token": token, "kind": kind, "image_part": 0.5,
         "span": "prompt" if token < 23 else "template",
         **dict.fromkeys(information_flow.SCORES, value.get((layer, token), 0.0))}
        for i in range(n)
        for layer in LAYERS
        for token in (20, 21, 22, 23)
        for kind in ("raw", "relative")
    ]  # fmt: skip
    controls = [
        {"sample_id": f"s{i}", "source": source, **dict.fromkeys(information_flow.SCORES, score)}
        for i in range(n)
        for source, score in (("chance", 0.5), ("centre_prior", 0.6))
    ]
    return FlowScores(pd.DataFrame(tokens), pd.DataFrame(controls))


TRAINED = scores({(5, 21): 0.9, (5, 20): 0.3, (5, 22): 0.3, (6, 21): 0.95, (5, 23): 0.7}, 4)
TWIN = scores({(5, 21): 0.4}, 4)


def test_sources_take_their_rows() -> None:
    rows = pointing.sources(TRAINED, TWIN, shares(4), 1)
    found = rows.groupby("source")["auroc"].mean().to_dict()
    assert found == pytest.approx(
        {"dominant": 0.9, "random_token": 0.5, "other_layers": 0.95, "best_layer": 0.95,
         "last_token": 0.7, "untrained": 0.4, "centre_prior": 0.6, "chance": 0.5}
    )  # fmt: skip
    assert set(found) == set(pointing.SOURCES)
    assert pointing.best_layer(TRAINED, shares(4), 1) == 6
    assert pointing.best_layer(TRAINED, shares(4), 2) == 5  # 0.6 against 0.475


def test_the_grid_orders_tokens_by_rank() -> None:
    grid = pointing.token_grid(TRAINED, shares(4), "auroc", "raw")
    assert grid.columns.tolist() == ["1", "2", "3", "last"]
    assert grid.loc[5].tolist() == pytest.approx([0.9, 0.3, 0.3, 0.7])
    assert grid.loc[6].tolist() == pytest.approx([0.95, 0, 0, 0])
    shorter = shares(4).drop(index=2)  # the first sample has two tokens
    grid = pointing.token_grid(TRAINED, shorter, "auroc", "raw")
    assert grid.columns.tolist() == ["1", "2", "last"]


def rows_of(**means: float) -> pd.DataFrame:
    """Rows of `pointing.sources` of 40 samples: these means and a little noise, shared in part."""
    random = np.random.default_rng(0)
    shared = random.normal(0, 0.1, 40)
    parts = []
    for source in pointing.SOURCES:
        values = (means.get(source, 0.5) + shared + random.normal(0, 0.02, 40)).clip(0, 1)
        part = dict.fromkeys(("energy", "auroc"), values)
        hit = (values > 0.5).astype(float)
        parts.append(
            pd.DataFrame({"sample_id": [f"s{i}" for i in range(40)], **part, "hit": hit,
                          "hit_near": hit, "source": source})
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_rates_get_wilsons_interval_and_unknown_areas_are_left_out() -> None:
    rows = rows_of(dominant=0.9)
    rows.loc[rows["source"].eq("chance"), "hit"] = 0.25
    rows.loc[rows.index[0], "auroc"] = np.nan
    found = pointing.means(rows, seed=0)
    hits = rows[rows["source"] == "dominant"]["hit"]
    assert found["dominant", "hit"].value == hits.mean()
    assert found["dominant", "hit"].high <= 1
    assert found["chance", "hit"].low == 0.25
    assert found["dominant", "auroc"].n == 39
    table = pointing.mean_table(found)
    assert table.index.tolist() == list(pointing.SOURCES.values())


def test_comparisons_are_paired_and_corrected_together() -> None:
    found = pointing.comparisons(rows_of(dominant=0.55), seed=0)
    assert len(found) == 4 * (len(pointing.SOURCES) - 1)
    row = found.query("source == 'chance' and score == 'auroc'").iloc[0]
    assert row["value"] == pytest.approx(0.05, abs=0.02)
    assert row["low"] > 0  # the noise that they share is gone
    assert (found["p_holm"] >= found["p"]).all()
    assert row["p_holm"] < 0.05
    table = pointing.comparison_table(found.assign(p=[1e-4, *[0.5] * (len(found) - 1)]))
    assert table["p"].tolist() == ["< 0.001", *["0.500"] * (len(found) - 1)]


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ({"dominant": 0.9, "last_token": 0.99}, (HOLDS, HOLDS, HOLDS)),
        ({"dominant": 0.6, "centre_prior": 0.7, "random_token": 0.6},
         (REVERSED, HOLDS, UNDECIDED)),
        ({"dominant": 0.3, "random_token": 0.4}, (REVERSED, REVERSED, REVERSED)),
    ],
)  # fmt: skip
def test_verdicts_go_by_the_hardest_rival(
    means: dict[str, float], expected: tuple[str, str, str]
) -> None:
    verdicts = {v.key: v for v in pointing.verdicts(rows_of(**means), seed=0)}
    decided = tuple(verdicts[key].verdict for key in ("target", "accurate", "token"))
    assert decided == expected
    if "centre_prior" in means:
        assert "centre prior" in verdicts["target"].measured


def test_hits_are_counted_in_pairs() -> None:
    rows = rows_of()
    rows.loc[rows["source"] == "dominant", "hit"] = [1.0] * 30 + [0.0] * 10
    rows.loc[rows["source"] == "untrained", "hit"] = [1.0] * 10 + [0.0] * 30
    assert tuple(pointing.hits_against_untrained(rows)) == (10, 20, 0, 10)


def test_the_untrained_twin_is_of_the_same_make_and_seeded(encoder: ConditionEncoder) -> None:
    before = torch.random.get_rng_state()
    twins = [pointing.untrained(encoder, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [twin.model.state_dict() for twin in twins]
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])
    assert weights[0].keys() == encoder.model.state_dict().keys()
    assert not torch.equal(weights[0][name], encoder.model.state_dict()[name])
    assert len({encoder.fingerprint, *(twin.fingerprint for twin in twins)}) == 3
    encoding = twins[0].encode([noise(64, 64)], ["move it"], attention=[2])
    assert encoding.attention[2].isfinite().all()


def test_samples_are_chosen_by_their_place_in_the_order() -> None:
    rows = pd.DataFrame(
        {
            "sample_id": ["b", "a", "c", "d", "a"],
            "source": ["dominant"] * 4 + ["chance"],
            "auroc": [0.5, 0.5, 0.9, np.nan, 1.0],
        }
    )
    ordered = pointing.by_auroc(rows)
    assert ordered == ["c", "a", "b"]
    assert pointing.at_quantiles(ordered, (0, 0.5, 1)) == ordered
    assert pointing.at_quantiles(["only"], (0, 0.5, 1)) == ["only"] * 3


def test_an_example_holds_the_maps_of_its_dominant_tokens(encoder: ConditionEncoder) -> None:
    samples = Experiment(Profile.load("smoke")).evaluation
    sample = samples[0]
    maps = information_flow.attention_maps(
        encoder, [sample.image], [sample.instruction], [0, 1, 2, 3]
    )[0]
    tokens = maps.tokens[: maps.n_prompt].tolist()
    table = pd.DataFrame(
        {
            "sample_id": sample.id,
            "layer": 2,
            "token": tokens,
            "span": "prompt",
            "text": [f" w{token}" for token in tokens],
            "share": [0.1, 0.5, 0.4] + [0.0] * (len(tokens) - 3),
        }
    )
    rows = pd.DataFrame({"sample_id": [sample.id], "source": ["dominant"], "auroc": [0.75]})
    (found,) = pointing.examples(encoder, samples, table, rows, [sample.id], 2)
    assert (found.best, found.dominant, found.auroc) == (2, [1, 2], 0.75)
    assert found.words[1] == f"w{tokens[1]}"
    torch.testing.assert_close(found.dominant_map(), maps.raw[2, 1:3].mean(0))
    torch.testing.assert_close(
        found.dominant_map("relative"), maps.relative[2, 1:3].mean(0), rtol=1e-4, atol=1e-6
    )
