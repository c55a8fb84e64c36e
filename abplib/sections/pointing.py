"""Whether what the proxy looks at looks at the target: maps of chapter 4 compared (section 4.5).

Each sample's scores come from `abplib.sections.information_flow`; a *source* is where a map comes
from.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from abplib.core import store
from abplib.core.stats import (
    Interval,
    PairedTable,
    bootstrap_mean,
    holm,
    p_words,
    paired_difference,
    sign_flip_test,
    wilson,
)
from abplib.samples.base import Sample, SampleSet
from abplib.sections.decodability import HOLDS, REVERSED, UNDECIDED, Verdict, verdict_of
from abplib.sections.information_flow import (
    AttentionMaps,
    FlowScores,
    Kind,
    attention_maps,
    by_source,
)
from abplib.vlm.encoder import ConditionEncoder

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

SCORES: Mapping[str, tuple[str, str]] = {
    "hit": ("pointing_hit", "pointing hit"),
    "hit_near": ("pointing_hit_near", "hit, 15 px"),
    "energy": ("energy_in_box", "energy in box"),
    "auroc": ("auroc", "AUROC"),
}
"""Of each column of `flow.SCORES`: the name in `values.json` and on a page."""


def untrained(encoder: ConditionEncoder, seed: int) -> ConditionEncoder:
    """The same architecture, tokens and image sizes with random weights, for a control."""
    model, name = encoder.model, store.digest(["untrained", encoder.fingerprint, seed])
    with torch.random.fork_rng(), torch.device(model.device):
        torch.manual_seed(int(name, 16) % 2**63)  # of its own, or it could be the model itself
        twin = type(model)._from_config(copy.deepcopy(model.config), dtype=model.dtype).eval()
    return ConditionEncoder(
        twin,
        encoder.processor,
        image_area=encoder.image_area,
        fingerprint=name,
        adapter=encoder.adapter,
    )


def sources(
    flow: FlowScores, twin: FlowScores, shares: pd.DataFrame, n_tokens: int, kind: Kind = "raw"
) -> pd.DataFrame:
    """Rows of `flow.by_source`, and two sources more.

    - `untrained`: as `dominant`, the same tokens and layers in `twin`, the scores of `untrained`;
    - `best_layer`: the dominant tokens in the one layer in which they have the largest mean AUROC.
      It is picked by these very samples, so it flatters: a bound on what choosing a layer can give.
    """
    found = by_source(flow, shares, n_dominant=n_tokens, kind=kind)
    control = by_source(twin, shares, n_dominant=n_tokens, kind=kind).query("source == 'dominant'")
    best = best_layer(flow, shares, n_tokens, kind)
    everywhere = shares.assign(layer=best)
    bound = by_source(flow, everywhere, n_dominant=n_tokens, kind=kind).query(
        "source == 'dominant'"
    )
    parts = [found, control.assign(source="untrained"), bound.assign(source="best_layer")]
    return pd.concat(parts, ignore_index=True)


def best_layer(flow: FlowScores, shares: pd.DataFrame, n_tokens: int, kind: Kind = "raw") -> int:
    """The layer in which the maps of the dominant tokens have the largest mean AUROC."""
    order = _prompt_order(shares)
    dominant = shares.loc[order.index[order <= n_tokens], ["sample_id", "token"]]
    rows = flow.tokens[flow.tokens["kind"] == kind].merge(dominant, on=["sample_id", "token"])
    areas = rows.groupby("layer")["auroc"].mean()
    return int(areas.index[int(areas.argmax())])


def token_grid(flow: FlowScores, shares: pd.DataFrame, score: str, kind: Kind) -> pd.DataFrame:
    """Mean score of every layer's maps by the token's rank with the proxy, [layer, rank].

    Rank 1 is the dominant token. Ranks go as far as the shortest instruction; the last column,
    named "last", is the sequence's last token.
    """
    order = _prompt_order(shares)
    longest = int(order.groupby(shares["sample_id"]).max().min())
    ranked = shares.loc[order.index, ["sample_id", "token"]].assign(rank=order.astype(int))
    rows = flow.tokens[flow.tokens["kind"] == kind]
    of_prompt = rows.merge(ranked[ranked["rank"] <= longest], on=["sample_id", "token"])
    table = of_prompt.pivot_table(index="layer", columns="rank", values=score)
    table.columns = [str(rank) for rank in table.columns]
    is_last = rows["token"] == rows.groupby("sample_id")["token"].transform("max")
    return table.assign(last=rows[is_last].groupby("layer")[score].mean())


def means(rows: pd.DataFrame, seed: int) -> dict[tuple[str, str], Interval]:
    """Mean of each source and score, by (source, score), with its interval.

    Wilson's interval where all samples score 0 or 1, the bootstrap's (BCa) elsewhere. Samples
    whose AUROC is unknown are left out of its mean.
    """
    found = {}
    for source in SOURCES:
        part = rows[rows["source"] == source]
        for score in SCORES:
            values = part[score].dropna().to_numpy(float).round(12)  # equal but for rounding
            if np.isin(values, (0, 1)).all():
                found[source, score] = wilson(int(values.sum()), len(values))
            else:
                found[source, score] = bootstrap_mean(values, seed=seed)
    return found


def comparisons(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The dominant tokens less each other source, paired by sample: a row a rival and score.

    Columns: source, score, value, low, high, n, p (sign-flip test) and p_holm (adjusted for all
    tests of the table).
    """
    found = []
    for score in SCORES:
        table = _wide(rows, score)
        for source in list(SOURCES)[1:]:
            first, second = table["dominant"].to_numpy(), table[source].to_numpy()
            difference = paired_difference(first, second, seed=seed)
            p = sign_flip_test(first, second, seed=seed)
            found.append({"source": source, "score": score, **difference._asdict(), "p": p})
    frame = pd.DataFrame(found)
    return frame.assign(p_holm=holm(frame["p"].to_numpy()))


