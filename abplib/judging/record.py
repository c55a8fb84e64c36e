"""The record of a judge: every answer that was paid for, one JSON line each, never rewritten.

An answer is kept as it came; scores are read from it anew each time. Its key is a hash of all that
was asked: model and settings, prompt, schema, images, repeat. So a table can be made again from the
record alone, without a key for anyone's service, and a stopped run pays for nothing twice. Keys,
addresses of servers and paths are no part of a line.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from abplib.core import store
from abplib.core.store import digest
from abplib.judging.questions import Scores, read

ANSWERED, REFUSED, UNUSABLE = "answered", "refused", "unusable"
OUTCOMES = (ANSWERED, REFUSED, UNUSABLE)
"""What can become of a question; only the first has scores."""


class Answer(BaseModel):
    """One line: an answer as it came over the wire."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    key: str
    """Hash of the question and of who was asked."""
    attempt: int
    """From 0; more than one where an answer was unusable and the question was put again."""
    judge: str
    """Hash of who was asked and how: model, settings, prompt, schema."""
    model: str
    """As it was asked for."""
    version: str
    """As the server calls what answered."""
    sample: str
    images: tuple[str, ...]
    """SHA-256 of the pixels of what was shown: source, source with the box, edit."""
    repeat: int
    text: str
    refusal: str | None
    """Why the judge would not answer, in the server's words; None where it did."""
    tokens_in: int | None
    tokens_out: int | None
    time: str
    """When the answer came, UTC, ISO 8601."""

    @property
    def scores(self) -> Scores | None:
        """The scores, where the answer is what was asked for."""
        return None if self.refusal is not None else read(self.text)

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`."""
        if self.refusal is not None:
            return REFUSED
        return UNUSABLE if self.scores is None else ANSWERED


class Record:
    """A file of answers; several threads may add to it."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one; raises AbpError where a line of it is no answer."""
        self.path = path
        self._lock = threading.Lock()
        self._answers: dict[str, dict[int, Answer]] = {}
        for answer in store.read_lines(path, Answer):
            self._keep(answer)

    def __iter__(self) -> Iterator[Answer]:
        """All answers, those to one question together."""
        with self._lock:
            kept = [answer for tries in self._answers.values() for answer in tries.values()]
        return iter(kept)

    def of(self, key: str) -> list[Answer]:
        """All answers to one question, in the order in which they came."""
        with self._lock:
            return [answer for _, answer in sorted(self._answers.get(key, {}).items())]

    @property
    def fingerprint(self) -> str:
        """Hash of all answers, in whatever order they came."""
        return digest(sorted(answer.model_dump_json() for answer in self))

    def add(self, answer: Answer) -> None:
        """Append an answer; it is on the disk when this returns. Raises AbpError if it cannot."""
        with self._lock:
            store.append_line(self.path, answer)
            self._keep(answer)

    def _keep(self, answer: Answer) -> None:
        self._answers.setdefault(answer.key, {}).setdefault(answer.attempt, answer)
