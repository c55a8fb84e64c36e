"""The interface of every image editor of Table 1, and of the controls beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.core.images import ImageLike
from abplib.samples.base import Sample


class Request(NamedTuple):
    """One edit that is asked for."""

    image: ImageLike
    """The source, of any size and mode, or its path."""
    instruction: str
    """What to change."""
    seed: int
    """Of the edit's random numbers."""
    box: Box | None = None
    """Where, fractions of the source, for an editor that reads boxes; None where none is known."""


class Editor(ABC):
    """Carries out instructions on images; the same seed gives the same edit."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, shown in tables and figures."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the weights and settings that decide the edits."""

    @property
    def reads_boxes(self) -> bool:
        """Whether edits are told where to happen (section 4.6, "Ours")."""
        return False

    def load(self) -> None:  # noqa: B027 - most editors hold nothing
        """Have its model ready; raises AbpError where it cannot be had."""

    def let_go(self) -> None:  # noqa: B027
        """Free the memory of its model, which the next edit loads anew."""

    def check(self, sample: Sample) -> None:  # noqa: B027 - most editors take all
        """Refuse a sample that cannot be edited: AbpError, a sentence that says why."""

    def edit(
        self, image: ImageLike, instruction: str, seed: int, box: Box | None = None
    ) -> Image.Image:
        """One edit; see `edit_many`."""
        return self.edit_many([Request(image, instruction, seed, box)])[0]

    def edit_many(self, requests: Sequence[Request]) -> list[Image.Image]:
        """One edit for each request, whatever it is asked for with: RGB, as large as its source.

        Raises:
            AbpError: a box for an editor that reads none, an instruction that cannot be carried
                out, or an image that cannot be read.
        """
        if not self.reads_boxes and any(request.box is not None for request in requests):
            raise AbpError(
                f"{self.name} reads no boxes; leave them out, or give the editor a LoRA that does."
            )
        return self._edit_many(requests)

    @abstractmethod
    def _edit_many(self, requests: Sequence[Request]) -> list[Image.Image]: ...
