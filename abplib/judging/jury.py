"""People as the judge of success (section 4.1), and another judge of the scores (section 4.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from abplib.core import images
from abplib.core.store import digest
from abplib.judging.base import Judge, Judgement
from abplib.judging.human.labels import JUDGE_EDIT, Key, Label, decided, grouped, read_labels
from abplib.samples.base import SampleSet


@dataclass(frozen=True, eq=False)
class Jury:
    """A `Judge`: the raters' majority on each edit, found by its pixels, and another's scores.

    Success and failure are None at a tie and where no rater saw the edit.
    """

    labels_file: Path
    scores: Judge
    """Gives scores and reason."""

    @property
    def name(self) -> str:
        """Who tells what."""
        return f"human raters, scores by {self.scores.name}"

    @property
    def fingerprint(self) -> str:
        """Hash of the labels on edits and of the other judge."""
        labels = (label for group in self._labels.values() for label in group)
        told = sorted(label.model_dump_json() for label in labels)
        return digest([told, self.scores.fingerprint])

    def judge(
        self, samples: SampleSet, index: int, edited_images: Sequence[Image.Image]
    ) -> list[Judgement]:
        """One verdict for each edit of sample `index`; raises what the other judge raises."""
        item, judgements = samples[index].id, []
        scored = self.scores.judge(samples, index, edited_images)
        for edited, told in zip(edited_images, scored, strict=True):
            key = JUDGE_EDIT, item, images.digest(edited), None
            success, failure = decided(self._labels.get(key, [])) or (None, None)
            judgements.append(replace(told, success=success, failure=failure))
        return judgements

    @cached_property
    def _labels(self) -> dict[Key, list[Label]]:
        return grouped(read_labels(self.labels_file), JUDGE_EDIT)
