"""Scenes, their spatial terms and their edits: exact, repeatable, never ambiguous."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from abplib.core import paths
from abplib.core.errors import AbpError
from abplib.samples.scenes import sets
from abplib.samples.scenes.edits import (
    LOOK,
    TASKS,
    all_references,
    general_edits,
    multi_entity_edits,
    pixels,
)
from abplib.samples.scenes.objects import COLOURS, KINDS, sprite
from abplib.samples.scenes.references import MARGIN, references
from abplib.samples.scenes.render import SIDE, box_of, masks, render
from abplib.samples.scenes.scene import (
    LAYOUTS,
    Scene,
    Thing,
    general_scene,
    generator,
    multi_entity_scene,
)

AXIS = {"left": ("x", 1), "right": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}


def row(*xs: float) -> Scene:
    return Scene("wood", "row", tuple(Thing("cup", "red", x, 0.5, 0.1) for x in xs), 0)


def test_the_world_is_as_rich_as_promised() -> None:
    scenes = [multi_entity_scene(seed) for seed in range(300)]
    assert len(KINDS) >= 10 and len(COLOURS) == 8
    assert {scene.layout for scene in scenes} == set(LAYOUTS)
    assert len({scene.background for scene in scenes}) >= 4
    assert {len(scene.things) for scene in scenes} == set(range(4, 10))
    assert all(len({(t.kind, t.colour) for t in s.things}) == 1 for s in scenes)


def test_a_seed_gives_one_picture() -> None:
    first, again = render(multi_entity_scene(3)), render(multi_entity_scene(3))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != render(multi_entity_scene(4)).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_look_different_in_each_colour(kind: str) -> None:
    looks = {colour: np.asarray(sprite(kind, colour)).astype(int) for colour in COLOURS}
    shapes = {picture.shape for picture in looks.values()}
    assert len(shapes) == 1
    for colour in COLOURS:
        solid = looks[colour][..., 3] > 127
        for other in set(COLOURS) - {colour}:
            assert np.abs(looks[colour] - looks[other])[solid][:, :3].mean() > 8, (colour, other)


def test_masks_hold_the_visible_pixels_alone() -> None:
    behind, front = Thing("apple", "red", 0.5, 0.5, 0.3), Thing("star", "blue", 0.55, 0.5, 0.3)
    scene = Scene("wood", "scattered", (behind, front), 1)
    both, alone = masks(scene), masks(Scene("wood", "scattered", (behind,), 1))
    assert not (both[0] & both[1]).any()
    assert both[0].sum() < alone[0].sum()
    assert (both[0] | both[1]).sum() >= alone[0].sum()


def test_the_box_is_tight() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[96:192, 48:144] = True
    assert box_of(mask) == (0.125, 0.25, 0.375, 0.5)


def test_answers_are_rounded_outwards_with_a_margin() -> None:
    assert pixels((10 / 384, 9 / 384, 19 / 384, 21 / 384), 128) == (2, 2, 8, 8)
    assert pixels((0.0, 0.0, 1.0, 1.0), 128) == (0, 0, 128, 128)


@pytest.mark.parametrize("seed", range(60))
def test_spatial_terms_name_the_right_object_by_a_margin(seed: int) -> None:
    scene = multi_entity_scene(seed)
    for found in references(scene, range(len(scene.things))):
        words = found.term.split()
        side = words[-1].removesuffix("most")
        if side not in AXIS or len(words) == 2:
            continue
        axis, sign = AXIS[side]
        rank = {"second": 1, "third": 2}.get(words[0], 0)
        place = sorted(sign * getattr(t, axis) for t in scene.things)
        here = sign * getattr(scene.things[found.index], axis)
        assert place[rank] == here
        assert all(abs(here - other) >= MARGIN for i, other in enumerate(place) if i != rank)


def test_near_ties_are_not_asked() -> None:
    clear = {r.term for r in references(row(0.1, 0.3, 0.5, 0.7), range(4))}
    tied = {r.term for r in references(row(0.1, 0.1 + MARGIN / 2, 0.5, 0.7), range(4))}
    assert {"leftmost", "second from the left", "rightmost"} <= clear
    assert "leftmost" not in tied and "second from the left" not in tied
    assert "rightmost" in tied


def test_attributes_are_used_only_where_they_single_out() -> None:
    things = (Thing("cup", "red", 0.2, 0.5, 0.1), Thing("cup", "red", 0.8, 0.5, 0.1))
    scene = Scene("wood", "row", (*things, Thing("car", "red", 0.5, 0.2, 0.1)), 0)
    phrases = {r.phrase: r.index for r in all_references(scene)}
    assert "red cup" not in phrases and "cup" not in phrases
    assert phrases["car"] == phrases["red car"] == 2
    assert phrases["leftmost cup"] == 0


@pytest.mark.parametrize("seed", range(40))
def test_an_edit_changes_its_target_alone(seed: int) -> None:
    scene = multi_entity_scene(seed)
    for edit in multi_entity_edits(scene, generator(seed)):
        changed = [i for i, t in enumerate(scene.things) if edit.after.things[i] != t]
        assert changed == [edit.target]
        assert edit.box == box_of(masks(scene)[edit.target])
        assert edit.phrase in edit.instruction


def test_the_general_set_has_six_kinds_of_task() -> None:
    edits = [
        e for seed in range(150) for e in general_edits(general_scene(seed), generator(seed), 2)
    ]
    assert {edit.task for edit in edits} == set(TASKS)
    for edit in edits:
        assert (edit.after != general_scene) and 0 <= edit.box[0] < edit.box[2] <= 1


def test_the_manifest_is_what_the_code_makes() -> None:
    shipped = json.loads((paths.root() / sets.MANIFEST).read_text())
    assert [len(shipped[split]) for split in ("training", "evaluation")] == [400, 200]
    seeds = [row["seed"] for split in ("training", "evaluation") for row in shipped[split]]
    assert len(set(seeds)) == 600
    assert shipped == sets.build_manifest()


def test_samples_carry_exact_truth() -> None:
    evaluation = sets.evaluation()
    sample, edited = evaluation[5], evaluation.edited(5)
    assert sample.masks is not None and sample.target is not None
    assert sample.box == box_of(sample.masks[sample.target])
    rows = json.loads((paths.root() / sets.MANIFEST).read_text())["evaluation"]
    digest = hashlib.sha256(sample.image.tobytes()).hexdigest()
    assert digest[:16] == rows[5]["image"]
    differs = (np.asarray(sample.image) != np.asarray(edited)).any(-1)
    assert differs[sample.masks[sample.target]].mean() > 0.3
    with pytest.raises(IndexError, match="200 samples"):
        evaluation[200]


def test_a_scene_that_differs_from_the_manifest_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sets, "multi_entity_scene", lambda seed: multi_entity_scene(seed + 1))
    monkeypatch.setattr(sets, "_candidate", lambda seed, _: (multi_entity_scene(seed + 1), None))
    with pytest.raises(AbpError, match="differs from its hash"):
        sets.evaluation()[0]


def test_what_the_editor_is_taught_is_asked_on_scenes_of_its_own() -> None:
    samples = sets.named_by_look()
    asked = [samples.scene_edit(index) for index in range(len(samples))]
    assert {edit.term for _, edit in asked} == {LOOK}
    assert {edit.task for _, edit in asked} == {"swap", "attribute", "removal"}
    assert all(len({(t.kind, t.colour) for t in scene.things}) > 1 for scene, _ in asked)
    seeds = {scene.seed for scene, _ in asked}
    assert len(seeds) == len(samples)
    assert min(seeds) >= sets.GENERAL_SEED + sets.GENERAL_SIZE and max(seeds) < 1_000_000_000
