"""Success read off a VLM's scores."""

from __future__ import annotations

from typing import Any

import pytest

from abplib.judging.base import LEAKAGE, NO_EDIT, WRONG_RESULT, Judgement
from abplib.judging.vlm_judge import FullMarks


class Saying:
    """A VLM judge that says one thing."""

    name = "vlm"
    fingerprint = "vlm"

    def __init__(self, accuracy: float | None, leakage: float | None) -> None:
        edit = None if accuracy is None else 3.0
        self.said = Judgement(None, None, edit, accuracy, leakage, "so")

    def judge(self, samples: Any, index: int, edited_images: Any) -> list[Judgement]:
        return [self.said] * len(edited_images)


@pytest.mark.parametrize(
    ("accuracy", "leakage", "success", "failure"),
    [
        (4.0, 4.0, True, None),
        (4.0, 11 / 3, False, LEAKAGE),
        (11 / 3, 4.0, False, WRONG_RESULT),
        (0.0, 4.0, False, NO_EDIT),
        (0.0, 1.0, False, WRONG_RESULT),
        (None, None, None, None),
    ],
)
def test_full_marks_alone_are_a_success(
    accuracy: float | None, leakage: float | None, success: bool | None, failure: str | None
) -> None:
    scoring = Saying(accuracy, leakage)
    first, second = FullMarks(scoring).judge(None, 0, [None, None])  # type: ignore[arg-type,list-item]
    assert first == second
    assert (first.success, first.failure) == (success, failure)
    assert (first.edit, first.accuracy, first.leakage) == (scoring.said.edit, accuracy, leakage)
    assert FullMarks(scoring).fingerprint != scoring.fingerprint
