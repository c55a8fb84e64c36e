"""Training of the miniature Qwen2.5-VL: first to see, then to speak.

1. *Seeing*: the vision tower alone, on dense targets of its merged tokens (kind, colour, box,
   cell); the heads are thrown away.
2. *Speaking*: the whole model, on packed lessons (`batches`), with the language-model loss on
   answers and grounded boxes and, lightly, on questions. In most turns what follows the question
   does not attend to the picture: the question's tokens must carry what it takes, as they largely
   do in trained VLMs. Two hints: a phrase's last token is to look at what the phrase is about
   (without it boxes stay guesses from habits of the layouts for long), and a question's final
   states are to tell its words (an editor reads final states alone).

What is saved is the running average of the weights, so that a checkpoint can be judged long
before the rates have decayed. Seeded, resumable, CPU or CUDA. `train` writes weights, curves and
a model card.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLProcessor

from abplib.core.errors import AbpError
from abplib.core.trainer import bf16_autocast
from abplib.vlm.twins import (
    VLMShape,
    build_processor,
    build_tokenizer,
    build_vlm,
    number_tokens,
    save,
)
from recipes.miniature import cards
from recipes.miniature.answers import FAMILIES, corpus
from recipes.miniature.batches import Classroom, patches
from recipes.miniature.seeing import Sighted, watch, watch_block
from recipes.miniature.speaking import Speaker

SEED_SPACE = 1_000_000_000
"""Training scenes have seeds from here on; evaluation and probing sets stay below."""

_STAGES = ("see", "speak")
_PLACE = ("stage", "step")


@dataclass(frozen=True)
class VLMTraining:
    """Budget and rates."""

    see_steps: int = 320
    see_batch: int = 64
    see_scenes: int = 16_000
    speak_steps: int = 3000
    speak_batch: int = 24
    length: int = 384
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    tower_lr: float = 0.2
    """Share of the rates that the vision tower gets in the speaking stage."""
    blind: float = 0.75
    """Share of the turns about one object in which what follows the question is blind."""
    look: float = 0.3
    """Weight of the loss on looking at what a phrase is about."""
    echo: float = 0.1
    """Weight of the loss on telling a question's tokens from their final states."""
    average: float = 0.98
    """Decay of the running average of the weights, a batch."""
    checkpoint_every: int = 50
    compile: bool = True
    """Compile the blocks (needs a C++ compiler): about a fifth faster on CPU."""
    seed: int = 0


