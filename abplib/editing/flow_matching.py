"""Flow matching as Qwen-Image-Edit was trained by it: x_t = (1 - s) x + s noise, predict noise - x.

The transformer sees the noisy target and the clean source as one sequence. Latents are packed
[B, N, 4 * channels]: a token holds two times two cells.
"""

from __future__ import annotations

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

CHANGED = 0.1
"""Difference of standardised latents from which on a cell counts as changed."""


def shifted(u: Tensor, shift: float) -> Tensor:
    """Noise levels from numbers in [0, 1]: the larger the shift, the more noise."""
    return shift * u / (1 + (shift - 1) * u)


def changed_cells(source: Tensor, target: Tensor) -> Tensor:
    """Which of each token's four cells the edit changes: Bool [B, N, 4]."""
    cells = (target - source).unflatten(-1, (-1, 4))
    return cells.abs().amax(-2) > CHANGED


def cell_weights(source: Tensor, target: Tensor, changed: float) -> Tensor:
    """Weights of the loss [B, N, 4 * channels]: 1, and `changed` more where the edit changes."""
    weights = 1 + changed * changed_cells(source, target).float()
    return weights.repeat(1, 1, target.shape[-1] // 4)


def velocity_errors(
    dit: QwenImageTransformer2DModel,
    source: Tensor,
    target: Tensor,
    noise: Tensor,
    s: Tensor,
    states: Tensor,
    mask: Tensor | None,
    grid: tuple[int, int],
) -> Tensor:
    """Squared errors of the predicted velocity, float32 [B, N, 4 * channels].

    Args:
        dit: the transformer.
        source: latents of the source, [B, N, 4 * channels].
        target: latents of the edit; likewise noise.
        noise: what the target is mixed with.
        s: the part of noise, [B].
        states: what the transformer is conditioned on [B, T, d], in its dtype.
        mask: Bool [B, T], real tokens; None for all.
        grid: rows and columns of the tokens; N is their product.
    """
    noisy = torch.lerp(target, noise, s[:, None, None])
    predicted = dit(
        hidden_states=torch.cat([noisy, source], 1).to(states.dtype),
        timestep=s,
        encoder_hidden_states=states,
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, *grid)] * 2] * len(target),
        return_dict=False,
    )[0][:, : target.shape[1]]
    return (predicted.float() - (noise - target)).square()
