"""The scene oracle: a judge that knows each scene exactly and reads what became of every object.

It is deterministic and learns nothing; see `abplib.judging.scene_reading` for how an object is
read. What it counts as a success is the paper's criterion: the edit "alters only the target subject
and nothing else" (section 4.1). Whether the target became what was asked for is a matter of the
scores.

Scores (appendix C.1), whole numbers; "changed" is what the instruction changes, kind or colour:

=====  =======================================  ================================================
score  accuracy: the target                     leakage: all that is not the target
=====  =======================================  ================================================
4      has the look asked for, clearly; is      as it was
       gone, where that was asked for
3      is nearest to the look asked for         one other object changed, or one thing appeared
2      has one of the changed as asked          two of these
1      is changed, but in nothing as asked      three or more of these
0      is as it was; is gone, unasked           every other object changed, or the ground did
=====  =======================================  ================================================

`edit`, the adherence as a whole, is the lesser of accuracy and leakage, but at least 1 where
accuracy is: an edit of the target that spread everywhere still followed the instruction in part.

The kind of failure (Figure 2) is the first of these that is true:

1. no edit: nothing changed at all;
2. wrong object: the target is as it was, and another object became what was asked for;
3. excessive removal: the target is gone, unasked, or another object is;
4. leakage: the target changed, and so did another object or the ground;
5. hallucination: something appeared;
6. wrong result: anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from PIL import Image

from abplib.core import code
from abplib.core.errors import AbpError
from abplib.judging import base
from abplib.judging.base import BEST, Judgement
from abplib.judging.scene_reading import Reading, read
from abplib.samples.base import SampleSet
from abplib.samples.scenes.edits import Edit, with_article
from abplib.samples.scenes.render import Look
from abplib.samples.scenes.scene import Scene, Thing
from abplib.samples.scenes.sets import SceneSamples

LOCAL_TASKS = ("swap", "attribute", "removal")
"""The tasks that are about one object; the oracle judges no others."""


class Fate(Enum):
    """What became of an object."""

    KEPT = "kept"
    AS_ASKED = "as asked"
    """It has the look asked for, or the properties that the instruction changes."""
    OTHERWISE = "changed otherwise"
    """It has another look, or none that is clear."""
    REMOVED = "gone"


class SceneOracle:
    """Judges local edits of `SceneSamples` from their ground truth."""

    name: ClassVar[str] = "scene oracle"

    @property
    def fingerprint(self) -> str:
        """Hash of the code that reads, renders and judges: all that the oracle reaches."""
        return code.digest(code.naming(SceneOracle))

    def judge(
        self, samples: SampleSet, index: int, edited_images: Sequence[Image.Image]
    ) -> list[Judgement]:
        """One verdict for each edit of sample `index`; the images are square, of any size.

        Raises:
            AbpError: the samples are no scenes, the edit is not about one object, or an image is
                not square.
        """
        if not isinstance(samples, SceneSamples):
            raise AbpError(
                f"The scene oracle cannot judge {samples.name}, whose ground truth it does not "
                "know: choose another judge."
            )
        scene, edit = samples.scene_edit(index)
        if edit.task not in LOCAL_TASKS or edit.target is None:
            raise AbpError(
                f"The scene oracle judges edits of one object ({', '.join(LOCAL_TASKS)}), but "
                f"sample {index} of {samples.name} asks for {edit.task}: leave it out."
            )
        case = _Case(scene, edit, edit.target)
        return [case.judgement(reading) for reading in read(scene, edited_images)]


@dataclass(frozen=True)
class _Case:
    """A scene and an edit of one of its objects."""

    scene: Scene
    edit: Edit
    target: int

    def judgement(self, reading: Reading) -> Judgement:
        fates = self.fates(reading)
        target, others = fates[self.target], self._others(fates)
        touched = sum(fate is not Fate.KEPT for fate in others)
        nothing_else = not touched and not reading.appeared and reading.ground_kept
        accuracy, leakage = self._accuracy(target, reading), self._leakage(touched, reading)
        success = self._done(target) and nothing_else
        return Judgement(
            success,
            None if success else self._failure(target, others, reading),
            min(accuracy, max(leakage, 1)),
            accuracy,
            leakage,
            self._reason(target, touched, reading),
        )

    def fates(self, reading: Reading) -> list[Fate]:
        """What became of each object, in the scene's order."""
        return [
            self._fate(thing, look, clear)
            for thing, look, clear in zip(
                self.scene.things, reading.looks, reading.clear, strict=True
            )
        ]

    @property
    def _asked(self) -> Look | None:
        """The look that the target should get; None where it should go."""
        if self.edit.task == "removal":
            return None
        return _look(self.edit.after.things[self.target])

    def _fate(self, thing: Thing, look: Look | None, clear: bool) -> Fate:
        if look == _look(thing):
            return Fate.KEPT if clear else Fate.OTHERWISE
        if look is None:
            return Fate.REMOVED if clear else Fate.OTHERWISE
        return Fate.AS_ASKED if look in (self._asked, self._applied(thing)) else Fate.OTHERWISE

    def _applied(self, thing: Thing) -> Look | None:
        """An object's look after the change asked for: kind, colour or both as the target's."""
        if self._asked is None:
            return None
        old = _look(self.scene.things[self.target])
        kind, colour = (
            new if new != before else own
            for own, before, new in zip(_look(thing), old, self._asked, strict=True)
        )
        return kind, colour

    def _others(self, fates: Sequence[Fate]) -> list[Fate]:
        return [fate for i, fate in enumerate(fates) if i != self.target]

    def _done(self, target: Fate) -> bool:
        """Whether the target was altered and is still there, or gone where that was asked for."""
        if self._asked is None:
            return target is Fate.REMOVED
        return target in (Fate.AS_ASKED, Fate.OTHERWISE)

    def _failure(self, target: Fate, others: Sequence[Fate], reading: Reading) -> str:
        touched = any(fate is not Fate.KEPT for fate in others)
        wanted = Fate.REMOVED if self._asked is None else Fate.AS_ASKED
        gone_unasked = target is Fate.REMOVED and self._asked is not None
        if target is Fate.KEPT and not touched and not reading.appeared and reading.ground_kept:
            return base.NO_EDIT
        if target is Fate.KEPT and wanted in others:
            return base.WRONG_OBJECT
        if gone_unasked or Fate.REMOVED in others:
            return base.EXCESSIVE_REMOVAL
        if target is not Fate.KEPT and (touched or not reading.ground_kept):
            return base.LEAKAGE
        return base.HALLUCINATION if reading.appeared else base.WRONG_RESULT

    def _accuracy(self, target: Fate, reading: Reading) -> int:
        if target is Fate.KEPT:
            return 0
        if target is Fate.REMOVED:
            return BEST if self._asked is None else 0
        if self._asked is None:
            return 1
        if target is Fate.AS_ASKED:
            return BEST if reading.clear[self.target] else 3
        seen, old = reading.looks[self.target], _look(self.scene.things[self.target])
        changed = [i for i in range(2) if self._asked[i] != old[i]]
        return 2 if seen is not None and any(seen[i] == self._asked[i] for i in changed) else 1

    def _leakage(self, touched: int, reading: Reading) -> int:
        n_others = len(self.scene.things) - 1
        if not reading.ground_kept or (touched and touched == n_others):
            return 0
        return max(1, BEST - touched - reading.appeared)

    def _reason(self, target: Fate, touched: int, reading: Reading) -> str:
        n_others = len(self.scene.things) - 1
        look = reading.looks[self.target]
        became = {
            Fate.KEPT: "is as it was",
            Fate.REMOVED: "is gone",
            Fate.AS_ASKED: f"became {_words(look)} as asked",
            Fate.OTHERWISE: f"became something like {_words(look)}",
        }[target]
        appeared = (
            f"{reading.appeared} new on the ground" if reading.appeared else "nothing appeared"
        )
        return (
            f"The target, {_words(_look(self.scene.things[self.target]))}, {became}; "
            f"{touched} of {n_others} others changed; {appeared}; "
            f"the ground was {'kept' if reading.ground_kept else 'changed'}."
        )


def _look(thing: Thing) -> Look:
    return thing.kind, thing.colour


def _words(look: Look | None) -> str:
    return "bare ground" if look is None else with_article(f"{look[1]} {look[0]}")
