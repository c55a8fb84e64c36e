"""Sample sets of the mini world, rendered on demand.

The *multi-entity* set follows appendix A.2: alike objects, one named by its place alone, 400
samples to train on, as many as appendix B.2's steps pass 15 times, and 200 to evaluate, split once
and listed with hashes in `data/mini/multi_entity.json`. The *general* set stands for OmniEdit: six
kinds of task, half of its scenes with mixed and half with alike objects. A third set asks for what
the miniature editor is taught: general edits that name an object by its look.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any

from PIL import Image

from abplib.core import paths
from abplib.core.errors import AbpError
from abplib.samples.base import Sample
from abplib.samples.scenes.edits import LOOK, Edit, general_edits, multi_entity_edits
from abplib.samples.scenes.render import masks, render
from abplib.samples.scenes.scene import Scene, general_scene, generator, multi_entity_scene

SIZES = {"training": 400, "evaluation": 200}
"""Of the multi-entity set's splits."""
GENERAL_SIZE = 128_000
GENERAL_SEED = 500_000_000
"""Seeds of the general set start here; the multi-entity set's are below, training's above."""
LOOK_SEED = GENERAL_SEED + 2 * GENERAL_SIZE
"""Seeds of the edits named by look, which no other set has."""
_STRIDE = 50
"""Seeds of one such sample, of which the first that gives one is taken."""

MANIFEST = "data/mini/multi_entity.json"


@dataclass(frozen=True)
class SceneSamples:
    """A `SampleSet` of scenes that are made from their index when asked for."""

    name: str
    size: int
    source: Callable[[int], tuple[str, Scene, Edit]]
    recipe: Any
    """What decides the content, as JSON; hashed into the fingerprint."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the recipe, and of the content of the first samples as the code makes them."""
        told = hashlib.sha256(json.dumps([self.name, self.size, self.recipe]).encode())
        for index in range(min(self.size, 64)):
            name, scene, edit = self._at(index)
            box = [round(side, 6) for side in edit.box]
            facts = [name, scene.digest(), edit.instruction, box, edit.after.digest()]
            told.update(json.dumps(facts).encode())
            if index < 8:
                told.update(render(scene).tobytes())
        return told.hexdigest()[:16]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` with exact masks and box."""
        name, scene, edit = self._at(index)
        facts: dict[str, str | int | float] = {
            "task": edit.task,
            "spatial_term": edit.term,
            "n_objects": len(scene.things),
            "layout": scene.layout,
            "phrase": edit.phrase,
        }
        if edit.target is not None:
            target = scene.things[edit.target]
            facts |= {"kind": target.kind, "colour": target.colour, "size": target.size}
        shown = masks(scene)
        return Sample(name, render(scene), edit.instruction, edit.box, shown, edit.target, facts)

    def edited(self, index: int) -> Image.Image:
        """What the picture of sample `index` should look like after its edit."""
        return render(self._at(index)[2].after)

    def scene_edit(self, index: int) -> tuple[Scene, Edit]:
        """The ground truth of sample `index`: its scene and what is to be done to it."""
        return self._at(index)[1:]

    def _at(self, index: int) -> tuple[str, Scene, Edit]:
        if not 0 <= index < self.size:
            raise IndexError(f"{self.name} has {self.size} samples, none has index {index}")
        return self.source(index)


def evaluation() -> SceneSamples:
    """The 200 multi-entity samples that everything is measured on."""
    return multi_entity("evaluation")


def training() -> SceneSamples:
    """The 400 multi-entity samples that the editor's LoRA learns from."""
    return multi_entity("training")


def tuning() -> SceneSamples:
    """The first 200 of `training`, on which choices are made."""
    whole, n = training(), 200
    return replace(whole, name="multi-entity, tuning", size=n, recipe=whole.recipe[:n])


def multi_entity(split: str) -> SceneSamples:
    """The multi-entity samples of a split, "training" or "evaluation".

    Raises:
        AbpError: the manifest is missing, or a scene differs from its hash there.
    """
    path = paths.root() / MANIFEST
    if not path.is_file():
        raise AbpError(f"The manifest {path} is missing: restore it from the repository.")
    rows = json.loads(path.read_text())[split]

    def source(index: int) -> tuple[str, Scene, Edit]:
        row = rows[index]
        scene, edit = _candidate(row["seed"], row["instruction"])
        if scene.digest() != row["scene"]:
            raise AbpError(
                f"Scene {row['id']} differs from its hash in {MANIFEST}: the code that lays out "
                "scenes has changed, so write the manifest anew and retrain."
            )
        return row["id"], scene, edit

    return SceneSamples(f"multi-entity, {split}", len(rows), source, rows)


def general() -> SceneSamples:
    """The large set for proxies; sample i is the same whatever the number used."""
    return SceneSamples("general", GENERAL_SIZE, _general, {"seed": GENERAL_SEED})


def _general(index: int) -> tuple[str, Scene, Edit]:
    seed = GENERAL_SEED + index
    scene = (general_scene, multi_entity_scene)[index % 2](seed)
    return f"general-{index:06d}", scene, general_edits(scene, generator(seed + 1), 1)[0]


def named_by_look() -> SceneSamples:
    """200 general edits of one object that is named by its look, on scenes of no other set."""
    return SceneSamples("general, named by look", 200, _by_look, {"seed": LOOK_SEED})


def _by_look(index: int) -> tuple[str, Scene, Edit]:
    first = LOOK_SEED + _STRIDE * index
    scene, edit = next(
        (scene, edit)
        for scene in map(general_scene, range(first, first + _STRIDE))
        for edit in general_edits(scene, generator(scene.seed + 1), 4, by_place=0.0)
        if edit.target is not None and edit.term == LOOK
    )
    return f"look-{index:03d}", scene, edit


def _candidate(seed: int, instruction: str) -> tuple[Scene, Edit]:
    scene = multi_entity_scene(seed)
    edits = multi_entity_edits(scene, generator(seed + 1))
    return scene, next(e for e in edits if e.instruction == instruction)


def build_manifest() -> dict[str, Any]:
    """Choose the multi-entity set: every scene once, the spatial terms as even as they come."""
    used: dict[str, Counter[str]] = {split: Counter() for split in SIZES}
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SIZES}
    seeds = count()
    while wanting := [split for split in SIZES if len(rows[split]) < SIZES[split]]:
        seed = next(seeds)
        split, scene = wanting[seed % len(wanting)], multi_entity_scene(seed)
        edits = multi_entity_edits(scene, generator(seed + 1))
        edit = min(edits, key=lambda e: used[split][e.term])
        used[split][edit.term] += 1
        rows[split].append(
            {
                "id": f"{split}-{len(rows[split]):03d}",
                "seed": seed,
                "instruction": edit.instruction,
                "scene": scene.digest(),
                "image": hashlib.sha256(render(scene).tobytes()).hexdigest()[:16],
            }
        )
    return {"licence": "CC-BY-4.0", **rows}
