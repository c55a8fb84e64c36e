"""People as a judge of success (section 4.1), and two judges as one.

People tell success and the kind of failure; the scores of section 4.6 are for another judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from PIL import Image

from abplib.core import images
from abplib.core.store import digest
from abplib.judging.base import Judge, Judgement
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


@dataclass(frozen=True)
class Jury:
    """A `Judge` that takes from each of two what the paper took from such a judge."""

    success: Judge
    """Tells success and failure."""
    scores: Judge
    """Gives scores and reason."""

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.success.name}, scores by {self.scores.name}"

    @property
    def fingerprint(self) -> str:
        """Hash of both."""
        return digest([self.success.fingerprint, self.scores.fingerprint])

    def judge(
        self, samples: SampleSet, index: int, edited_images: Sequence[Image.Image]
    ) -> list[Judgement]:
        """One verdict for each edit of sample `index`; raises what the two raise."""
        asked = samples, index, edited_images
        both = zip(self.success.judge(*asked), self.scores.judge(*asked), strict=True)
        return [replace(scored, success=t.success, failure=t.failure) for t, scored in both]


def _judgement(labels: Sequence[Label]) -> Judgement:
    verdict = decided(labels)
    yes, kind = verdict or (None, None)
    n_yes = sum(label.answer == YES for label in labels)
    return Judgement(yes, kind, None, None, None, f"{n_yes} of {len(labels)} raters say yes.")
