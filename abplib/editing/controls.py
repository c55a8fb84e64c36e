"""Controls beside the editors of Table 1: one does nothing, one all that is asked.

Preservation alone rewards doing nothing, and a perfect edit bounds every score from above.
"""

from __future__ import annotations

from PIL import Image

from abplib.core.boxes import pixels_inside
from abplib.core.images import load_image
from abplib.samples.base import EditedSamples, SampleSet


def identity(samples: SampleSet, index: int) -> Image.Image:
    """The source of a sample."""
    return load_image(samples[index].image)


def paste(samples: EditedSamples, index: int) -> Image.Image:
    """The source of a sample with its exact edit in its exact box."""
    source = identity(samples, index)
    inside = pixels_inside(samples[index].box, source.height, source.width)
    source.paste(samples.edited(index), mask=Image.fromarray(inside))
    return source
