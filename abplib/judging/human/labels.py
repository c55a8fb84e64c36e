"""What people said: one schema for the three human steps, one JSON line each.

1. `draw_box`: the box of an edit's target, drawn or a given one verified (appendix A.2);
2. `judge_box`: does this box hold "only the target subject and nothing else" (section 4.1);
3. `judge_edit`: does this edit alter "only the target subject and nothing else" (section 4.1).

A label is about pixels (their hash), not about a method: who made a box or an edit is not in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from abplib.core import store
from abplib.core.boxes import Box
from abplib.judging.base import FAILURES

Step = Literal["draw_box", "judge_box", "judge_edit"]
DRAW_BOX: Step = "draw_box"
JUDGE_BOX: Step = "judge_box"
JUDGE_EDIT: Step = "judge_edit"

YES, NO = "yes", "no"

BOX_FAILURES = ("wrong object", "cuts the target", "takes in a neighbour")
"""Kinds of wrong boxes, as chapter 1 counts them."""

KINDS: dict[Step, tuple[str, ...]] = {DRAW_BOX: (), JUDGE_BOX: BOX_FAILURES, JUDGE_EDIT: FAILURES}
"""The kinds of "no" in each step."""

DECIMALS = 2
"""Decimals of a box's corners in pixels: what is finer is not told apart."""

Key = tuple[str, str, str, Box | None]


def round_box(box: Box) -> Box:
    """A box in pixels as labels write it."""
    x1, y1, x2, y2 = (round(float(side), DECIMALS) for side in box)
    return x1, y1, x2, y2


def to_seconds(time: datetime) -> datetime:
    """A time as labels write it: UTC, to the second; ValueError beyond the calendar's ends."""
    try:
        return time.astimezone(UTC).replace(microsecond=0)
    except OverflowError as error:
        raise ValueError("it should lie within the calendar") from error


class Label(BaseModel):
    """One answer of one rater."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item: Annotated[str, Field(min_length=1)]
    """Id of the sample."""
    step: Step
    rater: Annotated[str, Field(pattern=r"^[\w-]{1,40}$")]
    """A pseudonym: letters, digits, - and _."""
    image: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the pixels (`images.digest`): of the source, or of the edit that is judged."""
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """Width and height of that image in pixels."""
    box: Annotated[Box, AfterValidator(round_box)] | None = None
    """Drawn or judged, x1, y1, x2, y2 in pixels of that image; None where an edit is judged."""
    answer: Literal["yes", "no"] | None = None
    """None where a box is drawn."""
    kind: str | None = None
    """What is wrong, one of `KINDS` of the step; with a "no" and only there."""
    time: Annotated[AwareDatetime, AfterValidator(to_seconds)]
    """UTC, to the second."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.box is None) != (self.step == JUDGE_EDIT):
            raise ValueError("a box goes with the steps about boxes, and with them alone")
        if self.box is not None:
            (x1, y1, x2, y2), (width, height) = self.box, self.size
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise ValueError("the box should have an area and lie in the image")
        if (self.answer is None) != (self.step == DRAW_BOX):
            raise ValueError("an answer goes with the steps that judge, and with them alone")
        if self.answer == NO and self.kind not in KINDS[self.step]:
            raise ValueError(f"a no should name what is wrong: {', '.join(KINDS[self.step])}")
        if self.answer != NO and self.kind is not None:
            raise ValueError("a kind of failure goes with a no, and with it alone")
        return self

    @property
    def key(self) -> Key:
        """What the label is about; that of its `Task`."""
        return self.step, self.item, self.image, self.box if self.step == JUDGE_BOX else None


def read_labels(path: Path) -> list[Label]:
    """The labels of a file, in order of time; of a rater's several on one question, the last.

    Raises:
        AbpError: a line is no label.
    """
    return latest(store.read_lines(path, Label))


def latest(labels: Iterable[Label]) -> list[Label]:
    """Who answers the same question again corrects an answer: the later one counts.

    Of one second's, the one that comes last.
    """
    in_time = sorted(labels, key=lambda label: label.time)
    return list({(label.key, label.rater): label for label in in_time}.values())


def grouped(labels: Iterable[Label], step: Step) -> dict[Key, list[Label]]:
    """The labels of one step by what they are about."""
    by_key: dict[Key, list[Label]] = {}
    for label in labels:
        if label.step == step:
            by_key.setdefault(label.key, []).append(label)
    return by_key


class Verdict(NamedTuple):
    """What most raters said."""

    yes: bool
    kind: str | None
    """The kind that most of those who said no named; of equally many, the first of `KINDS`."""


def decided(labels: Sequence[Label]) -> Verdict | None:
    """The majority on one question; None without labels, or where as many say yes as no."""
    n_yes = sum(label.answer == YES for label in labels)
    n_no = len(labels) - n_yes
    if n_yes == n_no:
        return None
    if n_yes > n_no:
        return Verdict(True, None)
    named = Counter(label.kind for label in labels if label.answer == NO)
    return Verdict(False, max(KINDS[labels[0].step], key=lambda kind: named[kind]))
