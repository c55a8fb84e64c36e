"""Which of the VLM's states a proxy reads, and its boxes (section 4.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from abplib.proxies.qformer import Proxy
from abplib.samples.base import SampleSet
from abplib.vlm.encoder import ConditionEncoder, Encoding, Layer, Untrained

Tokens = Literal["all", "prompt"]


@dataclass(frozen=True)
class Configuration:
    """Which of the VLM's states a proxy reads."""

    name: str
    """How figures and tables call it."""
    layers: tuple[Layer, ...]
    """Decoder blocks, "input" or "final", or an untrained decoder's blocks; read together."""
    tokens: Tokens = "all"
    """The whole kept sequence, or only the tokens of the user's instruction."""

    def select(self, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """The states [B, L, T, d] and the mask Bool[B, T] that the proxy takes.

        Prompt tokens are moved together, so T is the longest instruction's length and a token's
        index is its place in the instruction.
        """
        states = torch.stack([encoding.states[layer] for layer in self.layers], dim=1)
        if self.tokens == "all":
            return states, encoding.mask
        chosen = encoding.prompt_tokens
        longest = int(chosen.sum(1).max())
        order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
        index = order[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
        return states.gather(2, index), chosen.gather(1, order)


INPUT = Configuration("input", ("input",))
"""What the first decoder block is given: a control, of what the eyes alone tell."""


UNTRAINED = "untrained."
"""What the names of configurations of an untrained decoder begin with."""


def layer(l: int) -> Configuration:
    """All tokens of one decoder block."""
    return Configuration(f"layer_{l}", (l,))


def configurations(encoder: ConditionEncoder) -> tuple[Configuration, ...]:
    """Those of Figure 4: each layer, the final states, and the middle layers' prompt tokens."""
    return (
        *map(layer, range(encoder.n_layers)),
        Configuration("final", ("final",)),
        Configuration("middle_prompt", encoder.middle_layers, "prompt"),
    )


def controls(encoder: ConditionEncoder, n_untrained: int, seed: int) -> tuple[Configuration, ...]:
    """What Figure 4 is held against, none of it the paper's.

    Layers of a decoder of random weights of `seed`, `n_untrained` of them, evenly spaced from the
    first to the last; the decoder's input; and the prompt tokens of each layer.
    """
    depths = np.linspace(0, encoder.n_layers - 1, n_untrained).round().astype(int).tolist()
    return (
        *(Configuration(f"{UNTRAINED}{l}", (Untrained(l, seed),)) for l in dict.fromkeys(depths)),
        INPUT,
        *(Configuration(f"prompt_{l}", (l,), "prompt") for l in range(encoder.n_layers)),
        Configuration("prompt_final", ("final",), "prompt"),
    )


def folder_of(proxies: Path, configuration: Configuration, seed: int = 0) -> Path:
    """Where a sweep keeps the proxy of a configuration and of a seed of the run."""
    return proxies / configuration.name / str(seed)


def swept(encoder: ConditionEncoder, n_untrained: int, seed: int) -> tuple[Configuration, ...]:
    """All that chapter 2 trains proxies on: the `controls`, then Figure 4's."""
    return (*controls(encoder, n_untrained, seed), *configurations(encoder))


def states_of(
    chosen: Iterable[Configuration],
) -> tuple[list[int | Literal["input"] | Untrained], bool]:
    """What to ask the encoder for: the `layers` that are read; whether "final" is."""
    read = dict.fromkeys(layer for configuration in chosen for layer in configuration.layers)
    return [layer for layer in read if layer != "final"], "final" in read


@torch.inference_mode()
def predict(
    encoder: ConditionEncoder,
    proxies: Mapping[Configuration, Sequence[Proxy]],
    samples: SampleSet,
    n: int,
    batch: int = 50,
) -> tuple[list[str], Tensor, dict[str, Tensor]]:
    """Of the first `n` samples ids, exact boxes [n, 4], and the proxies' {name: [seeds, n, 4]}.

    Each sample is read once and passes the VLM once.
    """
    layers, final = states_of(proxies)
    ids, exact = [], []
    parts: dict[str, list[Tensor]] = {configuration.name: [] for configuration in proxies}
    for some, encoding in encoder.over(samples, n, layers=layers, final=final, batch=batch):
        ids += [sample.id for sample in some]
        exact += [sample.box for sample in some]
        for configuration, seeds in proxies.items():
            states, mask = configuration.select(encoding)
            boxes = [proxy.to(states.device)(states, mask).cpu() for proxy in seeds]
            parts[configuration.name].append(torch.stack(boxes))
    return ids, torch.tensor(exact), {name: torch.cat(boxes, 1) for name, boxes in parts.items()}
