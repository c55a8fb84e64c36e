"""What raters are asked: blind, since a task knows no method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from PIL import Image

from abplib.core import images
from abplib.core.boxes import Box, draw_overlay, from_pixels, to_pixels
from abplib.core.images import load_image
from abplib.judging.human.labels import DRAW_BOX, JUDGE_BOX, JUDGE_EDIT, Key, Step, round_box
from abplib.samples.base import SampleSet

QUESTIONS: dict[Step, str] = {
    DRAW_BOX: "Draw the box of what this edit is about, or mend the one that is there.",
    JUDGE_BOX: "Does the box wholly encompass only the target subject and nothing else?",
    JUDGE_EDIT: "Does the second picture alter only the target subject and nothing else?",
}
"""The criteria are the paper's (section 4.1)."""


@dataclass(frozen=True, eq=False)
class Task:
    """One question to a rater."""

    step: Step
    item: str
    """Id of the sample."""
    instruction: str
    source: Image.Image
    edit: Image.Image | None = None
    """What is judged in `judge_edit`."""
    box: Box | None = None
    """In pixels of the source: what is judged in `judge_box`, where to start in `draw_box`."""

    @cached_property
    def image(self) -> str:
        """SHA-256 of the pixels that the label is about."""
        return images.digest(self.source if self.edit is None else self.edit)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of that image."""
        return (self.source if self.edit is None else self.edit).size

    @property
    def key(self) -> Key:
        """What the task is about; that of its labels."""
        return self.step, self.item, self.image, self.box if self.step == JUDGE_BOX else None

    def shown(self) -> list[Image.Image]:
        """What a rater sees: the source, its box drawn where that is judged, and the edit."""
        source = self.source
        if self.step == JUDGE_BOX and self.box is not None:
            source = draw_overlay(source, from_pixels(self.box, source.size))
        return [source] if self.edit is None else [source, self.edit]


def to_draw(samples: SampleSet, n: int) -> list[Task]:
    """The first `n` samples, each with its own box to verify."""
    asked = [samples[index] for index in range(n)]
    return [
        Task(DRAW_BOX, s.id, s.instruction, s.image, box=_pixels(s.box, s.image)) for s in asked
    ]


def boxes_to_judge(samples: SampleSet, answers: pd.DataFrame) -> list[Task]:
    """The boxes in the rows of `localization.ask`; rows without one are misses and not shown."""
    tasks = []
    for row in answers[answers["answered"]].to_dict("records"):
        s = samples[row["index"]]
        box = _pixels((row["x1"], row["y1"], row["x2"], row["y2"]), s.image)
        tasks.append(Task(JUDGE_BOX, s.id, s.instruction, s.image, box=box))
    return tasks


def edits_to_judge(samples: SampleSet, files: Mapping[str, Sequence[Path | None]]) -> list[Task]:
    """The edits that `runs.make_edits` returned, by method; equal ones are asked about once."""
    tasks: dict[Key, Task] = {}
    for made in files.values():
        for index, file in enumerate(made):
            if file is not None:
                s = samples[index]
                task = Task(JUDGE_EDIT, s.id, s.instruction, s.image, load_image(file))
                tasks.setdefault(task.key, task)
    return list(tasks.values())


def _pixels(box: Box, image: Image.Image) -> Box:
    return round_box(to_pixels(box, image.size))
