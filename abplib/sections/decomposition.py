"""What a trained proxy looks at: layer masses, decisive heads, l*, dominant tokens (section 4.4).

a_{h,q}^{(l,i)} is the weight that query q of head h = (m, j), the j-th of block m, gives to token i
of VLM layer l; a query's weights sum to one over (l, i) together. Every step of Figure 5 is a
function of these weights, so they are read once and kept; what depends on the threshold T is
computed from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from abplib.core.errors import AbpError
from abplib.proxies.attention import ProxyAttention
from abplib.samples.words import ENGLISH, classify, join


def drops(masses: np.ndarray) -> np.ndarray:
    """r_1 - r_2, the largest layer mass less the second: [n, H, N, L] -> [n, H, N].

    Where there is one layer only, the second is zero.
    """
    ranked = np.sort(masses, axis=-1)[..., ::-1]
    return ranked[..., 0] - (ranked[..., 1] if ranked.shape[-1] > 1 else 0)


def preferred_layers(masses: np.ndarray) -> np.ndarray:
    """l*_h = argmax over l of sum over q of A_{h,q}^{(l)}: [n, H, N, L] -> [n, H], along axis L.

    Of equal sums the earliest layer's.
    """
    return masses.sum(2).argmax(-1)


def head_table(attention: ProxyAttention) -> pd.DataFrame:
    """One row a head, indexed by `h`: what Figure 6a says of it, and how fixed its choice is.

    Columns: block, head (from 0); drop (mean of r_1 - r_2 over samples and queries), least_drop
    (of the query whose mean is least), layer (what it prefers most often) and layer_part (in what
    part of the samples).
    """
    masses = attention.masses
    found = drops(masses)
    preferred = preferred_layers(masses)
    counts = np.stack([(preferred == l).mean(0) for l in range(masses.shape[-1])], axis=-1)
    block, head = np.divmod(np.arange(found.shape[1]), attention.n_heads)
    return pd.DataFrame(
        {
            "block": block,
            "head": head,
            "drop": found.mean((0, 2)),
            "least_drop": found.mean(0).min(-1),
            "layer": np.array(attention.layers)[counts.argmax(-1)],
            "layer_part": counts.max(-1),
        }
    ).rename_axis("h")


def ranked_masses(attention: ProxyAttention) -> pd.DataFrame:
    """Figure 6a: mean over the samples of the sorted masses, one row for each head, query and rank.

    Columns: h, query, rank (from 1), mass.
    """
    means = np.sort(attention.masses, axis=-1)[..., ::-1].mean(0)
    return _long(means, "h", "query", "rank").rename(columns={"value": "mass"})


def sensitivity(heads: pd.DataFrame, thresholds: Sequence[float]) -> pd.DataFrame:
    """How many heads of `head_table` are decisive at each threshold: columns threshold, n_heads."""
    counts = [int((heads["drop"] > threshold).sum()) for threshold in thresholds]
    return pd.DataFrame({"threshold": list(thresholds), "n_heads": counts})


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Figure 5 at one threshold: which heads decide, and what they decide for each sample."""

    attention: ProxyAttention
    threshold: float
    """T."""
    decisive: np.ndarray
    """Long [H']: the decisive heads, ascending."""
    layers: pd.DataFrame
    """One row a sample: sample_id, layer (l*), votes (decisive heads that prefer it), n_heads (H'),
    tie (whether another layer had as many votes, so that the larger total mass decided)."""

    @property
    def token_weights(self) -> np.ndarray:
        """a_{h,q}^{(l*,i)} of the decisive heads in each sample's own l*: [n, H', N, T]."""
        places = [self.attention.layers.index(layer) for layer in self.layers["layer"]]
        return self.attention.weights[np.arange(len(places)), :, :, places][:, self.decisive]

    def ranked_tokens(self, n: int) -> pd.DataFrame:
        """Figure 6b: mean over the samples of the `n` largest weights in l*, sorted.

        Columns: h, query, rank (from 1), weight. Where all samples have fewer tokens, there are
        fewer ranks.
        """
        means = np.sort(self.token_weights, axis=-1)[..., ::-1][..., :n].mean(0)
        frame = _long(means, "h", "query", "rank").rename(columns={"value": "weight"})
        return frame.assign(h=self.decisive[frame["h"]])

    def token_shares(self, lexicon: Mapping[str, str] = ENGLISH) -> pd.DataFrame:
        """Figure 7b: what part of the decisive heads' mass in l* each token gets.

        The rows of `ProxyAttention.tokens` with the columns layer (l*); share, summed over heads
        and queries, which sums to one in a sample; rank (from 1, the dominant token first; of equal
        shares the earlier token); and for prompt tokens word and word_class (see
        `abplib.samples.words`), empty elsewhere.
        """
        mass = self.token_weights.sum((1, 2))  # [n, T]
        part = mass / mass.sum(-1, keepdims=True)
        tokens = self.attention.tokens
        sample = tokens["sample_id"].map({name: i for i, name in enumerate(self.attention.ids)})
        frame = tokens.assign(share=part[sample, tokens["slot"]])
        frame.insert(1, "layer", self.layers["layer"].to_numpy()[sample])
        by_sample = frame.groupby("sample_id", sort=False)
        frame["rank"] = by_sample["share"].rank(method="first", ascending=False).astype(int)
        frame[["word", "word_class"]] = ""
        prompt = frame[frame["span"] == "prompt"]
        for _, rows in prompt.groupby("sample_id", sort=False):
            words, word_of = join(rows["text"])
            classes = classify(words, lexicon)
            frame.loc[rows.index, "word"] = [words[w] for w in word_of]
            frame.loc[rows.index, "word_class"] = [classes[w] for w in word_of]
        return frame


