"""Where the instruction looks: how well the maps of its tokens point at the target.

Chapter 4, section 4.5, Figures 7 and 12; the maps are those of `abplib.vlm.maps`. `shares` are rows
of `decomposition.token_shares`; a *source* is where a map comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from abplib.core import store
from abplib.core.stats import with_interval
from abplib.samples.base import Sample, SampleSet
from abplib.sections.claims import ClaimCheck, against, decide
from abplib.sections.estimates import estimate, estimates
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.maps import AttentionMaps, attention_maps, centre_prior, map_scores, maps_of

SCORES: Mapping[str, tuple[str, str]] = {
    "hit": ("pointing_hit", "pointing hit"),
    "hit_near": ("pointing_hit_near", "hit, 15 px"),
    "energy": ("energy_in_box", "energy in box"),
    "auroc": ("auroc", "AUROC"),
}
"""Of a map against a box (see `map_scores`): each one's name in `values.json` and on a page."""

SOURCES: Mapping[str, str] = {
    "dominant": "dominant token, l*",
    "random_token": "random prompt token, l*",
    "other_layers": "dominant token, other layers",
    "best_layer": "dominant token, best layer",
    "last_token": "last token, l*",
    "untrained": "dominant token, untrained VLM",
    "centre_prior": "centre prior",
    "chance": "chance",
}
"""How figures and tables call the sources; see `sources`."""

_SAMPLE = ["seed", "sample_id"]

Kind = Literal["raw", "relative"]
"""Of maps; see `abplib.vlm.maps`."""


@dataclass(frozen=True, eq=False)
class FlowScores:
    """How well the maps of a sample set point at the exact boxes, with the columns `SCORES`."""

    tokens: pd.DataFrame
    """A row for each sample_id, layer, token (its index in the kept sequence) and kind of map; and
    span (prompt or template)."""
    controls: pd.DataFrame
    """A row for each sample_id and source that reads nothing: chance, a constant map, and
    centre_prior."""


def score_flow(
    encoder: ConditionEncoder, samples: SampleSet, n: int, layers: Sequence[int]
) -> FlowScores:
    """Score all tokens after the image of the first `n` samples in `layers`; kept on disk.

    No proxy has a part in this: `sources` says which rows are those of dominant tokens. Raises
    AbpError as `ConditionEncoder.over` does.
    """
    place = _scored(encoder, samples, n, list(layers))
    tables = (store.read_parquet(place / f"{name}.parquet")[0] for name in ("tokens", "controls"))
    return FlowScores(*tables)


@store.stored("flow")
def _scored(
    place: Path, encoder: ConditionEncoder, samples: SampleSet, n: int, layers: list[int]
) -> None:
    tokens, controls = [], []
    for batch, encoding in encoder.over(samples, n, attention=layers):
        mapped = maps_of(encoder, [sample.image for sample in batch], encoding, layers)
        for sample, maps in zip(batch, mapped, strict=True):
            index = pd.MultiIndex.from_product(
                [[sample.id], layers, maps.tokens.tolist()], names=["sample_id", "layer", "token"]
            )
            is_prompt = np.arange(len(maps.tokens)) < maps.n_prompt
            span = np.tile(np.where(is_prompt, "prompt", "template"), len(layers))
            for kind, values in (("raw", maps.raw), ("relative", maps.relative)):
                scores = {k: v.flatten() for k, v in map_scores(values, sample.box).items()}
                rows = pd.DataFrame(scores, index).assign(span=span, kind=kind)
                tokens.append(rows.reset_index())
            grid = (maps.raw.shape[-2], maps.raw.shape[-1])
            blind = {"chance": torch.ones(grid), "centre_prior": centre_prior(grid)}
            for source, control in blind.items():
                known = {k: float(v) for k, v in map_scores(control, sample.box).items()}
                controls.append({"sample_id": sample.id, "source": source, **known})
    store.write_parquet(place / "tokens.parquet", pd.concat(tokens, ignore_index=True))
    store.write_parquet(place / "controls.parquet", pd.DataFrame(controls))


