"""Maps scored against boxes with known answers; sources, tests in pairs, claims by rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.samples.base import Sample
from abplib.sections import information_flow
from abplib.sections.claims import HOLDS, REVERSED, UNDECIDED
from abplib.sections.estimates import table
from abplib.sections.information_flow import FlowScores, Kind
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.maps import attention_maps, map_scores

BLOCKS = (1, 3)
LAYERS = (5, 6)
BOX: Box = (0.25, 0.0, 0.75, 0.5)


@dataclass
class Pictures:
    """A `SampleSet` of given images and instructions."""

    images: Sequence[Image.Image]
    instructions: Sequence[str]
    name: str = "pictures"
    fingerprint: str = "0"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"p{index}", self.images[index], self.instructions[index], BOX)


def test_all_tokens_are_scored_and_kept(
    encoder: ConditionEncoder,
    images: list[Image.Image],
    instructions: list[str],
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = Pictures(images, instructions)
    found = information_flow.score_flow(encoder, samples, 2, BLOCKS)
    maps = attention_maps(encoder, images, instructions, BLOCKS)
    n_tokens = [len(m.tokens) for m in maps]
    assert len(found.tokens) == sum(n_tokens) * len(BLOCKS) * 2
    rows = found.tokens.query("sample_id == 'p1' and layer == 3 and kind == 'relative'")
    assert (rows["span"] == "prompt").sum() == maps[1].n_prompt
    assert (rows["span"] == "template").tolist()[-5:] == [True] * 5
    row = rows.iloc[4]
    assert row["token"] == maps[1].tokens[4]
    for score, value in map_scores(maps[1].relative[1, 4], BOX).items():
        assert row[score] == pytest.approx(float(value))
    chance = found.controls[found.controls["source"] == "chance"]
    assert chance["energy"].tolist() == pytest.approx([0.25, 0.25])
    monkeypatch.setattr(encoder, "encode", None)  # read from disk
    again = information_flow.score_flow(encoder, samples, 2, BLOCKS)
    pd.testing.assert_frame_equal(again.tokens, found.tokens)
    with pytest.raises(AbpError, match="3 samples are asked for, but pictures holds 2"):
        information_flow.score_flow(encoder, samples, 3, BLOCKS)


def shares(n: int, seed: int = 0, layer: int = 5) -> pd.DataFrame:
    """Three prompt tokens a sample, 20 to 22; the second is dominant, then the first."""
    about = {"seed": seed, "layer": layer, "span": "prompt"}
    rows = [
        {"sample_id": f"s{i}", "token": 20 + t, "share": share, **about}
        for i in range(n)
        for t, share in enumerate((0.3, 0.6, 0.1))
    ]
    return pd.DataFrame(rows)


def scores(value: dict[tuple[int, int], float], n: int) -> FlowScores:
    """Every score by (layer, token), 0 where not given; token 23 closes the template."""
    tokens = [
        {"sample_id": f"s{i}", "layer": layer, "token": token, "kind": kind,
         "span": "prompt" if token < 23 else "template",
         **dict.fromkeys(information_flow.SCORES, value.get((layer, token), 0.0) + (kind != "raw"))}
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
    def found(n_tokens: int = 1, kind: Kind = "raw") -> dict[str, float]:
        told = information_flow.sources(TRAINED, TWIN, shares(4), n_tokens, kind)
        means: dict[str, float] = told.groupby("source")["auroc"].mean().to_dict()
        return means

    assert found() == pytest.approx(
        {"dominant": 0.9, "random_token": 0.5, "other_layers": 0.95, "best_layer": 0.95,
         "last_token": 0.7, "untrained": 0.4, "centre_prior": 0.6, "chance": 0.5}
    )  # fmt: skip
    assert set(found()) == set(information_flow.SOURCES)
    two = found(2, "relative")
    assert two["dominant"] == pytest.approx(1.6) and two["chance"] == 0.5
    assert information_flow.best_layer(TRAINED, shares(4), 1) == 6
    assert information_flow.best_layer(TRAINED, shares(4), 2) == 5  # 0.6 against 0.475
    unread = information_flow.sources(TRAINED, TWIN, shares(3), 1)
    assert unread["sample_id"].nunique() == 3  # the fourth has no proxy's attention


def test_each_seed_has_its_own_layer_and_tokens() -> None:
    both = pd.concat([shares(4), shares(4, seed=1, layer=6)])
    told = information_flow.sources(TRAINED, TWIN, both, 1)
    means = told.groupby(["source", "seed"])["auroc"].mean().unstack()
    assert means.loc["dominant"].tolist() == pytest.approx([0.9, 0.95])
    assert means.loc["other_layers"].tolist() == pytest.approx([0.95, 0.9])
    assert means.loc["last_token"].tolist() == pytest.approx([0.7, 0])
    assert means.loc["chance"].tolist() == [0.5, 0.5]
    assert (told.groupby(["seed", "source"]).size() == 4).all()
    assert information_flow.by_seed(told)["AUROC"].tolist() == pytest.approx([0.9, 0.95])
    grid = information_flow.token_grid(TRAINED, both, "auroc", "raw")
    pd.testing.assert_frame_equal(
        grid, information_flow.token_grid(TRAINED, shares(4), "auroc", "raw")
    )


def test_the_grid_orders_tokens_by_rank() -> None:
    grid = information_flow.token_grid(TRAINED, shares(4), "auroc", "raw")
    assert grid.columns.tolist() == ["1", "2", "3", "last"]
    assert grid.loc[5].tolist() == pytest.approx([0.9, 0.3, 0.3, 0.7])
    assert grid.loc[6].tolist() == pytest.approx([0.95, 0, 0, 0])
    shorter = shares(4).drop(index=2)  # the first sample has two tokens
    grid = information_flow.token_grid(TRAINED, shorter, "auroc", "raw")
    assert grid.columns.tolist() == ["1", "2", "last"]


def rows_of(seed: int = 0, **means: float) -> pd.DataFrame:
    """Rows of `sources` of a seed and 40 samples: these means and some noise, shared in part."""
    random = np.random.default_rng(0)
    shared = random.normal(0, 0.1, 40)
    parts = []
    for source in information_flow.SOURCES:
        values = (means.get(source, 0.5) + shared + random.normal(0, 0.02, 40)).clip(0, 1)
        part = dict.fromkeys(("energy", "auroc"), values)
        hit = (values > 0.5).astype(float)
        parts.append(
            pd.DataFrame({"sample_id": [f"s{i}" for i in range(40)], **part, "hit": hit,
                          "hit_near": hit, "source": source, "seed": seed})
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_means_are_by_source_and_unknown_areas_are_left_out() -> None:
    rows = rows_of(dominant=0.9)
    rows.loc[rows["source"].eq("chance"), "hit"] = 0.25
    rows.loc[rows.index[0], "auroc"] = np.nan
    means = information_flow.means(rows, seed=0).set_index(["source", "score"])
    hits = rows[rows["source"] == "dominant"]["hit"]
    assert means.loc[("dominant", "hit"), "value"] == hits.mean()
    assert means.loc[("chance", "hit"), "low"] == 0.25
    assert means.loc[("untrained", "hit"), "reference"] == 0.25
    assert means.loc[("dominant", "auroc"), "n"] == 39
    assert means.loc[("dominant", "hit"), "name"] == "pointing_hit.dominant"
    shown = table(means, "label", "panel")
    assert shown.index.tolist() == list(information_flow.SOURCES.values())
    assert shown.columns.tolist() == ["pointing hit", "hit, 15 px", "energy in box", "AUROC"]
    assert shown.loc["chance", "pointing hit"].startswith("0.250 ")


def test_comparisons_are_paired() -> None:
    found = information_flow.comparisons(rows_of(dominant=0.55), seed=0)
    assert len(found) == 4 * (len(information_flow.SOURCES) - 1)
    row = found.set_index(["score", "against"]).loc[("AUROC", "chance")]
    assert row["value"] == pytest.approx(0.05, abs=0.02)
    assert row["low"] > 0  # the noise that they share is gone


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ({"dominant": 0.9, "last_token": 0.99}, (HOLDS, HOLDS, HOLDS)),
        ({"dominant": 0.6, "centre_prior": 0.7, "random_token": 0.6},
         (REVERSED, HOLDS, UNDECIDED)),
        ({"dominant": 0.3, "random_token": 0.4}, (REVERSED, REVERSED, REVERSED)),
    ],
)  # fmt: skip
def test_claims_go_by_the_hardest_rival(
    means: dict[str, float], expected: tuple[str, str, str]
) -> None:
    checks = {c.key: c for c in information_flow.check_claims(rows_of(**means), seed=0)}
    decided = tuple(checks[key].verdict for key in ("target", "accurate", "token"))
    assert decided == expected
    if "centre_prior" in means:
        assert "centre prior" in checks["target"].measured


def test_claims_and_means_are_over_seeds() -> None:
    rows = pd.concat([rows_of(dominant=0.9), rows_of(1, dominant=0.9, random_token=0.95)])
    checks = {c.key: c.verdict for c in information_flow.check_claims(rows, seed=0)}
    assert checks["target"] == HOLDS and checks["token"] == UNDECIDED  # on either side
    means = information_flow.means(rows, seed=0).set_index(["source", "score"])
    assert means.loc[("random_token", "auroc"), "seeds"] == pytest.approx((0.5, 0.95), abs=0.05)


def test_samples_are_chosen_by_their_place_in_the_order() -> None:
    rows = pd.DataFrame(
        {
            "sample_id": ["b", "a", "c", "d", "a"],
            "source": ["dominant"] * 4 + ["chance"],
            "seed": 0,
            "auroc": [0.5, 0.5, 0.9, np.nan, 1.0],
        }
    )
    assert information_flow.at_quantiles(rows, (0, 0.5, 1)) == ["c", "a", "b"]
    assert information_flow.at_quantiles(rows[:1], (0, 0.5, 1)) == ["b"] * 3


def test_an_example_holds_the_maps_of_its_dominant_tokens(encoder: ConditionEncoder) -> None:
    samples = Experiment(Profile.load("smoke")).evaluation
    sample = samples[0]
    maps = attention_maps(encoder, [sample.image], [sample.instruction], [0, 1, 2, 3])[0]
    tokens = maps.tokens[: maps.n_prompt].tolist()
    table = pd.DataFrame(
        {
            "seed": 0,
            "sample_id": sample.id,
            "layer": 2,
            "token": tokens,
            "span": "prompt",
            "text": [f" w{token}" for token in tokens],
            "share": [0.1, 0.5, 0.4] + [0.0] * (len(tokens) - 3),
        }
    )
    about = {"seed": [0], "sample_id": [sample.id], "source": ["dominant"]}
    rows = pd.DataFrame({**about, "auroc": [0.75]})
    (found,) = information_flow.mapped(encoder, samples, table, rows, [0], 2)
    assert (found.best, found.dominant, found.auroc) == (2, [1, 2], 0.75)
    assert found.words[1] == f"w{tokens[1]}"
    torch.testing.assert_close(found.dominant_map(), maps.raw[2, 1:3].mean(0))
    torch.testing.assert_close(
        found.dominant_map("relative"), maps.relative[2, 1:3].mean(0), rtol=1e-4, atol=1e-6
    )
