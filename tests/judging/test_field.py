"""What servers, Label Studio and people really send: read right, or refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CASES
from hypothesis import given, settings
from hypothesis import strategies as some
from loopback import KEY, hurry, serving
from test_human import SAMPLES as SQUARES
from test_vqa import SAMPLES, asking, assert_true_to, edits, lines, wire

from abplib.core.errors import AbpError
from abplib.judging.asking import ANSWERED, REFUSED, UNUSABLE
from abplib.judging.human import label_studio
from abplib.judging.human.labels import Label
from abplib.judging.human.tasks import to_draw


def case(name: str) -> Any:
    (file,) = CASES.glob(f"{name}-*/*.json")
    return json.loads(file.read_text())


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def completion(content: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content}, "finish_reason": "stop"}], **more}


def ended(reason: str, **more: Any) -> dict[str, Any]:
    """A reply of Gemini without text."""
    return {"candidates": [{"content": {"role": "model"}, "finishReason": reason}], **more}


def first_reply(kind: str, body: Any, folder: Path) -> tuple[list[Any], int]:
    """The record's lines and the number of calls, where the server's first reply is this one."""
    with serving() as server:
        server.raw = [(200, json.dumps(body).encode())]
        judge = asking(wire(kind), folder / "record.jsonl")
        verdicts = judge.judge(SAMPLES, 0, edits(0, 1))
        if server.calls > 1:
            assert_true_to(server, verdicts, 0)
    return lines(judge.record_file), server.calls


GOOD = '{"reason": "so", "edit": 4, "accuracy": 3, "leakage": 2}'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("gemini", case("16")), ("gemini", ended("MAX_TOKENS")), ("gemini", ended("OTHER")),
        ("gemini", {"candidates": []}), ("gemini", {"candidates": {"content": 7}}),
        ("gemini", []), ("gemini", "no"), ("gemini", {}),
        ("openai", completion(None)), ("openai", completion("", model=7)),
        ("openai", completion({"text": GOOD})), ("openai", completion([GOOD])),
        ("openai", completion([{"type": "thinking", "text": GOOD}])),
        ("openai", completion("\ud800 half a character")),
        ("openai", {"choices": None}), ("openai", {"choices": [[]]}), ("openai", 5),
    ],
)  # fmt: skip
def test_a_reply_without_an_answer_is_kept_and_asked_for_again(
    kind: str, body: Any, tmp_path: Path
) -> None:
    found, calls = first_reply(kind, body, tmp_path)
    assert [line.outcome for line in found] == [UNUSABLE, ANSWERED] and calls == 2
    assert found[0].text  # what was paid for is there to be read


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("openai", case("17")),
        ("openai", completion(GOOD, usage={"prompt_tokens": 9.0, "completion_tokens": "x"})),
        ("gemini", {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True},
                    {"text": GOOD}]}}], "usageMetadata": {"promptTokenCount": 9.0}}),
    ],
)  # fmt: skip
def test_an_answer_is_found_among_other_things(kind: str, body: Any, tmp_path: Path) -> None:
    (found,), _ = first_reply(kind, body, tmp_path)
    assert found.scores.edit == 4 and found.tokens_in in (None, 9)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("gemini", ended("SAFETY")), ("gemini", ended("PROHIBITED_CONTENT")),
        ("gemini", ended("STOP", promptFeedback={"blockReason": "PROHIBITED_CONTENT"})),
        ("openai", {"choices": [{"message": {}, "finish_reason": "content_filter"}]}),
        ("openai", {"choices": [{"message": {"content": None, "refusal": "No."}}]}),
    ],
)  # fmt: skip
def test_a_refusal_by_name_is_final(kind: str, body: Any, tmp_path: Path) -> None:
    found, calls = first_reply(kind, body, tmp_path)
    assert [line.outcome for line in found] == [REFUSED] and calls == 1


@pytest.mark.parametrize("kind", ["gemini", "openai"])
def test_another_model_than_was_asked_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    body = completion(GOOD, model="other-2") if kind == "openai" else {
        "candidates": [{"content": {"parts": [{"text": GOOD}]}}], "modelVersion": "other-2"
    }  # fmt: skip
    with pytest.raises(AbpError, match=r"was asked and other-2 answered.*set judge_model to other"):
        first_reply(kind, body, tmp_path)
    (kept,) = lines(tmp_path / "record.jsonl")  # it was paid for
    assert kept.version == "other-2" and kept.scores is not None
    with serving() as server:
        again = asking(wire(kind), tmp_path / "record.jsonl")
        with pytest.raises(AbpError, match="other-2 answered"):
            again.judge(SAMPLES, 0, edits(0, 1))
    assert not server.calls


@pytest.mark.parametrize(
    ("kind", "code", "body", "said", "calls"),
    [
        ("openai", 200, case("18"), r"402: Insufficient credits\): check the account", 1),
        ("openai", 200, {"error": {"code": 404, "message": "no vlm"}}, "no vlm.*model's name", 1),
        ("openai", 200, {"error": "overloaded"}, r"HTTP 502: overloaded\): run again", 8),
        ("gemini", 200, {"error": {"code": 503, "message": "busy"}}, r"503: busy\): run", 8),
        ("gemini", 400, {"error": {"code": 400, "message": "API key not valid.", "status": "X"}},
         r"400: API key not valid\): check the key in GEMINI_API_KEY", 1),
        ("gemini", 400, {"error": {"code": 400, "message": "too large", "status": "X"}},
         r"too large\): check the model's name", 1),
    ],
)  # fmt: skip
def test_an_error_is_told_in_the_servers_words_with_its_own_remedy(
    kind: str, code: int, body: Any, said: str, calls: int, tmp_path: Path
) -> None:
    with serving() as server:
        server.raw = [(code, json.dumps(body).encode())] * 8
        judge = asking(wire(kind), tmp_path / "record.jsonl")
        with pytest.raises(AbpError, match=said):
            judge.judge(SAMPLES, 0, edits(0, 1))
    assert server.calls == calls and not judge.record_file.exists()


def exported() -> list[Any]:
    """Two tasks as Label Studio exports them, each answered by two raters."""
    tasks = label_studio.tasks_for(to_draw(SQUARES, 2))
    boxes = sorted(tasks, key=lambda task: task["data"]["item"])
    value = {"x": 25.0, "y": 25, "width": 50, "height": 50.5, "rotation": 0}
    for number, task in enumerate(boxes):
        task["id"] = number
        task["annotations"] = [
            {"id": n, "completed_by": {"id": rater, "email": "a@example.org"}, "lead_time": 1.5,
             "was_cancelled": False, "created_at": "2026-01-02T03:04:05.6Z",
             "updated_at": "2026-01-02T03:04:05.6Z", "result": [{"value": dict(value)}]}
            for n, rater in enumerate((3, 4))
        ]  # fmt: skip
    return boxes


def change(change: Callable[[Any], Any]) -> list[Any]:
    """An export whose first annotation is changed."""
    tasks = exported()
    change(tasks[0]["annotations"][0])
    return tasks


@pytest.mark.parametrize(
    ("export", "said"),
    [
        (case("21"), "Task 1 of the export has no data and annotations, as JSON-MIN"),
        ([{"data": {}, "completions": []}], "has completions, which Label Studio made before"),
        (exported()[0], "A dict is no export of Label Studio"),
        (None, "A NoneType is no export"),
        ([5], "Task 1 of the export has no data and annotations"),
        ([exported()[0] | {"annotations": None}], "has no list of annotations"),
        ([exported()[0] | {"annotations": [5, 6]}], "Task 1 of the export: .*JSON"),
        ([exported()[0] | {"data": {"text": "theirs"}}], "item is missing"),
        (change(lambda a: a.update(result=None)), "result = None is refused"),
        (change(lambda a: a.update(result=[])), "has 0 answers by one rater"),
        (change(lambda a: a.update(result=a["result"] * 2)), "has 2 answers by one rater"),
        (change(lambda a: a["result"][0].update(value=[])), r"result.0.value: it should be"),
        (change(lambda a: a["result"][0]["value"].update(rotation=30)), "has a rotated box"),
        (change(lambda a: a["result"][0]["value"].update(width=0)), "box should have an area"),
        (change(lambda a: a["result"][0]["value"].update(x="left")), "x = 'left' is refused"),
        (change(lambda a: a["result"][0]["value"].update(x=float("nan"))), "x = nan is refused"),
        (change(lambda a: a.update(completed_by=None)), "completed_by.* is refused"),
        (change(lambda a: a.update(completed_by="a@example.org")), "rater = .* is refused"),
        (change(lambda a: a.update(updated_at="yesterday")), "updated_at = 'yesterday' is refused"),
    ],
)
def test_an_export_of_another_form_is_refused_by_name(export: Any, said: str) -> None:
    with pytest.raises(AbpError, match=said) as caught:
        label_studio.labels_from(export)
    assert "example.org', '" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "export",
    [
        exported(),
        change(lambda a: a.pop("updated_at")),
        change(lambda a: a.update(updated_at=None, completed_by=3)),
        change(lambda a: a.update(created_at=1767323045)),
        change(lambda a: a["result"][0]["value"].pop("rotation")),
        change(lambda a: a["result"][0]["value"].update(width=99.0, x=-0.0001)),
    ],
)
def test_the_variants_of_an_export_are_read(export: Any) -> None:
    found = label_studio.labels_from(export)
    assert [(label.item, label.rater) for label in found] == [
        (item, rater) for item in ("s0", "s1") for rater in "34"
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_of_a_raters_two_the_last_edited_counts(order: int, tmp_path: Path) -> None:
    tasks = exported()[:1]
    early, late = tasks[0]["annotations"]
    early |= {"completed_by": 3, "updated_at": "2026-02-01T00:00:00.2Z"}
    late |= {"completed_by": 3, "updated_at": "2026-02-01T00:00:00.1Z"}
    early["result"][0]["value"]["x"] = 40
    tasks[0]["annotations"] = [early, late][::order]
    (found,) = label_studio.labels_from(tasks)
    assert found.box is not None and found.box[0] == 16
    export, file = tmp_path / "export.json", tmp_path / "labels.jsonl"
    export.write_text(json.dumps(tasks))
    assert label_studio.keep(export, file) == [found]
    assert Label.model_validate_json(file.read_text()) == found


JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=5),
    lambda inner: (
        some.lists(inner, max_size=2)
        | some.dictionaries(some.sampled_from(["id", "value", "x", "result"]), inner, max_size=2)
    ),
    max_leaves=4,
)
PLACES = [
    (), ("data",), ("data", "size"), ("data", "box"), ("data", "step"), ("data", "item"),
    ("annotations",), ("annotations", 0), *(("annotations", 0, name) for name in
    ("completed_by", "created_at", "updated_at", "result", "was_cancelled")),
    ("annotations", 0, "result", 0), ("annotations", 0, "result", 0, "value"),
    *(("annotations", 0, "result", 0, "value", name) for name in ("x", "width", "rotation")),
]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(number=some.integers(0, 1), place=some.sampled_from(PLACES), value=JSON)
def test_whatever_stands_in_an_export_none_is_lost_in_silence(
    number: int, place: tuple[str | int, ...], value: Any
) -> None:
    tasks = exported()
    holder, name = tasks, number
    for step in place:
        holder, name = holder[name], step
    holder[name] = copy.deepcopy(value)
    try:
        found = label_studio.labels_from(tasks)
    except AbpError:
        return
    there = [a for task in tasks for a in task["annotations"] if a["was_cancelled"] is not True]
    told = [a["completed_by"] for a in there]
    numbers = [by["id"] if isinstance(by, dict) else by for by in told]
    same = number == 0 and numbers[:2] and len({str(n) for n in numbers[:2]}) == 1
    assert len(found) == len(there) - bool(same)
