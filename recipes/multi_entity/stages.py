"""The multi-entity set of appendix A.2, made in stages with files between them.

In order: prompts, structures, images, edits, reversal, instructions, boxes, verification, split.

Each takes the model that it needs as an argument; `recipes.multi_entity.models` makes the paper's.
The images of `edits`, in which all objects are alike, are the sources; those of `images` the
targets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from pydantic import BaseModel, TypeAdapter, ValidationError

from abplib.core import store
from abplib.core.boxes import Box, from_pixels, order_and_clamp, to_pixels
from abplib.core.errors import AbpError
from abplib.core.images import load_image
from abplib.editing.base import Editor
from abplib.judging.human.labels import DRAW_BOX, JUDGE_EDIT, Label, decided, grouped
from abplib.judging.human.tasks import Task
from abplib.samples.multi_entity import MANIFEST, spatial_term
from abplib.vlm.grounding import Grounder
from recipes.multi_entity.prompts import (
    SCENES_REQUEST,
    SCENES_SYSTEM,
    SPATIAL_SYSTEM,
    STRUCTURE_SYSTEM,
)
from recipes.multi_entity.rows import (
    Boxed,
    Instruction,
    Pair,
    Picture,
    Reversal,
    Row,
    Structure,
    Verified,
    check_settings,
    keep_picture,
    run,
    summary,
    usable,
)

Log = Callable[[str], None]


class _Model(Protocol):
    @property
    def name(self) -> str:
        """What is kept with its work."""
        ...


class Writer(_Model, Protocol):
    """Writes text."""

    def write(self, system: str, request: str, schema: dict[str, Any] | None = None) -> str:
        """The answer to a request under a system prompt, as JSON of a schema if one is given."""
        ...


class Painter(_Model, Protocol):
    """Makes images of structured prompts."""

    def paint(self, prompt: str, seed: int) -> Image.Image:
        """One image; the same seed gives the same."""
        ...


class Describer(_Model, Protocol):
    """Writes text about an image."""

    def describe(self, system: str, image: Image.Image) -> str:
        """The answer to an image under a system prompt."""
        ...


class _Answer(Row):
    """One list of prompt pairs, as it was written and paid for."""

    text: str


class _Scene(BaseModel):
    generation: str
    edit: str


_SCENES = TypeAdapter(list[_Scene])


def write_prompts(folder: Path, writer: Writer, n: int, log: Log) -> list[Pair]:
    """Stage 1: prompt pairs, from as many lists as it takes for `n` different ones.

    A list is kept as it comes, also one that is refused.

    Raises:
        AbpError: a list holds no new pair.
    """
    check_settings(folder, "prompts", {"model": writer.name, "system": SCENES_SYSTEM})
    answers = store.read_lines(folder / "answers.jsonl", _Answer)
    while (known := len(pairs := _pairs(answers))) < n:
        request = SCENES_REQUEST.format(len(answers) + 1)
        text = writer.write(SCENES_SYSTEM, request, _SCENES.json_schema())
        answers.append(_Answer(id=f"{len(answers):03d}", text=text))
        store.append_line(folder / "answers.jsonl", answers[-1])
        if len(_pairs(answers)) == known:
            raise AbpError(
                f"{writer.name} wrote no new pair of prompts ({text[:80]!r}): try again, or ask "
                "another model."
            )
    lines = [pair.model_dump_json() for pair in pairs[:n]]
    store.write_text(folder / "prompts.jsonl", "\n".join(lines) + "\n")
    log(f"prompts: {len(pairs)} different pairs in {len(answers)} lists, {summary(pairs[:n])}")
    return pairs[:n]


def _pairs(answers: Iterable[_Answer]) -> list[Pair]:
    """The different pairs in some lists; two with the same scene are one."""
    found: dict[str, str] = {}
    for answer in answers:
        with suppress(ValidationError):  # it is no such list
            for scene in _SCENES.validate_json(answer.text):
                found.setdefault(scene.generation, scene.edit)
    return [Pair(id=f"{i:04d}", generation=g, edit=e) for i, (g, e) in enumerate(found.items())]


def structure_prompts(folder: Path, writer: Writer, log: Log) -> list[Structure]:
    """Stage 2: the scenes expanded to JSON, as FIBO's standard use does ("prompt enhancement")."""

    def make(row_id: str, pair: Pair) -> Structure:
        answer = writer.write(STRUCTURE_SYSTEM, pair.generation)
        try:
            found = json.loads(answer[answer.find("{") : answer.rfind("}") + 1])
        except ValueError:
            return Structure(id=row_id, answer=answer, reason="no_json")
        return Structure(id=row_id, prompt=json.dumps(found), answer=answer)

    pairs = usable(folder, "prompts", Pair)
    settings = {"model": writer.name, "system": STRUCTURE_SYSTEM}
    return run(folder, "structures", pairs, Structure, make, settings, log)


