"""Figure 4's experiment: all proxies trained side by side from one stream of VLM passes.

The VLM's pass is most of the cost and its states are too many to store, so each batch goes through
the VLM once and feeds every proxy. Training boxes are the VLM's own; the evaluation's are exact.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from abplib import proxy as proxies
from abplib import results, training
from abplib.boxes import center_distance, iou
from abplib.encoder import ConditionEncoder, Encoding, Prepared
from abplib.errors import AbpError
from abplib.labels import Labels
from abplib.samples import Sample, SampleSet
from abplib.training import Bank, Configuration, SweepSettings

BASELINES = ("chance", "centre_prior")
"""Rows of the final table that no proxy made; see `baselines`."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Rows = Sequence[int] | np.ndarray

_BOX = ["x1", "y1", "x2", "y2"]
_SCORES = ["center_error", "iou", "acc50"]
_DRAWS = 256
"""Training boxes that chance answers for each evaluation sample."""


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
    if not 1 <= n_eval <= len(eval_set):
        raise AbpError(
            f"n_eval is {n_eval}, but {eval_set.name} holds {len(eval_set)} samples: ask for 1 to "
            f"{len(eval_set)}."
        )
    for configuration in chosen:
        for layer in configuration.layers:
            if layer != "final" and layer not in range(encoder.n_layers):
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
        code=results.digest_files(proxies.__file__, training.__file__, __file__),
    )
    with results.alone(place):
        if results.summary_of(place) is None:
            run = _Run(encoder, train_set, labels, eval_set, chosen, settings, n_eval, place)
            run.finish(progress)
    return Sweep(
        folder=place,
        curves=results.read_parquet(place / "curves.parquet")[0],
        samples=results.read_parquet(place / "samples.parquet")[0],
        summary=results.summary_of(place) or {},
    )


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
        self.targets = labels.usable.reset_index(drop=True)
        if self.targets.empty:
            raise AbpError("No training label is usable: check the VLM's boxes with chapter 1.")
        self.device = encoder.model.device
        self.bank = Bank(chosen, encoder.width, settings, self.device)
        self.curves: list[dict[str, Any]] = []
        self.recent: list[list[float]] = []
        """Each proxy's losses, batch by batch, since the last evaluation."""
        self.seconds = 0.0
        self.checkpoint = place / "checkpoint.safetensors"

    def finish(self, progress: bool) -> None:
        """Train from the checkpoint or from the start to the end, and write the results."""
        if self.checkpoint.exists():
            self._restore()
        settings, bank = self.settings, self.bank
        started = time.monotonic() - self.seconds
        needed = settings.n_batches * settings.batch_size
        order = _order(len(self.targets), needed, settings.seed)
        batches = order.reshape(settings.n_batches, settings.batch_size)[bank.n_steps :]
        boxes = torch.tensor(self.targets[_BOX].to_numpy(np.float32), device=self.device)
        rows = self.targets["index"].to_numpy()
        stream = self._encoded(self.train_set, [rows[batch] for batch in batches])
        bar = tqdm(
            total=settings.n_batches, initial=bank.n_steps, desc="proxies", disable=not progress
        )
        with bar:
            for batch, (encoding, _) in zip(batches, stream, strict=True):
                self.recent.append(bank.losses(encoding, boxes[torch.from_numpy(batch)]).tolist())
                bank.step()
                bar.update()
                if bank.n_steps < settings.n_batches:
                    if bank.n_steps % settings.eval_every == 0:
                        self._measure(self._evaluate(min(settings.n_curve_eval, self.n_eval))[0])
                    if bank.n_steps % settings.checkpoint_every == 0:
                        self.seconds = time.monotonic() - started
                        self._save()
        final, exact = self._evaluate(self.n_eval)
        self._measure(final)
        self.seconds = time.monotonic() - started
        ids = list(final["sample_id"][: self.n_eval])
        others = baselines(ids, exact, boxes.cpu(), settings.seed)
        self._write(pd.concat([final, others], ignore_index=True), needed)

    def _encoded(
        self, samples: SampleSet, batches: Sequence[_Rows]
    ) -> Iterator[tuple[Encoding, list[Sample]]]:
        """The VLM's pass over batches of samples, the next batch being prepared meanwhile."""

        def prepare(rows: _Rows) -> tuple[Prepared, list[Sample]]:
            batch = [samples[int(row)] for row in rows]
            images = [sample.image for sample in batch]
            return self.encoder.prepare(images, [sample.instruction for sample in batch]), batch

        for prepared, batch in _ahead(prepare, batches):
            encoding = self.encoder.encode(prepared, layers=self.bank.layers, final=self.bank.final)
            yield encoding, batch

    def _evaluate(self, n: int) -> tuple[pd.DataFrame, Tensor]:
        """Rows of `Sweep.samples` for the first `n` samples, proxy by proxy, and the exact boxes.

        One VLM pass serves all proxies.
        """
        size = self.settings.batch_size
        batches = [range(start, min(start + size, n)) for start in range(0, n, size)]
        samples: list[Sample] = []
        boxes: dict[str, list[Tensor]] = {name: [] for name in self.bank.proxies}
        for encoding, batch in self._encoded(self.eval_set, batches):
            samples += batch
            for name, predicted in self.bank.predict(encoding).items():
                boxes[name].append(predicted.cpu())
        ids = [sample.id for sample in samples]
        exact = torch.tensor([sample.box for sample in samples])
        parts = [_rows(name, ids, torch.cat(found), exact) for name, found in boxes.items()]
        return pd.concat(parts, ignore_index=True), exact

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
            epochs=needed / len(self.targets),
            usable=len(self.targets),
            unusable=self.labels.unusable,
        )
        self.checkpoint.unlink(missing_ok=True)


