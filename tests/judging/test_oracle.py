"""The scene oracle on edits made by hand: every kind of failure, in every layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from conftest import Listed
from PIL import Image, ImageFilter

from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.judging import base
from abplib.judging.base import Judgement
from abplib.judging.scene_oracle import SceneOracle
from abplib.samples.base import Sample
from abplib.samples.scenes.edits import Edit, object_boxes
from abplib.samples.scenes.render import Look, render
from abplib.samples.scenes.scene import LAYOUTS, Scene, Thing, multi_entity_scene
from abplib.samples.scenes.sets import SceneSamples, general

TARGET = 1
Verdict = tuple[bool, str | None, int, int, int]


def looking(scene: Scene, looks: Mapping[int, Look | None]) -> Scene:
    """The scene with some objects in other looks; None takes them away."""
    things = []
    for i, thing in enumerate(scene.things):
        look = looks.get(i, (thing.kind, thing.colour))
        if look is not None:
            things.append(replace(thing, kind=look[0], colour=look[1]))
    return replace(scene, things=tuple(things))


def samples(scene: Scene, asked: Look | None, task: str = "swap") -> SceneSamples:
    """A set of one sample: object `TARGET` is to get a look, or to go."""
    after = looking(scene, {TARGET: asked})
    box: Box = object_boxes(scene)[TARGET]
    edit = Edit(task, "Turn it.", "{box}", "it", "second", TARGET, box, after)
    return SceneSamples("made by hand", 1, lambda _: ("one", scene, edit), None)


def with_extra(scene: Scene, look: Look) -> Scene:
    """The scene with one thing more, at the first place that is free."""
    size = min(thing.size for thing in scene.things)
    for x, y in ((x / 20, y / 20) for y in range(3, 18) for x in range(3, 18)):
        if all(max(abs(t.x - x), abs(t.y - y)) > 0.55 * (t.size + size) for t in scene.things):
            return replace(scene, things=(*scene.things, Thing(*look, x, y, size)))
    raise AssertionError("no place is free")


def verdict(found: Judgement) -> Verdict:
    return found.success, found.failure, found.edit, found.accuracy, found.leakage


def soft(image: Image.Image) -> Image.Image:
    """As a small editor returns it."""
    return image.resize((128, 128)).filter(ImageFilter.GaussianBlur(1)).resize(image.size)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_edit_gets_its_verdict(layout: str) -> None:
    scene = multi_entity_scene(11, layout)
    kind, colour = scene.things[0].kind, scene.things[0].colour
    asked: Look = ("house" if kind != "house" else "boat", "blue" if colour != "blue" else "red")
    wrong: Look = ("star" if kind != "star" else "fish", "pink" if colour != "pink" else "green")
    n = len(scene.things)
    others = [i for i in range(n) if i != TARGET]
    done = looking(scene, {TARGET: asked})
    ground = "wood" if scene.background != "wood" else "cloth"
    last, first = others[-1], others[0]
    cases: dict[str, tuple[Scene, Verdict]] = {
        "unedited": (scene, (False, base.NO_EDIT, 0, 0, 4)),
        "exact": (done, (True, None, 4, 4, 4)),
        "asked colour": (looking(scene, {TARGET: (kind, asked[1])}), (True, None, 2, 2, 4)),
        "asked kind": (looking(scene, {TARGET: (asked[0], colour)}), (True, None, 2, 2, 4)),
        "nothing as asked": (looking(scene, {TARGET: wrong}), (True, None, 1, 1, 4)),
        "another": (looking(scene, {last: asked}), (False, base.WRONG_OBJECT, 0, 0, 3)),
        "another and one more": (
            looking(scene, {last: asked, first: wrong}), (False, base.WRONG_OBJECT, 0, 0, 2)
        ),
        "otherwise": (looking(scene, {last: wrong}), (False, base.WRONG_RESULT, 0, 0, 3)),
        "a neighbour too": (looking(done, {first: asked}), (False, base.LEAKAGE, 3, 4, 3)),
        "all": (looking(scene, dict.fromkeys(range(n), asked)), (False, base.LEAKAGE, 1, 4, 0)),
        "target gone": (looking(scene, {TARGET: None}), (False, base.EXCESSIVE_REMOVAL, 0, 0, 4)),
        "another gone": (looking(done, {last: None}), (False, base.EXCESSIVE_REMOVAL, 3, 4, 3)),
        "all gone": (replace(scene, things=()), (False, base.EXCESSIVE_REMOVAL, 0, 0, 0)),
        "new thing": (with_extra(scene, asked), (False, base.HALLUCINATION, 0, 0, 3)),
        "new thing and target": (with_extra(done, asked), (False, base.HALLUCINATION, 3, 4, 3)),
        "ground too": (replace(done, background=ground), (False, base.LEAKAGE, 1, 4, 0)),
        "ground alone": (replace(scene, background=ground), (False, base.WRONG_RESULT, 0, 0, 0)),
    }  # fmt: skip
    expected = {name: told for name, (_, told) in cases.items()}
    for change in (Image.Image.copy, soft):
        images = [change(render(edited)) for edited, _ in cases.values()]
        found = SceneOracle().judge(samples(scene, asked), 0, images)
        assert dict(zip(cases, map(verdict, found), strict=True)) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_removal_asks_for_bare_ground(layout: str) -> None:
    scene = multi_entity_scene(12, layout)
    kind, colour = scene.things[0].kind, scene.things[0].colour
    other: Look = (kind, "green" if colour != "green" else "red")
    cases: dict[str, tuple[Scene, Verdict]] = {
        "unedited": (scene, (False, base.NO_EDIT, 0, 0, 4)),
        "exact": (looking(scene, {TARGET: None}), (True, None, 4, 4, 4)),
        "changed": (looking(scene, {TARGET: other}), (False, base.WRONG_RESULT, 1, 1, 4)),
        "another": (looking(scene, {2: None}), (False, base.WRONG_OBJECT, 0, 0, 3)),
        "both": (looking(scene, {1: None, 2: None}), (False, base.EXCESSIVE_REMOVAL, 3, 4, 3)),
    }
    images = [soft(render(edited)) for edited, _ in cases.values()]
    found = SceneOracle().judge(samples(scene, None, "removal"), 0, images)
    expected = {name: told for name, (_, told) in cases.items()}
    assert dict(zip(cases, map(verdict, found), strict=True)) == expected


def test_leakage_and_adherence_never_rise_with_what_else_changes() -> None:
    scene = multi_entity_scene(8, "grid")
    steps = [looking(scene, dict.fromkeys([TARGET], ("fish", "white")))]
    for i in (i for i in range(len(scene.things)) if i != TARGET):
        steps.append(looking(steps[-1], {i: ("fish", "white")}))
    found = SceneOracle().judge(
        samples(scene, ("fish", "white")), 0, [render(step) for step in steps]
    )
    leakage, edit = [each.leakage for each in found], [each.edit for each in found]
    assert leakage == sorted(leakage, reverse=True) and edit == sorted(edit, reverse=True)
    assert (leakage[0], leakage[-1], edit[0], edit[-1]) == (4, 0, 4, 1)
    assert all(each.accuracy == 4 for each in found)


def test_a_colour_asked_of_one_thing_is_known_on_a_thing_of_another_kind() -> None:
    things = (Thing("cup", "red", 0.2, 0.5, 0.15), Thing("car", "red", 0.5, 0.5, 0.15))
    scene = Scene("sand", "row", (*things, Thing("fish", "blue", 0.8, 0.5, 0.15)), 0)
    images = [render(looking(scene, {i: (scene.things[i].kind, "green")})) for i in range(3)]
    found = SceneOracle().judge(samples(scene, ("car", "green"), "attribute"), 0, images)
    assert [each.failure for each in found] == [base.WRONG_OBJECT, None, base.WRONG_OBJECT]
    assert [each.accuracy for each in found] == [0, 4, 0]


def test_a_thing_that_already_looks_as_asked_is_kept() -> None:
    things = (Thing("cup", "green", 0.2, 0.5, 0.15), Thing("cup", "red", 0.5, 0.5, 0.15))
    scene = Scene("sand", "row", (*things, Thing("cup", "blue", 0.8, 0.5, 0.15)), 0)
    cases = samples(scene, ("cup", "green"), "attribute")
    found = SceneOracle().judge(cases, 0, [render(scene), cases.edited(0)])
    assert [verdict(each) for each in found] == [
        (False, base.NO_EDIT, 0, 0, 4),
        (True, None, 4, 4, 4),
    ]


def test_a_garbled_target_is_altered_and_a_garbled_neighbour_is_not_kept() -> None:
    things = tuple(Thing("star", "blue", x, 0.5, 0.2) for x in (0.2, 0.5, 0.8))
    scene = Scene("sand", "row", things, 0)
    halves = [
        Image.blend(render(scene), render(looking(scene, {i: ("house", "yellow")})), 0.5)
        for i in (TARGET, 0)
    ]
    target, neighbour = SceneOracle().judge(samples(scene, ("fish", "white")), 0, halves)
    assert target.success and 0 < target.accuracy < 4 and target.leakage == 4
    assert neighbour.failure == base.WRONG_RESULT and neighbour.leakage == 3


def test_verdicts_do_not_depend_on_the_company() -> None:
    scene = multi_entity_scene(4)
    cases = samples(scene, ("apple", "white"))
    images = [soft(cases.edited(0)), render(scene)]
    oracle = SceneOracle()
    assert oracle.judge(cases, 0, images) == [oracle.judge(cases, 0, [i])[0] for i in images]


def test_the_reason_names_what_happened() -> None:
    scene = multi_entity_scene(4)
    cases = samples(scene, ("apple", "white"))
    edited = with_extra(cases.scene_edit(0)[1].after, ("apple", "white"))
    reason = SceneOracle().judge(cases, 0, [render(edited)])[0].reason
    thing, n = scene.things[TARGET], len(scene.things) - 1
    assert f"{thing.colour} {thing.kind}, became a white apple as asked" in reason
    assert f"0 of {n} others changed; 1 new on the ground; the ground was kept." in reason


def test_what_the_oracle_cannot_judge_is_refused() -> None:
    image = Image.new("RGB", (8, 8))
    with pytest.raises(AbpError, match="cannot judge listed"):
        SceneOracle().judge(Listed([Sample("s", image, "", (0, 0, 1, 1))]), 0, [image])
    broad = next(i for i in range(200) if general().scene_edit(i)[1].task == "style")
    with pytest.raises(AbpError, match=f"sample {broad} of general asks for style"):
        SceneOracle().judge(general(), broad, [image])
