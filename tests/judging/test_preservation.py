"""Distances outside the box: their definitions, and that nothing inside reaches them."""

from __future__ import annotations

import warnings

import lpips as package
import numpy as np
import pytest
import torch
import torchvision
from conftest import noise
from PIL import Image, ImageChops, ImageFilter
from safetensors.torch import load_file
from torch import Tensor

from abplib.core import paths
from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.judging.preservation import COLUMNS, WEIGHTS, Preservation
from abplib.samples.scenes.render import render
from abplib.samples.scenes.scene import general_scene

HALF: Box = (0.0, 0.0, 0.5, 1.0)
NOTHING: Box = (0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def preservation() -> Preservation:
    return Preservation()


@pytest.fixture(scope="module")
def reference() -> package.LPIPS:
    """The package's own LPIPS around torchvision's AlexNet, which takes the shipped weights."""
    alexnet = torchvision.models.alexnet()
    shipped = load_file(paths.root() / WEIGHTS)
    missing, unknown = alexnet.load_state_dict(shipped, strict=False)
    assert not unknown and all(name.startswith("classifier") for name in missing)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patched:
        warnings.simplefilter("ignore")
        patched.setattr(torchvision.models, "alexnet", lambda **_: alexnet)
        return package.LPIPS(net="alex", verbose=False).requires_grad_(False)


def tensor(pixels: np.ndarray) -> Tensor:
    """[H, W, 3] of bytes -> [1, 3, H, W] in [-1, 1], as LPIPS takes it."""
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None].float()


def edited(image: Image.Image, box: Box, by: int = 60) -> Image.Image:
    """The image, brighter by `by` of 255 in the box alone."""
    pixels = np.asarray(image).astype(int)
    height, width, _ = pixels.shape
    x1, y1, x2, y2 = (round(v) for v in np.array(box) * [width, height, width, height])
    pixels[y1:y2, x1:x2] += by
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def one(preservation: Preservation, source: Image.Image, edit: Image.Image, box: Box) -> dict:
    return preservation.rows(source, [edit], box).iloc[0].to_dict()


@pytest.mark.parametrize(("pixels", "side"), [(80, 256), (120, 40), (120, None)])
def test_an_edit_of_the_box_alone_preserves_everything(pixels: int, side: int | None) -> None:
    source, box = noise(pixels, pixels), (0.33, 0.33, 0.66, 0.66)
    row = one(Preservation(side=side), source, edited(source, box), box)
    assert row == {"lpips": 0, "l2": 0}


@pytest.mark.parametrize("box", [NOTHING, HALF, (0.1, 0.1, 0.9, 0.9)])
def test_l2_is_the_mean_squared_difference_outside(preservation: Preservation, box: Box) -> None:
    source = Image.new("RGB", (70, 50), (10, 60, 110))
    edit = Image.new("RGB", (70, 50), (61, 111, 161))  # 51 of 255 brighter everywhere
    assert one(preservation, source, edit, box)["l2"] == pytest.approx(0.04, rel=1e-5)


def test_lpips_is_that_of_the_package(preservation: Preservation, reference: package.LPIPS) -> None:
    source, edit = noise(64, 48, seed=1), noise(64, 48, seed=2)
    a, b = np.asarray(source), np.asarray(edit)
    inside = np.zeros((48, 64, 1), dtype=bool)
    inside[:, :32] = True
    composite = reference(tensor(a), tensor(np.where(inside, a, b))).item() / 0.5
    assert one(preservation, source, edit, HALF)["lpips"] == pytest.approx(composite, rel=1e-4)


def test_edits_of_one_source_are_measured_each(preservation: Preservation) -> None:
    source, edits = noise(64, 40), [noise(64, 40, seed=1), noise(64, 40, seed=2).convert("RGBA")]
    together = preservation.rows(source, edits, HALF)
    assert list(together.columns) == list(COLUMNS)
    for (_, row), edit in zip(together.iterrows(), edits, strict=True):
        assert one(preservation, source, edit, HALF) == pytest.approx(row.to_dict(), rel=1e-4)
    assert preservation.rows(source, edits, (0, 0, 1, 1)).isna().all(axis=None)  # nothing outside


def test_building_it_draws_no_random_numbers_of_the_run(preservation: Preservation) -> None:
    before = torch.get_rng_state()
    again = Preservation()
    assert torch.equal(torch.get_rng_state(), before)
    assert again.fingerprint == preservation.fingerprint
    assert Preservation(side=64).fingerprint != preservation.fingerprint


def test_without_its_weights_there_is_no_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABP_ROOT", "/nowhere")
    with pytest.raises(AbpError, match=r"alexnet_features.safetensors under LPIPS are missing"):
        Preservation()


def test_what_people_call_more_alike_is_nearer(preservation: Preservation) -> None:
    """What the trained network is for: a small shift is less than a blur of like squared error."""
    source = render(general_scene(3))
    moved = ImageChops.offset(source, 1, 0)
    blurred = source.filter(ImageFilter.GaussianBlur(2))
    near, far = (one(preservation, source, edit, NOTHING) for edit in (moved, blurred))
    assert near["lpips"] < 0.5 * far["lpips"]


def test_at_the_images_own_size_nothing_is_resized(reference: package.LPIPS) -> None:
    source, edit = noise(400, 300, seed=1), noise(400, 300, seed=2)
    whole, small = Preservation(side=None), Preservation()
    assert whole.name_of_lpips == "LPIPS at the images' own size"
    assert whole.fingerprint != small.fingerprint
    own = reference(tensor(np.asarray(source)), tensor(np.asarray(edit))).item()
    assert one(whole, source, edit, NOTHING)["lpips"] == pytest.approx(own, rel=1e-4)
    assert one(small, source, edit, NOTHING)["lpips"] != pytest.approx(own, rel=1e-2)


@pytest.mark.parametrize(
    ("size", "edited_size", "said"),
    [
        ((40, 40), (50, 40), "The edit has 50 x 40 pixels and its source 40 x 40"),
        ((600, 60), (600, 60), "600 x 60 pixels leave less than the 31"),
    ],
)
def test_bad_input_is_named(
    preservation: Preservation, size: tuple[int, int], edited_size: tuple[int, int], said: str
) -> None:
    with pytest.raises(AbpError, match=said):
        preservation.rows(noise(*size), [noise(*edited_size)], HALF)
    with pytest.raises(AbpError, match="needs 31 pixels a side, not 30"):
        Preservation(side=30)
