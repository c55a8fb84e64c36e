"""Nine samples of two shapes, with boxes and known edits, for training in seconds."""

from __future__ import annotations

from conftest import noise
from PIL import Image, ImageOps

from abplib.samples.base import Sample

SIZES = ((64, 64), (96, 48))


class Toys:
    """Noise, to be flipped."""

    name = "toys"
    fingerprint = "toys"

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Sample:
        image = noise(*SIZES[index % 2], seed=index)
        instruction = "flip it" + " again" * (index % 3)
        return Sample(str(index), image, instruction, (0.1, 0.2, 0.5, 0.7))

    def edited(self, index: int) -> Image.Image:
        return ImageOps.mirror(self[index].image)


def toys() -> Toys:
    return Toys()
