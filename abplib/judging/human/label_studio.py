"""Tasks to Label Studio and its labels back, as JSON files; Label Studio itself is not needed.

A project of Label Studio does one step: `config` is its labelling interface, `tasks_for` what is
imported, `labels_from` reads what it exports (JSON). Boxes there are percentages of the image.
Raters are the numbers of Label Studio's users; their names and addresses are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from pydantic import AwareDatetime, BaseModel, FiniteFloat, ValidationError

from abplib.core import images, store
from abplib.core.boxes import Box, from_pixels
from abplib.core.errors import AbpError, explain
from abplib.judging.human.labels import DRAW_BOX, JUDGE_EDIT, KINDS, NO, YES, Label, Step, latest
from abplib.judging.human.tasks import QUESTIONS, Task

TARGET = "target"
"""What a drawn box is called."""

_REMEDY = "export the project of `tasks_for` as JSON, or mend that answer in Label Studio"


class _Data(BaseModel):
    """What `tasks_for` gave a task."""

    item: str
    step: Step
    image: str
    size: tuple[int, int]
    box: Box | None


class _User(BaseModel):
    id: int


class _Region(BaseModel):
    value: dict[str, Any]


class _Annotation(BaseModel):
    """One rater's answer, as far as it is read."""

    completed_by: int | str | _User
    created_at: AwareDatetime
    updated_at: AwareDatetime | None = None
    result: list[_Region]


class _Rectangle(BaseModel):
    """In percent of the image."""

    x: FiniteFloat
    y: FiniteFloat
    width: FiniteFloat
    height: FiniteFloat
    rotation: float | None = None


class _Choices(BaseModel):
    choices: tuple[str]


def config(step: Step) -> str:
    """The labelling interface of one step, for Settings > Labeling Interface > Code."""
    pictures = '<Image name="image" value="$picture"/>'
    if step == JUDGE_EDIT:
        pictures += '\n  <Image name="edited" value="$edited"/>'
    control, named, choices = "Choices", 'name="answer" choice="single" required="true"', "Choice"
    values = [YES, *(f"{NO}: {kind}" for kind in KINDS[step])]
    if step == DRAW_BOX:
        control, named, choices = "RectangleLabels", 'name="box" canRotate="false"', "Label"
        values = [TARGET]
    offered = "\n".join(f"    <{choices} value={quoteattr(value)}/>" for value in values)
    return f"""<View>
  <Header value={quoteattr(QUESTIONS[step])}/>
  <Text name="instruction" value="$instruction"/>
  {pictures}
  <{control} {named} toName="image">
{offered}
  </{control}>
</View>
"""


def tasks_for(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """What to import: tasks of one step, a box to be verified as a prediction to start from.

    They stand in the order of their pictures' hashes, which tells nothing of who made what.

    Raises:
        AbpError: the tasks are of several steps.
    """
    if len({task.step for task in tasks}) > 1:
        raise AbpError("A project of Label Studio does one step: give the tasks of each apart.")
    return [_task(task) for task in sorted(tasks, key=lambda task: task.image)]


def labels_from(exported: object) -> list[Label]:
    """The labels in a JSON export; cancelled annotations are passed over.

    Of a rater's several on one task the one that was edited last counts.

    Raises:
        AbpError: it is no such export, it is of other tasks, or an annotation is no answer to one.
    """
    if not isinstance(exported, list):
        raise AbpError(f"A {type(exported).__name__} is no export of Label Studio: {_REMEDY}.")
    edited: list[tuple[datetime, Label]] = []
    for number, task in enumerate(exported, start=1):
        try:
            edited += _labels(task)
        except ValidationError as error:
            raise AbpError(f"Task {number} of the export: {explain(error)}; {_REMEDY}.") from error
        except ValueError as error:
            raise AbpError(f"Task {number} of the export {error}; {_REMEDY}.") from error
    return latest(label for _, label in sorted(edited, key=lambda one: one[0]))


def keep(export: Path, labels_file: Path) -> list[Label]:
    """Add the labels of an exported file to a file of labels; AbpError as `labels_from` raises."""
    labels = labels_from(store.read_json(export))
    for label in labels:
        store.append_line(labels_file, label)
    return labels


def _task(task: Task) -> dict[str, Any]:
    pictures = dict(zip(("picture", "edited"), map(images.data_url, task.shown()), strict=False))
    data = _Data.model_validate(task, from_attributes=True).model_dump(mode="json")
    made: dict[str, Any] = {"data": data | {"instruction": task.instruction} | pictures}
    if task.step == DRAW_BOX and task.box is not None:
        start = [_rectangle(task.box, task.size)]
        made["predictions"] = [{"model_version": "given", "result": start}]
    return made


def _rectangle(box: Box, size: tuple[int, int]) -> dict[str, Any]:
    (width, height), (x1, y1, x2, y2) = size, from_pixels(box, size)
    sides = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
    return {
        "from_name": "box",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {name: 100 * side for name, side in sides.items()}
        | {"rotation": 0, "rectanglelabels": [TARGET]},
    }


def _labels(task: Any) -> Iterator[tuple[datetime, Label]]:
    """The answers to one task, with the time of their last edit; ValueError where one is none."""
    if isinstance(task, dict) and "completions" in task:
        raise ValueError("has completions, which Label Studio made before version 1.0")
    if not (isinstance(task, dict) and {"data", "annotations"} <= task.keys()):
        raise ValueError("has no data and annotations, as JSON-MIN and CSV have none")
    data = _Data.model_validate(task["data"])
    if not isinstance(task["annotations"], list):
        raise ValueError("has no list of annotations")
    for one in task["annotations"]:
        if isinstance(one, dict) and one.get("was_cancelled") is True:
            continue
        annotation = _Annotation.model_validate(one)
        edited = annotation.updated_at or annotation.created_at
        yield edited, _label(data, annotation, edited)


def _label(data: _Data, annotation: _Annotation, edited: datetime) -> Label:
    if len(annotation.result) != 1:
        raise ValueError(f"has {len(annotation.result)} answers by one rater in place of one")
    value = annotation.result[0].value
    said: dict[str, Any] = {}
    if data.step == DRAW_BOX:
        said["box"] = _box(_Rectangle.model_validate(value), data.size)
    else:
        (choice,) = _Choices.model_validate(value).choices
        answer, _, kind = choice.partition(": ")
        said |= {"box": data.box, "answer": answer, "kind": kind or None}
    by = annotation.completed_by
    said |= {"rater": str(by.id if isinstance(by, _User) else by), "time": edited}
    return Label.model_validate(data.model_dump() | said)


def _box(value: _Rectangle, size: tuple[int, int]) -> Box:
    """Percentages to pixels; what Label Studio rounds beyond the image's edge is cut off."""
    if value.rotation:
        raise ValueError("has a rotated box")
    width, height = size
    x1, y1 = value.x * width / 100, value.y * height / 100
    x2, y2 = x1 + value.width * width / 100, y1 + value.height * height / 100
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
