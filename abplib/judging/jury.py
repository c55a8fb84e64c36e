"""Two judges as one: success and failure from the first, the scores from the second.

For instance people (section 4.1), and a VLM (section 4.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from abplib.core.store import digest
from abplib.judging.base import Judge, Judgement
from abplib.samples.base import SampleSet


@dataclass(frozen=True)
class Jury:
    """A `Judge` that takes from each of two what the paper took from such a judge."""

    success: Judge
    scores: Judge
    """Gives the reason, too."""

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
        return [
            replace(scored, success=told.success, failure=told.failure)
            for told, scored in zip(
                self.success.judge(samples, index, edited_images),
                self.scores.judge(samples, index, edited_images),
                strict=True,
            )
        ]
