"""Which tokens of l* the decisive heads look at, and what words these are.

Chapter 3, section 4.4, Figure 7b.
"""

from __future__ import annotations

import pandas as pd
from xarray import DataArray

from abplib.samples.words import CLASSES, classify, join
from abplib.sections.estimates import estimates

_SAMPLE = ["seed", "sample_id"]


def token_shares(w: DataArray, l_star: DataArray, tokens: pd.DataFrame) -> pd.DataFrame:
    """Figure 7b: what part of the heads' attention in l* each token gets, seed by seed.

    The rows of `ProxyAttention.tokens` with the columns seed; layer (l*); share, summed over heads
    and queries, which sums to one in a sample; rank (from 1, the dominant token first; of equal
    shares the earlier token); and for prompt tokens word and word_class, empty elsewhere.

    Args:
        w: a of the decisive heads in l*, [seed, sample, head, query, token], NaN in other heads.
        l_star: [seed, sample].
        tokens: `ProxyAttention.tokens`.
    """
    mass = w.sum(("head", "query"))
    part = (mass / mass.sum("token")).transpose("seed", "sample", "token")
    sample = tokens["sample_id"].map(part.get_index("sample").get_loc).to_numpy()
    known = tokens.assign(word="", word_class="")
    prompt = known[known["span"] == "prompt"]
    for _, rows in prompt.groupby("sample_id", sort=False):
        words, word_of = join(rows["text"])
        classes = classify(words)
        known.loc[rows.index, "word"] = [words[w] for w in word_of]
        known.loc[rows.index, "word_class"] = [classes[w] for w in word_of]
    frames = [
        known.assign(
            seed=seed, layer=l_star.sel(seed=seed).values[sample],
            share=part.sel(seed=seed).values[sample, tokens["slot"]],
        )
        for seed in part.seed.values
    ]  # fmt: skip
    frame = pd.concat(frames, ignore_index=True)
    ranks = frame.groupby(_SAMPLE, sort=False)["share"].rank(method="first", ascending=False)
    return frame.assign(rank=ranks.astype(int))


def word_classes(shares: pd.DataFrame, n_tokens: int, seed: int) -> pd.DataFrame:
    """Which words get the decisive heads' attention, indexed by `words.CLASSES`.

    Columns: those of `estimates` (mean of the class's part of the attention to prompt tokens),
    tokens (of the prompt tokens themselves, what even attention would give) and dominant (of the
    `n_tokens` dominant tokens of each sample).
    """
    mass, tokens = class_parts(shares)
    prompt = shares[shares["span"] == "prompt"]
    order = prompt.groupby(_SAMPLE)["share"].rank(method="first", ascending=False)
    dominant = prompt.loc[order <= n_tokens, "word_class"].value_counts(normalize=True)
    frame = estimates(mass.items(), seed).rename_axis("word class")
    dominant = dominant.reindex(frame.index, fill_value=0.0)
    return frame.assign(tokens=tokens.mean(), dominant=dominant)


def class_parts(shares: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each seed's and sample's attention and tokens by word class, [..., class]; rows sum to 1."""
    prompt = shares[shares["span"] == "prompt"].assign(tokens=1.0)

    def parts(column: str) -> pd.DataFrame:
        table = prompt.pivot_table(
            index=_SAMPLE, columns="word_class", values=column, aggfunc="sum", fill_value=0.0
        ).reindex(columns=list(CLASSES), fill_value=0.0)
        return table.div(table.sum(axis=1), axis=0)

    return parts("share"), parts("tokens")
