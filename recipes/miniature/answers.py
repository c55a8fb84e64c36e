"""What the miniature VLM is taught to say: questions and answers in the real chat templates.

Four tasks, told apart by their system prompt and user turn: grounding an edit (the prompt of
appendix A.1, Qwen's JSON box format), explaining an edit (Qwen-Image-Edit's template: where and
what changes), describing the whole scene, and locating an object by attribute or place.
Coordinates are whole pixels of the picture that the model sees.
"""

from __future__ import annotations

from dataclasses import dataclass

from abplib import prompts
from abplib.samples.scenes.edits import (
    Box,
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
FAMILIES = ("ground", "edit", "look")
DESCRIBE = {
    "x": "Describe this image from left to right.",
    "y": "Describe this image from top to bottom.",
    "": prompts.DESCRIBE_INSTRUCTION,
}
LOCATE = "Locate the {}, output its bbox coordinates using JSON format."


@dataclass(frozen=True)
class Turn:
    """One question about a picture and its answer, without chat markup."""

    question: str
    answer: str


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


def lesson(scene: Scene, side: int, n_turns: int) -> Lesson:
    """The lesson on a training scene: a task family and its turns, chosen by the scene's seed."""
    random = generator(scene.seed + 1)
    uniform = len({(t.kind, t.colour) for t in scene.things}) == 1
    family = FAMILIES[int(random.choice(3, p=(0.4, 0.4, 0.2)))]
    if family == "look":
        return Lesson(scene, prompts.DESCRIBE_SYSTEM, _look(scene, random, side, n_turns))
    edits = multi_entity_edits(scene, random) if uniform else general_edits(scene, random, n_turns)
    system = prompts.GROUNDING_SYSTEM if family == "ground" else prompts.EDIT_SYSTEM
    speak = ground if family == "ground" else explain
    return Lesson(
        scene, system, tuple(Turn(e.instruction, speak(e, side)) for e in edits[:n_turns])
    )


def ground(edit: Edit, side: int) -> str:
    """The answer to the prompt of appendix A.1."""
    return boxed(edit.box, edit.phrase, side)


def explain(edit: Edit, side: int) -> str:
    """The answer to Qwen-Image-Edit's template: where and what changes."""
    return edit.answer.format(box=_list(edit.box, side)[1:-1])


def boxed(box: Box, label: str, side: int) -> str:
    """Qwen2.5-VL's grounding format."""
    return f'```json\n[\n\t{{"bbox_2d": {_list(box, side)}, "label": "{label}"}}\n]\n```'


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


def _look(scene: Scene, random: Random, side: int, n_turns: int) -> tuple[Turn, ...]:
    axis = choose(random, DESCRIBE)
    turns = [Turn(DESCRIBE[axis], describe(scene, axis, side))]
    boxes, named = object_boxes(scene), all_references(scene)
    for i in random.permutation(len(named))[: n_turns - 2]:
        ref = named[i]
        turns.append(Turn(LOCATE.format(ref.phrase), boxed(boxes[ref.index], ref.phrase, side)))
    return tuple(turns)


def corpus(n: int = 400, side: int = 128) -> list[str]:
    """Sample texts for the tokenizer's training."""
    texts = []
    for seed in range(n):
        for turn in lesson(training_scene(seed), side, 6).turns:
            texts += [turn.question, turn.answer]
    return texts
