"""A sweep and an evaluation that ask a test, at every moment that matters, whether to go on.

Each runs in a process of its own, which the test kills.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import toysweep
from PIL import Image

from abplib.core import store
from abplib.editing import runs
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.experiment import Experiment
from abplib.judging import verdicts
from abplib.judging.preservation import Preservation
from abplib.judging.scene_oracle import SceneOracle
from abplib.profiles import Profile
from abplib.proxies.labels import exact_labels
from abplib.proxies.sweep import SweepInputs, sweep
from abplib.samples.base import Sample
from abplib.vlm.encoder import ConditionEncoder

BATCH = 2
N_TRAIN, N_EVAL, N_EDITS = 12, 4, 3
METHODS = ("baseline", "gt_box")

SETTINGS = toysweep.SETTINGS.model_copy(
    update={
        "n_batches": N_TRAIN // BATCH,
        "batch_size": BATCH,
        "checkpoint_every": 1,
        "micro_batch": 16,
    }
)


class Moment(NamedTuple):
    """What a process is about to do."""

    phase: str
    """`train`, `evaluate`, `edit`, `judge`, or what is written: `half`, `whole` (but under its
    scratch name still) or `there`, and the file's name."""
    batch: str = ""
    """Which batch of the work, the same in every process; none of what is written."""


Ask = Callable[[Moment], None]


class Noise:
    """Noise images whose instructions tell which they are."""

    def __init__(self, name: str) -> None:
        self.name = self.fingerprint = name

    def __len__(self) -> int:
        return N_TRAIN

    def __getitem__(self, index: int) -> Sample:
        dice, words = np.random.default_rng(index), f"{self.name} {index}"
        x1, y1, w, h = dice.uniform(0.1, 0.5, 4).tolist()
        pixels = dice.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        return Sample(words, Image.fromarray(pixels), words, (x1, y1, x1 + w, y1 + h))


class AskingOracle(SceneOracle):
    """The scene oracle, which asks first."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask

    def judge(self, samples: Any, index: int, edited_images: Any) -> Any:
        self.ask(Moment("judge", f"judge {index // BATCH}"))
        return super().judge(samples, index, edited_images)


def sweeping(test: Connection, base: Path) -> None:
    """Sweep on the smoke twin, with a checkpoint after every batch."""
    ask = _asking(test)
    encoder = Experiment(Profile.load("smoke")).encoder
    encode = ConditionEncoder.encode

    def asking_encode(self: ConditionEncoder, what: Any, *words: Any, **named: Any) -> Any:
        """Of prepared samples, or of images and instructions."""
        texts = (
            words[0] if words else map(self.processor.tokenizer.decode, what.inputs["input_ids"])
        )
        read = re.findall(r"(train|evaluate) (\d+)", " ".join(texts))
        ask(Moment(read[0][0], " ".join(index for _, index in read)))
        return encode(self, what, *words, **named)

    ConditionEncoder.encode = asking_encode  # type: ignore[method-assign]
    train_set, eval_set = Noise("train"), Noise("evaluate")
    labels = exact_labels(encoder, train_set, N_TRAIN)
    os.environ["ABP_RESULTS"] = str(base)
    chosen = toysweep.CHOSEN
    sweep(SweepInputs(encoder, train_set, labels, eval_set, chosen, SETTINGS, 0), N_EVAL)


def evaluating(test: Connection, base: Path) -> None:
    """Edit with the smoke editor by two methods and judge the edits."""
    ask = _asking(test)
    made = Experiment(Profile.load("smoke"))
    samples, editor = made.evaluation, made.editor
    os.environ["ABP_RESULTS"] = str(base)  # where all but the twins lie
    edit_many = QwenImageEditor._edit_many

    def asking_edit(self: Any, requests: Any) -> Any:
        ask(Moment("edit", f"{self.name} {requests[0].seed // BATCH}"))
        return edit_many(self, requests)

    QwenImageEditor._edit_many = asking_edit  # type: ignore[method-assign]
    runs._BATCH = verdicts._BATCH = BATCH
    boxes = {"exact": [samples[index].box for index in range(N_EDITS)]}
    files = {name: runs.make_edits(name, editor, samples, N_EDITS, 0, boxes) for name in METHODS}
    verdicts.judged(files, samples, AskingOracle(ask), Preservation(side=32))


def _asking(test: Connection) -> Ask:
    """Ask the test and wait for its answer, from here on also at each file that is written."""

    def ask(moment: Moment) -> None:
        test.send(moment)
        test.recv()

    replacing = store.replacing

    @contextmanager
    def asking_replacing(path: Path) -> Iterator[Path]:
        with replacing(path) as scratch:
            yield scratch
            content = scratch.read_bytes()
            scratch.write_bytes(content[: len(content) // 2])
            ask(Moment(f"half {path.name}"))
            scratch.write_bytes(content)
            ask(Moment(f"whole {path.name}"))
        ask(Moment(f"there {path.name}"))

    store.replacing = asking_replacing
    torch.set_num_threads(1)
    return ask
