"""What a VLM judge is asked about an edit, and what counts as its answer (section 4.6).

One question asks for all three scores of one edit. The judge sees the source, the source with the
target's box outlined ("the target subject identified by the ground-truth bounding box"), and the
edited image. Only what was asked for is a score, only what the server calls so a refusal; all else
is unusable.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Protocol

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

ANSWERED, REFUSED, UNUSABLE = OUTCOMES = ("answered", "refused", "unusable")
"""What can become of a question; only the first has scores."""

REFUSALS = frozenset({
    "refusal", "content_filter", "SAFETY", "PROHIBITED_CONTENT", "RECITATION", "BLOCKLIST", "SPII",
    "JAILBREAK", "MODEL_ARMOR", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION",
})  # fmt: skip
"""What servers call it that they will not answer; no other ending is that (STOP, length, ...)."""

_FENCED = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
_EDITION = re.compile(r"(?:[-@:](?:latest|preview|exp|\d+))*")

Score = Annotated[int, Field(ge=0, le=BEST)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Scores(_Strict):
    """A judge's answer; the reason comes first, so that the scores follow from it."""

    reason: Annotated[str, Field(min_length=1)]
    edit: Score
    accuracy: Score
    leakage: Score


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
    images: tuple[Image.Image, ...]
    """As the prompt names them: the source, the source with the target's box outlined, the edit."""
    repeat: int
    """The same edit is asked about several times; from 0."""

    @property
    def prompt(self) -> str:
        """The text that goes with the images."""
        return PROMPT.format(instruction=self.instruction)

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each image's pixels."""
        return tuple(map(images.digest, self.images))


class Reply(_Strict):
    """What came back."""

    text: str
    """The answer; where none can be found, the whole reply."""
    version: str
    """As the server calls what answered."""
    refusal: str | None = None
    """Why there is no more text: the server's word, or `refusal: ` and the judge's own."""
    tokens_in: int | None = None
    tokens_out: int | None = None


class Wire(Protocol):
    """A VLM that can be asked, wherever it runs."""

    @property
    def model(self) -> str:
        """Its name, as figures call it."""
        ...

    def ask(self, question: Question) -> Reply:
        """Ask until there is a reply; whatever is one comes back, understood or not.

        Raises:
            AbpError: there is none (no key, a refused key, an unknown model, a server that fails).
        """
        ...


class Answer(Reply):
    """One line of a judge's record: a `Reply` as it came, and what it replies to.

    Keys, addresses of servers and paths are no part of it.
    """

    key: str
    """Hash of the question and of who was asked."""
    attempt: int
    """From 0; more than one where an answer was unusable and the question was put again."""
    judge: str
    """Hash of who was asked and how: model, settings, prompt, schema."""
    model: str
    """As it was asked for."""
    sample: str
    images: tuple[str, ...]
    """SHA-256 of the pixels of what was shown: source, source with the box, edit."""
    repeat: int
    time: str
    """When the answer came, UTC, ISO 8601."""

    @property
    def scores(self) -> Scores | None:
        """The scores, where the answer is what was asked for."""
        return None if self.outcome == REFUSED else read(self.text)

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`."""
        if (self.refusal or "").partition(":")[0] in REFUSALS:
            return REFUSED
        return UNUSABLE if read(self.text) is None else ANSWERED

    @property
    def as_asked(self) -> bool:
        """Whether the model that answered is the one that was asked, or an edition of it."""
        asked, version = (name.removeprefix("models/") for name in (self.model, self.version))
        edition = version.removeprefix(asked)
        return version.startswith(asked) and _EDITION.fullmatch(edition) is not None


def that_counts(answers: Sequence[Answer]) -> Answer:
    """Of the answers to one question the first that can be used or is a refusal, else the last."""
    return next((a for a in answers if a.outcome != UNUSABLE), answers[-1])