def sources(
    flow: FlowScores, twin: FlowScores, shares: pd.DataFrame, n_tokens: int, kind: Kind = "raw"
) -> pd.DataFrame:
    """Scores of each sample by where its maps come from: seed, sample_id, source and `SCORES`.

    By the proxy of each seed, whose shares they are. Sources, each a mean over its maps:

    - `dominant`: of the prompt tokens the `n_tokens` with the largest share, in l*;
    - `random_token`: all prompt tokens in l*, which is what one drawn at random scores on average;
    - `other_layers`: the dominant tokens in all other layers of `flow`;
    - `best_layer`: in the one of `best_layer`, a bound on what choosing a layer can give;
    - `last_token`: the sequence's last token in l*, where an answer would begin;
    - `untrained`: as `dominant` in `twin`, the scores of an untrained VLM;
    - `chance` and `centre_prior`: see `FlowScores.controls`.
    """
    rows, control = (_located(scores, shares, kind) for scores in (flow, twin))
    at_best, dominant = rows["layer"] == rows["best"], rows["rank"] <= n_tokens
    parts = {
        "dominant": rows[at_best & dominant],
        "random_token": rows[at_best & (rows["span"] == "prompt")],
        "other_layers": rows[~at_best & dominant],
        "last_token": rows[at_best & rows["is_last"]],
        "untrained": control[(control["layer"] == control["best"]) & (control["rank"] <= n_tokens)],
        "best_layer": rows[(rows["layer"] == best_layer(flow, shares, n_tokens, kind)) & dominant],
    }
    means = [
        part.groupby(_SAMPLE, sort=False)[list(SCORES)].mean().assign(source=source)
        for source, part in parts.items()
    ]
    controls = shares[_SAMPLE].drop_duplicates().merge(flow.controls, on="sample_id")
    frame = pd.concat([*means, controls.set_index(_SAMPLE)]).reset_index()
    return frame[[*_SAMPLE, "source", *SCORES]]


def best_layer(flow: FlowScores, shares: pd.DataFrame, n_tokens: int, kind: Kind = "raw") -> int:
    """The layer in which the dominant tokens' maps have the largest mean AUROC.

    It is picked by the samples that are scored, so it flatters.
    """
    rows = _located(flow, shares, kind)
    areas = rows[rows["rank"] <= n_tokens].groupby("layer")["auroc"].mean()
    return int(areas.index[int(areas.argmax())])


def token_grid(flow: FlowScores, shares: pd.DataFrame, score: str, kind: Kind) -> pd.DataFrame:
    """Mean score of every layer's maps by the token's rank with the proxy, [layer, rank].

    Rank 1 is the dominant token. Ranks go as far as the shortest instruction; the last column,
    named "last", is the sequence's last token.
    """
    rows = _located(flow, shares, kind)
    shortest = rows.groupby(_SAMPLE)["rank"].max().min()
    table = rows[rows["rank"] <= shortest].pivot_table(index="layer", columns="rank", values=score)
    table.columns = [f"{rank:.0f}" for rank in table.columns]
    return table.assign(last=rows[rows["is_last"]].groupby("layer")[score].mean())


