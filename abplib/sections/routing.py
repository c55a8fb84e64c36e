"""What chapter 3 asks of the proxy's attention (section 4.4): how steep, how steady, which words.

Masses and weights, decisive heads and l* come from `abplib.sections.decomposition`; here they are
counted over a sample set, set against controls, and held against what the paper says of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from abplib.core.stats import Interval, bootstrap_mean, wilson
from abplib.paper import reported
from abplib.proxies.attention import ProxyAttention
from abplib.samples.words import CLASSES, NOUN, SPATIAL
from abplib.sections.decodability import (
    HOLDS,
    REVERSED,
    UNDECIDED,
    Verdict,
    verdict_of,
)
from abplib.sections.decomposition import (
    Decomposition,
    decompose,
    drops,
    preferred_layers,
)
from abplib.sections.dependence import Dependence

_BAND = (0.1, 0.9)


def decide(attention: ProxyAttention, threshold: float) -> tuple[Decomposition, int]:
    """Figure 5 at T = `threshold`, and how many heads are decisive.

    Where none is, the count is zero and the head with the largest mean drop stands in for them.
    """
    means = drops(attention.masses).mean((0, 2))
    n_decisive = int((means > threshold).sum())
    if not n_decisive:
        threshold = float(np.nextafter(means.max(), np.float32(-1)))
    return decompose(attention, threshold), n_decisive


def token_masses(decomposition: Decomposition) -> np.ndarray:
    """a_{h,q}^{(l*,i)} of all heads in each sample's own l*, [n, H, N, T]."""
    attention = decomposition.attention
    places = [attention.layers.index(layer) for layer in decomposition.layers["layer"]]
    return attention.weights[np.arange(len(places)), :, :, places]


def sorted_curves(values: np.ndarray, decisive: np.ndarray, n_ranks: int) -> pd.DataFrame:
    """Figure 6 in short: sorted masses [n, H, N, K] of the decisive heads and of all others.

    Columns: group (decisive or other), rank (from 1), mean, low and high (the middle 80 % of all
    samples, heads and queries). A group without heads has no rows.
    """
    ranked = np.sort(values, axis=-1)[..., ::-1][..., :n_ranks]
    is_decisive = np.isin(np.arange(values.shape[1]), decisive)
    rows = []
    for group, chosen in (("decisive", is_decisive), ("other", ~is_decisive)):
        if chosen.any():
            part = ranked[:, chosen].reshape(-1, ranked.shape[-1])
            low, high = np.quantile(part, _BAND, axis=0)
            curve = {"mean": part.mean(0), "low": low, "high": high}
            frame = pd.DataFrame({"group": group, "rank": 1 + np.arange(part.shape[1]), **curve})
            rows.append(frame)
    return pd.concat(rows, ignore_index=True)


@dataclass(frozen=True)
class Steepness:
    """How steeply the sorted attention of the decisive heads falls; means over samples.

    Intervals are over samples; the heads are given, and so is their choice.
    """

    layer: Interval
    """Mean of r_1 - r_2 over layers (Figure 6a)."""
    token: Interval
    """The same over the tokens of l* (Figure 6b)."""
    strongest: Interval
    """Mean drop over layers of the head in which it is largest."""
    least_query: Interval
    """Of the decisive head and query in which it is least."""
    samples_above: Interval
    """Part of the samples whose mean drop over layers exceeds T."""
    top_token: Interval
    """The part of the mass in l* that each query's largest token gets."""


def steepness(decomposition: Decomposition, threshold: float, seed: int) -> Steepness:
    """Measure the decisive heads of `decomposition`; `threshold` is the T that was asked for."""
    found = drops(decomposition.attention.masses)[:, decomposition.decisive].astype(float)
    weights = decomposition.token_weights.astype(float)
    each = found.mean((1, 2))
    strongest = found.mean((0, 2)).argmax()
    head, query = np.unravel_index(found.mean(0).argmin(), found.shape[1:])

    def mean(values: np.ndarray) -> Interval:
        return bootstrap_mean(values, seed=seed)

    return Steepness(
        layer=mean(each),
        token=mean(drops(weights).mean((1, 2))),
        strongest=mean(found[:, strongest].mean(-1)),
        least_query=mean(found[:, head, query]),
        samples_above=wilson(int((each > threshold).sum()), len(each)),
        top_token=mean(weights.max(-1).sum((1, 2)) / weights.sum((1, 2, 3))),
    )


