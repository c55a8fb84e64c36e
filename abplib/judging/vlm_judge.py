"""The judge of section 4.6: a VLM answers the three questions of appendix C.1 about each edit.

It gives scores. Success by the paper's criterion, "alters only the target subject and nothing else"
(section 4.1), is for people to say (`judging.jury`); for want of them it is read off the scores: an
edit succeeds by full marks, the best score for the target's modification and for the preservation
of all else. A refusal or an unusable answer is counted and never a score: where no repeat was
answered, all is None.

Whatever comes back was paid for, so it is recorded first, and what it means is decided each time it
is read. A table can be made again from the record alone, and of a run that is killed outright only
the answers on their way are lost.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import fmean

import pandas as pd
from PIL import Image

from abplib.core import paths, store
from abplib.core.boxes import draw_overlay
from abplib.core.errors import AbpError
from abplib.core.store import digest
from abplib.judging.asking import (
    OUTCOMES,
    PROMPT,
    UNUSABLE,
    Answer,
    Question,
    Scores,
    Wire,
    that_counts,
)
from abplib.judging.base import BEST, LEAKAGE, NO_EDIT, WRONG_RESULT, Judge, Judgement
from abplib.judging.clients import GREEDY, Gemini, OpenAICompatible
from abplib.judging.jury import Jury
from abplib.samples.base import SampleSet

SCORES = ("edit", "accuracy", "leakage")
RECORDS = "data/judgements"
"""Where the records of the judges below lie in the checkout: paid for, so no mere result."""


@dataclass(frozen=True, eq=False)
class VqaJudge:
    """A `Judge` that asks a VLM, or only its record where that holds every answer."""

    wire: Wire
    record_file: Path
    """JSON lines, never rewritten; made when the first answer comes."""
    repeats: int = 3
    """How often each edit is asked about; its scores are the means."""
    parallel: int = 8
    """Questions on their way at once."""
    answers: int = 3
    """Answers paid for in place of unusable ones, the first included."""
    _writing: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def name(self) -> str:
        """The model's, and how it tells success."""
        return f"{self.wire.model} (success: full marks)"

    @cached_property
    def whom(self) -> str:
        """Hash of who is asked and how."""
        asked = {"prompt": PROMPT, "schema": Scores.model_json_schema()}
        return digest({"model": self.wire.model, "settings": GREEDY, **asked})

    @property
    def fingerprint(self) -> str:
        """Hash of who is asked, how often, and of all answers so far, in whatever order."""
        told = (answer.model_dump_json() for tries in self.record.values() for answer in tries)
        return digest([self.whom, self.repeats, digest(sorted(told))])

    @cached_property
    def record(self) -> dict[str, list[Answer]]:
        """The answers so far to each question; AbpError where a line of the file is none."""
        record: dict[str, list[Answer]] = {}
        for answer in store.read_lines(self.record_file, Answer):
            record.setdefault(answer.key, []).append(answer)
        return record

    def judge(
        self, samples: SampleSet, index: int, edited_images: Sequence[Image.Image]
    ) -> list[Judgement]:
        """One verdict for each edit of sample `index`.

        Raises:
            AbpError: an answer is missing and cannot be had; see `ask`.
        """
        sample = samples[index]
        shown = sample.image, draw_overlay(sample.image, sample.box)
        questions = [
            [
                Question(sample.id, sample.instruction, (*shown, edited), repeat)
                for repeat in range(self.repeats)
            ]
            for edited in edited_images
        ]
        self.ask(question for repeats in questions for question in repeats)
        return [_judgement(list(map(self.answer, repeats))) for repeats in questions]

    def answer(self, question: Question) -> Answer | None:
        """The recorded answer that counts, None where there is none yet.

        Unusable ones count once no more may be paid for.

        Raises:
            AbpError: another model answered than the one that was asked.
        """
        answers = self.record.get(self._key(question), [])
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
        with ThreadPoolExecutor(self.parallel) as pool:
            asked = [pool.submit(self._settle, question) for question in todo.values()]
            try:
                for future in as_completed(asked):
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _settle(self, question: Question) -> None:
        """Pay for answers until one counts; each is on the disk before anything is made of it."""
        key = self._key(question)
        while self.answer(question) is None:
            reply = self.wire.ask(question)
            with self._writing:
                answers = self.record.setdefault(key, [])
                answer = Answer(
                    **reply.model_dump(),
                    key=key,
                    attempt=len(answers),
                    judge=self.whom,
                    model=self.wire.model,
                    sample=question.sample,
                    images=question.digests,
                    repeat=question.repeat,
                    time=datetime.now(UTC).isoformat(timespec="seconds"),
                )
                store.append_line(self.record_file, answer)
                answers.append(answer)

    def _key(self, question: Question) -> str:
        """Hash of all that decides an answer."""
        return digest([self.whom, question.instruction, question.digests, question.repeat])

    def table(self) -> pd.DataFrame:
        """Every recorded question to this judge: one row each, in order of sample, edit, repeat.

        Columns: sample_id, image (SHA-256 of the edit's pixels), repeat, outcome (one of
        `asking.OUTCOMES`), edit, accuracy, leakage, reason (NaN unless answered), paid (answers,
        unusable ones included).
        """
        rows = []
        for tries in self.record.values():
            told = that_counts(tries)
            if told.judge == self.whom and told.repeat < self.repeats:
                about = {"sample_id": told.sample, "image": told.images[-1], "repeat": told.repeat}
                said = told.scores.model_dump() if told.scores else {}
                rows.append({**about, "outcome": told.outcome, **said, "paid": len(tries)})
        columns = ["sample_id", "image", "repeat", "outcome", *SCORES, "reason", "paid"]
        frame = pd.DataFrame(rows, columns=columns)
        return frame.sort_values(["sample_id", "image", "repeat"], ignore_index=True)