def hits_against_untrained(rows: pd.DataFrame) -> PairedTable:
    """Samples by whether the largest cell lies in the box: trained VLM first, untrained second.

    Where several tokens are dominant, by whether most of them hit.
    """
    table = _wide(rows, "hit") > 0.5
    return PairedTable.of(table["dominant"].to_numpy(bool), table["untrained"].to_numpy(bool))


def verdicts(rows: pd.DataFrame, seed: int) -> list[Verdict]:
    """What of section 4.5 holds on this run.

    A comparison *holds* where the paired intervals of all its rivals lie above zero, does not hold
    where one lies below, and is undecided otherwise; shown is the rival that comes out best.
    """
    hit = means(rows, seed)["dominant", "hit"]
    short = Interval(0.5 - hit.value, 0.5 - hit.high, 0.5 - hit.low, hit.n)
    measured = f"hits in {hit.value:.1%} [{hit.low:.1%}, {hit.high:.1%}] of the samples"
    return [
        _above(rows, seed, "target", "Dominant tokens attend to the target",
               ("chance", "centre_prior")),
        Verdict("accurate", "Accurately so: the largest value is mostly in the box", "4.5",
                measured, verdict_of(short), hit),
        _above(rows, seed, "token", "They attend to it more than other prompt tokens",
               ("random_token",)),
        _above(rows, seed, "layer", "They attend to it in l* more than in other layers",
               ("other_layers",)),
        _above(rows, seed, "training", "They attend to it more than in an untrained VLM",
               ("untrained",)),
    ]  # fmt: skip


def _above(rows: pd.DataFrame, seed: int, key: str, claim: str, rivals: Sequence[str]) -> Verdict:
    table = _wide(rows, "auroc")
    own = table["dominant"].to_numpy()
    found = {rival: paired_difference(own, table[rival].to_numpy(), seed=seed) for rival in rivals}
    decided = {verdict_of(Interval(-d.value, -d.high, -d.low, d.n)) for d in found.values()}
    verdict = REVERSED if REVERSED in decided else UNDECIDED if UNDECIDED in decided else HOLDS
    rival = min(found, key=lambda name: found[name].low)
    least = found[rival]
    measured = (
        f"AUROC {least.value:+.3f} [{least.low:+.3f}, {least.high:+.3f}] against {SOURCES[rival]}"
    )
    return Verdict(key, claim, "4.5, Figure 7a", measured, verdict, least)


