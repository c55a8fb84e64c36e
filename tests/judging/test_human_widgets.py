"""The annotation widgets, clicked as a person clicks, and the page that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
import pytest
from PIL import Image

from abplib.core import paths
from abplib.core.errors import AbpError
from abplib.judging.base import LEAKAGE
from abplib.judging.human.labels import DRAW_BOX, JUDGE_EDIT, YES, read_labels
from abplib.judging.human.tasks import Task
from abplib.judging.human.widgets import Session


def picture(level: int) -> Image.Image:
    return Image.new("RGB", (40, 20), (level, 0, 0))


def edits(n: int = 3) -> list[Task]:
    return [Task(JUDGE_EDIT, f"s{i}", "<Move>", picture(i), picture(50 + i)) for i in range(n)]


def draws(n: int = 2) -> list[Task]:
    return [
        Task(DRAW_BOX, f"s{i}", "Move", picture(i), box=(4.0, 4.0, 20.0, 16.0)) for i in range(n)
    ]


def press(session: Session, kind: str) -> None:
    """A press of the canvas's own buttons, as its page sends it."""
    assert session.canvas is not None
    session.canvas._handle_custom_msg({"type": kind}, [])


def rectangle(**sides: Any) -> dict[str, Any]:
    return {"x": 1, "y": 2, "width": 10, "height": 5, "label": "target"} | sides


def test_one_click_is_one_label_and_the_next_task(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    session = Session(edits(), path, "ann")
    assert "1 of 3" in session.heading.value and "&lt;Move&gt;" in session.heading.value
    assert len(session.pictures.children) == 2
    first = session.task
    session.buttons[LEAKAGE].click()
    (found,) = read_labels(path)
    assert first is not None and found.key == first.key
    assert (found.rater, found.answer, found.kind) == ("ann", "no", LEAKAGE)
    session.buttons[YES].click()
    later = Session(edits(), path, "ann")  # closed and opened again
    assert "3 of 3" in later.heading.value
    later.buttons[YES].click()
    later.buttons[YES].click()  # nothing left to answer
    assert later.task is None and "All 3 are done" in later.heading.value
    assert [line.answer for line in read_labels(path)] == ["no", "yes", "yes"]
    assert "1 of 3" in Session(edits(), path, "bob").heading.value


def test_a_box_is_kept_as_drawn_and_within_the_image(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    session = Session(draws(), path, "ann")
    assert session.canvas is not None and session.task is not None
    assert session.canvas.bboxes == [rectangle(x=4.0, y=4.0, width=16.0, height=12.0)]
    first = session.task
    press(session, "skip")
    assert session.task is not first
    for wrong in ([], [rectangle()] * 2, [rectangle(width=0)]):
        session.canvas.bboxes = wrong
        press(session, "submit")
        assert session.canvas.bboxes == wrong and not read_labels(path)
    session.canvas.bboxes = [rectangle(x=30, width=20)]
    press(session, "submit")
    press(session, "submit")  # the first one again, verified as it is
    assert [line.box for line in read_labels(path)] == [(30, 2, 40, 7), (4, 4, 20, 16)]
    assert session.task is None


def test_a_session_is_about_one_step(tmp_path: Path) -> None:
    with pytest.raises(AbpError, match="one step"):
        Session([*edits(), *draws()], tmp_path / "labels.jsonl", "ann")
    assert "All 0 are done" in Session([], tmp_path / "labels.jsonl", "ann").heading.value


def test_every_cell_of_the_annotation_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, where the page's libraries are loaded anyway."""
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "results"))
    cells = jupytext.read(paths.root() / "book" / "annotation.md").cells
    own = {"profile": "smoke", "n": 2, "labels": str(tmp_path / "labels.jsonl")}
    told: dict[str, Any] = {}
    for cell in cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "annotation.md", "exec"), told)
            if "parameters" in cell.metadata.get("tags", []):
                assert own.keys() <= told.keys()
                told |= own
    assert len(told["asked"]) == 2
    assert (tmp_path / "label_studio_tasks.json").is_file()
