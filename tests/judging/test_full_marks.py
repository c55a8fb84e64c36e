"""Success read off a VLM's scores."""

from __future__ import annotations

from dataclasses import replace

import pytest
from saying import Saying

from abplib.judging.base import LEAKAGE, NO_EDIT, WRONG_RESULT, Judgement
from abplib.judging.vlm_judge import FullMarks


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
    said = Judgement(None, None, None if accuracy is None else 3.0, accuracy, leakage, "so")
    scoring = Saying(said)
    first, second = FullMarks(scoring).judge(None, 0, [None, None])  # type: ignore[arg-type,list-item]
    assert first == second == replace(said, success=success, failure=failure)
    assert FullMarks(scoring).fingerprint != scoring.fingerprint
