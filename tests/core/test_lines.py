"""Lines that are whole, and images as bytes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image
from pydantic import BaseModel

from abplib.core import images, store
from abplib.core.errors import AbpError


class Note(BaseModel):
    """A line."""

    text: str


def test_a_half_line_is_no_line_and_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "notes.jsonl"
    assert store.read_lines(path, Note) == []
    for text in ("ä", "b\nb"):
        store.append_line(path, Note(text=text))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"text": "c')
    assert [note.text for note in store.read_lines(path, Note)] == ["ä", "b\nb"]
    store.append_line(path, Note(text="d"))
    assert path.read_bytes() == whole + b'{"text":"d"}\n'
    path.write_bytes(b"{")
    store.append_line(path, Note(text="e"))
    assert [note.text for note in store.read_lines(path, Note)] == ["e"]


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}\n")
    with pytest.raises(AbpError, match=r"Line 1 of .*file is no note"):
        store.read_lines(tmp_path / "file", Note)
    with pytest.raises(AbpError, match=r"Cannot write .*lines before are kept"):
        store.append_line(tmp_path / "file" / "notes.jsonl", Note(text="a"))
    with pytest.raises(AbpError, match="cannot be read"):
        store.read_lines(tmp_path, Note)


def test_an_image_is_its_pixels_and_its_size() -> None:
    image = Image.new("RGB", (4, 2), (1, 2, 3))
    assert images.digest(image) == images.digest(image.convert("RGBA"))
    assert images.digest(image) != images.digest(image.resize((2, 4)))
    head, _, data = images.data_url(image).partition(",")
    again = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/png;base64" and images.digest(again) == images.digest(image)
