"""Images: the one way in for a picture of the user's, and how one travels as bytes."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from abplib.core.errors import AbpError

ImageLike = Image.Image | str | Path | bytes
"""A picture, the path of its file, or what the file holds."""

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # workflows are kept in PNGs


def load_image(image: ImageLike) -> Image.Image:
    """The picture as it is shown: upright, 8-bit RGB, what is transparent on white.

    16 bits are scaled to 8. A new image, also where one is given.

    Raises:
        AbpError: there is no such file, it is not a whole image or too large, or its white is not
            known (32-bit numbers).
    """
    if not isinstance(image, ImageLike):
        raise AbpError(
            f"A {type(image).__name__} is not an image; give a PIL image or the path of one."
        )
    name = image if isinstance(image, (str, Path)) else "The picture"
    try:
        if isinstance(image, Image.Image):
            return _shown(image)
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return _shown(opened)
    except FileNotFoundError:
        raise AbpError(f"There is no image at {name}; check the path.") from None
    except _UnknownWhiteError as error:
        raise AbpError(
            f"{name} holds 32-bit numbers (mode {error}), whose white is not known; save it with 8 "
            "or 16 bits."
        ) from None
    except Image.DecompressionBombError:
        raise AbpError(f"{name} has too many pixels to be opened safely; scale it down.") from None
    except Exception as error:  # Pillow's readers of formats and metadata raise what they like
        raise AbpError(
            f"{name} cannot be read as an image; give a whole PNG or JPEG file."
        ) from error


class _UnknownWhiteError(Exception):
    """Of a mode that does not say how large its numbers are."""


def _shown(image: Image.Image) -> Image.Image:
    if not all(image.size):
        raise ValueError("no pixels")
    if image.mode in ("I", "F"):
        raise _UnknownWhiteError(image.mode)
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        numbers = np.asarray(upright)
        grey = np.rint(numbers / 257).astype(np.uint8)
        grey[numbers == upright.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    if upright.mode == "La":
        upright = upright.convert("LA")
    rgba = upright.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def digest(image: Image.Image) -> str:
    """SHA-256, in hex, of an image's size and its RGB pixels, whatever file they came from."""
    told = hashlib.sha256(f"{image.width}x{image.height}".encode())
    told.update(image.convert("RGB").tobytes())
    return told.hexdigest()


def png(image: Image.Image) -> bytes:
    """The image as an RGB PNG file; nothing is lost."""
    file = io.BytesIO()
    image.convert("RGB").save(file, format="png")
    return file.getvalue()


def data_url(image: Image.Image) -> str:
    """The same as a `data:` URL."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()
