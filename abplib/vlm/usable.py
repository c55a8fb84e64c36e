"""The samples of a set that can be used: one that cannot stops nothing, and is listed.

A sample cannot be used where it cannot be read (a broken picture, a row of another form), where the
VLM does not take it (a chat marker, no words or too many, a picture that is too oblong), where its
exact box is not known or has no area, and where its exact edit, if the set has them, is broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
from PIL import Image

from abplib.core import store
from abplib.core.boxes import from_pixels
from abplib.core.errors import AbpError
from abplib.core.images import load_image
from abplib.samples.base import EditedSamples, Sample, SampleSet, check_number, list_faults, take
from abplib.vlm.encoder import ConditionEncoder

_ROWS = "unusable.parquet"


@dataclass(frozen=True, eq=False)
class Usable:
    """A `SampleSet` without those of its samples that cannot be used."""

    samples: SampleSet
    unusable: pd.DataFrame
    """One row for each that is left out: index (in `samples`), sample_id and reason, a sentence."""

    @property
    def name(self) -> str:
        """As figures call it."""
        return self.samples.name

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the whole set's and of what is left out."""
        return store.digest([self.samples.fingerprint, self.unusable["index"].tolist()])

    @cached_property
    def _kept(self) -> list[int]:
        left_out = set(self.unusable["index"])
        return [index for index in range(len(self.samples)) if index not in left_out]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` of those that can be used."""
        return self.samples[self._kept[index]]


class UsableEdited(Usable):
    """The same of samples whose exact edits are known."""

    samples: EditedSamples

    def edited(self, index: int) -> Image.Image:
        """What the image of sample `index` should look like after its edit."""
        return self.samples.edited(self._kept[index])


def usable(encoder: ConditionEncoder, samples: SampleSet, n: int) -> SampleSet:
    """The set without those of its first `n` samples that cannot be used, which are kept on disk.

    The set itself where all can. The encoder may be on the device "meta": no weights are needed.

    Raises:
        AbpError: `n` is not in 1..len(samples), or none of them can be used.
    """
    check_number(n, samples)
    unusable = store.read_parquet(_examined(encoder, samples, n) / _ROWS)[0]
    if unusable.empty:
        return samples
    faults = list(zip(unusable["sample_id"], unusable["reason"], strict=True))
    list_faults(faults, n, f"samples of {samples.name}", "used")
    kind = UsableEdited if isinstance(samples, EditedSamples) else Usable
    return kind(samples, unusable)


def check(encoder: ConditionEncoder, sample: Sample) -> None:
    """Refuse a sample that the VLM does not take, or whose exact box is none."""
    encoder.prepare([sample.image], [sample.instruction])
    x1, y1, x2, y2 = from_pixels(sample.box, (1, 1))
    if not (x1 < x2 and y1 < y2):
        raise AbpError("Its box is not known or has no area in the picture.")


def n_usable(samples: SampleSet, n: int) -> int:
    """How many of the first `n` of the whole set are left in what `usable` made of it."""
    return n - sum(samples.unusable["index"] < n) if isinstance(samples, Usable) else n


@store.stored("usable")
def _examined(place: Path, encoder: ConditionEncoder, samples: SampleSet, n: int) -> None:
    def whole(index: int, sample: Sample) -> None:
        check(encoder, sample)
        if isinstance(samples, EditedSamples):
            load_image(samples.edited(index))

    looked_at = (take(samples, index, partial(whole, index)) for index in range(n))
    rows = [(index, name, why) for index, (name, _, why) in enumerate(looked_at) if why]
    frame = pd.DataFrame(rows, columns=["index", "sample_id", "reason"])
    store.write_parquet(place / _ROWS, frame)