def baselines(ids: Sequence[str], exact: Tensor, trained: Tensor, seed: int) -> pd.DataFrame:
    """Rows of `Sweep.samples` for answers that need no VLM states.

    `chance` answers the training box of another sample: means over 256 seeded draws for each of
    the exact boxes [n, 4]. `centre_prior` answers a box in the middle of the image, as wide and as
    high as the training boxes [m, 4] are on average.
    """
    draws = np.random.default_rng(seed).integers(len(trained), size=(len(exact), _DRAWS))
    answers = trained[torch.from_numpy(draws)].flatten(0, 1)
    drawn = _rows("chance", range(len(answers)), answers, exact.repeat_interleave(_DRAWS, 0))
    scores = drawn[_SCORES].to_numpy().reshape(len(exact), _DRAWS, -1).mean(1)
    half = (trained[:, 2:] - trained[:, :2]).mean(0) / 2
    middle = torch.cat([0.5 - half, 0.5 + half]).expand(len(exact), 4)
    chance = _rows("chance", ids, torch.full_like(exact, float("nan")), exact)
    chance[_SCORES] = scores
    return pd.concat([chance, _rows("centre_prior", ids, middle, exact)], ignore_index=True)


def _rows(name: str, ids: Sequence[object], boxes: Tensor, exact: Tensor) -> pd.DataFrame:
    """Rows of `Sweep.samples`; boxes and exact boxes are [B, 4]."""
    overlap = iou(boxes, exact).double().numpy()
    return pd.DataFrame(
        {
            "configuration": name,
            "sample_id": list(ids),
            **dict(zip(_BOX, boxes.double().numpy().T, strict=True)),
            "center_error": center_distance(boxes, exact).double().numpy(),
            "iou": overlap,
            "acc50": (overlap >= 0.5).astype(float),
        }
    )


def _order(n_rows: int, needed: int, seed: int) -> np.ndarray:
    """`needed` row numbers: shuffles of all rows, one after another."""
    random = np.random.default_rng(seed)
    epochs = -(-needed // n_rows)
    return np.concatenate([random.permutation(n_rows) for _ in range(epochs)])[:needed]


def _ahead(job: Callable[[_In], _Out], inputs: Iterable[_In]) -> Iterator[_Out]:
    """The results of `job` in order, the next one being made in a thread while one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[_Out] | None = None
        for item in inputs:
            following = pool.submit(job, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