def decompose(attention: ProxyAttention, threshold: float) -> Decomposition:
    """Find the decisive heads and, for each sample, l* = mode of l*_h over them.

    A head is decisive where the mean of r_1 - r_2 over samples and queries exceeds `threshold`. Of
    layers with equally many votes, the one with the largest mass over all decisive heads and
    queries is l*.

    Raises:
        AbpError: no head is decisive.
    """
    masses = attention.masses
    found = drops(masses).mean((0, 2))
    decisive = np.flatnonzero(found > threshold)
    if not len(decisive):
        raise AbpError(
            f"No head of the proxy is decisive at threshold {threshold:g}: its largest mean drop "
            f"is {found.max():.3f}, so choose a threshold below that or train it longer."
        )
    masses = masses[:, decisive]
    preferred = preferred_layers(masses)
    votes = np.stack([(preferred == l).sum(1) for l in range(masses.shape[-1])], axis=-1)
    most = votes.max(1)
    leading = votes == most[:, None]
    chosen = np.where(leading, masses.sum((1, 2)), -1).argmax(1)
    layers = pd.DataFrame(
        {
            "sample_id": attention.ids,
            "layer": np.array(attention.layers)[chosen],
            "votes": most,
            "n_heads": len(decisive),
            "tie": leading.sum(1) > 1,
        }
    )
    return Decomposition(attention, threshold, decisive, layers)


def layer_counts(decomposition: Decomposition) -> pd.DataFrame:
    """How often each layer is l*: indexed by layer, columns samples and part."""
    found = decomposition.layers["layer"]
    counts = found.value_counts().reindex(list(decomposition.attention.layers), fill_value=0)
    return pd.DataFrame({"samples": counts, "part": counts / len(found)}).rename_axis("layer")


def entropy(parts: Sequence[float] | np.ndarray | pd.Series) -> float:
    """Shannon entropy of a distribution in bits; log2 of its length where it is uniform."""
    positive = np.asarray(parts, dtype=float)
    positive = positive[positive > 0]
    return float((positive * np.log2(1 / positive)).sum())


def _long(values: np.ndarray, *names: str) -> pd.DataFrame:
    """An array as rows: one column for each axis (its index; a rank from 1), and value."""
    places = [axis.ravel() for axis in np.indices(values.shape)]
    frame = pd.DataFrame(dict(zip(names, places, strict=True)))
    return frame.assign(rank=frame["rank"] + 1, value=values.ravel())
