"""Figure 4's experiment: all proxies trained side by side from one stream of VLM passes.

The VLM's pass is most of the cost and its states are too many to store, so each sample goes through
the VLM once and feeds every proxy. A batch comes in micro-batches, whose states are dropped as soon
as the proxies have learned from them. They pass the VLM side by side on CPU cores, and several
processes share them (`accelerate launch -m abplib sweep`). Training boxes are the VLM's own; the
evaluation's are exact.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from abplib import bank as banks
from abplib import encoder as encoders
from abplib import processes, results, training
from abplib import proxy as proxies
from abplib.bank import Bank
from abplib.baselines import CORNERS, baselines, scored
from abplib.encoder import ConditionEncoder, Encoding, Prepared
from abplib.errors import AbpError
from abplib.labels import Labels
from abplib.samples import SampleSet, check_number
from abplib.threads import ahead, streamed
from abplib.training import Configuration, SweepSettings

_CODE = (banks, encoders, proxies, training)


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a finished sweep left on disk."""

    folder: Path
    """Its files; `Proxy.load(folder / "proxies" / name, encoder.fingerprint)` reads a proxy."""
    curves: pd.DataFrame
    """One row for each configuration and evaluation: step, samples_seen, configuration,
    center_error and iou (means over the first `n_curve_eval` samples; distance in sides of the
    image), train_loss (mean since the evaluation before)."""
    samples: pd.DataFrame
    """One row for each configuration or baseline and sample, at the end: configuration, sample_id,
    x1, y1, x2, y2, center_error, iou, acc50. Chance answers many boxes, so its box is NaN and its
    figures are means."""
    summary: dict[str, Any]
    """seconds spent in training and evaluation, epochs over the labels, labels usable and not."""


def sweep(
    encoder: ConditionEncoder,
    train_set: SampleSet,
    labels: Labels,
    eval_set: SampleSet,
    chosen: Sequence[Configuration],
    settings: SweepSettings,
    *,
    n_eval: int | None = None,
    base: Path | None = None,
    progress: bool = True,
) -> Sweep:
    """Train a proxy on each configuration and evaluate it on the first `n_eval` samples (all).

    Samples come in a seeded order, each once; where `n_batches` asks for more than there are usable
    labels, again in another order. Everything is kept under `<base or results>/sweep/`: a finished
    sweep with the same inputs and code is read, and a killed one goes on from its last checkpoint
    as if it had not been.

    Raises:
        AbpError: a configuration asks for a layer that is not there, `n_eval` is not in
            1..len(eval_set), no label is usable, or a loss is not finite.
    """
    n_eval = len(eval_set) if n_eval is None else n_eval
    check_number(n_eval, eval_set)
    for configuration in chosen:
        for layer in configuration.layers:
            if layer not in ("input", "final") and layer not in range(encoder.n_layers):
                raise AbpError(
                    f"Configuration {configuration.name} reads layer {layer}, but the VLM has "
                    f"layers 0 to {encoder.n_layers - 1}."
                )
    place = results.folder(
        "sweep",
        base=base,
        vlm=encoder.fingerprint,
        image_area=encoder.image_area,
        dtype=str(encoder.model.dtype),
        train_set=train_set.fingerprint,
        labels=labels.fingerprint,
        eval_set=eval_set.fingerprint,
        n_eval=n_eval,
        configurations=[asdict(configuration) for configuration in chosen],
        settings=asdict(settings),
        code=results.digest_files(*(str(part.__file__) for part in _CODE), __file__),
    )
    with processes.alone(place):
        if results.summary_of(place) is None:
            run = _Run(encoder, train_set, labels, eval_set, chosen, settings, n_eval, place)
            run.finish(progress)
        if processes.is_first():
            _checkpoint(place).unlink(missing_ok=True)
    return Sweep(
        folder=place,
        curves=results.read_parquet(place / "curves.parquet")[0],
        samples=results.read_parquet(place / "samples.parquet")[0],
        summary=results.summary_of(place) or {},
    )


class _Pass(NamedTuple):
    """A micro-batch that went through the VLM."""

    encoding: Encoding
    ids: list[str]
    exact: Tensor
    """The samples' exact boxes, [B, 4]."""


