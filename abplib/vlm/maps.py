"""Where text tokens look: their attention to the image, on the image's grid of tokens.

alpha^(l)_{i,j}, the attention of text token i to image token j in block l, mean over the block's
heads (section 4.5). *Raw* maps show sinks too: image tokens that get attention whatever is asked.
*Relative* maps are raw ones divided by a baseline, the mean map of the prompt tokens of a generic
instruction on the same image in the same block.

The paper looks at prompt tokens. The few template tokens that close the user's turn are read along
with them: the last of them is where an answer would begin, and a proxy of all tokens may find them
dominant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abplib.core.images import ImageLike
from abplib.prompts import DESCRIBE_INSTRUCTION
from abplib.vlm.encoder import ConditionEncoder, Encoding

GENERIC = DESCRIBE_INSTRUCTION
"""The instruction behind the baseline."""


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Maps of one sample on its grid of image tokens, in some blocks."""

    raw: Tensor
    """fp32 [layers, R, rows, columns]: alpha^(l) of its prompt tokens and, after them, the closing
    template's."""
    baseline: Tensor
    """fp32 [layers, rows, columns]: mean over the prompt tokens of `GENERIC`."""
    tokens: Tensor
    """Long [R]: their indices in the kept sequence."""
    n_prompt: int
    """How many of them are prompt tokens."""

    @property
    def relative(self) -> Tensor:
        """`raw` divided by `baseline`."""
        return self.raw / self.baseline.clamp(min=torch.finfo(torch.float32).tiny)[:, None]


def attention_maps(
    encoder: ConditionEncoder,
    images: Sequence[ImageLike],
    instructions: Sequence[str],
    layers: Sequence[int],
) -> list[AttentionMaps]:
    """Maps of each sample in `layers`, from two passes: its own instruction and `GENERIC`.

    Raises AbpError as `ConditionEncoder.encode` does.
    """
    return maps_of(encoder, images, encoder.encode(images, instructions, attention=layers), layers)


def maps_of(
    encoder: ConditionEncoder, images: Sequence[ImageLike], own: Encoding, layers: Sequence[int]
) -> list[AttentionMaps]:
    """Maps from the pass `own` and a second one with `GENERIC`."""
    generic = encoder.encode(images, [GENERIC] * len(images), attention=layers)
    return [
        AttentionMaps(rows, baseline[:, :n_generic].mean(1), tokens, n_prompt)
        for (rows, tokens, n_prompt), (baseline, _, n_generic) in zip(
            _image_rows(own, layers), _image_rows(generic, layers), strict=True
        )
    ]


def _image_rows(encoding: Encoding, layers: Sequence[int]) -> list[tuple[Tensor, Tensor, int]]:
    """Each sample's alpha over its image, [layers, R, rows, columns], `tokens` and `n_prompt`."""
    alpha = torch.stack([encoding.attention[layer] for layer in layers], dim=1).cpu()
    rows = []
    for row, grid in enumerate(encoding.grids):
        prompt, image, real = (
            span[row].cpu()
            for span in (encoding.prompt_tokens, encoding.image_tokens, encoding.mask)
        )
        tokens = (real & (prompt.cumsum(0) > 0)).nonzero()[:, 0]
        maps = alpha[row, :, : len(tokens), image].unflatten(-1, grid)
        rows.append((maps, tokens, int(prompt.sum())))
    return rows
