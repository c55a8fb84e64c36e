"""The language model's part of the training: its loss on packed lessons."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration


class Speaker:
    """The language-model loss of packed lessons, computed without the states of padding."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, first_number: int, n: int):
        self.model, self.numbers = model, (first_number, first_number + n - 1)

    def loss(self, batch: dict[str, Tensor], seen: Tensor) -> dict[str, Tensor]:
        """Weighted cross-entropy; `seen` are the tower's merged tokens [B, cells, width]."""
        core = self.model.model
        ids, segments = batch["ids"], batch["segments"]
        embedded = core.language_model.embed_tokens(ids)
        where = (ids == self.model.config.image_token_id).unsqueeze(-1)
        embedded = embedded.masked_scatter(where, seen.to(embedded.dtype))
        states = core.language_model(
            inputs_embeds=embedded,
            attention_mask={"full_attention": packed_mask(segments)},
            position_ids=batch["positions"].permute(1, 0, 2),
            use_cache=False,
        ).last_hidden_state
        weights = batch["weights"][:, 1:]
        asked = weights > 0
        logits = self.model.lm_head(states[:, :-1][asked])
        logp = F.log_softmax(logits.float(), -1)
        target = ids[:, 1:][asked]
        nll = -self._soft(logp, target)
        answer = weights[asked] == 1
        number = (target >= self.numbers[0]) & (target <= self.numbers[1])
        share = weights[asked]
        return {
            "lm": (nll * share).sum() / share.sum(),
            "number": nll[answer & number].mean().detach(),
            "word": nll[answer & ~number].mean().detach(),
        }

    def _soft(self, logp: Tensor, target: Tensor) -> Tensor:
        """Log-likelihood; a pixel number shares a little of its target with its neighbours."""
        low, high = self.numbers
        exact = logp.gather(1, target[:, None])[:, 0]
        beside = [
            logp.gather(1, (target + d).clamp(low, high)[:, None])[:, 0] for d in (-1, 1)
        ]
        number = (target >= low) & (target <= high)
        return torch.where(number, 0.6 * exact + 0.2 * (beside[0] + beside[1]), exact)


def packed_mask(segments: Tensor) -> Tensor:
    """Who sees whom in packed sequences: bool [B, 1, S, S] from segments int64 [B, S]."""
    n = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(n, n, dtype=torch.bool, device=segments.device).tril()
    return (((key == 0) | (key == query)) & causal)[:, None]
