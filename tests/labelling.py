"""Labels as a rater would give them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from abplib.judging.human.labels import JUDGE_BOX, NO, YES, Label
from abplib.judging.human.tasks import Task


def label(task: Task, rater: str, said: str | None = None, **more: Any) -> Label:
    """`said`: "yes" or a kind of no; None where a box is drawn, which comes as `box`."""
    answer = {"answer": YES if said == YES else NO, "kind": None if said == YES else said}
    return Label.model_validate(
        {
            "item": task.item,
            "step": task.step,
            "rater": rater,
            "image": task.image,
            "size": task.size,
            "box": task.box if task.step == JUDGE_BOX else None,
            "time": datetime.now(UTC),
            **(answer if said else {}),
            **more,
        }
    )
