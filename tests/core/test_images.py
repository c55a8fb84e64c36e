from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CASES, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from abplib.core.errors import AbpError
from abplib.core.images import data_url, digest, load_image

GREY = CASES / "01-sixteen-bit-gray"
MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "La", "RGBa",
         "RGBX", "I;16", "I;16B", "I;16L", "I", "F")  # fmt: skip


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_are_scaled_and_not_clipped(mode: str) -> None:
    """Field case 01."""
    expected = pixels(load_image(GREY / "gray8.png"))
    for name in ("gray16.png", "gray16.tif", "gray16be.tif"):
        assert (pixels(load_image(GREY / name)) == expected).all()
    numbers = np.asarray(Image.open(GREY / "gray16.png"))
    raw = numbers.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    image = Image.frombytes(mode, (384, 384), raw)
    assert (pixels(load_image(image)) == expected).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_whose_white_is_not_known_are_refused(mode: str) -> None:
    with pytest.raises(AbpError, match=f"32-bit numbers .mode {mode}., whose white is not known"):
        load_image(Image.open(GREY / "gray8.png").convert(mode))
    with pytest.raises(AbpError, match=r"float\.tif holds 32-bit numbers"):
        load_image(GREY / "float.tif")


@pytest.mark.parametrize("under", ["noise", "black"])
def test_what_is_transparent_lies_on_white(under: str) -> None:
    """Field case 02: the colours under an alpha of 0 mean nothing."""
    path = CASES / f"02-transparent-png/cutout_{under}_under.png"
    shown, alpha = pixels(load_image(path)), np.asarray(Image.open(path))[..., 3]
    assert (shown[alpha == 0] == 255).all()
    assert (shown[alpha == 255] == np.asarray(Image.open(path))[alpha == 255][:, :3]).all()
    half = Image.new("LA", (2, 2), (0, 128))
    assert abs(pixels(load_image(half)) - 127).max() <= 1


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "P"])
def test_a_transparent_colour_is_white(mode: str) -> None:
    colour: Any = (0, 0, 0) if mode == "RGB" else 0
    file = io.BytesIO()
    Image.new(mode, (4, 4), colour).save(file, "png", transparency=colour)
    assert (pixels(load_image(file.getvalue())) == 255).all()


def test_a_png_may_carry_a_large_text() -> None:
    """Field case 03."""
    for name in ("comfy.png", "comfy_itxt.png"):
        assert load_image(CASES / "03-png-large-workflow-text" / name).size == (384, 384)


@pytest.mark.parametrize("name", ["anim.gif", "anim.webp", "cmyk.jpg", "lab.tif", "ycbcr.tif",
                                  "palette_transparent.png"])  # fmt: skip
def test_a_picture_is_the_same_in_any_mode(name: str) -> None:
    """Field case 05: one picture in several modes, to what coding and rounding change."""
    same = pixels(load_image(CASES / "05-odd-colour-modes/palette.png"))
    assert abs(pixels(load_image(CASES / "05-odd-colour-modes" / name)) - same).mean() < 3


def test_one_bit_is_black_or_white() -> None:
    """Field case 05."""
    found = pixels(load_image(CASES / "05-odd-colour-modes/bilevel.png"))
    assert set(np.unique(found)) == {0, 255}


def test_images_become_upright_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter
    noise(40, 20).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (20, 40)
    for mode in ("L", "RGBA", "P"):
        assert load_image(noise(8, 8).convert(mode)).mode == "RGB"


def test_an_image_is_given_back_as_another() -> None:
    image = noise(8, 8)
    assert load_image(image) is not image
    assert (pixels(load_image(image)) == pixels(image)).all()


def test_what_is_no_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_text("not an image")
    noise(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    cases: list[tuple[Any, str]] = [
        (tmp_path / "absent.png", "There is no image at .*absent.png"),
        (tmp_path / "text.png", "text.png cannot be read as an image"),
        (tmp_path / "cut.png", "cut.png cannot be read as an image"),
        (tmp_path, "cannot be read as an image"),
        (b"", "The picture cannot be read as an image"),
        (Image.new("RGB", (0, 4)), "The picture cannot be read as an image"),
        (np.zeros((4, 4, 3)), "A ndarray is not an image"),
    ]
    for wrong, message in cases:
        with pytest.raises(AbpError, match=message):
            load_image(wrong)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(AbpError, match=r"whole\.png has too many pixels"):
        load_image(tmp_path / "whole.png")


@settings(deadline=None, max_examples=150)
@given(
    mode=st.sampled_from(MODES),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    orientation=st.integers(0, 12),
    colour=st.integers(0, 255),
)
def test_any_mode_is_shown_whole_or_refused(
    mode: str, size: tuple[int, int], orientation: int, colour: int
) -> None:
    image = Image.new("RGB", size, (colour, 0, 0)) if mode == "P" else Image.new(mode, size)
    image = image.convert("P") if mode == "P" else image
    image.getexif()[0x0112] = orientation
    try:
        shown = load_image(image)
    except AbpError:
        assert mode in ("I", "F")
    else:
        assert shown.size == (size[::-1] if 5 <= orientation <= 8 else size)


@settings(deadline=None, max_examples=200)
@given(
    kind=st.sampled_from(["png", "jpeg", "tiff", "webp", "gif", "bmp"]),
    noted=st.text(max_size=30),
    exif=st.binary(max_size=60),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8)), max_size=3),
)
def test_whatever_the_file_a_picture_or_a_sentence(
    kind: str, noted: str, exif: bytes, cuts: list[tuple[float, bytes]]
) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("workflow", noted)
    extra: dict[str, Any] = {"pnginfo": text} if kind == "png" else {}
    if kind in ("png", "jpeg", "webp"):
        extra["exif"] = b"Exif\0\0" + exif
    file = io.BytesIO()
    noise(9, 7).save(file, kind, **extra)
    raw = bytearray(file.getvalue())
    for where, other in cuts:
        start = int(where * len(raw))
        raw[start : start + len(other)] = other
    try:
        assert load_image(bytes(raw)).mode == "RGB"
    except AbpError as error:
        assert "\n" not in str(error)
        assert cuts or exif


def test_an_image_is_its_pixels_and_its_size() -> None:
    image = Image.new("RGB", (4, 2), (1, 2, 3))
    assert digest(image) == digest(image.convert("RGBA"))
    assert digest(image) != digest(image.resize((2, 4)))
    head, _, data = data_url(image).partition(",")
    again = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/png;base64" and digest(again) == digest(image)
