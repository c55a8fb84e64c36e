from __future__ import annotations

import numpy as np
from conftest import Listed, noise
from toypairs import Toys

from abplib.editing.controls import identity, paste
from abplib.samples.base import Sample


def test_identity_returns_the_upright_source() -> None:
    source = noise(20, 10)
    upright = identity(Listed([Sample("s", source, "remove it", (0, 0, 1, 1))]), 0)
    assert upright.tobytes() == noise(20, 10).tobytes()
    source.getexif()[0x0112] = 6  # turned by a quarter
    turned = identity(Listed([Sample("s", source, "remove it", (0, 0, 1, 1))]), 0)
    assert turned.size == (10, 20)


def test_paste_changes_the_pixels_in_the_box_to_the_target() -> None:
    samples = Toys()  # of which the box is from 0.1, 0.2 to 0.5, 0.7
    for index in (1, 0):
        source, target = np.array(samples[index].image), np.array(samples.edited(index))
        height, width, _ = source.shape
        rows = (np.arange(height) + 0.5) / height
        columns = (np.arange(width) + 0.5) / width
        inside = np.ix_((rows >= 0.2) & (rows < 0.7), (columns >= 0.1) & (columns < 0.5))
        source[inside] = target[inside]
        assert np.array_equal(np.array(paste(samples, index)), source)
