"""Training of the miniature editor's diffusion transformer by flow matching.

As in Qwen-Image-Edit (`abplib.editing.flow_matching`), on the final-layer states of the edit
template. What an edit changes is a small part of a picture, so it weighs more in the loss, and
noise is drawn high more often than low, as the place of an edit is settled there.

Flow matching alone leaves where and what to be found out from pixels. So linear heads tell both
from a middle block's tokens while the transformer learns: which cells change, and which thing, of
which colour, comes there. They are thrown away.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import QwenImageEditPipeline, QwenImageTransformer2DModel
from torch import Tensor, nn

from abplib.core.trainer import Batch, Fitted, Schedule, fit
from abplib.editing.flow_matching import cell_weights, changed_cells, shifted, velocity_errors
from abplib.editing.twins import EditorShape
from abplib.samples.scenes.objects import COLOURS, KINDS
from recipes.miniature.editor_data import EDITS, Pairs, Wording

SHIFT = 3.0
"""Of the noise levels; see `flow_matching.shifted`."""

_RARE = 5.0
"""Weight of a changed cell against a kept one, for the head that tells them apart."""


@dataclass(frozen=True)
class EditorTraining:
    """Budget and weights of the diffusion transformer's training."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=8000, lr=2e-3, muon=r"transformer_blocks\.", average=0.998
        )
    )
    batch: int = 32
    scenes: int = 5120
    """Scenes with four edits each."""
    wording: Wording = field(default_factory=Wording)
    """Of their instructions."""
    changed: float = 8.0
    """Additional weight of the cells that the edit changes."""
    told: float = 0.1
    """Weight of each of the heads' losses: where, kind and colour."""
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
    after: EditorTraining | None = None,
) -> Fitted:
    """Train, or go on training, the parameters of `dit` that ask for gradients.

    `after` is the training behind it, if there is one.
    """
    if after:
        torch.manual_seed(plan.schedule.seed)  # of the heads, whether `after` was trained just now
    taught = _Taught(dit).to(device).train()
    if plan.compile:
        for block in dit.transformer_blocks:
            block.compile(dynamic=False)

    def losses(batch: Batch) -> dict[str, Tensor]:
        flow = flow_loss(dit, batch, plan.changed)
        return {"flow": flow} | {k: plan.told * v for k, v in taught.losses(batch).items()}

    before = asdict(after) if after else None
    settings = {**asdict(plan), "schedule": None, **asdict(shape), "after": before}
    fitted = fit(
        taught, losses, lambda step: [draw(pairs, plan, step)], plan.schedule, work,
        name=name, settings=settings, device=device,
    )  # fmt: skip
    taught.hook.remove()
    dit.eval()
    return fitted


class _Taught(nn.Module):
    """The transformer, and heads on the target's tokens after its middle block."""

    def __init__(self, dit: QwenImageTransformer2DModel) -> None:
        super().__init__()
        self.dit = dit
        sizes = {"where": 1, "kind": len(KINDS), "colour": len(COLOURS)}
        self.heads = nn.ModuleDict({k: nn.Linear(dit.inner_dim, n) for k, n in sizes.items()})
        middle = dit.transformer_blocks[len(dit.transformer_blocks) // 2]
        self.hook = middle.register_forward_hook(self._keep)
        self.tokens: Tensor

    def _keep(self, block: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        self.tokens = outputs[1]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """How badly the last pass's tokens tell which cells change, and into what."""
        changes = changed_cells(pack(batch["source"]), pack(batch["target"])).any(-1).float()
        tokens = self.tokens[:, : changes.shape[1]]
        told = {name: head(tokens).float() for name, head in self.heads.items()}
        rare = changes.new_tensor(_RARE)
        where = told["where"][..., 0]
        found = {"where": F.binary_cross_entropy_with_logits(where, changes, pos_weight=rare)}
        for name, new in zip(("kind", "colour"), batch["new"].T, strict=True):
            cells = (changes > 0) & (new >= 0)[:, None]
            wanted = new[:, None].expand_as(cells)[cells]
            wrong = F.cross_entropy(told[name][cells], wanted, reduction="sum")
            found[name] = wrong / cells.sum().clamp(min=1)
        return found


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
        "new": torch.from_numpy(pairs.new[rows]),
    }


_orders: dict[tuple[int, int], np.ndarray] = {}


def _order(n: int, lap: int) -> np.ndarray:
    if (n, lap) not in _orders:
        _orders[n, lap] = np.random.default_rng([n, lap]).permutation(n)
    return _orders[n, lap]


def flow_loss(dit: QwenImageTransformer2DModel, batch: Batch, changed: float) -> Tensor:
    """Weighted mean square error of the predicted velocity."""
    size, _, height, width = batch["target"].shape
    source, target = pack(batch["source"]), pack(batch["target"])
    noise = pack(torch.randn_like(batch["target"]))
    s = shifted(torch.rand(size, device=target.device), SHIFT)
    errors = velocity_errors(
        dit, source, target, noise, s, batch["states"], batch["mask"], (height // 2, width // 2)
    )
    weights = cell_weights(source, target, changed)
    return (errors * weights).sum() / weights.sum()


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, (h/2)(w/2), 4C], as the pipeline does."""
    return QwenImageEditPipeline._pack_latents(latents, *latents.shape)
