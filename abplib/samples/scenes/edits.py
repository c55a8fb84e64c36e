"""Edit instructions on scenes, with the edited scene and the exact region of the edit.

The multi-entity instructions follow appendix A.2: the object is named by its place alone
("Turn the second cup from the left into a blue star."). The general ones have the kinds of task
that OmniEdit has: swap, attribute, removal, addition, background, style.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from abplib.samples.scenes.objects import COLOURS, KINDS
from abplib.samples.scenes.references import Reference, references
from abplib.samples.scenes.render import SIDE, STYLES, box_of, masks
from abplib.samples.scenes.scene import BACKGROUNDS, Random, Scene, Thing, choose

if TYPE_CHECKING:
    from abplib.core.boxes import Box

TASKS = ("swap", "attribute", "removal", "addition", "background", "style")
LOOK = "attribute"
"""Term of a reference that names an object by its kind, with or without its colour."""
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Edit:
    """One instruction on one scene. `target` is None where no single object is meant."""

    task: str
    instruction: str
    answer: str
    """What changes, as a sentence."""
    phrase: str
    """What a box of the edit would be labelled."""
    term: str
    target: int | None
    box: Box
    after: Scene


def multi_entity_edits(scene: Scene, random: Random) -> list[Edit]:
    """One edit for each spatial reference that holds in a uniform scene, in random order."""
    named = references(scene, range(len(scene.things)))
    return [_turn(scene, named[i], random) for i in random.permutation(len(named))]


def general_edits(
    scene: Scene, random: Random, n: int, by_place: float | None = None
) -> list[Edit]:
    """`n` edits of the general set; local ones name objects by look or by place.

    `by_place` is the share that does so by place, where the scene has objects that a look singles
    out; None takes all references as they come, which are mostly by place.
    """
    named = all_references(scene)
    kinds = [[r for r in named if (r.term == LOOK) != placed] for placed in (False, True)]

    def pick() -> list[Reference]:
        return named if by_place is None else kinds[random.random() < by_place] or named

    local = {"removal": _removal, "swap": _turn, "attribute": _recolour}
    edits: list[Edit] = []
    while len(edits) < n:
        task = TASKS[int(random.choice(len(TASKS), p=(0.3, 0.36, 0.2, 0.08, 0.03, 0.03)))]
        if task == "background":
            edits.append(_background(scene, random))
        elif task == "style":
            edits.append(_style(scene, random))
        elif task == "addition":
            edits += _addition(scene, pick(), random)
        elif named:
            edits.append(local[task](scene, choose(random, pick()), random))
    return edits


def all_references(scene: Scene) -> list[Reference]:
    """Unambiguous references by look ("red cup", "cup") and by place, for every object."""
    kinds = Counter(t.kind for t in scene.things)
    looks = Counter((t.kind, t.colour) for t in scene.things)
    named = []
    for i, thing in enumerate(scene.things):
        if looks[thing.kind, thing.colour] == 1:
            named.append(Reference(f"{thing.colour} {thing.kind}", LOOK, i))
        if kinds[thing.kind] == 1:
            named.append(Reference(thing.kind, LOOK, i))
    for kind, count in kinds.items():
        if count > 1:
            group = [i for i, t in enumerate(scene.things) if t.kind == kind]
            named += references(scene, group)
    return named


def with_article(words: str) -> str:
    """A noun phrase with its indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _turn(scene: Scene, ref: Reference, random: Random) -> Edit:
    """Change an object's colour, its kind, or both."""
    old = scene.things[ref.index]
    kind = old.kind if random.random() < 0.5 else choose(random, KINDS)
    colour = choose(random, [c for c in COLOURS if kind != old.kind or c != old.colour])
    new = with_article(f"{colour} {kind}")
    task = "swap" if kind != old.kind else "attribute"
    said = f"Turn the {ref.phrase} into {new}.", f"The {ref.phrase} becomes {new}."
    return _local(task, *said, scene, ref, replace(old, kind=kind, colour=colour))


