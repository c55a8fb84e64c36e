"""Controls beside the editors of Table 1: one does nothing, one all that is asked.

Preservation alone rewards doing nothing, and a perfect edit bounds every score from above.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

from PIL import Image

from abplib.core.boxes import pixels_inside
from abplib.core.errors import AbpError
from abplib.core.images import load_image
from abplib.core.store import digest
from abplib.editing.base import Editor, Request
from abplib.samples.base import EditedSamples


class Identity(Editor):
    """Returns the source."""

    @property
    def name(self) -> str:
        """As figures call it."""
        return "No edit"

    @property
    def fingerprint(self) -> str:
        """The same everywhere."""
        return digest("identity")

    def _edit_many(self, requests: Sequence[Request]) -> list[Image.Image]:
        return [load_image(request.image) for request in requests]


class Paste(Editor):
    """Pastes the exact edit into the sample's box; knows the samples of one set and no others."""

    def __init__(self, samples: EditedSamples) -> None:
        self.samples = samples

    @property
    def name(self) -> str:
        """As figures call it."""
        return "Pasted target"

    @property
    def fingerprint(self) -> str:
        """That of the samples."""
        return digest(["paste", self.samples.fingerprint])

    def _edit_many(self, requests: Sequence[Request]) -> list[Image.Image]:
        return [self._pasted(load_image(asked.image), asked.instruction) for asked in requests]

    def _pasted(self, source: Image.Image, instruction: str) -> Image.Image:
        index = self._indices.get(_key(source, instruction))
        if index is None:
            raise AbpError(
                f"{instruction!r} on this image is no sample of {self.samples.name}, and the "
                "exact edits of others are not known; give that set's images and instructions."
            )
        inside = pixels_inside(self.samples[index].box, source.height, source.width)
        source.paste(self.samples.edited(index), mask=Image.fromarray(inside))
        return source

    @cached_property
    def _indices(self) -> dict[bytes, int]:
        """Where each image with its instruction is in the set."""
        samples = (self.samples[index] for index in range(len(self.samples)))
        return {_key(s.image, s.instruction): index for index, s in enumerate(samples)}


def _key(image: Image.Image, instruction: str) -> bytes:
    return hashlib.sha256(image.tobytes() + instruction.encode()).digest()
