"""What counts as an answer of a judge, as a refusal, and as the model that was asked."""

from __future__ import annotations

import pytest

from abplib.judging.asking import ANSWERED, REFUSALS, REFUSED, UNUSABLE, Answer, read

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
     GOOD.replace("4", '"4/4"'), GOOD.replace("4", "4.0"), f"<think>{GOOD}</think>",
     f"[{GOOD}]", f"{GOOD} {GOOD}", f"I say: {GOOD}"],
)  # fmt: skip
def test_anything_else_is_no_score(text: str) -> None:
    assert read(text) is None


def line(text: str = "", refusal: str | None = None, version: str = "m-1") -> Answer:
    return Answer(key="k", attempt=0, judge="j", model="m-1", version=version, sample="s0",
                  images=("a", "b", "c"), repeat=0, text=text, refusal=refusal, tokens_in=None,
                  tokens_out=None, time="2026-01-02T03:04:05+00:00")  # fmt: skip


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [*((word, REFUSED) for word in sorted(REFUSALS)), ("refusal: No.", REFUSED),
     *((word, UNUSABLE) for word in ("STOP", "MAX_TOKENS", "OTHER", "FINISH_REASON_UNSPECIFIED",
       "stop", "length", "tool_calls", ""))],
)  # fmt: skip
def test_only_what_a_server_calls_so_is_a_refusal_on_old_lines_too(
    refusal: str, outcome: str
) -> None:
    assert line("", refusal).outcome == outcome and line("", refusal).scores is None
    assert line(GOOD, refusal).outcome == (REFUSED if outcome == REFUSED else ANSWERED)


@pytest.mark.parametrize(
    ("asked", "version", "same"),
    [("gemini-2.5-pro", "gemini-2.5-pro", True), ("gemini-2.5-pro", "gemini-2.5-pro-002", True),
     ("gemini-2.5-pro", "models/gemini-2.5-pro-preview-06-05", True), ("vl", "vl:latest", True),
     ("gemini-2.5-pro", "gemini-3-pro", False), ("gemini-2.5-pro", "gemini-2.5-pro-tts", False),
     ("gpt-4o", "gpt-4o-2024-08-06", True), ("gpt-4o", "gpt-4o-mini", False),
     ("gpt-4", "gpt-4.1", False), ("gemini-2.5-pro-002", "gemini-2.5-pro", False)],
)  # fmt: skip
def test_an_edition_of_a_model_is_that_model_and_another_is_not(
    asked: str, version: str, same: bool
) -> None:
    assert line(version=version).model_copy(update={"model": asked}).as_asked is same
