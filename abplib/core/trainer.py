"""One training loop for the editor's parts: seeded, resumable, with curves and an average.

A run is its steps: batches come from their number, random numbers are seeded with it, and a
checkpoint holds the rest, so a killed run goes on as if it had not been. Several processes may
train one model together, each on its share of every batch: they add up losses and gradients.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from abplib.core import parallel, store
from abplib.core.errors import AbpError

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn."""

    steps: int
    lr: float
    """AdamW's rate at its peak; reached after `warmup` steps, then a cosine to nothing."""
    cosine: int | None = None
    """Steps by which the rates are nothing, for a run that ends before; `steps` by default."""
    muon_lr: float = 0.02
    """Muon's peak rate."""
    muon: str = "$^"
    """Pattern of the names of the matrices that Muon trains; AdamW trains the rest."""
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.0
    """Decay of the running average of the weights, which is what a run returns; 0 for none."""
    checkpoint_every: int = 200
    seed: int = 0

    def share(self, step: int) -> float:
        """Part of the rates that 0-based `step` gets."""
        rise = min(1.0, (step + 1) / self.warmup)
        along = max(0, step - self.warmup) / max(1, (self.cosine or self.steps) - self.warmup)
        return rise * (1 + torch.cos(torch.tensor(torch.pi * along)).item()) / 2


@dataclass(frozen=True)
class Fitted:
    """What a run left: its curves (rows with `step` and losses) and what it cost."""

    curves: list[dict[str, float]]
    seconds: float
    where: str
    """Kind of device and version of torch of its last step."""


def bf16_autocast(device: torch.device | str, wanted: bool = True) -> torch.autocast:
    """Products in bf16, if `wanted`, where the device has instructions for them.

    A CPU without them takes fifty times as long in bf16 as in float32, which it then keeps.
    """
    kind = torch.device(device).type
    able = any(has for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
    return torch.autocast(kind, torch.bfloat16, enabled=wanted and (kind != "cpu" or able))


def fit(
    model: nn.Module,
    losses: Callable[[Batch], dict[str, Tensor]],
    batches: Callable[[int], Sequence[Batch]],
    schedule: Schedule,
    work: Path,
    *,
    name: str,
    settings: dict[str, Any],
    device: torch.device | str = "cpu",
    watch: Callable[[int], None] | None = None,
    mixed_precision: bool = True,
) -> Fitted:
    """Train the parameters of `model` that ask for gradients, or go on training them.

    The processes of a group (`abplib.core.parallel`) call it alike, each with its parts of the
    batches.

    Args:
        model: in whose place the (averaged) trained weights are left.
        losses: named losses of a part of a batch; their sum over all parts is minimised.
        batches: the parts of the batch of a step that this process takes.
        schedule: how long and how fast.
        work: folder of the checkpoint; remove it to start anew.
        name: of the progress bar and of the checkpoint.
        settings: what else the run depends on; a checkpoint made with others is refused.
        device: "cpu" or "cuda".
        watch: called with the number of steps done after each of them.
        mixed_precision: whether losses run under `bf16_autocast`.

    Raises:
        AbpError: the checkpoint is of other settings, or a loss is not finite.
    """
    run = _Run(model, schedule, work / f"{name}.pt", settings)
    bar = tqdm(
        total=schedule.steps, initial=run.step, desc=name, mininterval=10, dynamic_ncols=True,
        disable=not parallel.is_first(),
    )  # fmt: skip
    began = time.perf_counter() - run.seconds
    if run.step < schedule.steps:
        run.where = f"{torch.device(device).type}, torch {torch.__version__}"
    while run.step < schedule.steps:
        torch.manual_seed(schedule.seed * 1_000_003 + run.step)
        found: dict[str, Tensor] = {}
        for part in batches(run.step):
            moved = {key: value.to(device) for key, value in part.items()}
            with bf16_autocast(device, mixed_precision):
                named = losses(moved)
            torch.stack(list(named.values())).sum().backward()
            found = {key: loss.detach() + found.get(key, 0) for key, loss in named.items()}
        values = torch.stack(list(found.values()))
        parallel.add_up([values])
        if not values.sum().isfinite():
            raise AbpError(f"A loss of {name} is not finite at step {run.step}: lower its rate.")
        run.update()
        if run.step % 20 == 0 or run.step == schedule.steps:
            row = dict(zip(found, (round(value, 5) for value in values.tolist()), strict=True))
            run.curves.append({"step": run.step, **row})
            bar.set_postfix(row, refresh=False)
        if watch:
            watch(run.step)
        bar.update()
        run.seconds = time.perf_counter() - began
        if run.step % schedule.checkpoint_every == 0 or run.step == schedule.steps:
            run.save()
    bar.close()
    run.finish()
    return Fitted(run.curves, run.seconds, run.where)


class _Run:
    """Optimisers, averaged weights and the checkpoint of one run."""

    def __init__(
        self, model: nn.Module, schedule: Schedule, path: Path, settings: dict[str, Any]
    ) -> None:
        self.schedule, self.path = schedule, path
        self.settings = store.digest([asdict(schedule), settings])
        self.weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.weights.items()}
        inner = [n for n, p in self.weights.items() if p.ndim == 2 and re.search(schedule.muon, n)]
        rest = [p for n, p in self.weights.items() if n not in inner]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
        ]
        if inner:
            matrices = [self.weights[n] for n in inner]
            self.optimisers.append(
                torch.optim.Muon(matrices, lr=schedule.muon_lr, weight_decay=schedule.weight_decay)
            )
        self.rates = [optimiser.param_groups[0]["lr"] for optimiser in self.optimisers]
        self.step, self.seconds, self.where = 0, 0.0, ""
        self.curves: list[dict[str, float]] = []
        if path.exists():
            self._restore()
        parallel.wait()  # before any of them writes the next checkpoint

    def update(self) -> None:
        """One step of the optimisers on the gradients that lie ready."""
        share = self.schedule.share(self.step)
        parallel.add_up([w.grad for w in self.weights.values() if w.grad is not None])
        nn.utils.clip_grad_norm_(self.weights.values(), self.schedule.clip)
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * share
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.schedule.average, self.step / (self.step + 10))
        with torch.no_grad():
            averages = list(self.average.values())
            torch._foreach_lerp_(averages, list(self.weights.values()), 1 - decay)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if not parallel.is_first():
            return
        state = {
            "settings": self.settings,
            "step": self.step,
            "seconds": self.seconds,
            "where": self.where,
            "curves": self.curves,
            "weights": self.weights,
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        with store.replacing(self.path) as scratch:
            torch.save(state, scratch)

    def _restore(self) -> None:
        device = next(iter(self.weights.values())).device
        state = torch.load(self.path, map_location=device)
        if state["settings"] != self.settings:
            raise AbpError(
                f"The checkpoint {self.path} was made with other settings: train with those, or "
                "remove the file to start anew."
            )
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self.average = {name: value.detach() for name, value in state["average"].items()}
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.seconds, self.where = state["step"], state["seconds"], state["where"]
        self.curves = state["curves"]

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the averaged weights in the model."""
        for name, weight in self.weights.items():
            weight.copy_(self.average[name])
