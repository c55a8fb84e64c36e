"""Budget of the LoRA's training, a part of every profile."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from abplib.core.settings import Count, Number, Rate, Settings


class LoraTraining(Settings):
    """How the LoRA learns. The defaults are appendix B.2's, or this companion's where it is silent:
    on `held_out`, `looks` and `checkpoint_every`.
    """

    rank: Count = 16
    """Also the scaling factor alpha."""
    steps: Count = 3000
    batch: Count = 2
    """Samples a step of each process; a step of all processes together is one global batch."""
    lr: Rate = 1e-4
    """AdamW's rate at its peak; reached after `warmup` steps, then a cosine to nothing."""
    warmup: Count = 50
    weight_decay: Annotated[Number, Field(ge=0)] = 0.01
    clip: Annotated[Number, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    mixed_precision: bool = True
    """Activations in bf16; the LoRA itself is float32."""
    gradient_checkpointing: bool = True
    """Compute the transformer's activations a second time rather than keep them."""
    shift: Annotated[Number, Field(gt=0)] = 1.0
    """Noise levels are drawn as s = shift u / (1 + (shift - 1) u), u uniform."""
    changed: Annotated[Number, Field(ge=0)] = 0.0
    """Additional weight in the loss of the cells that an edit changes."""
    held_out: Count = 20
    """Samples, the last of the set, that choose the best checkpoint and are not learned from."""
    looks: Count = 10
    """Checkpoints to choose from."""
    checkpoint_every: Count = 100
    """Steps that a killed run loses at most."""
    seed: Annotated[int, Field(ge=0)] = 0
