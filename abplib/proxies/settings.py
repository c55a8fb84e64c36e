"""How large a proxy is and how a sweep trains it: a part of every profile (sections 4.3, B.1)."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from abplib.core.settings import Count, Number, Rate, Settings

_FINAL_RATE = 0.3
"""What the learning rate ends at, as a part of its base value (B.1)."""


class ProxyShape(Settings):
    """What all proxies of a sweep have in common; the paper gives the number of blocks alone."""

    width: Count = 96
    """Width of a proxy's queries; a multiple of `n_heads`."""
    n_queries: Count = 8
    """Learned queries, N."""
    n_heads: Annotated[Count, Field(validate_default=True)] = 4
    """Attention heads of each block."""
    n_blocks: Count = 6
    """Blocks of a proxy."""

    @field_validator("n_heads")
    @classmethod
    def _divides(cls, n_heads: int, info: ValidationInfo) -> int:
        if (width := info.data.get("width", n_heads)) % n_heads:
            raise ValueError(f"a proxy of width {width} cannot have {n_heads} heads")
        return n_heads


class ProxyConfig(ProxyShape):
    """Shape of one proxy."""

    state_width: Count
    """Width d of the VLM's hidden states."""
    n_layers: Count = 1
    """How many VLM layers it reads together, L."""


class SweepSettings(ProxyShape):
    """How the proxies of a sweep are trained and evaluated; the defaults are the paper's, or this
    companion's where it is silent: on `clip`, and from `eval_every` on.
    """

    n_seeds: Count = 1
    """Proxies of each configuration, from initial weights of their own, on the same batches."""
    n_batches: Count = 2000
    """Batches that each proxy learns from."""
    batch_size: Count = 64
    """Samples of a batch."""
    lr: Rate = 1e-4
    """Adam's learning rate at its peak."""
    lambda_giou: Annotated[Number, Field(ge=0, le=1)] = 0.4
    """Weight of GIoU; that of L1 is the rest."""
    l1_steps: Annotated[int, Field(ge=0)] = 100
    """First steps, on L1 alone and at the base learning rate."""
    clip: Annotated[Number, Field(gt=0)] = 1.0
    """Largest norm of one proxy's gradient."""
    eval_every: Count = 100
    """Batches between two points of an evaluation curve."""
    n_curve_eval: Count = 64
    """Samples behind each point of a curve, from the start of the evaluation set."""
    checkpoint_every: Count = 50
    """Batches between two checkpoints: what a killed run loses at most."""
    micro_batch: Count = 16
    """Samples of a batch that go through the VLM together: as many as memory takes."""

    def proxy_config(self, state_width: int, n_layers: int) -> ProxyConfig:
        """The shape of a proxy that reads `n_layers` layers of `state_width` together."""
        shape = self.model_dump(include=set(ProxyShape.model_fields))
        return ProxyConfig(state_width=state_width, n_layers=n_layers, **shape)

    def rate(self, step: int) -> float:
        """Learning rate of 0-based `step`: the base, after `l1_steps` a cosine to 30 % of it."""
        progress = max(0, step - self.l1_steps) / max(1, self.n_batches - self.l1_steps)
        cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return self.lr * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)
