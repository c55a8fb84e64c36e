"""The judge of section 4.6: a VLM answers the three questions of appendix C.1 about each edit.

It gives scores alone: success by the paper's criterion, "alters only the target subject and nothing
else" (section 4.1), is for people or the scene oracle to say. For want of these `FullMarks` reads
it off the scores. A refusal or an unusable answer is counted and never a score: where no repeat was
answered, the scores are None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from abplib.core import paths
from abplib.core.boxes import draw_overlay
from abplib.core.errors import AbpError
from abplib.core.stats import cohen_kappa
from abplib.core.store import digest
from abplib.judging.asking import OUTCOMES, Answer, Asker, Question, Wire, that_counts
from abplib.judging.base import BEST, LEAKAGE, NO_EDIT, WRONG_RESULT, Judge, Judgement
from abplib.judging.clients import Gemini, LocalVlm, OpenAICompatible
from abplib.judging.jury import Jury
from abplib.samples.base import SampleSet

SCORES = ("edit", "accuracy", "leakage")
RECORDS = "data/judgements"
"""Where the records of the judges below lie in the checkout: paid for, so no mere result."""


@dataclass(frozen=True, eq=False)
class VqaJudge(Asker):
    """A `Judge` that asks a VLM, or only its record where that holds every answer."""

    repeats: int = 3
    """How often each edit is asked about; its scores are the means."""

    @property
    def name(self) -> str:
        """The model's."""
        return self.wire.model

    @property
    def fingerprint(self) -> str:
        """Hash of who is asked, how often, and of all answers so far."""
        return digest([self.whom, self.repeats, self.record.fingerprint])

    def judge(
        self, samples: SampleSet, index: int, edited_images: Sequence[Image.Image]
    ) -> list[Judgement]:
        """One verdict for each edit of sample `index`.

        Raises:
            AbpError: an answer is missing and cannot be had; see `Asker.ask`.
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

    def table(self) -> pd.DataFrame:
        """Every recorded question to this judge: one row each, in order of sample, edit, repeat.

        Columns: sample_id, image (SHA-256 of the edit's pixels), repeat, outcome (one of
        `asking.OUTCOMES`), edit, accuracy, leakage (NaN unless answered), reason (or why the judge
        refused, or the unusable answer), paid (answers, unusable ones included).
        """
        rows = [
            _row(tries)
            for tries in self.record
            if tries[0].judge == self.whom and tries[0].repeat < self.repeats
        ]
        columns = ["sample_id", "image", "repeat", "outcome", *SCORES, "reason", "paid"]
        frame = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(SCORES, float))
        return frame.sort_values(["sample_id", "image", "repeat"], ignore_index=True)


@dataclass(frozen=True)
class FullMarks:
    """A `Judge` that adds success and failure to another's scores; none where there is no score.

    An edit succeeds when both the target's modification and the preservation of all else got the
    best score.
    """

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


def tally(table: pd.DataFrame) -> dict[str, float]:
    """What must be told beside the scores: `VqaJudge.table` counted.

    questions, those answered, refused and unusable; answers paid for; edits, those without a score,
    those whose repeats differ in some score; and, by score, kappa: the quadratic-weighted agreement
    of the first two repeats of the edits that have both (NaN where there are none).
    """
    edits = table.groupby(["sample_id", "image"])
    differing = edits[list(SCORES)].nunique().gt(1).any(axis=1)
    counts = {
        "questions": len(table),
        **{outcome: (table["outcome"] == outcome).sum() for outcome in OUTCOMES},
        "paid": table["paid"].sum(),
        "edits": edits.ngroups,
        "without_score": (edits["edit"].count() == 0).sum(),
        "differing": differing.sum(),
    }
    return {name: float(n) for name, n in counts.items()} | {
        f"kappa_{score}": _kappa(table, score) for score in SCORES
    }


def asked(judge: Judge) -> pd.DataFrame:
    """`tally` of the VLM that gives a judge its scores, a row a count; empty where no VLM does."""
    while isinstance(judge, FullMarks | Jury):
        judge = judge.scores
    counts = tally(judge.table()) if isinstance(judge, VqaJudge) else {}
    return pd.Series(counts, name="value", dtype=float).rename_axis("count").to_frame()


def gemini(model: str = "gemini-2.5-pro") -> FullMarks:
    """Gemini, with its record in the checkout; for a profile's `judge`."""
    return _recorded(Gemini(model))


def openai_compatible(model: str | None = None) -> FullMarks:
    """The model of that name on a server of chat completions, as `gemini` is; AbpError without."""
    return _recorded(OpenAICompatible(_named(model)))


def local_vlm(model: str | None = None) -> FullMarks:
    """The Qwen2.5-VL of a folder or a hub id, asked once for each edit; AbpError without."""
    return _recorded(LocalVlm(_named(model)), repeats=1, parallel=1, answers=1)


def _recorded(wire: Wire, **how: int) -> FullMarks:
    name = re.sub(r"[^\w.-]+", "_", wire.model) + ".jsonl"
    return FullMarks(VqaJudge(wire, paths.root() / RECORDS / name, **how))


def _named(model: str | None) -> str:
    if not model:
        raise AbpError("No model is named to judge: set judge_model in the profile.")
    return model


def _kappa(table: pd.DataFrame, score: str) -> float:
    pairs = table.pivot(index=["sample_id", "image"], columns="repeat", values=score)
    both = pairs.reindex(columns=[0, 1]).dropna().to_numpy(int)
    if not len(both):
        return np.nan
    return cohen_kappa(both[:, 0], both[:, 1], range(BEST + 1), quadratic=True)


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


def _judgement(answers: Sequence[Answer | None]) -> Judgement:
    """The mean of the repeats that were answered."""
    given = [answer.scores for answer in answers if answer and answer.scores]
    if not given:
        kinds = sorted({answer.outcome for answer in answers if answer is not None})
        return Judgement(None, None, None, None, None, f"No score: {', '.join(kinds)}.")
    edit, accuracy, leakage = (fmean(getattr(s, score) for s in given) for score in SCORES)
    return Judgement(None, None, edit, accuracy, leakage, given[0].reason)


def _row(answers: Sequence[Answer]) -> dict[str, Any]:
    """One question and what came of it."""
    counting = that_counts(answers)
    scores = counting.scores
    return {
        "sample_id": counting.sample,
        "image": counting.images[-1],
        "repeat": counting.repeat,
        "outcome": counting.outcome,
        **{score: getattr(scores, score, np.nan) for score in SCORES},
        "reason": scores.reason if scores else counting.refusal or counting.text,
        "paid": len(answers),
    }