def train(folder: Path, work: Path, plan: VLMTraining, shape: VLMShape, device: str) -> Path:
    """Train the miniature VLM, or go on from the checkpoint in `work`; `folder`, where it goes."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(corpus(side=shape.side), shape)
    processor = build_processor(tokenizer, shape)
    model = build_vlm(tokenizer, shape, plan.seed).to(device)
    _smooth_numbers(model, number_tokens(tokenizer, shape))
    run = _Run(model, processor, shape, plan, work, device)
    run.see()
    run.speak()
    save(run.average.module.to(torch.bfloat16), processor, folder)
    facts = {
        "plan": asdict(plan),
        "shape": asdict(shape),
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": round(run.seconds / 60, 1),
        "device": device,
        "torch": torch.__version__,
    }
    last = [f"{name} {loss:.3f}" for name, loss in run.curves[-1].items() if name not in _PLACE]
    shares = {f"{family}_share": share for family, share in FAMILIES.items()}
    told = facts | asdict(plan) | asdict(shape) | shares | {"last": ", ".join(last)}
    cards.write_card(folder, cards.VLM, told, facts, run.curves)
    return folder


def _smooth_numbers(model: Qwen2_5_VLForConditionalGeneration, numbers: list[int]) -> None:
    """Start the embeddings of pixel numbers on a smooth curve: near numbers begin alike."""
    table = model.get_input_embeddings().weight.data
    share = torch.arange(len(numbers))[:, None] / len(numbers)
    turns = 3 * share * torch.logspace(0, 1.6, table.shape[1] // 2)
    wave = torch.cat([torch.sin(turns), torch.cos(turns)], 1)
    table[torch.tensor(numbers)] = wave.to(table) * table.std() * 1.4


class _Run:
    """One training run: model, optimisers, checkpoints, curves."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        processor: Qwen2VLProcessor,
        shape: VLMShape,
        plan: VLMTraining,
        work: Path,
        device: str,
    ) -> None:
        self.model, self.processor, self.shape, self.plan = model, processor, shape, plan
        self.work, self.device = work, device
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(plan.average))
        cells = (shape.side // (2 * shape.patch)) ** 2
        torch.manual_seed(plan.seed)
        self.heads = Sighted(shape.width, cells).to(device)
        self.speaker = Speaker(model, number_tokens(processor.tokenizer, shape))
        self.block_step = torch.compile(watch_block, dynamic=False) if plan.compile else watch_block
        self.curves: list[dict[str, float | str]] = []
        self.seconds = 0.0

    def see(self) -> None:
        """Stage 1."""
        tower = self.model.model.visual
        self._optimisers([(tower, 1.0), (self.heads, 1.0)])

        def losses(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return self.heads(self._tower(batch), batch)

        self._loop("see", self.plan.see_steps, self.plan.see_batch, None, losses)

    def speak(self) -> None:
        """Stage 2."""
        model, plan = self.model.model, self.plan
        heads = nn.ModuleList([self.heads, self.speaker.recall])
        self._optimisers([(model.language_model, 1.0), (model.visual, plan.tower_lr), (heads, 1.0)])
        if plan.compile:
            for block in model.language_model.layers:
                block.compile(dynamic=False)

        def losses(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            seen = self._tower(batch)
            dense = {name: 0.2 * loss for name, loss in self.heads(seen, batch).items()}
            spoken = self.speaker.losses(batch, seen)
            spoken["look"] = plan.look * spoken["look"]
            spoken["echo"] = plan.echo * spoken["echo"]
            return spoken | dense

        self._loop("speak", plan.speak_steps, plan.speak_batch, plan.length, losses)

    def _tower(self, batch: dict[str, Tensor]) -> Tensor:
        """Merged tokens [B, cells, width] of a batch of pictures."""
        values = patches(batch["picture"], self.processor, self.shape)
        return watch(self.model.model.visual, values, self.shape, self.block_step)

    def _optimisers(self, parts: list[tuple[nn.Module, float]]) -> None:
        """Muon for the matrices of blocks, AdamW for the rest; a part at its share of the rate."""
        muon, adam = [], []
        for module, share in parts:
            in_blocks = [
                p
                for name, p in module.named_parameters()
                if p.ndim == 2 and ("layers." in name or "blocks." in name)
            ]
            chosen = {id(p) for p in in_blocks}
            rest = [p for p in module.parameters() if id(p) not in chosen]
            if in_blocks:
                muon.append({"params": in_blocks, "lr": self.plan.muon_lr * share})
            adam.append({"params": rest, "lr": self.plan.adam_lr * share})
        self.optimisers = [
            torch.optim.Muon(muon, weight_decay=0.01),
            torch.optim.AdamW(adam, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
        ]
        self.rates = [[g["lr"] for g in o.param_groups] for o in self.optimisers]

    def _loop(self, stage: str, steps: int, size: int, length: int | None, losses: Any) -> None:
        done = self._resume(stage)
        if done >= steps:
            return
        batches = self._batches(stage, done * size, size, length)
        bar = tqdm(range(done, steps), initial=done, total=steps, desc=stage, mininterval=5)
        began = time.perf_counter() - self.seconds
        for step in bar:
            batch = {k: v.to(self.device) for k, v in next(batches).items()}
            scale = min(1.0, (step + 1) / 50, 2 * (1 - step / steps) + 0.01)
            for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * scale
            with bf16_autocast(self.device):
                named = losses(batch)
            torch.stack([v for v in named.values() if v.requires_grad]).sum().backward()
            for optimiser in self.optimisers:
                nn.utils.clip_grad_norm_(
                    [p for g in optimiser.param_groups for p in g["params"]], 1.0
                )
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            self.average.update_parameters(self.model)
            self.seconds = time.perf_counter() - began
            if step % 20 == 0 or step + 1 == steps:
                row = {k: round(v.item(), 5) for k, v in named.items()}
                self.curves.append({"stage": stage, "step": step, **row})
                bar.set_postfix(row)
            if (step + 1) % self.plan.checkpoint_every == 0 or step + 1 == steps:
                self._checkpoint(stage, step + 1)

    def _batches(
        self, stage: str, skip: int, size: int, length: int | None
    ) -> Iterator[dict[str, Tensor]]:
        seeing = stage == "see"
        room = Classroom(
            self.processor,
            self.shape,
            seed=SEED_SPACE * _STAGES.index(stage) + SEED_SPACE + self.plan.seed * 10**8,
            skip=skip,
            pool=self.plan.see_scenes if seeing else 10**8,
            length=length,
            blind=self.plan.blind,
        )
        return iter(torch.utils.data.DataLoader(room, batch_size=size, num_workers=1))

    def _checkpoint(self, stage: str, step: int) -> None:
        state = {
            "stage": stage,
            "step": step,
            "plan": asdict(self.plan),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "heads": self.heads.state_dict(),
            "recall": self.speaker.recall.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "curves": self.curves,
            "seconds": self.seconds,
        }
        partial = self.work / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.work / "checkpoint.pt")

    def _resume(self, stage: str) -> int:
        """Steps of this stage already done; loads the newest checkpoint when it is of the stage."""
        path = self.work / "checkpoint.pt"
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self.device)
        if state["plan"] != asdict(self.plan):
            raise AbpError(
                f"The checkpoint in {self.work} was made with other settings: "
                "train with those, or remove the folder to start anew."
            )
        if _STAGES.index(stage) < _STAGES.index(state["stage"]):
            return sys.maxsize
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.heads.load_state_dict(state["heads"])
        self.speaker.recall.load_state_dict(state["recall"])
        self.curves, self.seconds = state["curves"], state["seconds"]
        if state["stage"] != stage:
            return 0
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        return int(state["step"])
