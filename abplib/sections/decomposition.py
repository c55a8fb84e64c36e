"""The proxy's attention taken apart: masses, decisive heads, l*.

Chapter 3, section 4.4, Figures 5 and 6. Attention is a labelled array with the axes sample,
head, query, layer and token: a_{h,q}^{(l,i)} is what query q of head h gives to token i of VLM
layer l, and a query's weights sum to one over (l, i) together. H are the heads that count as
decisive, l* is one layer a sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import entropy
from xarray import DataArray

from abplib.core.stats import Interval, with_interval
from abplib.paper import reported
from abplib.proxies.attention import ProxyAttention
from abplib.samples.base import SampleSet
from abplib.samples.words import NOUN, SPATIAL
from abplib.sections.claims import HOLDS, REVERSED, UNDECIDED, ClaimCheck, decide
from abplib.sections.dominant_tokens import class_parts, token_shares
from abplib.sections.estimates import estimate, estimates

_AXES = ("sample", "head", "query", "layer", "token")
_BAND = (0.1, 0.9)
_SHUFFLES = 999
_NUMBERS = ["value", "low", "high", "n"]


def labelled(attention: ProxyAttention) -> DataArray:
    """a[sample, head, query, layer, token]; heads are named block.head, both from zero.

    Along `token` stand the tokens that the proxy read, zero beyond a sample's own.
    """
    heads = [f"{h // attention.n_heads}.{h % attention.n_heads}"
             for h in range(attention.weights.shape[1])]  # fmt: skip
    names = {"sample": attention.ids, "head": heads, "layer": list(attention.layers)}
    return DataArray(attention.weights, dims=_AXES, coords=names)


def rank(values: DataArray, along: str) -> DataArray:
    """Values sorted along a dimension, which becomes `rank`: r_1 >= r_2 >= ... (from 1).

    There are at least two ranks: where `along` has one entry, r_2 is zero.
    """

    def ordered(values: np.ndarray) -> np.ndarray:
        second = np.zeros_like(values) if values.shape[-1] == 1 else values[..., :0]
        return np.sort(np.concatenate([values, second], -1), axis=-1)[..., ::-1]

    r = xr.apply_ufunc(ordered, values, input_core_dims=[[along]], output_core_dims=[["rank"]])
    return r.assign_coords(rank=1 + np.arange(r.sizes["rank"]))


def mode(l_h: DataArray, A: DataArray) -> DataArray:
    """l* = mode of l*_h over the heads, [sample].

    Of layers with equally many votes, the one with the largest total mass.

    Args:
        l_h: the layer that each head prefers, [sample, head].
        A: the same heads' masses, [sample, head, query, layer].
    """
    votes = (l_h == A.layer).sum("head")
    leading = votes == votes.max("layer")
    return A.sum(("head", "query")).where(leading, -1).idxmax("layer").astype(int)


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Figure 5 at one threshold: which heads decide, and what they decide for each sample."""

    a: DataArray
    """As of `labelled`."""
    heads: list[str]
    """H, or the head that stands in for it."""
    n_decisive: int
    """How many heads are decisive; at zero, the one with the largest mean drop stands in."""
    l_star: DataArray
    """l*, [sample]."""
    shares: pd.DataFrame
    """`token_shares`."""


def decompose(attention: ProxyAttention, threshold: float) -> Decomposition:
    """The whole of Figure 5, as chapter 3 shows it step by step."""
    a = labelled(attention)
    A = a.sum("token")
    r = rank(A, "layer")
    mean_drop = (r[..., 0] - r[..., 1]).mean(("sample", "query"))
    decisive = mean_drop > threshold
    H = a["head"][decisive] if decisive.any() else a["head"][[mean_drop.values.argmax()]]
    l_h = A.sel(head=H).sum("query").idxmax("layer")
    l_star = mode(l_h, A.sel(head=H))
    shares = token_shares(a.sel(head=H, layer=l_star), l_star, attention.tokens)
    return Decomposition(a, H.values.tolist(), int(decisive.sum()), l_star, shares)


class Example(NamedTuple):
    """Figure 5 on one sample."""

    masses: pd.DataFrame
    """Mean over the queries of A_{h,q}^{(l)}, [head of H, layer]."""
    head: str
    """Of the heads that prefer l*, that of the largest mean drop."""
    layer: int
    """l*."""
    weights: pd.DataFrame
    """Of that head in l*, [query, token]."""


