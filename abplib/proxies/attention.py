"""What a trained proxy looks at: the weights of its heads, read once and kept (section 3).

a_{h,q}^{(l,i)} is the weight that query q of head h = (m, j), the j-th of block m, gives to token i
of VLM layer l; a query's weights sum to one over (l, i) together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file

from abplib.core import store
from abplib.proxies.configurations import Configuration, states_of
from abplib.proxies.qformer import Proxy
from abplib.samples.base import SampleSet
from abplib.vlm.encoder import ConditionEncoder, Encoding, Layer


@dataclass(frozen=True, eq=False)
class ProxyAttention:
    """The weights of S proxies of one configuration, which differ by seed, over n samples.

    H heads, N queries, L layers, at most T tokens.
    """

    weights: np.ndarray
    """fp32 [S, n, H, N, L, T], head (m, j) at m * n_heads + j, zero beyond a sample's tokens."""
    tokens: pd.DataFrame
    """One row for each token that the proxies read: sample_id, slot (its place along T), token (its
    index in the kept sequence), span (prompt, image or template), text."""
    layers: tuple[Layer, ...]
    """The VLM layers, in the order of axis L."""
    n_heads: int
    """Heads of a block."""


def read_attention(
    encoder: ConditionEncoder,
    samples: SampleSet,
    n: int,
    configuration: Configuration,
    folders: Sequence[Path],
) -> ProxyAttention:
    """Run the proxies in `folders` on the first `n` samples, in one VLM pass each; kept on disk.

    The folders are where a sweep saved those of `configuration`, any layers and any tokens, seed by
    seed; the weights are those that they predict with.

    Raises:
        AbpError: `n` is not in 1..len(samples), or a proxy is of another encoder.
    """
    n_heads = Proxy.load(folders[0], encoder.fingerprint).config.n_heads
    place = _read(encoder, samples, n, configuration, list(folders))
    return ProxyAttention(
        weights=load_file(place / "weights.safetensors")["weights"],
        tokens=store.read_parquet(place / "tokens.parquet")[0],
        layers=configuration.layers,
        n_heads=n_heads,
    )


@store.stored("attention")
def _read(
    place: Path,
    encoder: ConditionEncoder,
    samples: SampleSet,
    n: int,
    configuration: Configuration,
    folders: list[Path],
) -> None:
    device = encoder.model.device
    proxies = [Proxy.load(folder, encoder.fingerprint).to(device) for folder in folders]
    parts, tokens = [], []
    layers, final = states_of([configuration])
    for batch, encoding in encoder.over(samples, n, layers=layers, final=final):
        states, mask = configuration.select(encoding)
        heads = [torch.cat(proxy.attention(states, mask), 1).cpu().numpy() for proxy in proxies]
        parts.append(np.stack(heads))
        ids = [sample.id for sample in batch]
        tokens.append(_tokens(ids, encoding, configuration, encoder))
    longest = max(part.shape[-1] for part in parts)
    padded = [np.pad(part, [(0, 0)] * 5 + [(0, longest - part.shape[-1])]) for part in parts]
    with store.replacing(place / "weights.safetensors") as scratch:
        save_file({"weights": np.concatenate(padded, 1)}, scratch)
    store.write_parquet(place / "tokens.parquet", pd.concat(tokens, ignore_index=True))


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