def tally(judge: Judge) -> pd.Series:
    """What must be told beside the scores of a VLM: its `table` counted; empty where none scores.

    questions, those answered, refused and unusable; answers paid for; edits, those without a score,
    and those whose repeats differ in some score.
    """
    if isinstance(judge, Jury):
        judge = judge.scores
    counts = {}
    if isinstance(judge, VqaJudge):
        table = judge.table()
        edits = table.groupby(["sample_id", "image"])
        counts = {
            "questions": len(table),
            **{outcome: (table["outcome"] == outcome).sum() for outcome in OUTCOMES},
            "paid": table["paid"].sum(),
            "edits": edits.ngroups,
            "without_score": (edits["edit"].count() == 0).sum(),
            "differing": edits[list(SCORES)].nunique().gt(1).any(axis=1).sum(),
        }
    return pd.Series(counts, name="value", dtype=float).rename_axis("count")


def gemini(model: str = "gemini-2.5-pro") -> VqaJudge:
    """Gemini, with its record in the checkout; for a profile's `judge`."""
    return _recorded(Gemini(model))


def openai_compatible(model: str | None = None) -> VqaJudge:
    """The model of that name on a server of chat completions, as `gemini` is; AbpError without."""
    if not model:
        raise AbpError("No model is named to judge: set judge_model in the profile.")
    return _recorded(OpenAICompatible(model))


def _recorded(wire: Wire) -> VqaJudge:
    name = re.sub(r"[^\w.-]+", "_", wire.model) + ".jsonl"
    return VqaJudge(wire, paths.root() / RECORDS / name)


def _judgement(answers: Sequence[Answer | None]) -> Judgement:
    """The mean of the repeats that were answered."""
    given = [answer.scores for answer in answers if answer and answer.scores]
    if not given:
        kinds = sorted({answer.outcome for answer in answers if answer is not None})
        return Judgement(None, None, None, None, None, f"No score: {', '.join(kinds)}.")
    edit, accuracy, leakage = (fmean(getattr(s, score) for s in given) for score in SCORES)
    failure = _failure(accuracy, leakage)
    return Judgement(failure is None, failure, edit, accuracy, leakage, given[0].reason)


def _failure(accuracy: float, leakage: float) -> str | None:
    """What scores can tell: nothing at full marks; no change; more than the target; the rest."""
    if accuracy == leakage == BEST:
        return None
    if accuracy == 0 and leakage == BEST:
        return NO_EDIT
    return LEAKAGE if accuracy > 0 and leakage < BEST else WRONG_RESULT
