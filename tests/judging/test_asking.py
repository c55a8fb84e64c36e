"""How a judge is asked: pauses, and which failures pass."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from abplib.core.errors import AbpError
from abplib.judging import asking, transport
from abplib.judging.asking import Asker, Busy, Manner, Reply
from abplib.judging.questions import Question, read
from abplib.judging.record import Record


class Silent:
    """A wire that is never asked."""

    model = "silent"
    settings: dict[str, float] = {}  # noqa: RUF012

    def ask(self, question: Question) -> Reply:
        raise AssertionError("asked")


@pytest.fixture
def asker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asker:
    """At a clock that stands still."""
    monkeypatch.setattr(asking.time, "monotonic", lambda: 1000.0)
    return Asker(Silent(), Record(tmp_path / "record.jsonl"), Manner(per_minute=600))


def test_calls_keep_the_pace(asker: Asker) -> None:
    assert [asker._turn() for _ in range(4)] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_a_pause_that_a_server_names_holds_for_all_calls(asker: Asker) -> None:
    assert asker._pause(0, Busy("slow down", 17.0)) == 0
    assert [asker._turn() for _ in range(2)] == pytest.approx([17.0, 17.1])


def test_other_pauses_double_up_to_the_longest(asker: Asker) -> None:
    for number, longest in enumerate([1, 2, 4, 8, 16, 32, 60, 60]):
        assert longest / 2 <= asker._pause(number, Busy("HTTP 500")) <= longest
    assert asker._turn() == 0


@pytest.mark.parametrize(
    ("code", "passing"), [(429, True), (408, True), (500, True), (503, True), (529, True),
                          (400, False), (401, False), (403, False), (404, False), (413, False)],
)  # fmt: skip
def test_only_failures_that_may_pass_are_tried_again(code: int, passing: bool) -> None:
    found = transport.failure("vlm", code, "The key\n k-123 is odd.", None, "k-123")
    assert isinstance(found, Busy if passing else AbpError)
    assert "k-123" not in str(found) and f"HTTP {code}: The key <key> is odd" in str(found)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("", None), ("17", 17), ("0.5", 0.5), ("-3", 0), ("soon", None),
     ("Mon, 01 Jan 2024 00:00:00 GMT", 0)],
)  # fmt: skip
def test_retry_after_is_read(value: str, seconds: float | None) -> None:
    assert transport.retry_after({"retry-after": value}) == seconds
    later = format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)
    assert (transport.retry_after({"retry-after": later}) or 0) > 80_000


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"error": {"details": [{"@type": "x"}, {"retryDelay": "17s"}]}}, 17),
        ({"error": {"details": [{"retryDelay": "0.25s"}]}}, 0.25),
        ({"error": {"details": [{"retryDelay": "soon"}]}}, None),
        ({"error": {}}, None), ("oops", None), ([], None),
    ],
)  # fmt: skip
def test_googles_retry_info_is_read(body: object, seconds: float | None) -> None:
    assert transport.retry_info(body) == seconds


GOOD = '{"reason": "so", "edit": 0, "accuracy": 4, "leakage": 2}'


@pytest.mark.parametrize("text", [GOOD, f"\n{GOOD} ", f"```json\n{GOOD}\n```", f"```\n{GOOD}```"])
def test_an_answer_is_read(text: str) -> None:
    found = read(text)
    assert found is not None and (found.edit, found.accuracy, found.leakage) == (0, 4, 2)


@pytest.mark.parametrize(
    "text",
    ["", "4", GOOD[:-1], GOOD.replace("0", "-1"), GOOD.replace("4", "5"), GOOD.replace("4", "3.5"),
     GOOD.replace("4", '"4"'), GOOD.replace("4", "true"), GOOD.replace("4", "null"),
     GOOD.replace("so", ""), GOOD.replace(', "leakage": 2', ""), GOOD[:-1] + ', "more": 1}',
     f"[{GOOD}]", f"{GOOD} {GOOD}", f"I say: {GOOD}"],
)  # fmt: skip
def test_anything_else_is_no_score(text: str) -> None:
    assert read(text) is None
