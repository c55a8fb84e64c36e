"""People as a judge: success is theirs to tell (section 4.1), scores are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from PIL import Image

from abplib.core import images
from abplib.core.store import digest
from abplib.judging.base import Judgement
from abplib.judging.human.labels import JUDGE_EDIT, YES, Key, Label, decided, grouped, read_labels
from abplib.samples.base import SampleSet


@dataclass(frozen=True, eq=False)
class HumanJudge:
    """The raters' majority on each edit, found by the edit's pixels; a tie or no label is None."""

    labels_file: Path

    name: ClassVar[str] = "human raters"

    @property
    def fingerprint(self) -> str:
        """Hash of the labels on edits."""
        labels = (label for group in self._labels.values() for label in group)
        return digest(sorted(label.model_dump_json() for label in labels))

    def judge(
        self, samples: SampleSet, index: int, edited_images: Sequence[Image.Image]
    ) -> list[Judgement]:
        """One verdict for each edit of sample `index`; AbpError where the file is not of labels."""
        item = samples[index].id
        keys = [(JUDGE_EDIT, item, images.digest(edited), None) for edited in edited_images]
        return [_judgement(self._labels.get(key, [])) for key in keys]

    @cached_property
    def _labels(self) -> dict[Key, list[Label]]:
        return grouped(read_labels(self.labels_file), JUDGE_EDIT)


def _judgement(labels: Sequence[Label]) -> Judgement:
    verdict = decided(labels)
    n_yes = sum(label.answer == YES for label in labels)
    reason = f"{n_yes} of {len(labels)} raters say yes."
    if verdict is None:
        return Judgement(None, None, None, None, None, reason)
    return Judgement(verdict.yes, verdict.kind, None, None, None, reason)
