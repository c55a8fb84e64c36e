"""The proxies' attention taken apart: masses, decisive heads, l*.

Chapter 3, section 4.4, Figures 5 and 6. Attention is a labelled array with the axes seed, sample,
head, query, layer and token: a_{h,q}^{(l,i)} is what query q of head h gives to token i of VLM
layer l, and a query's weights sum to one over (l, i) together. Each seed's proxy is taken apart by
itself: H are its heads that count as decisive, l* is its one layer a sample.
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
from abplib.sections.claims import HOLDS, REVERSED, UNDECIDED, ClaimCheck, agreed, decide
from abplib.sections.dominant_tokens import class_parts, token_shares
from abplib.sections.estimates import estimate, estimates

_AXES = ("seed", "sample", "head", "query", "layer", "token")
_BAND = (0.1, 0.9)
_SHUFFLES = 999


def labelled(attention: ProxyAttention) -> DataArray:
    """a[seed, sample, head, query, layer, token]; heads are named block.head, both from zero.

    Along `token` stand the tokens that the proxies read, zero beyond a sample's own.
    """
    weights, n_heads = attention.weights, attention.n_heads
    names = {
        "seed": np.arange(len(weights)),
        "sample": attention.tokens["sample_id"].unique(),
        "head": [f"{h // n_heads}.{h % n_heads}" for h in range(weights.shape[2])],
        "layer": list(attention.layers),
    }
    return DataArray(weights, dims=_AXES, coords=names)


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
    """l* = mode of l*_h over the decisive heads, [seed, sample].

    Of layers with equally many votes, the one with the largest total mass.

    Args:
        l_h: the layer that each head prefers, [seed, sample, head].
        A: the same heads' masses, [seed, sample, head, query, layer]. Of both, NaN in heads that
            have no vote.
    """
    votes = (l_h == A.layer).sum("head")
    leading = votes == votes.max("layer")
    return A.sum(("head", "query")).where(leading, -1).idxmax("layer").astype(int)


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Figure 5 at one threshold: which heads decide, and what they decide for each sample."""

    H: DataArray
    """The decisive heads of each seed, or the one that stands in for them, Bool[seed, head]."""
    n_decisive: DataArray
    """How many heads are decisive, [seed]; at zero, that with the largest mean drop stands in."""
    l_star: DataArray
    """l*, [seed, sample]."""
    w: DataArray
    """a in each sample's own l*, [seed, sample, head, query, token]; NaN in heads outside of H."""
    shares: pd.DataFrame
    """`token_shares`."""


def decompose(attention: ProxyAttention, threshold: float) -> Decomposition:
    """The whole of Figure 5, as chapter 3 shows it step by step."""
    a = labelled(attention)
    A = a.sum("token")
    r = rank(A, "layer")
    mean_drop = (r[..., 0] - r[..., 1]).mean(("sample", "query"))
    decisive = mean_drop > threshold
    H = decisive | ~decisive.any("head") & (mean_drop == mean_drop.max("head"))
    l_h = A.where(H).sum("query", skipna=False).idxmax("layer")
    l_star = mode(l_h, A.where(H))
    w = a.where(H).sel(layer=l_star)
    shares = token_shares(w, l_star, attention.tokens)
    return Decomposition(H, decisive.sum("head"), l_star, w, shares)


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
    a: DataArray, H: DataArray, l_star: DataArray, tokens: pd.DataFrame, index: int
) -> Example:
    """Figure 5 of sample `index` and of seed 0; tokens stand as the tokenizer cuts them."""
    a, H, layer = a[0], H[0], int(l_star[0, index])
    masses = a.sel(head=H).sum("token")
    r = rank(masses, "layer")
    own = pd.DataFrame(masses[index].mean("query").values, masses["head"].values, a.layer.values)
    steepness = (r[..., 0] - r[..., 1]).mean(("sample", "query")).to_series()
    head = str(steepness[own.idxmax(axis=1) == layer].idxmax())
    texts = tokens.loc[tokens["sample_id"] == a.sample.values[index], "text"].str.strip()
    weights = a[index].sel(head=head, layer=layer)[:, : len(texts)]
    return Example(own, head, layer, pd.DataFrame(weights.values, columns=texts.replace("", "␣")))


