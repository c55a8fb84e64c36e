"""The vision tower's part of the training: equal pictures at once, and what it is taught to see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import get_vision_position_ids

from abplib.samples.scenes.objects import COLOURS, KINDS
from abplib.vlm.twins import VLMShape


class Sighted(nn.Module):
    """Linear heads on the tower's merged tokens, used in training alone."""

    def __init__(self, width: int, cells: int) -> None:
        super().__init__()
        self.sizes = (len(KINDS) + 1, len(COLOURS), 4, cells)
        self.out = nn.Linear(width, sum(self.sizes))

    def forward(self, tokens: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named losses for merged tokens [B, cells, width]."""
        kind, colour, box, cell = self.out(tokens.float()).split(self.sizes, -1)
        held = batch["colour"] >= 0
        here = torch.arange(cell.shape[1], device=cell.device).expand(cell.shape[:2])
        return {
            "kind": F.cross_entropy(kind.flatten(0, 1), batch["kind"].flatten()),
            "colour": F.cross_entropy(colour[held], batch["colour"][held]),
            "box": F.smooth_l1_loss(box[held], batch["box"][held], beta=0.1),
            "cell": F.cross_entropy(cell.flatten(0, 1), here.flatten()),
        }


def watch(tower: Any, values: Tensor, shape: VLMShape, block_step: Callable[..., Tensor]) -> Tensor:
    """The vision tower on equally large pictures as one batch: merged tokens [B, cells, width].

    What `tower(...)` computes one picture at a time, several times faster, where all of its blocks
    see the whole picture. `values` [B * patches, features] are in the processor's order;
    `block_step` is `watch_block`, compiled or not.
    """
    side = shape.side // shape.patch
    grid = torch.tensor([[1, side, side]], device=values.device)
    states = tower.patch_embed(values).view(-1, side * side, shape.vision_width)
    rotary = tower.rotary_pos_emb(states, get_vision_position_ids(grid, 2))
    for block in tower.blocks:
        states = block_step(block, states, *rotary)
    return tower.merger(states.flatten(0, 1)).view(len(states), -1, shape.width)


def watch_block(block: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    normed = block.norm1(states)
    batch, n, width = states.shape
    heads = block.attn.num_heads
    q, k, v = block.attn.qkv(normed).view(batch, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
    cos, sin = cos.to(q.dtype), sin.to(q.dtype)
    q, k = q * cos + _half_turn(q) * sin, k * cos + _half_turn(k) * sin
    mixed = F.scaled_dot_product_attention(q, k, v, scale=block.attn.scaling)
    states = states + block.attn.proj(mixed.transpose(1, 2).reshape(batch, n, width))
    return states + block.mlp(block.norm2(states))


def _half_turn(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