def _recolour(scene: Scene, ref: Reference, random: Random) -> Edit:
    old = scene.things[ref.index]
    colour = choose(random, [c for c in COLOURS if c != old.colour])
    forms = "Make the {} {}.", "Paint the {} {}.", "Change the color of the {} to {}."
    instruction = choose(random, forms).format(ref.phrase, colour)
    answer = f"The {ref.phrase} becomes {colour}."
    return _local("attribute", instruction, answer, scene, ref, replace(old, colour=colour))


def _removal(scene: Scene, ref: Reference, random: Random) -> Edit:
    form = choose(random, ("Remove the {}.", "Delete the {}.", "Take away the {}."))
    answer = f"The {ref.phrase} is removed."
    return _local("removal", form.format(ref.phrase), answer, scene, ref, None)


def _local(
    task: str, instruction: str, answer: str, scene: Scene, ref: Reference, thing: Thing | None
) -> Edit:
    """The edit that puts an object in another's place, or nothing."""
    things, box = list(scene.things), _object_box(scene, ref.index)
    things[ref.index : ref.index + 1] = [] if thing is None else [thing]
    after = replace(scene, things=tuple(things))
    return Edit(task, instruction, answer, ref.phrase, ref.term, ref.index, box, after)


def _addition(scene: Scene, named: list[Reference], random: Random) -> list[Edit]:
    """A new object beside a named one, where there is room (an empty list where there is none)."""
    sides = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
    for _ in range(8 if named else 0):
        ref, (side, (dx, dy)) = choose(random, named), choose(random, sides.items())
        anchor = scene.things[ref.index]
        size, step = anchor.size, anchor.size * 1.15
        x, y = anchor.x + dx * step, anchor.y + dy * step
        inside = size / 2 <= min(x, y) and max(x, y) <= 1 - size / 2
        if not inside or any(
            max(abs(t.x - x), abs(t.y - y)) < 0.5 * (t.size + size) for t in scene.things
        ):
            continue
        new = Thing(choose(random, KINDS), choose(random, COLOURS), x, y, size)
        phrase, where = f"{new.colour} {new.kind}", f"{side} the {ref.phrase}"
        words = with_article(phrase)
        said = f"Add {words} {where}.", f"{words.capitalize()} appears {where}."
        after = replace(scene, things=(*scene.things, new))
        box = box_of(masks(after)[-1])
        return [Edit("addition", *said, phrase, side, None, box, after)]
    return []


def _background(scene: Scene, random: Random) -> Edit:
    ground = choose(random, [b for b in BACKGROUNDS if b != scene.background])
    form = choose(random, ("Change the background to {}.", "Put everything on {}."))
    said = form.format(ground), f"The background becomes {ground}."
    after = replace(scene, background=ground)
    return Edit("background", *said, "background", "whole", None, WHOLE, after)


def _style(scene: Scene, random: Random) -> Edit:
    style = choose(random, STYLES)
    form = choose(random, ("Make it look like {}.", "Turn the picture into {}."))
    words = with_article(style)
    said = form.format(words), f"The picture becomes {words}."
    return Edit("style", *said, "picture", "whole", None, WHOLE, replace(scene, style=style))


SURROUND = 1
"""Pixels that an answered box leaves around its object, so that it wholly encompasses it."""


def pixels(box: Box, side: int) -> tuple[int, int, int, int]:
    """A normalised box as it is to be answered: in whole pixels of a `side` x `side` picture,
    rounded outwards, with `SURROUND` pixels around it where the picture leaves them."""
    x1, y1, x2, y2 = (round(v * SIDE) * side for v in box)
    left, top = (max(0, v // SIDE - SURROUND) for v in (x1, y1))
    right, bottom = (min(side, -(-v // SIDE) + SURROUND) for v in (x2, y2))
    return left, top, right, bottom


def object_boxes(scene: Scene) -> tuple[Box, ...]:
    """Tight boxes of all objects, normalised."""
    return tuple(_object_box(scene, index) for index in range(len(scene.things)))


@lru_cache(maxsize=128)
def _object_box(scene: Scene, index: int) -> Box:
    return box_of(masks(scene)[index])