def _located(flow: FlowScores, shares: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """Rows of `FlowScores.tokens` with best (l*), rank (among the prompt tokens) and is_last."""
    prompt = shares[shares["span"] == "prompt"]
    order = prompt.groupby(_SAMPLE)["share"].rank(method="first", ascending=False)
    ranked = prompt[[*_SAMPLE, "token"]].assign(rank=order)
    best = shares[[*_SAMPLE, "layer"]].drop_duplicates().rename(columns={"layer": "best"})
    rows = flow.tokens[flow.tokens["kind"] == kind].merge(best, on="sample_id")
    rows = rows.merge(ranked, on=[*_SAMPLE, "token"], how="left")
    last = rows.groupby("sample_id")["token"].transform("max")
    return rows.assign(is_last=rows["token"] == last)


def means(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`estimates` of each source and score, from rows of `sources`, for `intervals`.

    Samples whose AUROC is unknown are left out of its mean. Beside label and name: source, score,
    panel, group, reference (what chance scores).
    """
    wide: Any = rows.set_index(["source", *_SAMPLE])[list(SCORES)].sort_index()
    columns = {(score, source): wide.loc[source, score] for score in SCORES for source in SOURCES}
    scored = estimates(columns.items(), seed).rename_axis(["score", "source"]).reset_index()
    chance = scored[scored["source"] == "chance"].set_index("score")["value"]
    proxys = scored["source"] == "dominant"
    return scored.assign(
        name=[f"{SCORES[score][0]}.{source}" for score, source in columns],
        label=scored["source"].map(SOURCES),
        panel=[SCORES[score][1] for score, _ in columns],
        group=np.where(proxys, "what the proxy points to", "controls"),
        reference=scored["score"].map(chance),
        unit="fraction",
    )


def by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean scores of the dominant tokens' maps, a row for each seed of the proxy."""
    means = rows[rows["source"] == "dominant"].groupby("seed")[list(SCORES)].mean()
    return means.rename(columns={score: words for score, (_, words) in SCORES.items()})


def comparisons(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The dominant tokens less each other source, paired by seed and sample: `estimates`.

    A row for each score (in words) and other source (against).
    """
    apart = {
        (SOURCES[source], words): _less(rows, score, source)
        for score, (_, words) in SCORES.items()
        for source in list(SOURCES)[1:]
    }
    return estimates(apart.items(), seed).rename_axis(["against", "score"]).reset_index()


def check_claims(rows: pd.DataFrame, seed: int) -> list[ClaimCheck]:
    """What of section 4.5 holds on this run, by paired intervals against all rivals."""
    hit = estimate(rows[rows["source"] == "dominant"].set_index(_SAMPLE)["hit"], seed)

    def above(key: str, claim: str, *rivals: str) -> ClaimCheck:
        apart = {SOURCES[name]: estimate(_less(rows, "auroc", name), seed) for name in rivals}
        return against(key, claim, "4.5, Figure 7a", apart, of="AUROC ")

    return [
        above("target", "Dominant tokens attend to the target", "chance", "centre_prior"),
        ClaimCheck(
            "accurate", "Accurately so: the largest value is mostly in the box", "4.5",
            f"hits in {with_interval(hit, '.1%')} of the samples", decide(hit, 0.5), hit,
        ),
        above("token", "They attend to it more than other prompt tokens", "random_token"),
        above("layer", "They attend to it in l* more than in other layers", "other_layers"),
        above("training", "They attend to it more than in an untrained VLM", "untrained"),
    ]  # fmt: skip


def _less(rows: pd.DataFrame, score: str, other: str) -> pd.Series:
    """A score of the dominant tokens less that of another source, by seed and sample."""
    wide = rows.pivot(index=_SAMPLE, columns="source", values=score)
    return wide["dominant"] - wide[other]


@dataclass(frozen=True, eq=False)
class MappedSample:
    """One sample of Figure 7: its maps and what the proxy makes of its tokens."""

    sample: Sample
    layers: tuple[int, ...]
    maps: AttentionMaps
    """In `layers`."""
    best: int
    """l*."""
    tokens: pd.DataFrame
    """Its rows of `shares`, prompt tokens alone, in reading order."""
    dominant: list[int]
    """Rows of `tokens` that are dominant, the first first."""
    auroc: float
    """Of the dominant tokens' raw maps at l*."""

    @property
    def words(self) -> list[str]:
        """The tokens as the tokenizer cuts them."""
        return [text.strip() or "␣" for text in self.tokens["text"]]

    def dominant_map(self, kind: Kind = "raw") -> Tensor:
        """Mean map of the dominant tokens at l*, [rows, columns]; kind is raw or relative."""
        maps: Tensor = getattr(self.maps, kind)[self.layers.index(self.best)]
        places = [self.maps.tokens.tolist().index(t) for t in self.tokens["token"]]
        return maps[[places[row] for row in self.dominant]].mean(0)


def at_quantiles(rows: pd.DataFrame, quantiles: Sequence[float]) -> list[str]:
    """Ids of the samples at these parts of the order by the dominant tokens' AUROC, 0 the best."""
    known = rows[rows["source"] == "dominant"].dropna(subset="auroc")
    ordered = known.sort_values(["auroc", "sample_id"], ascending=[False, True])["sample_id"]
    return [ordered.iloc[round(part * (len(ordered) - 1))] for part in quantiles]


def mapped(
    encoder: ConditionEncoder,
    samples: SampleSet,
    shares: pd.DataFrame,
    rows: pd.DataFrame,
    quantiles: Sequence[float],
    n_tokens: int,
) -> list[MappedSample]:
    """What Figures 7 and 12 show, of the samples of `at_quantiles`: by the proxy of seed 0."""
    shares, rows = shares[shares["seed"] == 0], rows[rows["seed"] == 0]
    scores = rows[rows["source"] == "dominant"].set_index("sample_id")["auroc"]
    places = {name: index for index, name in enumerate(shares["sample_id"].unique())}
    shown = [samples[places[name]] for name in at_quantiles(rows, quantiles)]
    layers = tuple(range(encoder.n_layers))
    images, instructions = [s.image for s in shown], [s.instruction for s in shown]
    made = []
    for sample, maps in zip(
        shown, attention_maps(encoder, images, instructions, layers), strict=True
    ):
        own = shares[(shares["sample_id"] == sample.id) & (shares["span"] == "prompt")]
        tokens = own.reset_index(drop=True)
        order = tokens["share"].sort_values(ascending=False, kind="stable").index
        best, dominant = int(tokens["layer"].iloc[0]), list(order[:n_tokens])
        made.append(
            MappedSample(sample, layers, maps, best, tokens, dominant, float(scores[sample.id]))
        )
    return made
