"""Tasks to Label Studio and its labels back, as JSON files; Label Studio itself is not needed.

A project of Label Studio does one step: `config` is its labelling interface, `tasks_for` what is
imported, `labels_from` reads what it exports (JSON). Boxes there are percentages of the image.
Raters are the numbers of Label Studio's users; their names and addresses are not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from pydantic import ValidationError

from abplib.core import images
from abplib.core.boxes import Box
from abplib.core.errors import AbpError, explain
from abplib.judging.human.labels import (
    DRAW_BOX,
    JUDGE_EDIT,
    KINDS,
    NO,
    TARGET,
    YES,
    Key,
    Label,
    Step,
    latest,
)
from abplib.judging.human.tasks import QUESTIONS, Task


def config(step: Step) -> str:
    """The labelling interface of one step, for Settings > Labeling Interface > Code."""
    if step == DRAW_BOX:
        control = (
            '  <RectangleLabels name="box" toName="image" canRotate="false">\n'
            f'    <Label value="{TARGET}"/>\n  </RectangleLabels>\n'
        )
    else:
        choices = "".join(
            f"    <Choice value={quoteattr(c)}/>\n" for c in (YES, *map(_no, KINDS[step]))
        )
        control = (
            '  <Choices name="answer" toName="image" choice="single" required="true">\n'
            f"{choices}  </Choices>\n"
        )
    pictures = '  <Image name="image" value="$picture"/>\n'
    if step == JUDGE_EDIT:
        pictures += '  <Image name="edited" value="$edited"/>\n'
    return (
        "<View>\n"
        f"  <Header value={quoteattr(QUESTIONS[step])}/>\n"
        '  <Text name="instruction" value="$instruction"/>\n'
        f"{pictures}{control}</View>\n"
    )


def tasks_for(tasks: Sequence[Task], labels: Iterable[Label] = ()) -> list[dict[str, Any]]:
    """What to import: tasks of one step, each with the labels that it already has.

    Where a box is to be verified, it comes as a prediction to start from. `labels` by raters whom
    the Label Studio does not know, it refuses.

    Raises:
        AbpError: the tasks are of several steps.
    """
    if len({task.step for task in tasks}) > 1:
        raise AbpError("A project of Label Studio does one step: give the tasks of each apart.")
    given: dict[Key, list[Label]] = {}
    for label in labels:
        given.setdefault(label.key, []).append(label)
    return [_task(task, given.get(task.key, [])) for task in tasks]


def labels_from(exported: Sequence[Mapping[str, Any]]) -> list[Label]:
    """The labels in a JSON export; cancelled annotations are passed over.

    Raises:
        AbpError: the export is of other tasks, or an annotation is no answer to one.
    """
    found = []
    for number, task in enumerate(exported, start=1):
        for annotation in task.get("annotations", ()):
            if annotation.get("was_cancelled"):
                continue
            try:
                found.append(_label(task["data"], annotation))
            except ValidationError as error:
                raise AbpError(f"Task {number} of the export: {explain(error)}.") from error
            except (KeyError, TypeError, ValueError) as error:
                raise AbpError(
                    f"Task {number} of the export is none that `tasks_for` made, or holds another "
                    f"answer than one ({error!r}): mend it in Label Studio."
                ) from error
    return latest(sorted(found, key=lambda label: label.time))


def _no(kind: str) -> str:
    return f"{NO}: {kind}"


def _task(task: Task, labels: Sequence[Label]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "data": {
            "item": task.item,
            "step": task.step,
            "image": task.image,
            "size": list(task.size),
            "box": task.box,
            "instruction": task.instruction,
            **dict(zip(("picture", "edited"), map(images.data_url, task.shown()), strict=False)),
        },
        "annotations": [
            {
                "completed_by": int(label.rater) if label.rater.isdigit() else label.rater,
                "created_at": label.time.isoformat(),
                "was_cancelled": False,
                "result": [_result(label)],
            }
            for label in labels
        ],
    }
    if task.step == DRAW_BOX and task.box is not None:
        start = [_rectangle(task.box, task.size)]
        made["predictions"] = [{"model_version": "given", "result": start}]
    return made


def _result(label: Label) -> dict[str, Any]:
    if label.step == DRAW_BOX and label.box is not None:
        return _rectangle(label.box, label.size)
    answer = _no(label.kind) if label.kind else YES
    names = {"from_name": "answer", "to_name": "image", "type": "choices"}
    return names | {"value": {"choices": [answer]}}


def _rectangle(box: Box, size: tuple[int, int]) -> dict[str, Any]:
    (x1, y1, x2, y2), (width, height) = box, size
    return {
        "from_name": "box",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {
            "x": 100 * x1 / width,
            "y": 100 * y1 / height,
            "width": 100 * (x2 - x1) / width,
            "height": 100 * (y2 - y1) / height,
            "rotation": 0,
            "rectanglelabels": [TARGET],
        },
    }


def _label(data: Mapping[str, Any], annotation: Mapping[str, Any]) -> Label:
    """Raises ValueError, KeyError or TypeError for what is no answer to a task of ours."""
    (result,) = annotation["result"]
    said: dict[str, Any] = {}
    if data["step"] == DRAW_BOX:
        said["box"] = _box(result["value"], data["size"])
    else:
        (choice,) = result["value"]["choices"]
        answer, _, kind = choice.partition(": ")
        said |= {"box": data["box"], "answer": answer, "kind": kind or None}
    rater = annotation["completed_by"]
    return Label.model_validate(
        {
            **{name: data[name] for name in ("item", "step", "image", "size")},
            **said,
            "rater": str(rater["id"] if isinstance(rater, Mapping) else rater),
            "time": annotation["created_at"],
        }
    )


def _box(value: Mapping[str, Any], size: Sequence[int]) -> Box:
    """Percentages to pixels; what Label Studio rounds beyond the image's edge is cut off."""
    if value.get("rotation"):
        raise ValueError("a rotated box")
    width, height = size
    x1, y1 = value["x"] * width / 100, value["y"] * height / 100
    x2, y2 = x1 + value["width"] * width / 100, y1 + value["height"] * height / 100
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
