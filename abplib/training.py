"""What a sweep trains: which states each proxy reads, how each learns (sections 4.3 and B.1)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from abplib.encoder import ConditionEncoder, Encoding, Layer
from abplib.errors import AbpError
from abplib.proxy import ProxyConfig

_FINAL_RATE = 0.3
"""What the learning rate ends at, as a part of its base value (B.1)."""


@dataclass(frozen=True)
class Configuration:
    """Which of the VLM's states a proxy reads."""

    name: str
    """How figures and tables call it."""
    layers: tuple[Layer, ...]
    """Decoder blocks, "input" or "final"; read together."""
    tokens: Literal["all", "prompt"] = "all"
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


def configurations(encoder: ConditionEncoder) -> tuple[Configuration, ...]:
    """Those of Figure 4: each layer, the final states, and the middle layers' prompt tokens."""
    return (
        *(Configuration(f"layer_{l}", (l,)) for l in range(encoder.n_layers)),
        Configuration("final", ("final",)),
        Configuration("middle_prompt", encoder.middle_layers, "prompt"),
    )


def controls(encoder: ConditionEncoder) -> tuple[Configuration, ...]:
    """What Figure 4 is held against: the decoder's input, and the prompt tokens of each layer."""
    return (
        Configuration("input", ("input",)),
        *(Configuration(f"prompt_{l}", (l,), "prompt") for l in range(encoder.n_layers)),
        Configuration("prompt_final", ("final",), "prompt"),
    )


@dataclass(frozen=True)
class SweepSettings:
    """How the proxies of a sweep are trained and evaluated."""

    n_batches: int
    """Batches that each proxy learns from (paper: 2000)."""
    batch_size: int
    """Samples a batch (paper: 64)."""
    lr: float
    """Base learning rate of Adam (paper: 1e-4)."""
    width: int
    """Width of a proxy's queries."""
    n_queries: int
    """Queries of a proxy, N."""
    n_heads: int
    """Attention heads of each block."""
    eval_every: int
    """Batches between two points of an evaluation curve."""
    n_curve_eval: int
    """Samples behind each point of a curve, from the start of the evaluation set."""
    n_blocks: int = 6
    """Blocks of a proxy (paper: 6)."""
    lambda_giou: float = 0.4
    """Weight of GIoU; that of L1 is the rest (paper: 0.4)."""
    l1_steps: int = 100
    """First steps, on L1 alone and at the base learning rate (paper: 100)."""
    clip: float = 1.0
    """Largest norm of one proxy's gradient."""
    checkpoint_every: int = 50
    """Batches between two checkpoints: what a killed run loses at most."""
    micro_batch: int = 16
    """Samples that go through the VLM together; a batch's gradient is the sum over its parts."""
    seed: int = 0
    """Of the proxies' initial weights, the order of the samples and the chance baseline."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("l1_steps", "seed", "lambda_giou"):
                if value < 0:
                    raise AbpError(f"{name} is {value}: it must not be negative.")
            elif value <= 0:
                raise AbpError(f"{name} is {value}: it must be more than 0.")
        if self.lambda_giou > 1:
            raise AbpError(f"lambda_giou is {self.lambda_giou}: it must be at most 1.")
        self.proxy_config(state_width=1, n_layers=1)

    def proxy_config(self, state_width: int, n_layers: int) -> ProxyConfig:
        """The shape of a proxy that reads `n_layers` layers of `state_width` together."""
        return ProxyConfig(
            state_width, n_layers, self.width, self.n_queries, self.n_heads, self.n_blocks
        )

    def rate(self, step: int) -> float:
        """Learning rate of 0-based `step`: the base, after `l1_steps` a cosine to 30 % of it."""
        progress = max(0, step - self.l1_steps) / max(1, self.n_batches - self.l1_steps)
        cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return self.lr * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)
