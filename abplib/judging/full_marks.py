"""Success read off a VLM's scores, for want of people: an edit succeeds on full marks.

The paper's criterion, "alters only the target subject and nothing else" (section 4.1), is for
people to apply. Where none have, an edit counts as a success when the judge gives the best score
both to the target's modification and to the preservation of all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from abplib.core.store import digest
from abplib.judging.base import BEST, LEAKAGE, NO_EDIT, WRONG_RESULT, Judge, Judgement
from abplib.samples.base import SampleSet


@dataclass(frozen=True)
class FullMarks:
    """A `Judge` that adds success and failure to another's scores; none where there is no score."""

    scores: Judge

    @property
    def name(self) -> str:
        """The other's, and what is read off it."""
        return f"{self.scores.name} (success: full marks)"

    @property
    def fingerprint(self) -> str:
        """Hash of the other's."""
        return digest(["full marks", self.scores.fingerprint])

    def judge(
        self, samples: SampleSet, index: int, edited_images: Sequence[Image.Image]
    ) -> list[Judgement]:
        """One verdict for each edit of sample `index`; raises what the other raises."""
        return [_marked(told) for told in self.scores.judge(samples, index, edited_images)]


def _marked(told: Judgement) -> Judgement:
    """Kinds of failure that scores can tell: nothing changed; more than the target; the rest."""
    if told.accuracy is None or told.leakage is None:
        return told
    if told.accuracy == told.leakage == BEST:
        return replace(told, success=True, failure=None)
    kind = WRONG_RESULT
    if told.accuracy == 0 and told.leakage == BEST:
        kind = NO_EDIT
    elif told.accuracy > 0 and told.leakage < BEST:
        kind = LEAKAGE
    return replace(told, success=False, failure=kind)
