"""What a VLM judge is asked about an edit, and how its answer is read (section 4.6, appendix C.1).

One question asks for all three scores of one edit. The judge sees the source, the source with the
target's box outlined ("the target subject identified by the ground-truth bounding box"), and the
edited image. An answer counts only where it is exactly what was asked for; nothing is guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from abplib.core import images
from abplib.judging.base import BEST

EDIT = (
    "Overall edit instruction adherence. A holistic judgment of whether the edited image, as a "
    "whole, realizes what the instruction asked for."
)
ACCURACY = (
    "Subject modification accuracy. Localized correctness on the target subject identified by the "
    "ground-truth bounding box: was this object modified in the way the instruction specified?"
)
LEAKAGE = (
    "Background preservation and leakage prevention. Penalizes leakage by asking whether "
    "everything outside the intended edit region was left untouched."
)

PROMPT = f"""\
You judge how well an image was edited. You see three images. The first is the source. The second \
is the source once more, with the ground-truth bounding box of the target subject outlined in red; \
the outline is there for you and belongs to no image. The third is the edited image.

The instruction was: {{instruction}}

Give three scores, each a whole number from 0 (worst) to {BEST} (best).
edit: {EDIT}
accuracy: {ACCURACY}
leakage: {LEAKAGE} {BEST} means that nothing else changed.

Answer with one JSON object and nothing else. First give your reason in one or two sentences, then \
the scores: {{{{"reason": "...", "edit": 0, "accuracy": 0, "leakage": 0}}}}"""
"""The paper names the three questions (C.1) and prints no prompt: the questions are its words."""

Score = Annotated[int, Field(ge=0, le=BEST)]


class Scores(BaseModel):
    """A judge's answer; the reason comes first, so that the scores follow from it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reason: Annotated[str, Field(min_length=1)]
    edit: Score
    accuracy: Score
    leakage: Score


_FENCED = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)


def read(text: str) -> Scores | None:
    """The scores in an answer, in a code fence or not; None where it is anything else."""
    stripped = text.strip()
    fenced = _FENCED.match(stripped)
    try:
        return Scores.model_validate_json(fenced[1] if fenced else stripped)
    except ValidationError:
        return None


@dataclass(frozen=True, eq=False)
class Question:
    """One edit put to a judge once."""

    sample: str
    """Id of the sample."""
    instruction: str
    source: Image.Image
    marked: Image.Image
    """The source with the target's box outlined."""
    edited: Image.Image
    repeat: int
    """The same edit is asked about several times; from 0."""

    @property
    def prompt(self) -> str:
        """The text that goes with the images."""
        return PROMPT.format(instruction=self.instruction)

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The images in the order in which the prompt names them."""
        return self.source, self.marked, self.edited

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each image's pixels."""
        return tuple(map(images.digest, self.images))
