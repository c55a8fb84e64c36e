"""What a sample is: an image, an instruction, the exact box of what the edit is about."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from abplib.core.errors import AbpError

if TYPE_CHECKING:  # it imports torch, without which a chapter's parameters can be checked
    from abplib.core.boxes import Box

Fact = str | int | float


@dataclass(frozen=True, eq=False)
class Sample:
    """One source image with its edit instruction and its ground truth."""

    id: str
    """Unique in its set and the same in every run."""
    image: Image.Image
    """Source image, RGB."""
    instruction: str
    """What the user asks for."""
    box: Box
    """Exact box of the target, fractions of the source image; nan where it is not known."""
    masks: np.ndarray | None = None
    """Bool [n, height, width]: visible pixels of each object; None where they are not known."""
    target: int | None = None
    """Row of `masks` that the instruction is about; None where there is no such object."""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    """What to break results down by: task, spatial_term, n_objects, layout, kind, colour."""


@runtime_checkable
class SampleSet(Protocol):
    """A sequence of samples, made or read on demand."""

    @property
    def name(self) -> str:
        """Short name, shown in figures."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the content: equal where every sample is equal."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, 0 <= index < len; IndexError outside."""
        ...


@runtime_checkable
class EditedSamples(SampleSet, Protocol):
    """Samples whose exact edits are known."""

    def edited(self, index: int) -> Image.Image:
        """What the image of sample `index` should look like after its edit."""
        ...


def check_number(n: int, samples: SampleSet) -> None:
    """Refuse to take the first `n` samples where there are not as many, or none is asked for."""
    if not 1 <= n <= len(samples):
        raise AbpError(
            f"{n} samples are asked for, but {samples.name} holds {len(samples)}: ask for 1 to "
            f"{len(samples)}."
        )


class Taken(NamedTuple):
    """A sample that was asked for; see `take`."""

    id: str
    """Its place in the set where it cannot be read."""
    sample: Sample | None
    fault: str
    """Why it cannot be used, a sentence; empty where it can."""


def take(
    samples: SampleSet | Sequence[Sample],
    index: int,
    check: Callable[[Sample], object] = lambda _: None,
) -> Taken:
    """Sample `index`, or why it cannot be used: it cannot be read, or `check` refuses it."""
    name = str(index)
    try:
        sample = samples[index]
        name = sample.id
        check(sample)
    except AbpError as error:
        return Taken(name, None, str(error))
    except Exception as error:  # a set of the user's own raises what it likes
        return Taken(name, None, f"It cannot be read ({type(error).__name__}: {error}).")
    return Taken(name, sample, "")


def list_faults(faults: Sequence[tuple[str, str]], n: int, what: str, done: str) -> None:
    """Tell the standard error which of `n` things failed, and why.

    Args:
        faults: id and reason of each that did.
        what: what they are, as a part of a sentence ("samples of omniedit").
        done: what was to be done with them ("used").

    Raises:
        AbpError: all of them failed.
    """
    told = [f"{name}: {reason}" for name, reason in faults]
    if told and len(told) == n:
        raise AbpError(f"None of the {n} {what} can be {done}; {told[0]}")
    if told:
        print(f"{len(told)} of {n} {what} cannot be {done}:", *told, sep="\n", file=sys.stderr)
