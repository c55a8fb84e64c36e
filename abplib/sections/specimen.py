"""What the specimen was taught, asked of it on scenes that no training has seen.

The specimen is the miniature VLM and the editor around it. Where it can ground, describe and edit,
what later chapters find of it is about how such models work, and not about what it never learnt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from abplib.core import store
from abplib.editing.conditions import describe
from abplib.judging.box_accuracy import evaluate_box
from abplib.judging.scene_oracle import LOCAL_TASKS
from abplib.judging.verdicts import succeeded
from abplib.samples.base import check_number
from abplib.samples.scenes.objects import KINDS
from abplib.samples.scenes.sets import SceneSamples
from abplib.sections.estimates import estimate, measure
from abplib.vlm.answers import boxes_in
from abplib.vlm.encoder import ConditionEncoder

DESCRIBED = {
    "objects": "names the kinds of object there are, no other",
    "change": "says what the edit changes",
    "place": "says its place (IoU of 0.5 or more)",
}
"""What is asked of a description, by its column, and how figures call it."""

ASKED = {"box": "VLM, for a box", "words": "VLM, for words", "edit": "editor"}
"""Who is asked for what, as figures call it."""

_BATCH = 50
_ROWS = "rows.parquet"


def described(encoder: ConditionEncoder, samples: SceneSamples, n: int) -> pd.DataFrame:
    """What the VLM writes under the edit template of the first `n` samples, kept on disk.

    Columns: index, instruction, text, and whether it does what is asked of it: `DESCRIBED`.

    Raises:
        AbpError: `n` is not in 1..len(samples).
    """
    check_number(n, samples)
    return store.read_parquet(_described(encoder, samples, n) / _ROWS)[0]


@store.stored("descriptions")
def _described(place: Path, encoder: ConditionEncoder, samples: SceneSamples, n: int) -> None:
    rows = []
    for start in range(0, n, _BATCH):
        indices = range(start, min(start + _BATCH, n))
        shown = [samples[index] for index in indices]
        answers = describe(encoder, [s.image for s in shown], [s.instruction for s in shown])
        for index, sample, answer in zip(indices, shown, answers, strict=True):
            scene, edit = samples.scene_edit(index)
            boxes = boxes_in(answer.text, answer.seen, cut=not answer.whole)
            there = {thing.kind for thing in scene.things}
            rows.append(
                {
                    "index": index,
                    "instruction": sample.instruction,
                    "text": answer.text,
                    "objects": _kinds(answer.text.split(".")[0]) == there,
                    "change": edit.answer in answer.text,
                    "place": evaluate_box(sample, boxes[-1] if boxes else None)["acc50"],
                }
            )
    store.write_parquet(place / _ROWS, pd.DataFrame(rows))


def _kinds(words: str) -> set[str]:
    """The kinds of object that some words name, one or many."""
    return {kind for kind in KINDS if re.search(rf"\b{kind}s?\b", words)}


def abilities(
    answers: Mapping[str, pd.DataFrame],
    texts: pd.DataFrame,
    verdicts: pd.DataFrame,
    samples: SceneSamples,
) -> pd.DataFrame:
    """How often the models do what they were taught, as `estimates` has it, with `asked` of whom.

    Args:
        answers: rows of `vlm_boxes.ask` by the name of their set.
        texts: of `described`.
        verdicts: of `verdicts.judged`, on the edits of one editor.
        samples: what was edited.
    """
    tasks = verdicts["index"].map(lambda index: samples.scene_edit(index)[1].task)
    success = succeeded(verdicts)
    asked = [
        *(
            ("box", f"accurate_box.{k}", f"accurate box, {k.replace('_', '-')}", rows["accurate"])
            for k, rows in answers.items()
        ),
        *(("words", f"described.{k}", label, texts[k]) for k, label in DESCRIBED.items()),
        ("edit", "success.all", "success, all", success),
        *(("edit", f"success.{k}", f"success, {k}", success[tasks == k]) for k in LOCAL_TASKS),
    ]
    return pd.DataFrame(
        measure(name, label, estimate(values), "fraction") | {"asked": ASKED[of]}
        for of, name, label, values in asked
        if len(values)
    )
