"""Which tokens of l* the decisive heads look at, and what words these are.

Chapter 3, section 4.4, Figure 7b.
"""

from __future__ import annotations

import pandas as pd
from xarray import DataArray

from abplib.samples.words import CLASSES, classify, join
from abplib.sections.estimates import estimates


def token_shares(w: DataArray, l_star: DataArray, tokens: pd.DataFrame) -> pd.DataFrame:
    """Figure 7b: what part of the heads' attention in l* each token gets.

    The rows of `ProxyAttention.tokens` with the columns layer (l*); share, summed over heads and
    queries, which sums to one in a sample; rank (from 1, the dominant token first; of equal shares
    the earlier token); and for prompt tokens word and word_class, empty elsewhere.

    Args:
        w: a of the decisive heads in l*, [sample, head, query, token].
        l_star: [sample].
        tokens: `ProxyAttention.tokens`.
    """
    mass = w.sum(("head", "query"))
    part = (mass / mass.sum("token")).transpose("sample", "token")
    sample = tokens["sample_id"].map(part.get_index("sample").get_loc).to_numpy()
    frame = tokens.assign(share=part.values[sample, tokens["slot"]])
    frame.insert(1, "layer", l_star.values[sample])
    by_sample = frame.groupby("sample_id", sort=False)
    frame["rank"] = by_sample["share"].rank(method="first", ascending=False).astype(int)
    frame[["word", "word_class"]] = ""
    prompt = frame[frame["span"] == "prompt"]
    for _, rows in prompt.groupby("sample_id", sort=False):
        words, word_of = join(rows["text"])
        classes = classify(words)
        frame.loc[rows.index, "word"] = [words[w] for w in word_of]
        frame.loc[rows.index, "word_class"] = [classes[w] for w in word_of]
    return frame


def word_classes(shares: pd.DataFrame, n_tokens: int, seed: int) -> pd.DataFrame:
    """Which words get the decisive heads' attention, indexed by `words.CLASSES`.

    Columns: value, low, high and n (mean over samples of the class's part of the attention to
    prompt tokens, with its interval), tokens (of the prompt tokens themselves, what even attention
    would give) and dominant (of the `n_tokens` dominant tokens of each sample).
    """
    mass, tokens = class_parts(shares)
    prompt = shares[shares["span"] == "prompt"]
    order = prompt.groupby("sample_id")["share"].rank(method="first", ascending=False)
    dominant = prompt.loc[order <= n_tokens, "word_class"].value_counts(normalize=True)
    frame = estimates(mass.items(), seed).rename_axis("word class")
    dominant = dominant.reindex(frame.index, fill_value=0.0)
    return frame.assign(tokens=tokens.mean(), dominant=dominant)


def class_parts(shares: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each sample's attention and its tokens by word class, [sample, class]; rows sum to 1."""
    prompt = shares[shares["span"] == "prompt"].assign(tokens=1.0)

    def parts(column: str) -> pd.DataFrame:
        table = prompt.pivot_table(
            index="sample_id", columns="word_class", values=column, aggfunc="sum", fill_value=0.0
        ).reindex(columns=list(CLASSES), fill_value=0.0)
        return table.div(table.sum(axis=1), axis=0)

    return parts("share"), parts("tokens")
