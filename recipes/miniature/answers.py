"""What the miniature VLM is taught to say: questions and answers in the real chat templates.

Four families of lessons: grounding an edit (the prompt of appendix A.1, Qwen's JSON box format);
explaining an edit (Qwen-Image-Edit's template: the picture's features, what changes, the place
last); looking (describing the scene, locating objects); and grounded text, the user's sentence
with the box behind the phrase, as in the training data of Kosmos-2 and Qwen-VL, under any of the
system prompts. Coordinates are whole pixels of the picture that the model sees.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from abplib import prompts
from abplib.core.boxes import Box
from abplib.samples.scenes.edits import (
    WHOLE,
    Edit,
    all_references,
    choose,
    general_edits,
    multi_entity_edits,
    object_boxes,
    pixels,
    with_article,
)
from abplib.samples.scenes.scene import Random, Scene, general_scene, generator, multi_entity_scene

COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
FAMILIES = {"ground": 0.25, "edit": 0.25, "look": 0.15, "text": 0.35}
"""Families of lessons and their shares."""
DESCRIBE = {
    "x": "Describe this image from left to right.",
    "y": "Describe this image from top to bottom.",
    "": prompts.DESCRIBE_INSTRUCTION,
}
LOCATE = "Locate the {}, output its bbox coordinates using JSON format."
_SYSTEMS = {
    "ground": prompts.GROUNDING_SYSTEM,
    "edit": prompts.EDIT_SYSTEM,
    "look": prompts.DESCRIBE_SYSTEM,
}
_REGIONS = (("top left", "top", "top right"), ("left", "center", "right"),
            ("bottom left", "bottom", "bottom right"))  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One question about a picture and its answer, without chat markup."""

    question: str
    answer: str
    """Empty in grounded text: there the box stands in the question, behind the phrase."""
    phrase: str = ""
    """The part of the question that names an object, or nothing."""
    box: Box = WHOLE
    """Of that object."""
    blind: bool = False
    """Whether what follows the question (or, in grounded text, the phrase) does not attend to
    the picture, so that the question's own tokens must carry what it takes."""


@dataclass(frozen=True)
class Lesson:
    """Several independent turns about one picture under one system prompt."""

    scene: Scene
    system: str
    turns: tuple[Turn, ...]


def training_scene(seed: int) -> Scene:
    """The training scene of a seed: about two of three hold objects that are all alike.

    Half of the scenes are scattered: there no habit of layouts replaces looking.
    """
    layout = "scattered" if seed % 5 < 2 else None
    draw = multi_entity_scene if seed % 20 < 13 else general_scene
    return draw(seed, layout)


def lesson(scene: Scene, side: int, n_turns: int, blind: float = 0.0) -> Lesson:
    """The lesson on a training scene: a family and its turns, chosen by the scene's seed.

    Args:
        scene: what is shown.
        side: of the picture that the model sees, in pixels.
        n_turns: turns at most.
        blind: share of the turns about one object that are blind.
    """
    random = generator(scene.seed + 1)
    family = str(random.choice(list(FAMILIES), p=list(FAMILIES.values())))
    if family == "look":
        turns = _look(scene, random, side, n_turns)
    else:
        turns = _on_edits(scene, random, family, side, n_turns)
    system = _SYSTEMS[choose(random, _SYSTEMS) if family == "text" else family]
    drawn = (replace(t, blind=bool(t.phrase) and random.random() < blind) for t in turns)
    return Lesson(scene, system, tuple(drawn))


def _on_edits(scene: Scene, random: Random, family: str, side: int, n_turns: int) -> list[Turn]:
    uniform = len({(t.kind, t.colour) for t in scene.things}) == 1
    edits = multi_entity_edits(scene, random) if uniform else general_edits(scene, random, n_turns)
    turns = []
    for edit in edits[:n_turns]:
        asked = Turn(edit.instruction, "")
        if edit.target is not None:
            asked = replace(asked, phrase=edit.phrase, box=edit.box)
        if family == "ground":
            turns.append(replace(asked, answer=ground(edit, side)))
        elif family == "edit":
            turns.append(replace(asked, answer=explain(scene, edit, side)))
        elif asked.phrase:
            turns.append(asked)
    return turns


def ground(edit: Edit, side: int) -> str:
    """The answer to the prompt of appendix A.1."""
    return boxed(edit.box, edit.phrase, side)


def explain(scene: Scene, edit: Edit, side: int) -> str:
    """The answer to Qwen-Image-Edit's template: features, what changes, and the place last."""
    return f"{features(scene)} {edit.answer} Place: {region(edit.box)}, {_list(edit.box, side)}"


def features(scene: Scene) -> str:
    """The picture in a sentence: how many of each kind, their colour where they share one."""
    groups = defaultdict(list)
    for thing in scene.things:
        groups[thing.kind].append(thing.colour)
    found = []
    for kind, colours in groups.items():
        words = f"{colours[0]} {kind}" if len(set(colours)) == 1 else kind
        plural = words if kind == "fish" else f"{words}s"
        found.append(
            with_article(words) if len(colours) == 1 else f"{COUNTS[len(colours)]} {plural}"
        )
    listed = ", ".join(found)
    return f"{listed[0].upper()}{listed[1:]} on {scene.background}."


def region(box: Box) -> str:
    """Which ninth of the picture holds the middle of a box, in words; "everywhere" for all."""
    if box == WHOLE:
        return "everywhere"
    column, row = (min(2, int(3 * (box[i] + box[i + 2]) / 2)) for i in (0, 1))
    return _REGIONS[row][column]


def boxed(box: Box, label: str, side: int) -> str:
    """Qwen2.5-VL's grounding format."""
    return f'```json\n[\n\t{{"bbox_2d": {_list(box, side)}, "label": "{label}"}}\n]\n```'


def marked(box: Box, side: int) -> str:
    """A box as it stands in grounded text."""
    return f"<|box_start|>{_list(box, side)[1:-1]}<|box_end|>"


def _list(box: Box, side: int) -> str:
    return f"[{','.join(map(str, pixels(box, side)))}]"


def describe(scene: Scene, axis: str, side: int) -> str:
    """The whole scene in words: every object with its kind, colour and place, in order."""
    boxes = object_boxes(scene)
    order = sorted(range(len(boxes)), key=lambda i: getattr(scene.things[i], axis or "x"))
    items = [
        f"{with_article(f'{scene.things[i].colour} {scene.things[i].kind}')} "
        f"at {_list(boxes[i], side)}"
        for i in order
    ]
    count = COUNTS[len(items)]
    noun = "object" if len(items) == 1 else "objects"
    return f"{count.capitalize()} {noun} on {scene.background}: {', '.join(items)}."


def _look(scene: Scene, random: Random, side: int, n_turns: int) -> list[Turn]:
    axis = choose(random, DESCRIBE)
    turns = [Turn(DESCRIBE[axis], describe(scene, axis, side))]
    boxes, named = object_boxes(scene), all_references(scene)
    for i in random.permutation(len(named))[: n_turns - 2]:
        ref = named[i]
        box, asked = boxes[ref.index], LOCATE.format(ref.phrase)
        turns.append(Turn(asked, boxed(box, ref.phrase, side), ref.phrase, box))
    return turns


def corpus(n: int = 400, side: int = 128) -> list[str]:
    """Sample texts for the tokenizer's training."""
    texts = []
    for seed in range(n):
        for turn in lesson(training_scene(seed), side, 6).turns:
            texts += [turn.question, turn.answer]
    return texts
