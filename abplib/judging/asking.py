"""Putting questions to a judge over a wire that fails: retries, pauses, and nothing paid for twice.

Whatever comes back as an answer was paid for and is recorded at once. A busy or broken server is
tried again after a pause that doubles, or that the server itself names. An answer that cannot be
used is asked for again a few times; a refusal is final. Of a run that is killed outright, only the
answers on their way at that moment are lost, at most `Manner.parallel` of them.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Protocol

from abplib.core.errors import AbpError
from abplib.core.store import digest
from abplib.judging.questions import PROMPT, Question, Scores
from abplib.judging.record import UNUSABLE, Answer, Record


class Busy(Exception):
    """The wire failed in a way that may pass: nothing was answered, nothing is owed."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        """`reason` in a few words; `pause` in seconds, where the server asked for one."""
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Reply:
    """What came back: the part of an `Answer` that the wire knows."""

    text: str
    version: str
    refusal: str | None = None
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
        """Ask once.

        Raises:
            Busy: to be tried again.
            AbpError: no use in that (no key, a refused key, an unknown model).
        """
        ...


@dataclass(frozen=True)
class Manner:
    """How a judge is asked; decides cost and time, never a score."""

    parallel: int = 8
    """Questions on their way at once."""
    per_minute: float = 120
    """Calls begun in a minute, at most."""
    tries: int = 8
    """Calls for one answer, before a failing server is given up."""
    answers: int = 3
    """Answers paid for in place of unusable ones, the first included."""
    first_pause: float = 1.0
    """Seconds before the second call; every further pause is twice as long."""
    longest_pause: float = 60.0
    """Seconds; a server that asks for a longer one gets it."""


class Asker:
    """Asks one wire in one manner and keeps the answers in one record."""

    def __init__(self, wire: Wire, record: Record, manner: Manner) -> None:
        self.wire = wire
        self.record = record
        self.manner = manner
        self._lock = threading.Lock()
        self._free_at = 0.0
        """When the next call may begin, by `time.monotonic`."""

    @cached_property
    def judge(self) -> str:
        """Hash of who is asked and how."""
        asked = {"prompt": PROMPT, "schema": Scores.model_json_schema()}
        return digest({"model": self.wire.model, "settings": dict(self.wire.settings), **asked})

    def key(self, question: Question) -> str:
        """Hash of all that decides an answer."""
        shown = [question.instruction, question.digests, question.repeat]
        return digest([self.judge, *shown])

    def answer(self, question: Question) -> Answer | None:
        """The recorded answer that counts, None where there is none yet.

        The first that can be used or is a refusal; else the last, once no more may be paid for.
        """
        answers = self.record.of(self.key(question))
        final = [answer for answer in answers if answer.outcome != UNUSABLE]
        if not final and len(answers) < self.manner.answers:
            return None
        return final[0] if final else answers[-1]

    def ask(self, questions: Iterable[Question]) -> None:
        """Have every question answered that is not; equal ones are asked once.

        Raises:
            AbpError: the wire gives up, or the record cannot be written; all answers that came are
                recorded, and those on their way are waited for.
        """
        todo = {self.key(q): q for q in questions if self.answer(q) is None}
        if not todo:
            return
        stop = threading.Event()
        with ThreadPoolExecutor(self.manner.parallel) as pool:
            asked = [pool.submit(self._settle, key, q, stop) for key, q in todo.items()]
            try:
                done, _ = wait(asked, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
            for future in done:
                future.result()

    def _settle(self, key: str, question: Question, stop: threading.Event) -> None:
        """Pay for answers until one counts."""
        while self.answer(question) is None and not stop.is_set():
            attempt = len(self.record.of(key))
            reply = self._reply(question, stop)
            if reply is None:
                return
            self.record.add(
                Answer(
                    key=key,
                    attempt=attempt,
                    judge=self.judge,
                    model=self.wire.model,
                    version=reply.version,
                    sample=question.sample,
                    images=question.digests,
                    repeat=question.repeat,
                    text=reply.text,
                    refusal=reply.refusal,
                    tokens_in=reply.tokens_in,
                    tokens_out=reply.tokens_out,
                    time=datetime.now(UTC).isoformat(timespec="seconds"),
                )
            )

    def _reply(self, question: Question, stop: threading.Event) -> Reply | None:
        """Call until there is a reply; None where others had the run stopped."""
        failure = Busy("")
        for number in range(self.manner.tries):
            if stop.wait(self._turn()):
                return None
            try:
                return self.wire.ask(question)
            except Busy as busy:
                failure = busy
            if number + 1 < self.manner.tries and stop.wait(self._pause(number, failure)):
                return None
        raise AbpError(
            f"{self.wire.model} gave no answer on sample {question.sample} in {self.manner.tries} "
            f"tries ({failure}): run again later, the answers so far are kept."
        ) from failure

    def _turn(self) -> float:
        """Seconds until the call that asks may begin."""
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + 60 / self.manner.per_minute
            return begin - now

    def _pause(self, number: int, busy: Busy) -> float:
        """Seconds before the call after the one of this number; a named pause holds for all."""
        if busy.pause is not None:
            with self._lock:
                self._free_at = max(self._free_at, time.monotonic() + busy.pause)
            return 0.0
        longest = min(self.manner.first_pause * 2**number, self.manner.longest_pause)
        return random.uniform(longest / 2, longest)