class _Run:
    """A sweep under way: the bank, what was measured so far, and its checkpoint."""

    def __init__(
        self,
        encoder: ConditionEncoder,
        train_set: SampleSet,
        labels: Labels,
        eval_set: SampleSet,
        chosen: Sequence[Configuration],
        settings: SweepSettings,
        n_eval: int,
        place: Path,
    ) -> None:
        self.encoder, self.settings, self.place = encoder, settings, place
        self.train_set, self.eval_set, self.n_eval = train_set, eval_set, n_eval
        self.labels = labels
        usable = labels.usable
        if usable.empty:
            raise AbpError("No training label is usable: check the VLM's boxes with chapter 1.")
        self.device = encoder.model.device
        self.rows = usable["index"].to_numpy()
        """Where in the training set each usable label's sample is."""
        self.boxes = torch.tensor(usable[CORNERS].to_numpy(np.float32), device=self.device)
        self.bank = Bank(chosen, encoder.width, settings, self.device)
        self.curves: list[dict[str, Any]] = []
        self.recent: list[list[float]] = []
        """Each proxy's losses, batch by batch, since the last evaluation."""
        self.seconds = 0.0
        self.checkpoint = _checkpoint(place)

    def finish(self, progress: bool) -> None:
        """Train from the checkpoint or from the start to the end, and write the results."""
        if self.checkpoint.exists():
            self._restore()
        processes.wait()  # before any process writes the next checkpoint
        settings, bank = self.settings, self.bank
        started = time.monotonic() - self.seconds
        needed = settings.n_batches * settings.batch_size
        order = _order(len(self.rows), needed, settings.seed)
        batches = order.reshape(settings.n_batches, settings.batch_size)[bank.n_steps :]
        parts = [self._parts(batch) for batch in batches]
        passes = self._passes(self.train_set, [self.rows[part] for some in parts for part in some])
        shown = progress and processes.is_first()
        bar = tqdm(
            total=settings.n_batches, initial=bank.n_steps, desc="proxies", disable=not shown
        )
        with bar:
            for some in parts:
                self.recent.append(self._learn(passes, some))
                bar.update()
                last = bank.n_steps == settings.n_batches
                if bank.n_steps % settings.eval_every == 0 and not last:
                    self._measure(self._evaluate(min(settings.n_curve_eval, self.n_eval))[0])
                if bank.n_steps % settings.checkpoint_every == 0 or last:
                    self.seconds = time.monotonic() - started
                    self._save()
        final, exact = self._evaluate(self.n_eval)
        self._measure(final)
        self.seconds = time.monotonic() - started
        ids = list(final["sample_id"][: self.n_eval])
        others = baselines(ids, exact, self.boxes.cpu(), settings.seed)
        if processes.is_first():
            self._write(pd.concat([final, others], ignore_index=True), needed)

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """This process's micro-batches of some rows."""
        size = self.settings.micro_batch
        starts = range(0, len(rows), size)
        return list(processes.share().take([rows[start : start + size] for start in starts]))

    def _passes(self, samples: SampleSet, parts: Sequence[np.ndarray]) -> Iterator[_Pass]:
        """Each micro-batch through the VLM, in order; the next ones are prepared meanwhile."""

        def prepare(rows: np.ndarray) -> tuple[Prepared, list[str], Tensor]:
            read = [samples[int(row)] for row in rows]
            prepared = self.encoder.prepare(
                [sample.image for sample in read], [sample.instruction for sample in read]
            )
            return prepared, [s.id for s in read], torch.tensor([s.box for s in read])

        def encode(part: tuple[Prepared, list[str], Tensor]) -> _Pass:
            layers, final = self.bank.layers, self.bank.final
            return _Pass(self.encoder.encode(part[0], layers=layers, final=final), *part[1:])

        stream = ahead(prepare, parts, self.device)
        return streamed(encode, stream, self.device)

    def _learn(self, passes: Iterator[_Pass], parts: Sequence[np.ndarray]) -> list[float]:
        """The bank learns from a batch, of which `parts` are this process's; its losses."""
        for rows in parts:
            self.bank.learn(next(passes).encoding, self.boxes[torch.from_numpy(rows)])
        processes.add_up([self.bank.losses, *self.bank.gradients])
        return self.bank.step()

    def _evaluate(self, n: int) -> tuple[pd.DataFrame, Tensor]:
        """Rows of `Sweep.samples` for the first `n` samples, proxy by proxy, and the exact boxes.

        One VLM pass serves all proxies.
        """
        parts = self._parts(np.arange(n))
        mine = []
        for rows, (encoding, ids, exact) in zip(
            parts, self._passes(self.eval_set, parts), strict=True
        ):
            found = self.bank.predict(encoding)
            boxes = {name: predicted.cpu() for name, predicted in found.items()}
            mine.append((int(rows[0]), ids, exact, boxes))
        whole = sorted(processes.gathered(mine), key=lambda part: part[0])
        ids = [name for _, some, _, _ in whole for name in some]
        exact = torch.cat([some for _, _, some, _ in whole])
        tables = [
            scored(name, ids, torch.cat([found[name] for *_, found in whole]), exact)
            for name in self.bank.configurations
        ]
        return pd.concat(tables, ignore_index=True), exact

    def _measure(self, evaluated: pd.DataFrame) -> None:
        """Add a point to each curve."""
        losses = np.mean(self.recent, axis=0)
        self.recent = []
        for (name, rows), loss in zip(
            evaluated.groupby("configuration", sort=False), losses, strict=True
        ):
            shown = rows.head(self.settings.n_curve_eval)
            self.curves.append(
                {
                    "step": self.bank.n_steps,
                    "samples_seen": self.bank.n_steps * self.settings.batch_size,
                    "configuration": str(name),
                    "center_error": float(shown["center_error"].mean()),
                    "iou": float(shown["iou"].mean()),
                    "train_loss": float(loss),
                }
            )

    def _save(self) -> None:
        if not processes.is_first():
            return
        progress = {
            "n_steps": self.bank.n_steps,
            "curves": self.curves,
            "recent": self.recent,
            "seconds": self.seconds,
        }
        with results.replacing(self.checkpoint) as scratch:
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
        self.curves, self.recent = progress["curves"], progress["recent"]
        self.seconds = progress["seconds"]

    def _write(self, samples: pd.DataFrame, needed: int) -> None:
        for name, proxy in self.bank.proxies.items():
            proxy.save(self.place / "proxies" / name, self.encoder.fingerprint)
        results.write_parquet(self.place / "curves.parquet", pd.DataFrame(self.curves))
        results.write_parquet(self.place / "samples.parquet", samples)
        results.mark_done(
            self.place,
            seconds=round(self.seconds, 1),
            epochs=needed / len(self.rows),
            usable=len(self.rows),
            unusable=self.labels.unusable,
        )


def _checkpoint(place: Path) -> Path:
    return place / "checkpoint.safetensors"


def _order(n_rows: int, needed: int, seed: int) -> np.ndarray:
    """`needed` row numbers: shuffles of all rows, one after another."""
    random = np.random.default_rng(seed)
    epochs = -(-needed // n_rows)
    return np.concatenate([random.permutation(n_rows) for _ in range(epochs)])[:needed]
