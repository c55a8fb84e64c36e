"""Reading scenes back from images: held-out samples, as editors would return them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from abplib.core.errors import AbpError
from abplib.judging.scene_reading import LOOKS, read
from abplib.samples.scenes.render import SIDE, STYLES, masks, render, render_looks
from abplib.samples.scenes.scene import BACKGROUNDS, Scene, Thing, multi_entity_scene
from abplib.samples.scenes.sets import evaluation

HELD_OUT = range(0, 200, 5)


def small(image: Image.Image, side: int) -> Image.Image:
    """Down to `side` pixels and up again, as an editor of lower resolution returns it."""
    return image.resize((side, side), Image.Resampling.BOX).resize((SIDE, SIDE))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def noisy(image: Image.Image, deviation: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, deviation, (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def brighter(image: Image.Image, factor: float) -> Image.Image:
    return image.point(lambda v: min(255, round(v * factor)))


def gamma(image: Image.Image, power: float) -> Image.Image:
    return image.point(lambda v: round(255 * (v / 255) ** power))


def moved(image: Image.Image, right: int, down: int) -> Image.Image:
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), "edge")
    return Image.fromarray(padded[4 - down : 4 - down + SIDE, 4 - right : 4 - right + SIDE])


PERTURBATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(5)),
    "four times smaller": lambda image: small(image, SIDE // 4),
    "six times smaller": lambda image: small(image, SIDE // 6),
    "noise": lambda image: noisy(image, 12),
    "jpeg": lambda image: jpeg(image, 20),
    "brighter": lambda image: brighter(image, 1.05),
    "darker": lambda image: gamma(image, 1.05),
    "moved": lambda image: moved(image, 2, -1),
    "all": lambda image: jpeg(noisy(gamma(moved(small(image, SIDE // 5), 1, 1), 0.95), 6), 50),
}


@pytest.fixture
def scene() -> Scene:
    return multi_entity_scene(3)


def test_held_out_targets_are_read_under_every_perturbation() -> None:
    samples = evaluation()
    right = {name: [0, 0] for name in PERTURBATIONS}
    false_alarms = 0
    for index in HELD_OUT:
        scene, edit = samples.scene_edit(index)
        truth = [(thing.kind, thing.colour) for thing in edit.after.things]
        target = samples.edited(index)
        readings = read(scene, [change(target) for change in PERTURBATIONS.values()])
        for name, found in zip(PERTURBATIONS, readings, strict=True):
            looks = zip(found.looks, truth, found.clear, strict=True)
            same = [shown == true and clear for shown, true, clear in looks]
            right[name][0] += sum(same)
            right[name][1] += len(same)
            false_alarms += found.appeared > 0 or not found.ground_kept
    assert all(n > 200 for _, n in right.values())
    assert {name: k / n for name, (k, n) in right.items() if k < 0.99 * n} == {}
    assert false_alarms == 0


@pytest.mark.parametrize("side", [64, 128, SIDE])
def test_objects_are_read_from_an_image_of_any_side(scene: Scene, side: int) -> None:
    first, _, *rest = scene.things
    shown = replace(scene, things=(replace(first, kind="house", colour="pink"), *rest))
    (found,) = read(scene, [render(shown).resize((side, side))])
    assert found.looks == (("house", "pink"), None, *((t.kind, t.colour) for t in rest))


def test_every_look_at_one_place_is_told_from_every_other() -> None:
    scene = Scene("grass", "row", (Thing("cup", "red", 0.4, 0.5, 0.14),), 0)
    shown = [() if look is None else (Thing(*look, 0.4, 0.5, 0.14),) for look in LOOKS]
    images = [small(render(replace(scene, things=things)), 96) for things in shown]
    assert [found.looks[0] for found in read(scene, images)] == list(LOOKS)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_a_blend_is_what_it_is_nearest_to(scene: Scene, share: float) -> None:
    first, *rest = scene.things
    assert first.kind != "house"
    other = replace(scene, things=(replace(first, kind="house"), *rest))
    found = read(scene, [Image.blend(render(scene), render(other), share)])[0]
    assert found.looks[0] == ("house" if share > 0.5 else first.kind, first.colour)
    assert all(found.clear)


def test_a_blend_half_way_between_unlike_looks_is_not_clear() -> None:
    scene = Scene("sand", "row", (Thing("star", "blue", 0.3, 0.5, 0.2),), 0)
    other = replace(scene, things=(Thing("house", "yellow", 0.3, 0.5, 0.2),))
    found = read(scene, [Image.blend(render(scene), render(other), 0.5)])[0]
    assert found.clear == (False,)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_changed_ground_or_style_is_not_kept(background: str) -> None:
    scene = replace(multi_entity_scene(5), background=background)
    others = [replace(scene, background=name) for name in BACKGROUNDS if name != background]
    styled = [replace(scene, style=style) for style in STYLES]
    kept = read(scene, [render(changed) for changed in (scene, *others, *styled)])
    assert [found.ground_kept for found in kept] == [True] + [False] * (len(kept) - 1)


def test_new_objects_are_counted_each() -> None:
    scene = Scene("wood", "row", (Thing("cup", "red", 0.2, 0.5, 0.15),), 0)
    new = (Thing("cup", "red", 0.5, 0.2, 0.15), Thing("fish", "white", 0.7, 0.8, 0.15))
    images = [render(replace(scene, things=(*scene.things, *new[:n]))) for n in range(3)]
    assert [found.appeared for found in read(scene, images)] == [0, 1, 2]


def test_a_shadow_left_behind_is_no_new_object() -> None:
    scene = Scene("paper", "row", (Thing("apple", "red", 0.5, 0.5, 0.22),), 0)
    gone = render(replace(scene, things=()))
    body = Image.fromarray(masks(scene)[0]).convert("L").filter(ImageFilter.MaxFilter(3))
    left = Image.composite(gone, render(scene), body)
    assert read(scene, [left])[0].appeared == 0


def test_a_window_shows_what_the_whole_picture_does(scene: Scene) -> None:
    window = (100, 60, 300, 340)
    own = (scene.things[1].kind, scene.things[1].colour)
    there, gone = render_looks(scene, 1, [own, None], window)
    rest = tuple(t for i, t in enumerate(scene.things) if i != 1)
    assert there.tobytes() == render(scene).crop(window).tobytes()
    assert gone.tobytes() == render(replace(scene, things=rest)).crop(window).tobytes()


def test_an_image_of_other_proportions_is_refused(scene: Scene) -> None:
    with pytest.raises(AbpError, match="40 x 30 px, but scenes are square"):
        read(scene, [Image.new("RGB", (40, 30))])
