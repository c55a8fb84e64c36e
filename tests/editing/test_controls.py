from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from conftest import noise
from PIL import Image

from abplib.core.errors import AbpError
from abplib.editing.controls import Identity, Paste
from abplib.samples.base import Sample


@dataclass(frozen=True)
class Pairs:
    """Two samples whose exact edits are other noise."""

    name: str = "pairs"
    fingerprint: str = "pairs"

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"{index}", noise(20, 10, index), "remove it", (0.25, 0.24, 0.68, 1.0))

    def edited(self, index: int) -> Image.Image:
        return noise(20, 10, 7 + index)


def test_identity_returns_the_upright_source() -> None:
    source = noise(20, 10)
    exif = source.getexif()
    exif[0x0112] = 6  # turned by a quarter
    turned = Identity().edit(source, "remove it", seed=0)
    assert turned.size == (10, 20)
    same = Identity().edit(noise(20, 10), "remove it", seed=0)
    assert same.tobytes() == noise(20, 10).tobytes()


def test_paste_changes_the_pixels_in_the_box_to_the_target() -> None:
    samples = Pairs()
    for index in (1, 0):
        edit = Paste(samples).edit(samples[index].image, "remove it", seed=0)
        expected = np.array(samples[index].image)
        # centres between 5.0 and 13.6 of 20, and from 2.4 of 10 on
        expected[2:, 5:14] = np.array(samples.edited(index))[2:, 5:14]
        assert np.array_equal(np.array(edit), expected)


def test_paste_knows_its_samples_only() -> None:
    with pytest.raises(AbpError, match="no sample of pairs"):
        Paste(Pairs()).edit(noise(20, 10, 0), "turn it blue", seed=0)
    with pytest.raises(AbpError, match="no sample of pairs"):
        Paste(Pairs()).edit(noise(20, 10, 5), "remove it", seed=0)


def test_boxes_are_refused_where_none_is_read() -> None:
    with pytest.raises(AbpError, match="reads no boxes"):
        Identity().edit(noise(8, 8), "a", seed=0, box=(0, 0, 1, 1))
    assert Identity().edit_many([]) == []
