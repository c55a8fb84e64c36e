"""Training of the LoRA that lets the miniature editor read a box drawn on its source (B.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import QwenImageEditPipeline
from torch import Tensor

from abplib import results
from abplib import vlm as vlms
from abplib.editors.qwen_image_edit import with_box
from abplib.editors.stills import for_stills
from abplib.encoder import ConditionEncoder
from abplib.mini.editor_data import to_latents
from abplib.mini.editor_training import flow_loss
from abplib.mini.editor_twin import add_lora, save_lora
from abplib.mini.fitting import Batch, Fitted, Schedule, fit
from abplib.mini.sets import multi_entity


@dataclass(frozen=True)
class LoraTraining:
    """Budget of the LoRA; where nothing else is said, as in the paper's appendix B.2."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(steps=1500, lr=1e-3, warmup=50, weight_decay=0.01)
    )
    """Ten times the paper's rate: its model is wider by an order of magnitude."""
    rank: int = 16
    batch: int = 8
    held_out: int = 40
    """Of the 200 training samples, those that choose the best checkpoint."""
    looks: int = 10
    """Checkpoints to choose from."""
    changed: float = 8.0
    """As in the base model's training."""


@dataclass(frozen=True)
class BoxedPairs:
    """Training pairs whose sources have their exact boxes drawn on, encoded; see `Pairs`."""

    sources: Tensor
    targets: Tensor
    states: Tensor
    mask: Tensor

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The rows as `flow_loss` takes them."""
        chosen = torch.as_tensor(np.asarray(rows))
        return {name: getattr(self, f"{name}s")[chosen] for name in ("source", "target")} | {
            "states": self.states[chosen],
            "mask": self.mask[chosen],
        }


def boxed_pairs(pipeline: QwenImageEditPipeline, image_area: int) -> BoxedPairs:
    """The training half of the multi-entity set, with exact boxes drawn on the sources."""
    samples = multi_entity("training")
    encoder = ConditionEncoder(
        pipeline.text_encoder, pipeline.processor, image_area=image_area, fingerprint=""
    )
    shown, wanted, instructions = [], [], []
    for index in range(len(samples)):
        sample = samples[index]
        picture = vlms.fit_image(sample.image, image_area, pipeline.processor)
        shown.append(with_box(picture, sample.box))
        wanted.append(samples.edited(index).resize(picture.size, 1))
        instructions.append(sample.instruction)
    encoding = encoder.encode(shown, instructions, final=True)
    for_stills(pipeline.vae)
    sources, targets = (
        torch.cat(
            [
                to_latents(pipeline.vae, pipeline.image_processor.preprocess(p).float())
                for p in pictures
            ]
        ).clone()
        for pictures in (shown, wanted)
    )
    return BoxedPairs(sources, targets, encoding.states["final"].clone(), encoding.mask.clone())


def train_lora(
    pipeline: QwenImageEditPipeline,
    pairs: BoxedPairs,
    folder: Path,
    work: Path,
    plan: LoraTraining,
    device: str,
) -> Fitted:
    """Train, or go on training, the LoRA, and save the best checkpoint in diffusers' format."""
    dit = pipeline.transformer.requires_grad_(False)
    add_lora(dit, plan.rank, plan.schedule.seed, trained=False)
    dit.to(device).train()
    n = len(pairs.targets) - plan.held_out
    best = _Best(folder, pipeline, pairs, plan, range(n, n + plan.held_out))

    def losses(batch: Batch) -> dict[str, Tensor]:
        return {"flow": flow_loss(dit, batch, plan.changed)}

    def batches(step: int) -> Iterator[Batch]:
        while True:
            random = np.random.default_rng([plan.schedule.seed, step])
            yield pairs.batch(random.choice(n, plan.batch, replace=False))
            step += 1

    settings = {**asdict(plan), "schedule": None}
    fitted = fit(
        dit, losses, batches, plan.schedule, work, name="lora", settings=settings, device=device,
        watch=best,
    )  # fmt: skip
    dit.eval()
    return fitted


class _Best:
    """Looks at the held-out pairs now and then and keeps the LoRA that predicts them best."""

    def __init__(
        self,
        folder: Path,
        pipeline: QwenImageEditPipeline,
        pairs: BoxedPairs,
        plan: LoraTraining,
        rows: range,
    ) -> None:
        self.folder, self.pipeline, self.plan = folder, pipeline, plan
        self.batch = pairs.batch(rows)
        self.every = max(1, plan.schedule.steps // plan.looks)
        self.log = folder / "held_out.json"

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        if step % self.every:
            return
        seen = results.read_json(self.log) if self.log.exists() else []
        seen = [row for row in seen if row["step"] < step]
        dit = self.pipeline.transformer.eval()
        with torch.random.fork_rng():
            losses = []
            for seed in range(8):
                torch.manual_seed(seed)
                losses.append(flow_loss(dit, self.batch, self.plan.changed).item())
        dit.train()
        loss = sum(losses) / len(losses)
        if all(loss < row["flow"] for row in seen):
            save_lora(dit, self.folder)
        results.write_json(self.log, [*seen, {"step": step, "flow": loss}])
