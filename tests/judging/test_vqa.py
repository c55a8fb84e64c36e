"""The VLM judge over real wire formats: faults, refusals, kills, replays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import killed
import numpy as np
import pytest
from conftest import Listed
from loopback import FAULTS, KEY, UNPAID, Loopback, expected, hurry, serving
from PIL import Image

from abplib.core import images
from abplib.core.errors import AbpError
from abplib.judging import base, clients, vlm_judge
from abplib.judging.asking import (
    ACCURACY,
    ANSWERED,
    EDIT,
    LEAKAGE,
    REFUSED,
    UNUSABLE,
    Answer,
    Question,
    Reply,
    Wire,
)  # fmt: skip
from abplib.judging.base import Judgement
from abplib.judging.clients import KEYS, TRIES, Gemini, OpenAICompatible
from abplib.judging.vlm_judge import VqaJudge
from abplib.samples.base import Sample

MANY = 8
"""Answers paid for where a part of them is unusable."""
WIRES = ("gemini", "openai")


def noisy(seed: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    )


BOX = (0.1, 0.2, 0.6, 0.9)
SAMPLES = Listed(Sample(f"s{i}", noisy(i), f"Move {i}.", BOX) for i in range(200))


def edits(index: int, n: int = 7) -> list[Image.Image]:
    return [noisy(1000 + 10 * index + method) for method in range(n)]


def wire(kind: str) -> Wire:
    return Gemini() if kind == "gemini" else OpenAICompatible("some-vlm")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "record.jsonl"


def asking(by: Wire, record: Path, repeats: int = 1, **how: int) -> VqaJudge:
    return VqaJudge(by, record, **{"answers": MANY, **how}, repeats=repeats)


def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY")


def lines(path: Path) -> list[Answer]:
    return [Answer.model_validate_json(line) for line in path.read_text().splitlines()]


def assert_true_to(server: Loopback, verdicts: Sequence[Judgement], index: int) -> None:
    """Every score is what the server said of that very edit."""
    for verdict, edit in zip(verdicts, edits(index), strict=False):
        said = expected(images.digest(edit))
        assert (verdict.edit, verdict.accuracy, verdict.leakage) == (
            said["edit"], said["accuracy"], said["leakage"],
        )  # fmt: skip
        assert verdict.reason == said["reason"]
        assert verdict.success == (said["accuracy"] == said["leakage"] == 4)


@pytest.mark.parametrize("kind", WIRES)
def test_a_question_carries_the_papers_words_and_the_answer_comes_back(
    kind: str, record: Path
) -> None:
    with serving() as server:
        judge = asking(wire(kind), record, repeats=2)
        assert_true_to(server, judge.judge(SAMPLES, 3, edits(3, 2)), 3)
    (prompt,) = server.prompts
    assert "Move 3." in prompt and all(words in prompt for words in (EDIT, ACCURACY, LEAKAGE))
    assert server.calls == 4  # two edits, two repeats
    first = lines(record)[0]
    assert (first.sample, first.model, first.tokens_in) == ("s3", judge.wire.model, 900)
    assert first.images[0] == images.digest(SAMPLES[3].image) != first.images[1]


@pytest.mark.parametrize("kind", WIRES)
def test_every_fault_is_survived_and_none_becomes_a_score_or_gives_a_secret_away(
    kind: str, tmp_path: Path, record: Path
) -> None:
    for fault in FAULTS:
        record.unlink(missing_ok=True)
        with serving([fault]) as server:
            judge = asking(wire(kind), record)
            assert_true_to(server, judge.judge(SAMPLES, 0, edits(0, 1)), 0)
        assert server.calls == 2
        outcomes = [answer.outcome for answer in lines(record)]
        assert outcomes == ([ANSWERED] if fault in UNPAID else [UNUSABLE, ANSWERED]), fault
        written = record.read_text() + json.dumps(judge.table().to_dict())
        for secret in (KEY, "127.0.0.1", str(tmp_path), str(Path.home()), str(Path.cwd())):
            assert secret not in written


def test_a_server_that_hangs_is_given_up_and_asked_again(
    record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "TIMEOUT", 0.1)
    with serving() as server:
        server.before_reply = lambda calls: server.slow.wait() if calls == 1 else None
        judge = asking(wire("openai"), record)
        verdicts = judge.judge(SAMPLES, 0, edits(0, 1))
        server.slow.set()
    assert_true_to(server, verdicts, 0)
    assert server.calls == 2


def test_a_fifth_of_the_calls_may_fail(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 25
    with serving(0.2, seed=1) as server:
        judge = asking(wire("openai"), record)
        for index in range(n):
            assert_true_to(server, judge.judge(SAMPLES, index, edits(index)), index)
    answers = lines(record)
    usable = Counter(answer.images[-1] for answer in answers if answer.outcome == ANSWERED)
    assert len(usable) == 7 * n and set(usable.values()) == {1}
    assert usable == server.paid
    wasted = Counter(answer.images[-1] for answer in answers if answer.outcome == UNUSABLE)
    assert wasted == server.wasted and wasted.total() > 5
    table = judge.table()
    assert vlm_judge.tally(judge)["paid"] == len(answers)
    without_key(monkeypatch)  # and the server is gone: only the record is left
    again = asking(judge.wire, record)
    for index in range(n):
        assert_true_to(server, again.judge(SAMPLES, index, edits(index)), index)
    assert again.table().equals(table)
    assert again.fingerprint == judge.fingerprint


def test_a_killed_run_goes_on_and_pays_for_nothing_twice(record: Path) -> None:
    with serving(0.2, seed=2) as server:
        running = subprocess.Popen([sys.executable, killed.__file__, str(record)])

        def kill(calls: int) -> None:
            if calls == killed.N // 2:
                running.kill()
                running.wait()

        server.before_reply = kill
        assert running.wait() == -signal.SIGKILL
        kept = record.read_bytes()
        before = Counter(a.images[-1] for a in lines(record) if a.outcome == ANSWERED)
        lost = server.paid - before
        assert 0 < before.total() < killed.N
        assert lost.total() <= killed.PARALLEL  # those on their way
        record.write_bytes(kept + b'{"key": "half a li')
        killed.ask(record)
    assert record.read_bytes().startswith(kept)
    assert all(server.paid[edit] == 1 for edit in before)
    answered = Counter(a.images[-1] for a in lines(record) if a.outcome == ANSWERED)
    assert len(answered) == killed.N and set(answered.values()) == {1}
    assert server.paid - answered == lost
    whole = record.read_bytes()
    killed.ask(record)  # and the server is gone
    assert record.read_bytes() == whole


def test_an_interrupted_run_keeps_what_is_on_its_way(
    record: Path, request: pytest.FixtureRequest
) -> None:
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))
    with serving() as server:
        judge = asking(wire("openai"), record, parallel=2)
        server.before_reply = lambda calls: (
            os.kill(os.getpid(), signal.SIGINT) if calls == 3 else None
        )
        with pytest.raises(KeyboardInterrupt):
            judge.judge(SAMPLES, 0, edits(0))
        answers = lines(record)
        assert 3 <= len(answers) < 7
        assert Counter(answer.images[-1] for answer in answers) == server.paid
        assert_true_to(server, judge.judge(SAMPLES, 0, edits(0)), 0)
    assert set(server.paid.values()) == {1} and len(server.paid) == 7


def test_refusals_are_final_and_counted(record: Path) -> None:
    with serving() as server:
        server.refused = {images.digest(edits(0)[1])}
        judge = asking(wire("gemini"), record, repeats=2)
        for _ in range(2):
            found = judge.judge(SAMPLES, 0, edits(0, 2))
    assert server.calls == 4
    assert found[0].edit is not None
    assert found[1] == Judgement(None, None, None, None, None, "No score: refused.")
    counts = vlm_judge.tally(judge)
    assert (counts[ANSWERED], counts[REFUSED], counts[UNUSABLE]) == (2, 2, 0)
    assert (counts["edits"], counts["without_score"], counts["differing"]) == (2, 1, 0)
    refused = judge.table().set_index("image").loc[images.digest(edits(0)[1])]
    assert refused["edit"].isna().all()


def test_answers_that_stay_unusable_are_counted_and_not_paid_for_forever(record: Path) -> None:
    with serving(["out of range"] * 9) as server:
        judge = asking(wire("openai"), record, answers=3)
        for _ in range(2):
            (found,) = judge.judge(SAMPLES, 0, edits(0, 1))
    assert server.calls == 3
    assert found == Judgement(None, None, None, None, None, "No score: unusable.")
    assert vlm_judge.tally(judge)[UNUSABLE] == 1


@pytest.mark.parametrize("kind", WIRES)
def test_a_missing_or_wrong_key_is_told_without_the_key(
    kind: str, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_key(monkeypatch)
    with serving():
        said = "set GEMINI_API_KEY" if kind == "gemini" else "check the key"
        with pytest.raises(AbpError, match=said):
            asking(wire(kind), record).judge(SAMPLES, 0, edits(0, 1))
        monkeypatch.setenv("GEMINI_API_KEY", "wrong-key-42")
        monkeypatch.setenv("OPENAI_API_KEY", "wrong-key-42")
        with pytest.raises(AbpError, match=r"HTTP 401.*check the key") as caught:
            asking(wire(kind), record).judge(SAMPLES, 0, edits(0, 7))
    assert "wrong-key-42" not in str(caught.value)
    assert not record.exists()


@pytest.mark.parametrize("kind", WIRES)
def test_a_server_that_stays_busy_or_is_not_known_is_given_up(
    kind: str, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = rf"in {TRIES} tries \(HTTP 503: not now\): run again"
    with serving(["503"] * 99) as server, pytest.raises(AbpError, match=said):
        asking(wire(kind), record).judge(SAMPLES, 0, edits(0, 1))
    assert server.calls == TRIES and not record.exists()
    for name in ("GOOGLE_GEMINI_BASE_URL", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(AbpError, match=r"HTTP 503: ConnectError"):
        asking(wire(kind), record).judge(SAMPLES, 0, edits(0, 1))
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(AbpError, match="set OPENAI_BASE_URL"):
        asking(OpenAICompatible("vlm"), record).judge(SAMPLES, 0, edits(0, 1))


class Moody:
    """A wire without a network: gives what it is told, one after the other."""

    def __init__(self, *replies: str, model: str = "moody") -> None:
        self.replies, self.model = list(replies), model
        self.asked: list[Question] = []

    def ask(self, question: Question) -> Reply:
        self.asked.append(question)
        return Reply(text=self.replies.pop(0), version=self.model)


def scores(edit: int, accuracy: int = 4, leakage: int = 2) -> str:
    said = {"reason": "so", "edit": edit, "accuracy": accuracy, "leakage": leakage}
    return json.dumps(said)


@pytest.mark.parametrize(
    ("accuracy", "leakage", "failure"),
    [
        ((4, 4), (4, 4), None),
        ((4, 4), (4, 3), base.LEAKAGE),
        ((4, 3), (4, 4), base.WRONG_RESULT),
        ((0, 0), (4, 4), base.NO_EDIT),
        ((0, 0), (1, 1), base.WRONG_RESULT),
    ],
)
def test_full_marks_alone_are_a_success(
    accuracy: tuple[int, int], leakage: tuple[int, int], failure: str | None, record: Path
) -> None:
    moody = Moody(*map(scores, (3, 3), accuracy, leakage))
    (found,) = asking(moody, record, repeats=2, parallel=1).judge(SAMPLES, 0, edits(0, 1))
    assert (found.success, found.failure) == (failure is None, failure)


def test_repeats_are_averaged_and_their_disagreement_counted(record: Path) -> None:
    moody = Moody(
        scores(1), scores(4), scores(4), "```json\n" + scores(3) + "\n```", scores(3), scores(3)
    )
    judge = asking(moody, record, repeats=3, parallel=1)
    found = judge.judge(SAMPLES, 0, edits(0, 2))
    assert [(v.edit, v.accuracy, v.leakage) for v in found] == [(3, 4, 2), (3, 4, 2)]
    counts = vlm_judge.tally(judge)
    assert (counts["questions"], counts["edits"], counts["differing"]) == (6, 2, 1)


def test_equal_edits_are_asked_about_once_and_other_ones_anew(record: Path) -> None:
    moody = Moody(*[scores(2)] * 3)
    judge = asking(moody, record, parallel=1)
    judge.judge(SAMPLES, 0, [edits(0)[0]] * 3)
    judge.judge(SAMPLES, 0, [edits(0)[0], edits(0)[1]])
    judge.judge(SAMPLES, 1, [edits(0)[0]])
    assert [question.sample for question in moody.asked] == ["s0", "s0", "s1"]


def test_a_judge_is_another_with_another_model_or_answers(record: Path) -> None:
    judge = asking(Moody(scores(2)), record)
    fresh = judge.fingerprint
    judge.judge(SAMPLES, 0, edits(0, 1))
    assert judge.fingerprint != fresh
    other = asking(Moody(scores(3), model="moodier"), record)
    assert other.fingerprint != judge.fingerprint
    assert other.judge(SAMPLES, 0, edits(0, 1))[0].edit == 3  # the other's answer is not its own
    assert list(other.table()["edit"]) == [3] and list(judge.table()["edit"]) == [2]
    assert len(lines(record)) == 2
    record.write_text('{"key": 1}\n' + record.read_text())
    with pytest.raises(AbpError, match=r"Line 1 of .*record.jsonl is no answer"):
        asking(Moody(), record).judge(SAMPLES, 0, edits(0, 1))


def test_judges_for_profiles_have_their_model_from_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ABP_ROOT", str(tmp_path))
    file = tmp_path / "data/judgements/gemini-2.5-pro.jsonl"
    assert vlm_judge.gemini().record_file == file
    assert vlm_judge.gemini("gemini-3-pro").name == "gemini-3-pro (success: full marks)"
    named = vlm_judge.openai_compatible("Qwen/Qwen3-VL")
    assert named.record_file.name == "Qwen_Qwen3-VL.jsonl"
    with pytest.raises(AbpError, match="set judge_model"):
        vlm_judge.openai_compatible()
