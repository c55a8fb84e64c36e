"""What a judge is: an edited image in, a verdict with the paper's three scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from PIL import Image

if TYPE_CHECKING:  # importing samples means importing torch
    from abplib.samples.base import SampleSet

BEST = 4
"""A score is a whole number from 0 to this (appendix C.1)."""

NO_EDIT, WRONG_OBJECT, EXCESSIVE_REMOVAL, LEAKAGE, HALLUCINATION, WRONG_RESULT = (
    "no edit",
    "wrong object",
    "excessive removal",
    "leakage",
    "hallucination",
    "wrong result",
)
FAILURES = (NO_EDIT, WRONG_OBJECT, EXCESSIVE_REMOVAL, LEAKAGE, HALLUCINATION, WRONG_RESULT)
"""Kinds of failure: the four of Figure 2, an image left as it was, and the rest."""


@dataclass(frozen=True)
class Judgement:
    """The verdict on one edited image; what a judge does not tell is None, never a guess.

    A VLM tells nothing where it refused or answered something else, people nothing at a tie. A
    score is a mean where a judge was asked repeatedly.
    """

    success: bool | None
    """Whether the edit "alters only the target subject and nothing else" (section 4.1)."""
    failure: str | None
    """One of `FAILURES`; None for a success, and where success is None."""
    edit: float | None
    """0 to 4: overall adherence to the instruction (appendix C.1)."""
    accuracy: float | None
    """0 to 4: whether the target was modified as the instruction says (appendix C.1)."""
    leakage: float | None
    """0 to 4: 4 where everything else was left untouched (appendix C.1)."""
    reason: str
    """The verdict in one sentence."""


class Judge(Protocol):
    """Anything that can tell how well an instruction was followed."""

    @property
    def name(self) -> str:
        """Short name, shown in figures."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of whatever decides the verdicts."""
        ...

    def judge(
        self, samples: SampleSet, index: int, edited_images: Sequence[Image.Image]
    ) -> list[Judgement]:
        """One verdict for each of several edits of sample `index`."""
        ...
