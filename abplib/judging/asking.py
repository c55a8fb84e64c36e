"""What a VLM judge is asked about an edit, and the record of what it answers (section 4.6).

One question asks for all three scores of one edit. The judge sees the source, the source with the
target's box outlined ("the target subject identified by the ground-truth bounding box"), and the
edited image.

Whatever comes back was paid for, so it is on the disk before anyone makes anything of it; what it
means is decided each time it is read. Only what was asked for is a score, only what the server
calls so a refusal; all else is unusable and asked for again, a few times. A table can be made again
from the record alone, and of a run that is killed outright only the answers on their way are lost.
Keys, addresses of servers and paths are no part of a line.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from abplib.core import images, store
from abplib.core.errors import AbpError
from abplib.core.store import digest
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

_NO_WORDS = "no answer"  # of old records, for a reply without an ending
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

    @property
    def settings(self) -> Mapping[str, Any]:
        """What else decides its answers, as JSON; no key, no address."""
        ...

    def ask(self, question: Question) -> Reply:
        """Ask until there is a reply; whatever is one comes back, understood or not.

        Raises:
            AbpError: there is none (no key, a refused key, an unknown model, a server that fails).
        """
        ...


class Answer(Reply):
    """One line of the record: a `Reply` as it came, and what it replies to."""

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
        """One of `OUTCOMES`; sentences are the judge's own words, as old records have them."""
        word = self.refusal or ""
        if word.partition(":")[0] in REFUSALS or (" " in word and word != _NO_WORDS):
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


class Record:
    """A file of answers, JSON lines that are never rewritten; several threads may add to it."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one; raises AbpError where a line of it is no answer."""
        self.path = path
        self._lock = threading.Lock()
        self._answers: dict[str, list[Answer]] = {}
        for answer in store.read_lines(path, Answer):
            self._answers.setdefault(answer.key, []).append(answer)

    def __iter__(self) -> Iterator[list[Answer]]:
        """The answers to each question."""
        with self._lock:
            return iter([list(tries) for tries in self._answers.values()])

    def of(self, key: str) -> list[Answer]:
        """All answers to one question, in the order in which they came."""
        with self._lock:
            return list(self._answers.get(key, ()))

    @property
    def fingerprint(self) -> str:
        """Hash of all answers, in whatever order they came."""
        return digest(sorted(answer.model_dump_json() for tries in self for answer in tries))

    def add(self, answer: Answer) -> None:
        """Append an answer; it is on the disk when this returns. Raises AbpError if it cannot."""
        with self._lock:
            store.append_line(self.path, answer)
            self._answers.setdefault(answer.key, []).append(answer)


@dataclass(frozen=True, eq=False)
class Asker:
    """Asks one wire, or only its record where that holds the answers."""

    wire: Wire
    record_file: Path
    """JSONL; made when the first answer comes."""
    _: KW_ONLY
    parallel: int = 8
    """Questions on their way at once."""
    answers: int = 3
    """Answers paid for in place of unusable ones, the first included."""

    @cached_property
    def record(self) -> Record:
        """What was answered so far."""
        return Record(self.record_file)

    @cached_property
    def whom(self) -> str:
        """Hash of who is asked and how."""
        asked = {"prompt": PROMPT, "schema": Scores.model_json_schema()}
        return digest({"model": self.wire.model, "settings": dict(self.wire.settings), **asked})

    def answer(self, question: Question) -> Answer | None:
        """The recorded answer that counts, None where there is none yet.

        Unusable ones count once no more may be paid for.

        Raises:
            AbpError: another model answered than the one that was asked.
        """
        answers = self.record.of(self._key(question))
        if strange := [answer for answer in answers if not answer.as_asked]:
            raise AbpError(
                f"{strange[0].model} was asked and {strange[0].version} answered, so its scores "
                f"are not taken: set judge_model to {strange[0].version}, or restore a record of "
                f"{strange[0].model} ({self.record_file.name})."
            )
        counting = that_counts(answers) if answers else None
        if counting and counting.outcome == UNUSABLE and len(answers) < self.answers:
            return None
        return counting

    def ask(self, questions: Iterable[Question]) -> None:
        """Have every question answered that is not; equal ones are asked once.

        Raises:
            AbpError: the wire gives up, another model answers, or the record cannot be written; all
                answers that came are recorded, and those on their way are waited for.
        """
        todo = {self._key(q): q for q in questions if self.answer(q) is None}
        stop = threading.Event()
        with ThreadPoolExecutor(self.parallel) as pool:
            asked = [pool.submit(self._settle, question, stop) for question in todo.values()]
            try:
                done, _ = wait(asked, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
            for future in done:
                future.result()

    def _settle(self, question: Question, stop: threading.Event) -> None:
        """Pay for answers until one counts."""
        key = self._key(question)
        while self.answer(question) is None and not stop.is_set():
            reply = self.wire.ask(question)
            self.record.add(
                Answer(
                    **reply.model_dump(),
                    key=key,
                    attempt=len(self.record.of(key)),
                    judge=self.whom,
                    model=self.wire.model,
                    sample=question.sample,
                    images=question.digests,
                    repeat=question.repeat,
                    time=datetime.now(UTC).isoformat(timespec="seconds"),
                )
            )

    def _key(self, question: Question) -> str:
        """Hash of all that decides an answer."""
        return digest([self.whom, question.instruction, question.digests, question.repeat])
