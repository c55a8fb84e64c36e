"""What a trained proxy looks at: layer masses, decisive heads, l*, dominant tokens (section 4.4).

a_{h,q}^{(l,i)} is the weight that query q of head h = (m, j), the j-th of block m, gives to token i
of VLM layer l; a query's weights sum to one over (l, i) together. Every step of Figure 5 is a
function of these weights, so they are read once and kept; what depends on the threshold T is
computed from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from abplib import proxy as proxies
from abplib import results, training
from abplib.encoder import ConditionEncoder, Encoding
from abplib.errors import AbpError
from abplib.proxy import Proxy
from abplib.samples import SampleSet
from abplib.training import Configuration
from abplib.words import ENGLISH, classify, join

_BATCH = 50


@dataclass(frozen=True, eq=False)
class ProxyAttention:
    """The weights of a proxy over n samples; H heads, N queries, L layers, at most T tokens."""

    weights: np.ndarray
    """fp32 [n, H, N, L, T], head (m, j) at m * n_heads + j, zero beyond a sample's tokens."""
    tokens: pd.DataFrame
    """One row for each token that the proxy read: sample_id, slot (its place along T), token (its
    index in the kept sequence), span (prompt, image or template), text."""
    layers: tuple[int, ...]
    """The VLM layers, in the order of axis L."""
    n_heads: int
    """Heads of a block."""

    @property
    def ids(self) -> list[str]:
        """The samples' ids, in the order of axis n."""
        return list(self.tokens["sample_id"].unique())

    @property
    def masses(self) -> np.ndarray:
        """A_{h,q}^{(l)} = sum over i of a_{h,q}^{(l,i)}: [n, H, N, L]."""
        return self.weights.sum(-1)


def read_attention(
    encoder: ConditionEncoder,
    samples: SampleSet,
    n: int,
    configuration: Configuration,
    folder: Path,
    *,
    base: Path | None = None,
) -> ProxyAttention:
    """Run the proxy in `folder` on the first `n` samples; kept on disk.

    `folder` is where a sweep saved the proxy of `configuration`, any layers and any tokens; the
    weights are those that it predicts with.

    Raises:
        AbpError: `n` is not in 1..len(samples), the proxy is of another encoder or shape, or the
            configuration reads what is no block's output.
    """
    if not 1 <= n <= len(samples):
        raise AbpError(
            f"n is {n}, but {samples.name} holds {len(samples)} samples: ask for 1 to "
            f"{len(samples)}."
        )
    layers = tuple(layer for layer in configuration.layers if isinstance(layer, int))
    if len(layers) < len(configuration.layers):
        raise AbpError(
            f"Configuration {configuration.name} reads what is no layer of the VLM, its input or "
            "its final states: decompose a proxy of decoder blocks."
        )
    proxy = Proxy.load(folder, encoder.fingerprint)
    place = results.folder(
        "decomposition",
        base=base,
        vlm=encoder.fingerprint,
        image_area=encoder.image_area,
        dtype=str(encoder.model.dtype),
        samples=samples.fingerprint,
        n=n,
        layers=layers,
        tokens=configuration.tokens,
        proxy=results.digest_files(folder / "model.safetensors"),
        code=results.digest_files(__file__, proxies.__file__, training.__file__),
    )
    with results.alone(place):
        if results.summary_of(place) is None:
            _read(encoder, samples, n, configuration, proxy, place)
    return ProxyAttention(
        weights=load_file(place / "weights.safetensors")["weights"],
        tokens=results.read_parquet(place / "tokens.parquet")[0],
        layers=layers,
        n_heads=proxy.config.n_heads,
    )


def _read(
    encoder: ConditionEncoder,
    samples: SampleSet,
    n: int,
    configuration: Configuration,
    proxy: Proxy,
    place: Path,
) -> None:
    parts, tokens = [], []
    proxy.to(encoder.model.device)
    for start in range(0, n, _BATCH):
        batch = [samples[index] for index in range(start, min(start + _BATCH, n))]
        encoding = encoder.encode(
            [sample.image for sample in batch],
            [sample.instruction for sample in batch],
            layers=[layer for layer in configuration.layers if layer != "final"],
        )
        states, mask = configuration.select(encoding)
        blocks = [block.cpu().numpy() for block in proxy.attention(states, mask)]
        parts.append(np.concatenate(blocks, axis=1))
        ids = [sample.id for sample in batch]
        tokens.append(_tokens(ids, encoding, configuration, encoder))
    longest = max(part.shape[-1] for part in parts)
    padded = [np.pad(part, [(0, 0)] * 4 + [(0, longest - part.shape[-1])]) for part in parts]
    with results.replacing(place / "weights.safetensors") as scratch:
        save_file({"weights": np.concatenate(padded)}, scratch)
    results.write_parquet(place / "tokens.parquet", pd.concat(tokens, ignore_index=True))
    results.mark_done(place, n=n)


def _tokens(
    ids: Sequence[str],
    encoding: Encoding,
    configuration: Configuration,
    encoder: ConditionEncoder,
) -> pd.DataFrame:
    """Rows of `ProxyAttention.tokens` for the samples of one pass."""
    read = encoding.prompt_tokens if configuration.tokens == "prompt" else encoding.mask
    sample, token = (place.numpy() for place in read.cpu().nonzero(as_tuple=True))
    spans = np.where(
        encoding.prompt_tokens.cpu().numpy(),
        "prompt",
        np.where(encoding.image_tokens.cpu().numpy(), "image", "template"),
    )
    words = encoding.input_ids.cpu().numpy()[sample, token]
    frame = pd.DataFrame({"sample_id": np.array(ids)[sample], "token": token})
    frame.insert(1, "slot", frame.groupby("sample_id").cumcount())
    return frame.assign(
        span=spans[sample, token],
        text=[encoder.processor.tokenizer.decode([word]) for word in words],
    )


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
        shares the earlier token); and for prompt tokens word and word_class (see `abplib.words`),
        empty elsewhere.
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