def paint_images(folder: Path, painter: Painter, seed: int, log: Log) -> list[Picture]:
    """Stage 3: an image with one odd object for each structured scene."""

    def make(row_id: str, scene: Structure) -> Picture:
        file, numbered = f"images/{row_id}.png", seed + int(row_id)
        sha256 = keep_picture(folder, file, painter.paint(scene.prompt, numbered))
        return Picture(id=row_id, file=file, sha256=sha256, seed=numbered)

    scenes = usable(folder, "structures", Structure)
    settings = {"model": painter.name, "seed": seed}
    return run(folder, "images", scenes, Picture, make, settings, log)


def edit_images(folder: Path, editor: Editor, seed: int, log: Log) -> list[Picture]:
    """Stage 4: the same images with the odd object made like the others."""
    pairs = usable(folder, "prompts", Pair)

    def make(row_id: str, picture: Picture) -> Picture:
        source = load_image(folder / picture.file)
        image = editor.edit(source, pairs[row_id].edit, seed + int(row_id))
        file, numbered = f"edits/{row_id}.png", seed + int(row_id)
        if image.tobytes() == source.tobytes():
            return Picture(id=row_id, reason="unchanged", seed=numbered)
        sha256 = keep_picture(folder, file, image)
        return Picture(id=row_id, file=file, sha256=sha256, seed=numbered)

    settings = {"model": editor.name, "weights": editor.fingerprint, "seed": seed}
    pictures = usable(folder, "images", Picture)
    return run(folder, "edits", pictures, Picture, make, settings, log)


def reverse(folder: Path, log: Log) -> list[Reversal]:
    """Stage 5: the edited image is the source, the generated one the target."""
    targets = usable(folder, "images", Picture)

    def make(row_id: str, edited: Picture) -> Reversal:
        for picture in (edited, targets[row_id]):
            if store.file_hash(folder / picture.file) != picture.sha256:
                raise AbpError(
                    f"{folder / picture.file} is not the image that its row tells of: restore it."
                )
        return Reversal(id=row_id, source=edited.file, target=targets[row_id].file)

    return run(folder, "reversal", usable(folder, "edits", Picture), Reversal, make, {}, log)


def write_instructions(folder: Path, describer: Describer, log: Log) -> list[Instruction]:
    """Stage 6: spatial instructions, from target and source side by side."""

    def make(row_id: str, row: Reversal) -> Instruction:
        shown = side_by_side(load_image(folder / row.target), load_image(folder / row.source))
        answer = describer.describe(SPATIAL_SYSTEM, shown)
        text = answer.strip().splitlines()[0].strip() if answer.strip() else ""
        spatial = text.lower().startswith("turn the ") and spatial_term(text) is not None
        reason = "" if spatial else "not_spatial" if text else "no_answer"
        return Instruction(id=row_id, instruction=text, answer=answer, reason=reason)

    settings = {"model": describer.name, "system": SPATIAL_SYSTEM}
    rows = usable(folder, "reversal", Reversal)
    return run(folder, "instructions", rows, Instruction, make, settings, log)


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two images in one, the right one as high as the left."""
    width = round(right.width * left.height / right.height)
    joined = Image.new("RGB", (left.width + width, left.height))
    joined.paste(left, (0, 0))
    joined.paste(right.resize((width, left.height), Image.Resampling.LANCZOS), (left.width, 0))
    return joined


def ground_boxes(folder: Path, grounder: Grounder, model: str, log: Log) -> list[Boxed]:
    """Stage 7: the VLM's boxes (A.1)."""
    sources = usable(folder, "reversal", Reversal)

    def make(row_id: str, row: Instruction) -> Boxed:
        image = load_image(folder / sources[row_id].source)
        found = grounder.locate([image], [row.instruction])[0]
        reason = "" if found.box else "no_box"
        return Boxed(id=row_id, box=found.box, answer=found.text, reason=reason)

    rows = usable(folder, "instructions", Instruction)
    settings = {"model": model, "image_area": grounder.encoder.image_area}
    return run(folder, "boxes", rows, Boxed, make, settings, log)


