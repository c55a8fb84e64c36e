"""Training of the miniature editor's diffusion transformer by flow matching, and of its LoRA.

As in Qwen-Image-Edit: x_t = (1 - s) x + s noise, the transformer sees the noisy target and the
clean source as one sequence, reads the final-layer states of the edit template, and predicts
noise - x. What an edit changes is a small part of a picture, so it weighs more in the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import QwenImageEditPipeline, QwenImageTransformer2DModel
from torch import Tensor

from abplib.mini.editor_data import EDITS, Pairs
from abplib.mini.editor_twin import EditorShape
from abplib.mini.fitting import Batch, Fitted, Schedule, fit

CHANGED = 0.1
"""Difference of standardised latents from which on a cell counts as changed."""


@dataclass(frozen=True)
class EditorTraining:
    """Budget and weights of the diffusion transformer's training."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=1600, lr=2e-3, muon=r"transformer_blocks\.", average=0.998
        )
    )
    batch: int = 64
    scenes: int = 5120
    """Scenes with four edits each."""
    changed: float = 8.0
    """Additional weight of the cells that the edit changes."""
    nothing: float = 0.1
    """Part of the samples whose instruction is dropped, for classifier-free guidance."""
    compile: bool = True


def train_dit(
    dit: QwenImageTransformer2DModel,
    pairs: Pairs,
    work: Path,
    plan: EditorTraining,
    shape: EditorShape,
    device: str,
    *,
    name: str = "dit",
) -> Fitted:
    """Train, or go on training, the parameters of `dit` that ask for gradients."""
    dit.to(device).train()
    if plan.compile:
        for block in dit.transformer_blocks:
            block.compile(dynamic=False)

    def losses(batch: Batch) -> dict[str, Tensor]:
        return {"flow": flow_loss(dit, batch, plan.changed)}

    def batches(step: int) -> Iterator[Batch]:
        while True:
            yield draw(pairs, plan, step)
            step += 1

    settings = {**asdict(plan), "schedule": None, **asdict(shape)}
    fitted = fit(
        dit, losses, batches, plan.schedule, work, name=name, settings=settings, device=device
    )
    dit.eval()
    return fitted


def draw(pairs: Pairs, plan: EditorTraining, step: int) -> Batch:
    """The batch of a step: each pass over the pairs in its own order, some without instruction."""
    n = len(pairs.targets)
    places = np.arange(step * plan.batch, (step + 1) * plan.batch)
    rows = np.array(
        [_order(n, int(lap))[at] for lap, at in zip(*np.divmod(places, n), strict=True)]
    )
    dropped = np.random.default_rng([plan.schedule.seed, step]).random(len(rows)) < plan.nothing
    states, lengths = pairs.conditions[rows].copy(), pairs.lengths[rows].copy()
    empty = pairs.nothing[rows[dropped] // EDITS]
    states[dropped] = 0
    states[dropped, : empty.shape[1]] = empty
    lengths[dropped] = empty.shape[1]
    return {
        "source": torch.from_numpy(pairs.sources[rows // EDITS]).float(),
        "target": torch.from_numpy(pairs.targets[rows]).float(),
        "states": torch.from_numpy(states).float(),
        "mask": torch.arange(states.shape[1]) < torch.from_numpy(lengths)[:, None],
    }


_orders: dict[tuple[int, int], np.ndarray] = {}


def _order(n: int, lap: int) -> np.ndarray:
    if (n, lap) not in _orders:
        _orders[n, lap] = np.random.default_rng([n, lap]).permutation(n)
    return _orders[n, lap]


def flow_loss(dit: QwenImageTransformer2DModel, batch: Batch, changed: float) -> Tensor:
    """Weighted mean square error of the predicted velocity (B.2's standard flow matching)."""
    source, target = batch["source"], batch["target"]
    size, _, height, width = target.shape
    noise = torch.randn_like(target)
    s = torch.rand(size, device=target.device)
    noisy = torch.lerp(target, noise, s[:, None, None, None])
    grid = (1, height // 2, width // 2)
    predicted = dit(
        hidden_states=torch.cat([pack(noisy), pack(source)], 1),
        timestep=s,
        encoder_hidden_states=batch["states"],
        encoder_hidden_states_mask=batch["mask"],
        img_shapes=[[grid, grid]] * size,
        return_dict=False,
    )[0][:, : grid[1] * grid[2]]
    cells = (target - source).abs().amax(1, keepdim=True) > CHANGED
    weight = pack((1 + changed * cells.float()).expand_as(target))
    error = (predicted.float() - pack(noise - target)).square()
    return (error * weight).sum() / weight.sum()


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, (h/2)(w/2), 4C], as the pipeline does."""
    return QwenImageEditPipeline._pack_latents(latents, *latents.shape)
