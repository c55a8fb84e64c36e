"""Labels, tasks, Label Studio, people's verdicts: blind, exact, round."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jupytext
import numpy as np
import pandas as pd
import pytest
from conftest import Listed
from labelling import label
from PIL import Image
from pydantic import ValidationError
from saying import Saying

from abplib.core import images, paths, store
from abplib.core.errors import AbpError
from abplib.experiment import Experiment
from abplib.judging.base import LEAKAGE, NO_EDIT, WRONG_OBJECT, Judgement
from abplib.judging.human import label_studio
from abplib.judging.human.labels import (
    BOX_FAILURES,
    DRAW_BOX,
    JUDGE_BOX,
    JUDGE_EDIT,
    KINDS,
    NO,
    YES,
    Label,
    Verdict,
    decided,
    read_labels,
)  # fmt: skip
from abplib.judging.human.tasks import boxes_to_judge, edits_to_judge, to_draw
from abplib.judging.human.verdicts import agreement, by_people, judged_boxes
from abplib.judging.jury import Jury
from abplib.profiles import Profile
from abplib.samples.base import Sample

N = 4


def plain(level: int) -> Image.Image:
    return Image.new("RGB", (40, 20), (level, 100, 200))


SAMPLES = Listed(Sample(f"s{i}", plain(i), f"Move {i}.", (0.1, 0.2, 0.5, 0.8)) for i in range(N))
"""Four of 40 x 20 pixels."""
ANSWERS = pd.DataFrame(
    {
        "index": range(N),
        "sample_id": [f"s{i}" for i in range(N)],
        "answered": [True, True, True, False],
        "x1": [0.0, 0.1, 0.2, np.nan],
        "y1": [0.0, 0.1, 0.2, np.nan],
        "x2": [0.333, 0.5, 0.6, np.nan],
        "y2": [0.777, 0.5, 0.6, np.nan],
        "accurate": [False, False, True, False],
        "wrong_entity": [True, True, False, False],
        "outcome": ["wrong object", "wrong object", "accurate", "no box"],
    }
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[Path]]:
    """Edits of two methods, equal on sample 0."""
    made: dict[str, list[Path]] = {"baseline": [], "ours": []}
    for name, shift in (("baseline", 50), ("ours", 60)):
        for index in range(N):
            path = tmp_path / name / f"{index:04d}.png"
            path.parent.mkdir(exist_ok=True)
            plain(50 if index == 0 else shift + index).save(path)
            made[name].append(path)
    return made


def test_kinds_of_wrong_boxes_are_chapter_1s() -> None:
    from abplib.sections.vlm_boxes import ACCURATE, BOX_OUTCOMES, NO_BOX

    assert (ACCURATE, *BOX_FAILURES, NO_BOX) == BOX_OUTCOMES


GOOD: dict[str, Any] = {
    "item": "s0", "step": JUDGE_EDIT, "rater": "r1", "image": "0" * 64, "size": (40, 20),
    "answer": NO, "kind": LEAKAGE, "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"kind": None}, {"kind": "wrong"}, {"answer": YES}, {"answer": None},
        {"box": (0, 0, 5, 5)}, {"rater": "a@b.org"}, {"rater": ""}, {"image": "abc"},
        {"step": DRAW_BOX}, {"step": JUDGE_BOX}, {"answer": "maybe"}, {"method": "ours"},
        {"step": DRAW_BOX, "answer": None, "kind": None, "box": (5, 5, 5, 9)},
        {"step": DRAW_BOX, "answer": None, "kind": None, "box": (5, 5, 41, 9)},
    ],
)  # fmt: skip
def test_a_label_that_says_too_little_or_too_much_is_refused(change: dict[str, Any]) -> None:
    assert Label.model_validate(GOOD).kind == LEAKAGE
    with pytest.raises(ValidationError):
        Label.model_validate(GOOD | change)


def test_labels_survive_the_file_and_the_last_word_counts(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    (task, *_) = boxes_to_judge(SAMPLES, ANSWERS)
    first, second = label(task, "a", "cuts the target"), label(task, "b", YES)
    for line in (first, second):
        store.append_line(path, line)
    assert read_labels(path) == [first, second]
    mended = label(task, "a", YES)
    store.append_line(path, mended)
    assert read_labels(path) == [mended, second]
    assert read_labels(tmp_path / "none.jsonl") == []
    path.write_text("{}\n")
    with pytest.raises(AbpError, match=r"Line 1 of .*labels.jsonl is no label"):
        read_labels(path)


def test_tasks_are_blind_and_each_picture_is_asked_about_once(
    files: dict[str, list[Path]],
) -> None:
    tasks = edits_to_judge(SAMPLES, files)
    assert len(tasks) == 2 * N - 1
    turned = edits_to_judge(SAMPLES, dict(reversed(files.items())))
    exported, other = (label_studio.tasks_for(order) for order in (tasks, turned))
    assert exported == other  # whoever made what
    assert [task["data"]["item"] for task in exported] != [task.item for task in tasks]
    told = json.dumps(exported)
    assert not any(word in told for word in ("baseline", "ours", "0001.png"))


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ([], None),
        ([YES, LEAKAGE], None),
        ([YES, YES, LEAKAGE], Verdict(True, None)),
        ([YES, NO_EDIT, LEAKAGE], Verdict(False, NO_EDIT)),
        ([WRONG_OBJECT, LEAKAGE, LEAKAGE], Verdict(False, LEAKAGE)),
    ],
)
def test_the_majority_decides_and_a_tie_does_not(
    said: list[str], verdict: Verdict | None, files: dict[str, list[Path]]
) -> None:
    task = edits_to_judge(SAMPLES, files)[0]
    assert decided([label(task, f"r{n}", word) for n, word in enumerate(said)]) == verdict


SCORES = Judgement(None, None, 3.0, 2.0, 1.0, "so")


def test_people_tell_success_and_the_other_judge_the_scores(
    files: dict[str, list[Path]], tmp_path: Path
) -> None:
    tasks = {task.image: task for task in edits_to_judge(SAMPLES, files)}
    shown = [Image.open(made[1]) for made in files.values()]
    path = tmp_path / "labels.jsonl"
    store.append_line(path, label(tasks[images.digest(shown[0])], "a", WRONG_OBJECT))
    judge = Jury(path, Saying(SCORES))
    found = judge.judge(SAMPLES, 1, shown)
    assert judge.name == "human raters, scores by saying"
    assert found[0] == replace(SCORES, success=False, failure=WRONG_OBJECT)
    assert found[1].success is None  # no one looked at it
    store.append_line(path, label(tasks[images.digest(shown[1])], "a", YES))
    later = Jury(path, Saying(SCORES))
    assert later.judge(SAMPLES, 1, shown)[1].success is True
    assert later.fingerprint != judge.fingerprint


def test_people_decide_which_boxes_are_accurate() -> None:
    tasks = boxes_to_judge(SAMPLES, ANSWERS)
    assert [task.item for task in tasks] == ["s0", "s1", "s2"]  # s3 has none to show
    said = [YES, "cuts the target", "wrong object"]
    labels = [label(task, "a", word) for task, word in zip(tasks, said, strict=True)]
    found = judged_boxes(ANSWERS, SAMPLES, labels)
    assert list(found["accurate"]) == [True, False, False, False]
    assert list(found["outcome"]) == ["accurate", "cuts the target", "wrong object", "no box"]
    assert list(found["wrong_entity"]) == [False, False, True, False]
    decided_by_people = ["accurate", "outcome", "wrong_entity"]
    assert found.drop(columns=decided_by_people).equals(ANSWERS.drop(columns=decided_by_people))
    with pytest.raises(AbpError, match=r"1 of 3 boxes are not judged.*s2 first"):
        judged_boxes(ANSWERS, SAMPLES, labels[:2])
    moved = ANSWERS.assign(x1=[0.05, 0.1, 0.2, np.nan])
    with pytest.raises(AbpError, match="s0 first"):
        judged_boxes(moved, SAMPLES, labels)


def test_a_profile_names_what_people_said(
    files: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABP_ROOT", str(tmp_path))
    named = Experiment(Profile.load("paper", human_labels="said.jsonl"))
    with pytest.raises(AbpError, match=r"no labels at .*said.jsonl: make them with book/annot"):
        _ = named.judge
    for task in boxes_to_judge(SAMPLES, ANSWERS):
        store.append_line(tmp_path / "said.jsonl", label(task, "a", YES))
    judge = named.judge
    assert judge.name.startswith("human raters, scores by gemini-2.5-pro")
    assert Experiment(Profile.load("paper")).judge.name == "gemini-2.5-pro (success: full marks)"
    other = Experiment(Profile.load("paper", judge_model="gemini-3-pro"))
    assert other.judge.name == "gemini-3-pro (success: full marks)"
    with pytest.raises(AbpError, match="SceneOracle asks no model: leave judge_model out"):
        _ = Experiment(Profile.load("mini", judge_model="gemini-3-pro")).judge
    found = by_people(ANSWERS, SAMPLES, named.human_labels_file)
    assert list(found["accurate"]) == [True, True, True, False]
    assert by_people(ANSWERS, SAMPLES, None) is ANSWERS


def test_agreement_is_told_for_each_step(files: dict[str, list[Path]]) -> None:
    edits, boxes = edits_to_judge(SAMPLES, files), boxes_to_judge(SAMPLES, ANSWERS)
    labels = [label(task, rater, YES) for task in edits[:2] for rater in "ab"]
    labels += [label(edits[2], "a", YES), label(edits[2], "b", LEAKAGE), label(edits[3], "a", YES)]
    labels += [label(boxes[0], rater, YES) for rater in "abc"]
    labels += [label(boxes[1], rater, "wrong object") for rater in "abc"]
    found = agreement(labels).set_index("step")
    assert list(found["raters"]) == [3, 2] and list(found["questions"]) == [2, 3]
    assert list(found["agreement"]) == pytest.approx([1, 2 / 3])
    assert list(found["kappa"]) == pytest.approx([1, -0.2])
    assert agreement(labels[:1]).empty


def annotated(tasks: list[dict[str, Any]], labels: list[Label]) -> list[dict[str, Any]]:
    """The tasks as Label Studio exports them once raters have given these labels."""
    exported = json.loads(json.dumps(tasks))
    for said in labels:
        task = next(t for t in exported if t["data"]["item"] == said.item)
        value: dict[str, Any] = {"choices": [f"no: {said.kind}" if said.kind else said.answer]}
        if said.step == DRAW_BOX:
            assert said.box is not None
            x1, y1, x2, y2 = np.array(said.box) * (100 / np.array([*said.size] * 2))
            value = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
        annotation = {"completed_by": {"id": int(said.rater)}, "was_cancelled": False,
                      "created_at": said.time.isoformat(),
                      "result": [{"value": value}]}  # fmt: skip
        task.setdefault("annotations", []).append(annotation)
    return exported


@pytest.mark.parametrize("step", list(KINDS))
def test_label_studio_gives_back_what_raters_said(step: str, files: dict[str, list[Path]]) -> None:
    random = np.random.default_rng(0)
    tasks = {
        DRAW_BOX: to_draw(SAMPLES, N),
        JUDGE_BOX: boxes_to_judge(SAMPLES, ANSWERS),
        JUDGE_EDIT: edits_to_judge(SAMPLES, {"ours": files["ours"]}),
    }[step]
    labels = []
    for number, task in enumerate(tasks):
        (x1, x2), (y1, y2) = (np.sort(random.uniform(0, side, 2)) for side in (40, 20))
        words = (YES, *KINDS[task.step])
        answer: dict[str, Any] = {"said": words[number % len(words)]}
        if step == DRAW_BOX:
            answer = {"box": (x1, y1, x2, y2)}
        labels += [label(task, rater, **answer) for rater in ("7", "12")]
    imported = label_studio.tasks_for(tasks)
    back = label_studio.labels_from(annotated(imported, labels))
    assert sorted(map(repr, back)) == sorted(map(repr, labels))
    controls = ElementTree.fromstring(label_studio.config(tasks[0].step))
    named = {element.get("name"): element for element in controls.iter()}
    asked = named["box" if step == DRAW_BOX else "answer"]
    choices = {"target"} if step == DRAW_BOX else {YES, *(f"no: {k}" for k in KINDS[step])}
    assert {choice.get("value") for choice in asked} == choices
    assert asked.get("toName") in named
    for task in imported:
        shown = {e.get("value", "")[1:] for e in controls.iter() if "$" in e.get("value", "")}
        assert shown <= task["data"].keys() and ("edited" in shown) == (step == JUDGE_EDIT)
        for start in task.get("predictions", ()):
            (box,) = start["result"]
            assert box["from_name"] == "box" and box["value"]["rectanglelabels"] == ["target"]


def test_several_steps_make_no_project(files: dict[str, list[Path]]) -> None:
    with pytest.raises(AbpError, match="one step"):
        label_studio.tasks_for([*to_draw(SAMPLES, 1), *edits_to_judge(SAMPLES, files)])


def test_every_cell_of_the_annotation_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, where the page's libraries are loaded anyway; two raters box two squares."""
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "results"))
    drawn = [label(task, rater, box=(1, 1, 9, 9)) for task in to_draw(SAMPLES, 2) for rater in "34"]
    exported = json.dumps(annotated(label_studio.tasks_for(to_draw(SAMPLES, 2)), drawn))
    (tmp_path / "project-1-at-2026-01-02.json").write_text(exported)
    own = {"profile": "smoke", "n": 2, "labels": str(tmp_path / "labels.jsonl")}
    told: dict[str, Any] = {}
    for cell in jupytext.read(paths.root() / "book" / "annotation.md").cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "annotation.md", "exec"), told)
            if "parameters" in cell.metadata.get("tags", []):
                assert own.keys() <= told.keys()
                told |= own
    for step in ("boxes", "edits"):
        assert len(json.loads((tmp_path / f"{step}.json").read_text())) == 2
    assert len(read_labels(tmp_path / "labels.jsonl")) == 4