def example(
    a: DataArray, heads: list[str], l_star: DataArray, tokens: pd.DataFrame, index: int
) -> Example:
    """Figure 5 of sample `index`; tokens stand as the tokenizer cuts them."""
    masses = a.sel(head=heads).sum("token")
    r = rank(masses, "layer")
    own = pd.DataFrame(masses[index].mean("query").values, heads, a.layer.values)
    layer = int(l_star[index])
    steepness = (r[..., 0] - r[..., 1]).mean(("sample", "query")).to_series()
    head = str(steepness[own.idxmax(axis=1) == layer].idxmax())
    texts = tokens.loc[tokens["sample_id"] == a.sample.values[index], "text"].str.strip()
    weights = a.isel(sample=index).sel(head=head, layer=layer)[:, : len(texts)]
    return Example(own, head, layer, pd.DataFrame(weights.values, columns=texts.replace("", "␣")))


def sorted_curves(r: DataArray, heads: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Figure 6: ranked attention of the decisive heads and of all others.

    First a row for each group and rank: mean, low and high (the middle 80 % of all samples, heads
    and queries); a group without heads has none. Then a row for each decisive head, query and rank:
    value, the mean over the samples.
    """
    is_decisive = r["head"].isin(heads)
    rows = []
    for group, chosen in (("decisive heads", is_decisive), ("all other heads", ~is_decisive)):
        if chosen.any():
            part = r.sel(head=chosen)
            inner = [name for name in r.dims if name != "rank"]
            low, high = part.quantile(_BAND, inner)
            curve = {"rank": r["rank"], "mean": part.mean(inner), "low": low, "high": high}
            rows.append(pd.DataFrame({"group": group, **curve}))
    lines = r.sel(head=heads).mean("sample").to_dataframe("value").reset_index()
    return pd.concat(rows, ignore_index=True), lines


def head_table(A: DataArray, heads: list[str]) -> pd.DataFrame:
    """One row a head, the steepest first: what Figure 6a says of it, and how fixed its choice is.

    Columns: decisive; mean drop (of r_1 - r_2 over samples and queries); least query (the same of
    the query in which it is least); layer (what it prefers most often) and part of samples.
    """
    r = rank(A, "layer")
    by_query = (r[..., 0] - r[..., 1]).mean("sample")
    parts = (A.sum("query").idxmax("layer") == A.layer).mean("sample")
    table = pd.DataFrame(
        {
            "decisive": np.where(A["head"].isin(heads), "yes", "no"),
            "mean drop": by_query.mean("query"),
            "least query": by_query.min("query"),
            "layer": parts.idxmax("layer").astype(int),
            "part of samples": parts.max("layer"),
        },
        index=pd.Index(A["head"].values, name="block.head"),
    )
    return table.sort_values("mean drop", ascending=False, kind="stable")


def steepness(
    drop: DataArray, w: DataArray, heads: list[str], threshold: float, seed: int
) -> pd.DataFrame:
    """How steeply the decisive heads' attention falls: means over samples with 95 % intervals.

    Rows: mean_drop_layer (r_1 - r_2 over layers, Figure 6a), mean_drop_token (over the tokens of
    l*, Figure 6b), strongest_head (the largest over layers of any head), least_query (the least of
    any decisive head and query), samples_above (part of the samples whose drop over layers exceeds
    T) and top_token (part of the attention in l* that each query's first token gets). The heads are
    given; the intervals leave out how they were chosen.

    Args:
        drop: r_1 - r_2 over layers, [sample, head, query], all heads.
        w: a of the decisive heads in l*, [sample, head, query, token].
    """
    drop, w = drop.sel(head=heads).astype(float), w.astype(float)
    r = rank(w, "token")
    each = drop.mean(("head", "query"))
    strongest = drop.sel(head=drop.mean(("sample", "query")).idxmax())
    queries = drop.stack(pair=("head", "query"))
    least = queries[:, queries.mean("sample").values.argmin()]
    inner = ("head", "query")
    means = {
        "mean_drop_layer": each,
        "mean_drop_token": (r[..., 0] - r[..., 1]).mean(inner),
        "strongest_head": strongest.mean("query"),
        "least_query": least,
        "samples_above": each > threshold,
        "top_token": w.max("token").sum(inner) / w.sum((*inner, "token")),
    }
    found = estimates(((name, mean.to_series()) for name, mean in means.items()), seed)
    parts = found.index.isin(["samples_above", "top_token"])
    return found.rename_axis("name").assign(
        unit=np.where(parts, "fraction", "attention mass"),
        paper=pd.Series({"mean_drop_layer": reported("mean_layer_drop")}),
        fmt=pd.Series({"samples_above": ".1%"}),
    )


def kinds(samples: SampleSet, n: int) -> pd.Series:
    """What kind of instruction each of the first `n` samples has, indexed by their ids.

    Its spatial term, else its task, else "any".
    """
    shown = [samples[index] for index in range(n)]
    told = [s.facts.get("spatial_term", s.facts.get("task", "any")) for s in shown]
    return pd.Series([str(kind) for kind in told], index=[s.id for s in shown], name="kind")


def layers_by_kind(l_star: DataArray, kinds: pd.Series, layers: DataArray) -> pd.DataFrame:
    """How often each layer is l*, [kind, layer], all layers; the largest groups first."""
    counts = pd.crosstab(kinds.loc[l_star.sample.values].array, l_star.values)
    counts = counts.reindex(columns=layers.values, fill_value=0)
    counts = counts.rename_axis(index="instruction", columns="layer")
    return counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]


class Dependence(NamedTuple):
    """Entropy of l* in bits: how far it varies, and how far the kind of instruction fixes it."""

    overall: float
    """Over all samples."""
    within: float
    """Within a kind, mean over the samples."""
    shuffled: float
    """The same with the kinds dealt to the samples at random, mean over the shuffles."""
    p: float
    """One-sided permutation p-value of `within` being no lower than `shuffled`."""


def dependence(l_star: DataArray, kinds: pd.Series, seed: int) -> Dependence:
    """Whether l* goes with the kind of the sample's instruction.

    Small groups make `within` low by chance alone; the shuffled control has groups as small.
    """
    layer = np.unique(l_star.values, return_inverse=True)[1]
    kind = np.unique(kinds.loc[l_star.sample.values], return_inverse=True)[1]

    def within(dealt: np.ndarray) -> float:
        counts = np.zeros((kind.max() + 1, layer.max() + 1))
        np.add.at(counts, (dealt, layer), 1)
        return float(np.average(entropy(counts, base=2, axis=1), weights=counts.sum(1)))

    observed = within(kind)
    random = np.random.default_rng(seed)
    control = np.array([within(random.permutation(kind)) for _ in range(_SHUFFLES)])
    as_low = int((control <= observed + 1e-12).sum())
    overall = float(entropy(np.bincount(layer), base=2))
    return Dependence(overall, observed, float(control.mean()), (1 + as_low) / (1 + _SHUFFLES))


def check_claims(
    steep: pd.DataFrame, varies: Dependence, shares: pd.DataFrame, threshold: float,
    n_decisive: int, seed: int,
) -> list[ClaimCheck]:  # fmt: skip
    """What of section 4.4 holds on this run.

    A number *holds* against its bound where its interval lies beyond it, *does not hold* where the
    interval falls short of it, and is *undecided* otherwise. Where no head is decisive, what is
    claimed of decisive heads is undecided.
    """
    mass, tokens = class_parts(shares)
    gains = {c: estimate(mass[c] - tokens[c], seed) for c in (NOUN, SPATIAL)}
    routed = REVERSED if varies.overall == 0 else HOLDS if varies.p < 0.05 else UNDECIDED

    def above(
        key: str, claim: str, where: str, of: str | Interval, bound: float, words: str = ""
    ) -> ClaimCheck:
        fmt = ".3f" if isinstance(of, str) else "+.3f"
        found = Interval(*steep.loc[of, _NUMBERS]) if isinstance(of, str) else of
        measured = f"{words}{with_interval(found, fmt)} against {bound:g}"
        return ClaimCheck(key, claim, where, measured, decide(found, bound), found)

    checks = [
        above("decisive", "Some heads are decisive: their mean drop exceeds T", "4.4",
              "strongest_head", threshold, f"{n_decisive} heads; largest drop "),
        above("drop", "The decisive heads' mean drop reaches the paper's", "Figure 6a",
              "mean_drop_layer", reported("mean_layer_drop")),
        above("queries", "Every query of a decisive head drops by more than T", "Figure 6a",
              "least_query", threshold, "least "),
        above("samples", "Most samples drop by more than T", "Figure 6a", "samples_above", 0.5),
        ClaimCheck("input", "The dominant layer depends on the input", "4.4",
                   f"{varies.within:.2f} bits within a kind against {varies.shuffled:.2f} "
                   f"shuffled, p = {varies.p:.2g}", routed),
        above("token", "In l*, queries look at one token more than at all others", "Figure 6b",
              "top_token", 0.5),
        above("nouns", "Nouns get more attention than their part of the tokens", "4.4, Figure 7b",
              gains[NOUN], 0.0),
        above("places", "Words of place get more attention than their part of the tokens",
              "4.4, Figure 7b", gains[SPATIAL], 0.0),
    ]  # fmt: skip
    if n_decisive:
        return checks
    return checks[:1] + [replace(check, verdict=UNDECIDED) for check in checks[1:]]


def who(n_decisive: int, n_heads: int, threshold: float) -> str:
    """A sentence on which heads the rest of the chapter is about."""
    if n_decisive:
        return f"On this run, {n_decisive} of {n_heads} heads are decisive."
    return (
        f"On this run, no head is decisive: none of the {n_heads} has a mean drop above "
        f"{threshold:g}. The head with the largest mean drop stands in for the decisive heads in "
        "all that follows."
    )
