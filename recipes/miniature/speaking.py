"""The language model's part of the training: its losses on packed lessons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb


class Speaker(nn.Module):
    """Losses of packed lessons.

    Args:
        model: the miniature VLM, with as many key-value heads as heads.
        numbers: tokens of the pixel numbers 0, 1, ...
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, numbers: Sequence[int]):
        super().__init__()
        self.model = model
        width = model.config.text_config.hidden_size
        self.recall = nn.Linear(width, width, device=model.device)
        """Maps a final state to the embedding of its own token."""
        self.numbers = torch.tensor(numbers, device=model.device)
        self.value = torch.full((model.config.text_config.vocab_size,), -1, device=model.device)
        self.value[self.numbers] = torch.arange(len(numbers), device=model.device)

    def losses(self, batch: dict[str, Tensor], seen: Tensor) -> dict[str, Tensor]:
        """Named losses; `seen` are the tower's merged tokens [B, cells, width].

        `lm` is the weighted cross-entropy. `look` is low where, at the last token of a phrase that
        names an object, some head of some layer looks at that object; it says nothing of which.
        `echo` is the cross-entropy of the question's own tokens, told from their final states.
        `number` and `word` are parts of `lm`, for the curves alone.
        """
        decoder = self.model.model.language_model
        ids, config = batch["ids"], self.model.config
        where = ids == config.image_token_id
        picture = where | (ids == config.vision_end_token_id)
        mask = packed_mask(batch["segments"], batch["blind"], picture)
        states = decoder.embed_tokens(ids)
        states = states.masked_scatter(where[..., None], seen.to(states.dtype))
        rotary = decoder.rotary_emb(states, batch["positions"].permute(1, 0, 2))
        looks = []
        for block in decoder.layers:
            looks.append(look(block, states, rotary, mask, where, batch["rows"]))
            states = block(states, attention_mask=mask, position_embeddings=rotary)
        held = [
            (looks_at * batch["cells"][:, None]).sum(-1).amax(1) for looks_at in looks
        ]  # [B, phrases]
        named_one = batch["cells"].any(-1)
        found = torch.stack(held).mean(0)[named_one]
        final = decoder.norm(states)
        named = self._words(batch, final)
        return named | {"look": -(found + 1e-3).log().mean(), "echo": self._echo(batch, final)}

    def _echo(self, batch: dict[str, Tensor], states: Tensor) -> Tensor:
        asked = (batch["weights"] > 0) & (batch["weights"] < 1)
        recalled = self.recall(states[asked]) @ self.model.get_input_embeddings().weight.detach().T
        return F.cross_entropy(recalled.float(), batch["ids"][asked])

    def _words(self, batch: dict[str, Tensor], states: Tensor) -> dict[str, Tensor]:
        weights, ids = batch["weights"][:, 1:], batch["ids"][:, 1:]
        taught = weights > 0
        share, target = weights[taught], ids[taught]
        logp = F.log_softmax(self.model.lm_head(states[:, :-1][taught]).float(), -1)
        nll = -self._soft(logp, target)
        number = share > 1
        return {
            "lm": (nll * share).sum() / share.sum(),
            "number": nll[number].mean().detach(),
            "word": nll[share == 1].mean().detach(),
        }

    def _soft(self, logp: Tensor, target: Tensor) -> Tensor:
        """Log-likelihood; a pixel number shares a little of its target with its neighbours."""
        exact = logp.gather(1, target[:, None])[:, 0]
        value, most = self.value[target], len(self.numbers) - 1
        beside = [
            logp.gather(1, self.numbers[(value + step).clamp(0, most)][:, None])[:, 0]
            for step in (-1, 1)
        ]
        return torch.where(value >= 0, 0.6 * exact + 0.2 * (beside[0] + beside[1]), exact)


def look(
    block: Any,
    states: Tensor,
    rotary: tuple[Tensor, Tensor],
    mask: Tensor,
    where: Tensor,
    rows: Tensor,
) -> Tensor:
    """Attention of some tokens to the image tokens in one block: [B, heads, rows, cells].

    The block is given `states` [B, S, width] under `mask`, bool [B, 1, S, S]; `where`, bool [B, S],
    are the image tokens, as many in each sequence, and `rows`, int64 [B, rows], those that look.
    """
    attention, (batch, length, _) = block.self_attn, states.shape
    normed = block.input_layernorm(states)
    key = attention.k_proj(normed).view(batch, length, -1, attention.head_dim).transpose(1, 2)
    query = attention.q_proj(normed).view(batch, length, -1, attention.head_dim).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    at = rows[:, None, :, None]
    query = query.gather(2, at.expand(-1, query.shape[1], -1, query.shape[3]))
    allowed = mask.gather(2, at.expand(-1, -1, -1, length))
    scores = (query @ key.mT).float() * attention.scaling
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    cells = where[:, None, None].expand_as(weights)
    return weights[cells].view(*weights.shape[:3], -1)


def packed_mask(segments: Tensor, blind: Tensor, picture: Tensor) -> Tensor:
    """Who sees whom in packed sequences: bool [B, 1, S, S].

    A turn of `segments`, int64 [B, S], sees the prefix and itself; tokens that are `blind` do not
    see those of the `picture`, the one that ends it among them, as that has seen it.
    """
    n = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(n, n, dtype=torch.bool, device=segments.device).tril()
    hidden = blind[:, :, None] & picture[:, None, :]
    return (((key == 0) | (key == query)) & causal & ~hidden)[:, None]