def mean_table(found: Mapping[tuple[str, str], Interval]) -> pd.DataFrame:
    """`means` as a page shows it: a row a source, value and interval in a cell."""
    rows = {
        label: {
            name: "{:.3f} [{:.3f}, {:.3f}]".format(*found[source, score][:3])
            for score, (_, name) in SCORES.items()
        }
        for source, label in SOURCES.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("map")


def comparison_table(found: pd.DataFrame) -> pd.DataFrame:
    """`comparisons` as a page shows it."""
    frame = found.assign(
        score=[SCORES[score][1] for score in found["score"]],
        against=[SOURCES[source] for source in found["source"]],
        **{column: found[column].map(p_words).str.removeprefix("= ") for column in ("p", "p_holm")},
    )
    words = {"value": "difference", "p_holm": "p, Holm"}
    table = frame.rename(columns=words).set_index("against")
    return table[["score", "difference", "low", "high", "p", "p, Holm"]]


@dataclass(frozen=True, eq=False)
class Example:
    """One sample of Figure 7: its maps and what the proxy makes of its tokens."""

    sample: Sample
    layers: tuple[int, ...]
    """Of the axis `layers` of `maps`."""
    maps: AttentionMaps
    best: int
    """l*."""
    tokens: pd.DataFrame
    """Its rows of `Decomposition.token_shares`, prompt tokens alone, in reading order."""
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


def by_auroc(rows: pd.DataFrame) -> list[str]:
    """Ids of the samples in the order of the dominant tokens' AUROC, the largest first."""
    found = rows[rows["source"] == "dominant"].dropna(subset="auroc")
    ordered = found.sort_values(["auroc", "sample_id"], ascending=[False, True])
    return list(ordered["sample_id"])


def at_quantiles(ordered: Sequence[str], quantiles: Sequence[float]) -> list[str]:
    """The entries of `ordered` at these parts of its length, 0 the first and 1 the last."""
    return [ordered[round(part * (len(ordered) - 1))] for part in quantiles]


def examples(
    encoder: ConditionEncoder,
    samples: SampleSet,
    shares: pd.DataFrame,
    rows: pd.DataFrame,
    ids: Sequence[str],
    n_tokens: int,
) -> list[Example]:
    """What Figures 7 and 12 show of the samples `ids`, in all layers of the VLM."""
    places = {name: index for index, name in enumerate(shares["sample_id"].unique())}
    shown = [samples[places[name]] for name in ids]
    layers = tuple(range(encoder.n_layers))
    found = attention_maps(
        encoder, [s.image for s in shown], [s.instruction for s in shown], layers
    )
    scores = rows[rows["source"] == "dominant"].set_index("sample_id")["auroc"]
    made = []
    for sample, maps in zip(shown, found, strict=True):
        of_sample = (shares["sample_id"] == sample.id) & (shares["span"] == "prompt")
        tokens = shares[of_sample].reset_index(drop=True)
        order = tokens["share"].sort_values(ascending=False, kind="stable").index
        made.append(
            Example(sample, layers, maps, int(tokens["layer"].iloc[0]), tokens,
                    list(order[:n_tokens]), float(scores[sample.id]))
        )  # fmt: skip
    return made


def _prompt_order(shares: pd.DataFrame) -> pd.Series:
    """Rank of each prompt token among its sample's, from 1."""
    prompt = shares[shares["span"] == "prompt"]
    return prompt.groupby("sample_id")["share"].rank(method="first", ascending=False)


def _wide(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """A score by sample and source, samples without one left out."""
    return rows.pivot(index="sample_id", columns="source", values=score).dropna()
