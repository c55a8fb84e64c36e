"""Rows of the VLM's attention maps, read while it runs under SDPA (sections 3 and 4.5).

SDPA never holds an attention map, and eager attention holds all of them: at 1,437 tokens the maps
of one layer of Qwen2.5-VL-7B are 58 million numbers a sample. What the paper looks at are a few
rows of them. Here the decoder's attention is SDPA, and beside it, at the asked layers alone, the
asked rows are computed again, softmax(q_i k^T / sqrt(e)): R x S numbers a head instead of S x S.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_NAME = "sdpa_with_rows"


@dataclass(frozen=True, eq=False)
class RowReader:
    """Takes the asked rows out of a forward pass that is given it as `row_reader`."""

    layers: Collection[int]
    """Decoder blocks to read."""
    rows: Tensor
    """Long [B, R]: the attending tokens of each sample, as indices into what the pass is given."""
    attention: dict[int, Tensor] = field(default_factory=dict)
    """By layer, fp32 [B, R, S]: attention of each row to each token, mean over the heads."""

    def read(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float
    ) -> None:
        """Queries [B, heads, Q, e], keys [B, groups, S, e], Bool mask [B, 1, Q, S] (None: causal).

        The queries are of the last Q of S tokens. Rotary positions are already in both; a group of
        heads shares its keys.
        """
        rows = self.rows.to(query.device)
        n_groups, n_tokens = key.shape[1], key.shape[2]
        asked = query.take_along_dim(rows[:, None, :, None], 2).float()  # [B, heads, R, e]
        asked = asked.unflatten(1, (n_groups, -1))  # [B, groups, heads / groups, R, e]
        if mask is None:
            last = rows + n_tokens - query.shape[2]
            allowed = torch.arange(n_tokens, device=rows.device) <= last[..., None]
        else:
            allowed = mask[:, 0].take_along_dim(rows[..., None], 1)  # [B, R, S]
        scores = asked.flatten(2, 3) @ key.float().mT * scaling  # [B, groups, heads * R, S]
        scores = scores.view(*asked.shape[:-1], n_tokens)
        scores = scores.masked_fill_(~allowed[:, None, None], float("-inf"))
        self.attention[layer] = scores.softmax(-1).mean((1, 2))


@contextmanager
def reading_rows(
    model: PreTrainedModel, layers: Collection[int], rows: Tensor
) -> Iterator[RowReader]:
    """While the body runs, the text decoder can be called with `row_reader=` what is yielded.

    `rows` is Long [B, R]. The vision tower is left alone, and so are all states: they are those of
    SDPA.
    """
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": _NAME})
    try:
        yield RowReader(layers, rows)
    finally:
        model.set_attn_implementation({"text_config": before})


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    row_reader: RowReader | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA; at the layers that `row_reader` asks for, it reads on the way."""
    layer = module.layer_idx
    if row_reader is not None and isinstance(layer, int) and layer in row_reader.layers:
        row_reader.read(layer, query, key, attention_mask, scaling)
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)
