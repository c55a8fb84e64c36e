"""Training of the LoRA that reads a box drawn on its source (appendix B.2), on any number of GPUs.

Every process holds the transformer and takes its share of each global batch. Noise belongs to the
place of a sample in the run and the loss is a mean over the global batch, so what is learned
depends on the size of that batch and not on how many processes share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.training_utils import cast_training_params
from torch import Tensor

from abplib.core import parallel, store
from abplib.core.errors import AbpError
from abplib.core.store import stored
from abplib.core.trainer import Batch, Fitted, Schedule, fit
from abplib.editing.flow_matching import cell_weights, shifted, velocity_errors
from abplib.editing.loading import Source
from abplib.editing.lora.adapter import add_lora, save_lora
from abplib.editing.lora.pairs import BoxedPairs, batched, boxed_pairs
from abplib.editing.lora.settings import LoraTraining
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.editing.qwen_pipeline import LORA_FILE
from abplib.samples.base import EditedSamples, SampleSet

_LEVELS = 8
"""Noise levels at which each held-out pair is looked at."""


def train_lora(
    editor: QwenImageEditor,
    samples: SampleSet,
    settings: LoraTraining,
    folder: Path,
    *,
    base: Path | None = None,
    device: str | None = None,
) -> Fitted:
    """Train, or go on training, the LoRA, and save the best checkpoint in diffusers' format.

    Started by `accelerate launch`, all processes call it alike.

    Args:
        editor: the Qwen-Image-Edit that is to read boxes.
        samples: those it learns from, in which every box is exact.
        settings: the budget.
        folder: where the LoRA goes, with the losses on held-out pairs in `held_out.json`.
        base: where encoded pairs and checkpoints are kept; the results, if not given.
        device: "cpu" or "cuda"; what there is, if not given.

    Raises:
        AbpError: the edits of the samples are not known, or too few can be used; or as `fit` does.
    """
    if not isinstance(samples, EditedSamples):
        raise AbpError(f"The edits of {samples.name} are not known: give samples whose are.")
    own = parallel.own_device() if device is None else torch.device(device)
    global_batch = settings.batch * parallel.share().of
    together = settings.model_copy(update={"batch": global_batch})
    _check_number(len(samples), samples, together)
    place = _trained(editor.source, editor.image_area, samples, together, own, base)
    if parallel.is_first():
        for name in (LORA_FILE, "held_out.json"):
            with store.replacing(folder / name) as scratch:
                scratch.write_bytes((place / name).read_bytes())
    return Fitted(**store.read_json(place / "done.json"))


@stored("lora", free=["device"], lock=parallel.alone)
def _trained(
    place: Path,
    source: Source,
    image_area: int,
    samples: EditedSamples,
    settings: LoraTraining,
    device: torch.device,
    base: Path | None,
) -> dict[str, Any]:
    """The LoRA, its checkpoint and its losses; `settings.batch` is that of all processes."""
    pairs = boxed_pairs(source, image_area, samples, settings.vlm_sees_box, device, base=base)
    _check_number(len(pairs), samples, settings)
    body = replace(source, without=("text_encoder", "vae"), device=device)
    dit = body.pipeline.transformer
    return asdict(_Run(dit, pairs, settings, place, device).fit())


def _check_number(n: int, samples: SampleSet, settings: LoraTraining) -> None:
    if n - settings.held_out < settings.batch:
        raise AbpError(
            f"{samples.name} has {n} samples that can be used; {settings.held_out} held out and "
            f"{settings.batch} a step are more: lower held_out or batch in lora_training."
        )


class _Run:
    """One training: its batches, its loss, and looks at the held-out pairs."""

    def __init__(
        self,
        dit: QwenImageTransformer2DModel,
        pairs: BoxedPairs,
        settings: LoraTraining,
        place: Path,
        device: torch.device,
    ) -> None:
        self.dit, self.pairs, self.settings = dit, pairs, settings
        self.place, self.device = place, device
        self.learned = range(len(pairs) - settings.held_out)
        self.held_out = range(len(self.learned), len(pairs))
        self.every = max(1, settings.steps // settings.looks)
        self.log = place / "held_out.json"

    def fit(self) -> Fitted:
        """Train from the checkpoint or from the start to the end."""
        settings = self.settings
        add_lora(self.dit, settings.rank, settings.seed, trained=False)
        cast_training_params(self.dit, torch.float32)
        if settings.gradient_checkpointing:
            self.dit.enable_gradient_checkpointing()
        schedule = Schedule(
            steps=settings.steps, lr=settings.lr, warmup=settings.warmup,
            weight_decay=settings.weight_decay, clip=settings.clip,
            checkpoint_every=settings.checkpoint_every, seed=settings.seed,
        )  # fmt: skip
        return fit(
            self.dit.train(), lambda batch: {"flow": self._loss(batch)}, self._batches, schedule,
            self.place, name="lora", settings={}, device=self.device, watch=self._look,
            mixed_precision=settings.mixed_precision,
        )  # fmt: skip

    def _batches(self, step: int) -> list[Batch]:
        """This process's share of a step's batch: passes over the pairs, each in its order.

        The weights of a global batch add up to 1.
        """
        seed, n, share = self.settings.seed, len(self.learned), parallel.share()
        size = self.settings.batch
        drawn = []
        for at in share.take(range(step * size, (step + 1) * size)):
            lap, place = divmod(at, n)
            row = int(np.random.default_rng([seed, lap]).permutation(n)[place])
            random = np.random.default_rng([seed, lap, place])
            drawn.append(self._noised(row, random.random(), random))
        batches = self._weighted(drawn)
        total = torch.stack([batch["weights"].sum() for batch in batches]).sum()
        total = total.to(self.device)
        parallel.add_up([total])
        return [batch | {"weights": batch["weights"] / total.cpu()} for batch in batches]

    def _noised(self, row: int, u: float, random: np.random.Generator) -> dict[str, Tensor]:
        """A pair with the noise that is to be mixed into its target, and how much of it."""
        pair = self.pairs[row]
        noise = random.standard_normal(pair["target"].shape, dtype=np.float32)
        return pair | {
            "source": pair["source"].float(),
            "target": pair["target"].float(),
            "noise": torch.from_numpy(noise),
            "s": shifted(torch.tensor(u, dtype=torch.float32), self.settings.shift),
        }

    def _weighted(self, drawn: Sequence[dict[str, Tensor]]) -> list[Batch]:
        changed = self.settings.changed
        return [
            batch | {"weights": cell_weights(batch["source"], batch["target"], changed)}
            for batch in batched(drawn)
        ]

    def _loss(self, batch: Batch) -> Tensor:
        """Weighted sum of the squared errors of the predicted velocity."""
        rows, columns = batch["grid"][0].tolist()
        errors = velocity_errors(
            self.dit,
            **{name: batch[name] for name in ("source", "target", "noise", "s", "states")},
            mask=None if batch["mask"].all() else batch["mask"],
            grid=(rows, columns),
        )
        return (errors * batch["weights"]).sum()

    def _look(self, step: int) -> None:
        """Now and then, keep the LoRA if it predicts the held-out pairs better than before."""
        if step % self.every:
            return
        loss = self._held_out()
        if parallel.is_first():
            seen = store.read_json(self.log) if self.log.exists() else []
            seen = [row for row in seen if row["step"] < step]
            if all(loss < row["flow"] for row in seen):
                save_lora(self.dit, self.place)
            passes = self.settings.passes(step, len(self.learned))
            store.write_json(self.log, [*seen, {"step": step, "passes": passes, "flow": loss}])

    @torch.no_grad()
    def _held_out(self) -> float:
        """Mean loss of the held-out pairs at evenly spread noise levels, as they are edited."""
        self.dit.eval()
        seed, share = self.settings.seed, parallel.share()
        rows, size = share.take(self.held_out), self.settings.batch // share.of
        looks = [(row, level) for row in rows for level in range(_LEVELS)]
        sums = torch.zeros(2, device=self.device)
        for start in range(0, len(looks), size):
            drawn = [
                self._noised(
                    row, (level + 0.5) / _LEVELS, np.random.default_rng([seed, row, level, 1])
                )
                for row, level in looks[start : start + size]
            ]
            for batch in self._weighted(drawn):
                moved = {name: value.to(self.device) for name, value in batch.items()}
                sums += torch.stack([self._loss(moved), moved["weights"].sum()])
        self.dit.train()
        parallel.add_up([sums])
        loss, weight = sums.tolist()
        return loss / weight