def sorted_curves(r: DataArray, H: DataArray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Figure 6: ranked attention of the decisive heads and of all others.

    First a row for each group, seed and rank: mean, and low and high, the middle 80 % of all
    samples, heads and queries of all seeds; a group without heads has none. Then a row for each
    seed, decisive head, query and rank: value, the mean over the samples.
    """
    rows, inner = [], ("sample", "head", "query")
    groups = {"decisive heads": H, "all other heads": ~H}
    for group, chosen in ((group, heads) for group, heads in groups.items() if heads.any()):
        part = r.where(chosen)
        low, high = part.quantile(_BAND, ("seed", *inner)).drop_vars("quantile")
        curve = xr.Dataset({"mean": part.mean(inner), "low": low, "high": high})
        rows.append(curve.to_dataframe().dropna().reset_index().assign(group=group))
    lines = r.where(H).mean("sample").to_dataframe("value").dropna().reset_index()
    return pd.concat(rows, ignore_index=True), lines


def steepness(
    drop: DataArray, w: DataArray, H: DataArray, threshold: float, seed: int
) -> pd.DataFrame:
    """How steeply the decisive heads' attention falls: `estimates` over seeds and samples.

    Rows: mean_drop_layer (r_1 - r_2 over layers, Figure 6a), mean_drop_token (over the tokens of
    l*, Figure 6b), strongest_head (the largest over layers of any head), least_query (the least of
    any decisive head and query), samples_above (part of the samples whose drop over layers exceeds
    T) and top_token (part of the attention in l* that each query's first token gets). The heads are
    given; the intervals leave out how they were chosen.

    Args:
        drop: r_1 - r_2 over layers, [seed, sample, head, query], all heads.
        w: as in `Decomposition`.
        H: likewise.
    """
    drop, w, inner = drop.astype(float), w.astype(float), ("head", "query")
    r = rank(w, "token")
    steepest = drop.mean(("sample", "query")).argmax("head")
    queries = drop.where(H).stack(pair=inner)
    each = queries.mean("pair")
    means = {
        "mean_drop_layer": each,
        "mean_drop_token": (r[..., 0] - r[..., 1]).mean(inner),
        "strongest_head": drop.isel(head=steepest).mean("query"),
        "least_query": queries.isel(pair=queries.mean("sample").argmin("pair")),
        "samples_above": each > threshold,
        "top_token": w.max("token").sum(inner) / w.sum((*inner, "token")),
    }
    found = estimates(((name, mean.to_dataframe(name)[name]) for name, mean in means.items()), seed)
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
    """How often each layer is l*, [instruction, layer], all layers.

    First a row for each seed, then one for each kind, over all seeds, the largest groups first.
    """
    chosen = l_star.to_series()
    of_kind = chosen.index.get_level_values("sample").map(kinds.to_dict())
    by_seed, by_kind = (
        pd.crosstab(of, chosen.to_numpy()).reindex(columns=layers.values, fill_value=0)
        for of in (chosen.index.get_level_values("seed").map("all, seed {}".format), of_kind)
    )
    largest = by_kind.sum(axis=1).sort_values(ascending=False, kind="stable").index
    both = pd.concat([by_seed, by_kind.loc[largest]])
    return both.rename_axis(index="instruction", columns="layer")


def dependence(l_star: DataArray, kinds: pd.Series, seed: int) -> pd.DataFrame:
    """Whether l* goes with the kind of the sample's instruction; a row for each seed.

    Columns: overall, the entropy of l* over all samples, in bits; within, the same within a kind,
    mean over the samples; shuffled, the same with the kinds dealt to the samples at random, mean
    over the shuffles; p, the one-sided permutation p-value of `within` being no lower. Small groups
    make `within` low by chance alone; the control has groups as small.
    """
    kind = np.unique(kinds.loc[l_star.sample.values], return_inverse=True)[1]

    def within(layer: np.ndarray, dealt: np.ndarray) -> float:
        counts = np.zeros((kind.max() + 1, layer.max() + 1))
        np.add.at(counts, (dealt, layer), 1)
        return float(np.average(entropy(counts, base=2, axis=1), weights=counts.sum(1)))

    rows = []
    for chosen in l_star.values:
        layer, random = np.unique(chosen, return_inverse=True)[1], np.random.default_rng(seed)
        observed = within(layer, kind)
        control = np.array([within(layer, random.permutation(kind)) for _ in range(_SHUFFLES)])
        as_low = int((control <= observed + 1e-12).sum())
        rows.append(
            {
                "overall": float(entropy(np.bincount(layer), base=2)),
                "within": observed,
                "shuffled": control.mean(),
                "p": (1 + as_low) / (1 + _SHUFFLES),
            }
        )
    return pd.DataFrame(rows).rename_axis("seed")


def by_seed(
    n_decisive: DataArray, mean_drop: DataArray, l_star: DataArray, shares: pd.DataFrame
) -> pd.DataFrame:
    """What each seed's proxy settles on, a row a seed.

    Columns: decisive heads; mean drop (of all heads); layer (most often l*) and part of samples;
    word (most often dominant) and part of samples with it.
    """
    layers = l_star.to_series().groupby("seed").value_counts(normalize=True)
    first = shares[shares["rank"] == 1]
    words = first["word"].str.lower().groupby(first["seed"]).value_counts(normalize=True)
    drops = mean_drop.mean("head").to_series()
    table = {"decisive heads": n_decisive.to_series(), "mean drop": drops}
    for name, counts in (("layer", layers), ("word", words)):
        top = counts.groupby("seed").head(1).rename_axis(["seed", name]).reset_index(name)
        table |= {name: top[name], f"part with this {name}": top["proportion"]}
    return pd.DataFrame(table).rename_axis("seed")


def check_claims(
    steep: pd.DataFrame, varies: pd.DataFrame, shares: pd.DataFrame, threshold: float,
    n_decisive: DataArray, seed: int,
) -> list[ClaimCheck]:  # fmt: skip
    """What of section 4.4 holds on this run, by `decide`.

    Where a seed has no decisive head, what is claimed of decisive heads is undecided.
    """
    mass, tokens = class_parts(shares)
    gains = {c: estimate(mass[c] - tokens[c], seed) for c in (NOUN, SPATIAL)}
    routed = agreed(
        REVERSED if overall == 0 else HOLDS if p < 0.05 else UNDECIDED
        for overall, p in zip(varies["overall"], varies["p"], strict=True)
    )

    def above(
        key: str, claim: str, where: str, of: str | Interval, bound: float, words: str = ""
    ) -> ClaimCheck:
        fmt = ".3f" if isinstance(of, str) else "+.3f"
        found = Interval(*steep.loc[of, list(Interval._fields)]) if isinstance(of, str) else of
        measured = f"{words}{with_interval(found, fmt)} against {bound:g}"
        return ClaimCheck(key, claim, where, measured, decide(found, bound), found)

    checks = [
        above("decisive", "Some heads are decisive: their mean drop exceeds T", "4.4",
              "strongest_head", threshold, f"{_counts(n_decisive)} heads; largest drop "),
        above("drop", "The decisive heads' mean drop reaches the paper's", "Figure 6a",
              "mean_drop_layer", reported("mean_layer_drop")),
        above("queries", "Every query of a decisive head drops by more than T", "Figure 6a",
              "least_query", threshold, "least "),
        above("samples", "Most samples drop by more than T", "Figure 6a", "samples_above", 0.5),
        ClaimCheck("input", "The dominant layer depends on the input", "4.4",
                   f"{varies['within'].mean():.2f} bits within a kind against "
                   f"{varies['shuffled'].mean():.2f} shuffled, p at most {varies['p'].max():.2g}",
                   routed),
        above("token", "In l*, queries look at one token more than at all others", "Figure 6b",
              "top_token", 0.5),
        above("nouns", "Nouns get more attention than their part of the tokens", "4.4, Figure 7b",
              gains[NOUN], 0.0),
        above("places", "Words of place get more attention than their part of the tokens",
              "4.4, Figure 7b", gains[SPATIAL], 0.0),
    ]  # fmt: skip
    if n_decisive.all():
        return checks
    return checks[:1] + [replace(check, verdict=UNDECIDED) for check in checks[1:]]


def who(n_decisive: DataArray, n_heads: int, threshold: float) -> str:
    """A sentence on which heads the rest of the chapter is about."""
    said = f"On this run, {_counts(n_decisive)} of {n_heads} heads are decisive, seed by seed."
    if n_decisive.all():
        return said
    return (
        f"{said} Where none has a mean drop above {threshold:g}, the head with the largest stands "
        "in for the decisive heads in all that follows."
    )


def _counts(n_decisive: DataArray) -> str:
    return ", ".join(map(str, n_decisive.values.tolist()))
