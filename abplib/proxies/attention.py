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
from safetensors.numpy import load_file, save_file

from abplib.core import store
from abplib.core.errors import AbpError
from abplib.proxies.configurations import Configuration
from abplib.proxies.qformer import Proxy
from abplib.samples.base import SampleSet
from abplib.vlm.encoder import ConditionEncoder, Encoding


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
) -> ProxyAttention:
    """Run the proxy in `folder` on the first `n` samples; kept on disk.

    `folder` is where a sweep saved the proxy of `configuration`, any layers and any tokens; the
    weights are those that it predicts with.

    Raises:
        AbpError: `n` is not in 1..len(samples), the proxy is of another encoder or shape, or the
            configuration reads what is no block's output.
    """
    layers = tuple(layer for layer in configuration.layers if isinstance(layer, int))
    if len(layers) < len(configuration.layers):
        raise AbpError(
            f"Configuration {configuration.name} reads what is no layer of the VLM, its input or "
            "its final states: decompose a proxy of decoder blocks."
        )
    n_heads = Proxy.load(folder, encoder.fingerprint).config.n_heads
    place = _read(encoder, samples, n, configuration, folder)
    return ProxyAttention(
        weights=load_file(place / "weights.safetensors")["weights"],
        tokens=store.read_parquet(place / "tokens.parquet")[0],
        layers=layers,
        n_heads=n_heads,
    )


@store.stored("attention")
def _read(
    place: Path,
    encoder: ConditionEncoder,
    samples: SampleSet,
    n: int,
    configuration: Configuration,
    folder: Path,
) -> None:
    proxy = Proxy.load(folder, encoder.fingerprint).to(encoder.model.device)
    parts, tokens = [], []
    layers = [layer for layer in configuration.layers if layer != "final"]
    for batch, encoding in encoder.over(samples, n, layers=layers):
        states, mask = configuration.select(encoding)
        blocks = [block.cpu().numpy() for block in proxy.attention(states, mask)]
        parts.append(np.concatenate(blocks, axis=1))
        ids = [sample.id for sample in batch]
        tokens.append(_tokens(ids, encoding, configuration, encoder))
    longest = max(part.shape[-1] for part in parts)
    padded = [np.pad(part, [(0, 0)] * 4 + [(0, longest - part.shape[-1])]) for part in parts]
    with store.replacing(place / "weights.safetensors") as scratch:
        save_file({"weights": np.concatenate(padded)}, scratch)
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
