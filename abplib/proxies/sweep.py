"""Figure 4's experiment: all proxies trained side by side from one stream of VLM passes.

The VLM's pass is most of the cost and its states are too many to store, so each sample goes through
the VLM once and feeds every proxy. A batch comes in micro-batches, whose states are dropped as soon
as the proxies have learned from them. They pass the VLM side by side on CPU cores, and several
processes share them (`accelerate launch -m abplib sweep`). Training boxes are the VLM's own; the
evaluation's are exact.

Each configuration has a proxy for each of the run's seeds (see `bank`). They see the same samples
in the same order, which the run's own seed gives.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from abplib.core import parallel, store
from abplib.core.boxes import CORNERS, center_distance
from abplib.core.errors import AbpError
from abplib.proxies.bank import Bank
from abplib.proxies.baselines import baselines, scored
from abplib.proxies.configurations import Configuration, folder_of, predict
from abplib.proxies.labels import Labels
from abplib.proxies.qformer import Proxy
from abplib.proxies.settings import SweepSettings
from abplib.samples.base import Sample, SampleSet, check_number
from abplib.vlm.encoder import ConditionEncoder, Encoding


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a finished sweep left on disk."""

    folder: Path
    """Its files, of which `configurations.folder_of` finds a proxy in `proxies`."""
    curves: pd.DataFrame
    """One row for each configuration, seed and evaluation: step, configuration, seed, center_error
    (mean over the first `n_curve_eval` samples, in sides of the image)."""
    samples: pd.DataFrame
    """One row for each configuration or baseline, seed and sample, at the end: the columns of
    `baselines.scored`. Chance answers many boxes, so its box is NaN and its figures are means."""
    summary: dict[str, Any]
    """seconds spent in training, and epochs over the labels."""


@dataclass(frozen=True, eq=False)
class SweepInputs:
    """All that decides how the proxies of a sweep are trained."""

    encoder: ConditionEncoder
    train_set: SampleSet
    labels: Labels
    """Boxes to learn from."""
    eval_set: SampleSet
    """Samples with exact boxes."""
    chosen: Sequence[Configuration]
    """Proxies are trained on each."""
    settings: SweepSettings
    seed: int
    """Of the samples' order, the initial weights of seed 0 and the chance baseline."""
    kind: type[Proxy] = Proxy
    """What is trained: a proxy, or a variant of it."""


def sweep(inputs: SweepInputs, n: int) -> Sweep:
    """Train proxies on each configuration and evaluate them on the first `n` samples.

    Samples come in a seeded order, each once; where `n_batches` asks for more than there are usable
    labels, again in another order. All is kept: a killed sweep goes on from its last checkpoint as
    if it had not been, and for another `n` nothing is trained.

    Raises:
        AbpError: a configuration asks for a layer that is not there, `n` is not in
            1..len(eval_set), no label is usable, or a loss is not finite.
    """
    check_number(n, inputs.eval_set)
    place = _train(inputs)
    if parallel.is_first():
        _checkpoint(place).unlink(missing_ok=True)
    scores = _score(place / "proxies", inputs, n)
    return Sweep(
        folder=place,
        curves=store.read_parquet(place / "curves.parquet")[0],
        samples=store.read_parquet(scores / "samples.parquet")[0],
        summary=store.summary_of(place) or {},
    )


@store.stored("sweep", lock=parallel.alone)
def _train(place: Path, inputs: SweepInputs) -> dict[str, Any]:
    run = _Run(place, inputs)
    run.finish()
    return {
        "seconds": round(run.seconds, 1),
        "epochs": inputs.settings.n_batches * inputs.settings.batch_size / len(run.rows),
    }


@store.stored("scores", lock=parallel.alone)
def _score(place: Path, proxies: Path, inputs: SweepInputs, n: int) -> None:
    """Write `Sweep.samples`, of the proxies and of the baselines."""
    if parallel.is_first():
        encoder, batch = inputs.encoder, inputs.settings.micro_batch
        seeds = range(inputs.settings.n_seeds)
        trained = {
            c: [
                inputs.kind.load(folder_of(proxies, c, seed), encoder.fingerprint) for seed in seeds
            ]
            for c in inputs.chosen
        }
        ids, exact, answers = predict(encoder, trained, inputs.eval_set, n, batch)
        tables = [
            scored(name, ids, boxes[seed], exact, seed)
            for name, boxes in answers.items()
            for seed in seeds
        ]
        seen = torch.tensor(inputs.labels.usable[CORNERS].to_numpy(np.float32))
        tables.append(baselines(ids, exact, seen, inputs.seed))
        store.write_parquet(place / "samples.parquet", pd.concat(tables, ignore_index=True))
    parallel.wait()


