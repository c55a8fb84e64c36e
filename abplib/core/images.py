"""Images as bytes: what identifies one, and how it travels to a judge or a labelling tool."""

from __future__ import annotations

import base64
import hashlib
import io

from PIL import Image


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
