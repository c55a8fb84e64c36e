"""The interface of every image editor of Table 1, and of the controls beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from PIL import Image

from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.core.images import ImageLike


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

    def let_go(self) -> None:  # noqa: B027 - most editors hold nothing
        """Free the memory of its model, which the next edit loads anew."""

    @property
    def reads_boxes(self) -> bool:
        """Whether edits are told where to happen (section 4.6, "Ours")."""
        return False

    def edit(
        self, image: ImageLike, instruction: str, seed: int, box: Box | None = None
    ) -> Image.Image:
        """One edit; see `edit_many`."""
        boxes = None if box is None else [box]
        return self.edit_many([image], [instruction], [seed], boxes=boxes)[0]

    def edit_many(
        self,
        images: Sequence[ImageLike],
        instructions: Sequence[str],
        seeds: Sequence[int],
        *,
        boxes: Sequence[Box | None] | None = None,
        batch_size: int = 16,
    ) -> list[Image.Image]:
        """One edit for each image, instruction and seed, whatever the batches.

        Args:
            images: sources of any size and mode, or paths of them.
            instructions: what to change.
            seeds: of each edit's random numbers.
            boxes: where, fractions of the source, for an editor that reads boxes and for no
                other; None for an image on which no box is known.
            batch_size: edits made together.

        Returns:
            RGB images, each of the size of its upright source.

        Raises:
            AbpError: the numbers of images, instructions, seeds and boxes differ, boxes are missing
                or not wanted, an instruction cannot be carried out, or an image cannot be read.
        """
        counts = {"images": images, "instructions": instructions, "seeds": seeds, "boxes": boxes}
        lengths = {name: len(given) for name, given in counts.items() if given is not None}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{length} {name}" for name, length in lengths.items())
            raise AbpError(f"There are {found}; give one of each for every edit.")
        if self.reads_boxes and boxes is None:
            raise AbpError(f"{self.name} reads boxes; give one for each image, or None for none.")
        if boxes is not None and not self.reads_boxes:
            raise AbpError(
                f"{self.name} reads no boxes; leave them out, or give the editor a LoRA that does."
            )
        return self._edit_many(
            images, instructions, seeds, boxes or [None] * len(images), batch_size
        )

    @abstractmethod
    def _edit_many(
        self,
        images: Sequence[ImageLike],
        instructions: Sequence[str],
        seeds: Sequence[int],
        boxes: Sequence[Box | None],
        batch_size: int,
    ) -> list[Image.Image]: ...