def word_classes(shares: pd.DataFrame, n_tokens: int, seed: int) -> pd.DataFrame:
    """Which words get the decisive heads' attention, indexed by `words.CLASSES`.

    Columns: mass, low and high (mean over samples of the class's part of the attention to prompt
    tokens, with its interval), tokens (of the prompt tokens themselves, what even attention would
    give) and dominant (of the `n_tokens` dominant tokens of each sample).
    """
    by_class = class_parts(shares)
    prompt = shares[shares["span"] == "prompt"]
    order = prompt.groupby("sample_id")["share"].rank(method="first", ascending=False)
    dominant = prompt.loc[order <= n_tokens, "word_class"].value_counts(normalize=True)
    rows = {}
    for name in CLASSES:
        found = bootstrap_mean(by_class["mass"][name].to_numpy(), seed=seed)
        rows[name] = {
            "mass": found.value,
            "low": found.low,
            "high": found.high,
            "tokens": float(by_class["tokens"][name].mean()),
            "dominant": float(dominant.get(name, 0.0)),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("word class")


def class_parts(shares: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each sample's attention mass and its tokens by word class, [sample, class], rows sum to 1."""
    prompt = shares[shares["span"] == "prompt"].assign(tokens=1.0)
    parts = {}
    for name, column in (("mass", "share"), ("tokens", "tokens")):
        table = prompt.pivot_table(
            index="sample_id", columns="word_class", values=column, aggfunc="sum", fill_value=0.0
        ).reindex(columns=list(CLASSES), fill_value=0.0)
        parts[name] = table.div(table.sum(axis=1), axis=0)
    return parts


@dataclass(frozen=True, eq=False)
class Example:
    """Figure 5 on one sample: one decisive head that prefers its l*, and the vote of all."""

    layers: tuple[int, ...]
    heads: list[str]
    """The decisive heads, as block.head."""
    masses: np.ndarray
    """Mean over the queries of A_{h,q}^{(l)}, [H', L]."""
    preferred: np.ndarray
    """l*_h of each, as places in `layers`, [H']."""
    shown: int
    """Row of the head shown closely: of those that prefer l*, that of the largest mean drop."""
    best: int
    """l*."""
    words: list[str]
    """The tokens that the proxy reads."""
    weights: np.ndarray
    """Of the shown head in l*, query by token, [N, T]."""


def example(decomposition: Decomposition, index: int) -> Example:
    """Figure 5 of sample `index`."""
    attention, decisive = decomposition.attention, decomposition.decisive
    masses = attention.masses[:, decisive]
    preferred = preferred_layers(masses)[index]
    best = int(decomposition.layers["layer"].iloc[index])
    voted = preferred == attention.layers.index(best)
    shown = int(np.where(voted, drops(masses).mean((0, 2)), -1).argmax())
    rows = attention.tokens[attention.tokens["sample_id"] == attention.ids[index]]
    blocks, heads = np.divmod(decisive, attention.n_heads)
    return Example(
        layers=attention.layers,
        heads=_head_names(blocks, heads),
        masses=masses[index].mean(1),
        preferred=preferred,
        shown=shown,
        best=best,
        words=[text.strip() or "␣" for text in rows["text"]],
        weights=decomposition.token_weights[index, shown][:, rows["slot"]],
    )


def verdicts(
    found: Steepness,
    varies: Dependence,
    shares: pd.DataFrame,
    threshold: float,
    n_decisive: int,
    seed: int,
) -> list[Verdict]:
    """What of section 4.4 holds on this run.

    A number *holds* against its bound where its interval lies beyond it, *does not hold* where the
    interval falls short of it, and is *undecided* otherwise. Where no head is decisive, what is
    claimed of decisive heads is undecided.
    """
    paper = reported("mean_layer_drop")
    parts = class_parts(shares)
    gains = {
        name: bootstrap_mean((parts["mass"][name] - parts["tokens"][name]).to_numpy(), seed=seed)
        for name in (NOUN, SPATIAL)
    }
    routed = REVERSED if varies.overall == 0 else HOLDS if varies.p < 0.05 else UNDECIDED
    decided = [
        _above(
            "decisive", "Some heads are decisive: their mean drop exceeds T", "4.4",
            found.strongest, threshold, f"{n_decisive} heads; largest drop ",
        ),
        _above("drop", "The decisive heads' mean drop reaches the paper's", "Figure 6a",
               found.layer, paper),
        _above("queries", "Every query of a decisive head drops by more than T", "Figure 6a",
               found.least_query, threshold, "least "),
        _above("samples", "Most samples drop by more than T", "Figure 6a",
               found.samples_above, 0.5),
        Verdict(
            "input", "The dominant layer depends on the input", "4.4",
            f"{varies.within:.2f} bits within a kind against {varies.shuffled:.2f} shuffled, "
            f"p = {varies.p:.2g}", routed,
        ),
        _above("token", "In l*, queries look at one token more than at all others",
               "Figure 6b", found.top_token, 0.5),
        _above("nouns", "Nouns get more attention than their part of the tokens", "4.4, Figure 7b",
               gains[NOUN], 0.0, fmt="+.3f"),
        _above("places", "Words of place get more attention than their part of the tokens",
               "4.4, Figure 7b", gains[SPATIAL], 0.0, fmt="+.3f"),
    ]  # fmt: skip
    if n_decisive:
        return decided
    return decided[:1] + [replace(claim, verdict=UNDECIDED) for claim in decided[1:]]


def _above(
    key: str,
    claim: str,
    where: str,
    found: Interval,
    bound: float,
    words: str = "",
    fmt: str = ".3f",
) -> Verdict:
    """Of the claim that a number is above a bound."""
    value, low, high = (format(number, fmt) for number in found[:3])
    measured = f"{words}{value} [{low}, {high}] against {bound:g}"
    short = Interval(bound - found.value, bound - found.high, bound - found.low, found.n)
    return Verdict(key, claim, where, measured, verdict_of(short), found)


def head_rows(heads: pd.DataFrame, decisive: np.ndarray) -> pd.DataFrame:
    """`decomposition.head_table` as a page shows it, the steepest first."""
    words: Mapping[str, str] = {
        "decisive": "decisive", "drop": "mean drop", "least_drop": "least query",
        "layer": "layer", "layer_part": "part of samples",
    }  # fmt: skip
    table = heads.assign(decisive=np.where(heads.index.isin(decisive), "yes", "no"))
    table.index = pd.Index(_head_names(heads["block"], heads["head"]), name="block.head")
    table = table.sort_values("drop", ascending=False, kind="stable")
    return table[list(words)].rename(columns=words)


def _head_names(blocks: Iterable[int], heads: Iterable[int]) -> list[str]:
    return [f"{block}.{head}" for block, head in zip(blocks, heads, strict=True)]


def who(n_decisive: int, n_heads: int, threshold: float) -> str:
    """A sentence on which heads the rest of the chapter is about."""
    if not n_decisive:
        return (
            f"On this run, no head is decisive: none of the {n_heads} has a mean drop above "
            f"{threshold:g}. The head with the largest mean drop stands in for the decisive heads "
            "in all that follows."
        )
    return f"On this run, {n_decisive} of {n_heads} heads are decisive."


def caveat(n_layers: int) -> str:
    """A sentence where there is nothing to choose from."""
    if n_layers == 1:
        return "This proxy reads a single layer, so what is said of layers is true by construction."
    return f"With {n_layers} layers to choose from, an even spread has a drop of zero."
