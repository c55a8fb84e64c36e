"""The human steps in a notebook: one task after the other, each answer on the disk at once.

Whoever comes back goes on after the last answer; rating again needs a new pseudonym or file.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from ipywidgets import HTML, Button, HBox, Image, VBox, Widget
from jupyter_bbox_widget import BBoxWidget
from pydantic import ValidationError

from abplib.core import images, store
from abplib.core.boxes import Box, from_pixels, to_pixels
from abplib.core.errors import AbpError, explain
from abplib.judging.human.labels import DRAW_BOX, KINDS, NO, TARGET, YES, read_labels
from abplib.judging.human.tasks import QUESTIONS, Task, remaining, shuffled


class Session(VBox):
    """What a rater sees of a number of tasks; a notebook shows it as the value of a cell."""

    def __init__(self, tasks: Iterable[Task], labels_file: Path, rater: str, seed: int = 0) -> None:
        """Begin, or go on where `rater` stopped; the order is `tasks.shuffled`'s.

        Raises:
            AbpError: the tasks are of several steps, or a line of the file is no label.
        """
        ordered = shuffled(tasks, rater, seed)
        steps = {task.step for task in ordered}
        if len(steps) > 1:
            raise AbpError("One session is about one step: begin another for the other tasks.")
        self._file, self._rater, self._n = labels_file, rater, len(ordered)
        self._left = remaining(ordered, read_labels(labels_file), rater)
        self.heading = HTML()
        self.pictures = HBox()
        self.buttons: dict[str, Button] = {}
        self.canvas: BBoxWidget | None = None
        parts: list[Widget] = []
        if DRAW_BOX in steps:
            self.canvas = BBoxWidget(classes=[TARGET])
            self.canvas.on_submit(self._drawn)
            self.canvas.on_skip(self._skip)
            parts = [self.canvas]
        for step in steps - {DRAW_BOX}:
            self.buttons[YES] = self._button(YES, None)
            self.buttons |= {kind: self._button(f"{NO}: {kind}", kind) for kind in KINDS[step]}
            parts = [self.pictures, HBox(list(self.buttons.values()))]
        super().__init__([self.heading, *parts])
        self._show()

    @property
    def task(self) -> Task | None:
        """The one that is shown; None when all are done."""
        return self._left[0] if self._left else None

    def _button(self, text: str, kind: str | None) -> Button:
        button = Button(description=text)
        button.layout.width = "auto"

        def pressed(_: Button) -> None:
            if self.task:
                self._keep(self.task, answer=NO if kind else YES, kind=kind)

        button.on_click(pressed)
        return button

    def _drawn(self) -> None:
        """Keep the one box on the canvas."""
        if self.task is None or self.canvas is None:
            return
        if len(self.canvas.bboxes) != 1:
            self._show("Leave exactly one box.", fresh=False)
            return
        x, y, w, h = (self.canvas.bboxes[0][side] for side in ("x", "y", "width", "height"))
        size = self.task.size
        drawn = to_pixels(from_pixels((x, y, x + w, y + h), size), size)  # none beyond the edge
        try:
            self._keep(self.task, box=drawn)
        except ValidationError as error:
            self._show(explain(error), fresh=False)

    def _skip(self) -> None:
        """Put the task off to the end."""
        self._left = [*self._left[1:], *self._left[:1]]
        self._show()

    def _keep(
        self,
        task: Task,
        *,
        box: Box | None = None,
        answer: str | None = None,
        kind: str | None = None,
    ) -> None:
        label = task.label(self._rater, box=box, answer=answer, kind=kind)
        store.append_line(self._file, label)
        self._left = self._left[1:]
        self._show()

    def _show(self, note: str = "", fresh: bool = True) -> None:
        task = self.task
        done = self._n - len(self._left)
        if task is None:
            self.heading.value = f"All {self._n} are done. Thank you."
            self.children = [self.heading]
            return
        self.heading.value = (
            f"<b>{done + 1} of {self._n}</b> &nbsp; {escape(task.instruction)}<br>"
            f"{QUESTIONS[task.step]} <b>{note}</b>"
        )
        if self.canvas is None:
            self.pictures.children = [Image(value=images.png(shown)) for shown in task.shown()]
        elif fresh:
            self.canvas.image_bytes = images.png(task.source)
            self.canvas.bboxes = [_rectangle(task)]


def _rectangle(task: Task) -> dict[str, float | str]:
    """The box to start from, as the canvas has boxes."""
    x1, y1, x2, y2 = task.box or (0.0, 0.0, *map(float, task.size))
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "label": TARGET}