class _Run:
    """A training under way: the bank, what was measured so far, and its checkpoint."""

    def __init__(self, place: Path, inputs: SweepInputs) -> None:
        self.place, self.inputs, self.encoder = place, inputs, inputs.encoder
        usable = inputs.labels.usable
        if usable.empty:
            raise AbpError("No training label is usable: check the VLM's boxes with chapter 1.")
        self.device = self.encoder.model.device
        self.rows = usable["index"].to_numpy()
        """Where in the training set each usable label's sample is."""
        self.boxes = torch.tensor(usable[CORNERS].to_numpy(np.float32), device=self.device)
        width = self.encoder.width
        settings = inputs.settings
        self.bank = Bank(inputs.chosen, width, settings, inputs.seed, self.device, inputs.kind)
        self.encoder.check_layers(self.bank.layers)
        self.curves: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.checkpoint = _checkpoint(place)

    def finish(self) -> None:
        """Train from the checkpoint or from the start to the end, and write the results."""
        if self.checkpoint.exists():
            self._restore()
        parallel.wait()  # before any process writes the next checkpoint
        settings, bank = self.inputs.settings, self.bank
        started = time.monotonic() - self.seconds
        order = _order(len(self.rows), settings.n_batches * settings.batch_size, self.inputs.seed)
        batches = order.reshape(settings.n_batches, settings.batch_size)[bank.n_steps :]
        parts = [self._parts(batch) for batch in batches]
        asked = [self.rows[part] for some in parts for part in some]
        passes = self._passes(self.inputs.train_set, asked)
        hidden = None if parallel.is_first() else True
        with tqdm(
            total=settings.n_batches, initial=bank.n_steps, desc="proxies", disable=hidden
        ) as bar:
            for some in parts:
                for rows in some:
                    bank.learn(next(passes)[1], self.boxes[torch.from_numpy(rows)])
                parallel.add_up([bank.losses, *bank.gradients])
                bank.step()
                bar.update()
                last = bank.n_steps == settings.n_batches
                if bank.n_steps % settings.eval_every == 0 or last:
                    self._measure()
                if bank.n_steps % settings.checkpoint_every == 0 or last:
                    self.seconds = time.monotonic() - started
                    self._save()
        if parallel.is_first():
            for (name, seed), proxy in bank.proxies.items():
                folder = folder_of(self.place / "proxies", bank.configurations[name], seed)
                proxy.save(folder, self.encoder.fingerprint)
            store.write_parquet(self.place / "curves.parquet", pd.DataFrame(self.curves))
        parallel.wait()  # before any process declares this complete

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """This process's micro-batches of some rows."""
        size = self.inputs.settings.micro_batch
        starts = range(0, len(rows), size)
        return list(parallel.share().take([rows[start : start + size] for start in starts]))

    def _passes(
        self, samples: SampleSet, parts: Sequence[np.ndarray]
    ) -> Iterator[tuple[list[Sample], Encoding]]:
        layers, final = self.bank.layers, self.bank.final
        return self.encoder.passes(samples, parts, layers=layers, final=final)

    def _measure(self) -> None:
        """Add a point to each curve; one VLM pass serves all proxies."""
        samples, n = self.inputs.eval_set, self.inputs.settings.n_curve_eval
        parts = self._parts(np.arange(min(n, len(samples))))
        mine: list[tuple[int, dict[str, Tensor]]] = []
        for rows, (some, encoding) in zip(parts, self._passes(samples, parts), strict=True):
            exact = torch.tensor([sample.box for sample in some], device=self.device)
            boxes = self.bank.predict(encoding).items()
            errors = {name: center_distance(said, exact).double().cpu() for name, said in boxes}
            mine.append((int(rows[0]), errors))
        whole = sorted(parallel.gathered(mine), key=lambda part: part[0])
        for name, seed in self.bank.keys:
            error = torch.cat([errors[name][seed] for _, errors in whole]).mean()
            at = {"step": self.bank.n_steps, "configuration": name, "seed": seed}
            self.curves.append({**at, "center_error": float(error)})

    def _save(self) -> None:
        if not parallel.is_first():
            return
        progress = {
            "n_steps": self.bank.n_steps,
            "curves": self.curves,
            "seconds": self.seconds,
        }
        with store.replacing(self.checkpoint) as scratch:
            save_file(self.bank.state(), scratch, {"progress": json.dumps(progress)})

    def _restore(self) -> None:
        try:
            with safe_open(self.checkpoint, "pt") as file:
                progress = json.loads(file.metadata()["progress"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise AbpError(
                f"The checkpoint {self.checkpoint} is damaged: delete it to train from the start."
            ) from error
        self.bank.restore(tensors, progress["n_steps"])
        self.curves, self.seconds = progress["curves"], progress["seconds"]


def _checkpoint(place: Path) -> Path:
    return place / "checkpoint.safetensors"


def _order(n_rows: int, needed: int, seed: int) -> np.ndarray:
    """`needed` row numbers: shuffles of all rows, one after another."""
    random = np.random.default_rng(seed)
    epochs = -(-needed // n_rows)
    return np.concatenate([random.permutation(n_rows) for _ in range(epochs)])[:needed]