def verification_tasks(folder: Path) -> list[Task]:
    """Stage 8, what people are asked of each sample: to mend its box, and to judge its edit."""
    return [task for tasks in _tasks(folder).values() for task in tasks]


def _tasks(folder: Path) -> dict[str, tuple[Task, Task]]:
    pictures = usable(folder, "reversal", Reversal)
    texts = usable(folder, "instructions", Instruction)
    found = {}
    for row_id, row in usable(folder, "boxes", Boxed).items():
        source = load_image(folder / pictures[row_id].source)
        target = load_image(folder / pictures[row_id].target)
        text, box = texts[row_id].instruction, row.box or (0.0, 0.0, 1.0, 1.0)
        found[row_id] = (
            Task(DRAW_BOX, row_id, text, source, box=to_pixels(box, source.size)),
            Task(JUDGE_EDIT, row_id, text, source, edit=target),
        )
    return found


def verify(folder: Path, labels: Iterable[Label], log: Log) -> list[Verified]:
    """Stage 8: keep samples whose edit most raters accept, with the median of their drawn boxes.

    It is written anew from all labels each time. Samples without both labels are not verified.
    """
    known = list(labels)
    drawn, judged = grouped(known, DRAW_BOX), grouped(known, JUDGE_EDIT)
    rows = []
    for row_id, (draw, judge) in _tasks(folder).items():
        boxes, verdicts = drawn.get(draw.key, []), judged.get(judge.key, [])
        verdict = decided(verdicts)
        reason = "" if boxes and verdict else "not_labelled"
        if verdict is not None and not verdict.yes:
            reason = "rejected"
        raters = len({label.rater for label in (*boxes, *verdicts)})
        box = None if reason else _median(boxes)
        rows.append(Verified(id=row_id, box=box, raters=raters, reason=reason))
    lines = "".join(row.model_dump_json() + "\n" for row in rows)
    store.write_text(folder / "verification.jsonl", lines)
    log(f"verification: {summary(rows)}")
    return rows


def _median(labels: list[Label]) -> Box:
    corners = torch.tensor([from_pixels(l.box, l.size) for l in labels if l.box is not None])
    x1, y1, x2, y2 = corners.double().quantile(0.5, dim=0).tolist()
    return order_and_clamp((x1, y1, x2, y2))


def split(folder: Path, seed: int, log: Log) -> dict[str, Any]:
    """Stage 9: half to train on and half to evaluate, by the hash of the id; the manifest.

    Raises:
        AbpError: fewer than two samples are verified.
    """
    verified = usable(folder, "verification", Verified)
    if len(verified) < 2:
        raise AbpError("One verified sample cannot be split: verify more.")
    pictures = usable(folder, "reversal", Reversal)
    texts = usable(folder, "instructions", Instruction)
    order = sorted(verified, key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).hexdigest())
    rows = [
        {"id": row_id, "instruction": texts[row_id].instruction, "box": verified[row_id].box}
        | _file(folder, "source", pictures[row_id].source)
        | _file(folder, "target", pictures[row_id].target)
        for row_id in order
    ]
    half = len(rows) // 2
    parts = {"training": rows[half:], "evaluation": rows[:half]}
    manifest = {"licence": "CC-BY-4.0", "seed": seed, **parts}
    manifest["fingerprints"] = {part: store.digest(rows) for part, rows in parts.items()}
    store.write_json(folder / MANIFEST, manifest)
    log(f"split: {len(rows) - half} to train on, {half} to evaluate")
    return manifest


def _file(folder: Path, role: str, name: str) -> dict[str, Any]:
    return {role: name, f"{role}_sha256": store.file_hash(folder / name)}
