"""Editors of Table 1 that are run as diffusers has them: one picture and one instruction in.

Each pipeline fits a source to about a million pixels in a way of its own. Here it is fitted by the
same rule to `image_area` pixels, so that twins can be small; the edit is made at that size, and
brought back to the source's.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm import tqdm

from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.core.images import ImageLike, load_image
from abplib.core.store import digest
from abplib.editing import loading
from abplib.editing.base import Editor

SIDE = 1024
"""Side of the square whose area the pipelines are made for, in pixels."""


@dataclass(frozen=True, eq=False)
class StockEditor(Editor):
    """A pipeline with its settings; conditions are the pipeline's own."""

    kind: ClassVar[type[DiffusionPipeline]]
    title: ClassVar[str]
    """As Table 1 calls the system."""
    steps: ClassVar[int]
    """Denoising steps of the model card."""
    scale: ClassVar[float]
    """Guidance of the model card."""
    most_tokens: ClassVar[int]
    """What the pipeline's text encoder is given at most; it cuts off the rest."""
    several: ClassVar[bool] = False
    """Whether the pipeline edits several sources at once."""

    pipeline: Any
    weights: str
    """Hash of the pipeline's files; see `from_pretrained`."""
    image_area: int
    """Pixels at which images are edited, at most `SIDE` squared."""
    n_steps: int
    guidance: float

    def __post_init__(self) -> None:
        """Raises AbpError for a setting that cannot be."""
        if not 1 <= self.image_area <= SIDE**2:
            raise AbpError(
                f"image_area = {self.image_area} is refused; {self.name} edits at up to "
                f"{SIDE} x {SIDE} pixels."
            )
        if self.n_steps < 1:
            raise AbpError(f"n_steps = {self.n_steps} is too few; give 1 or more.")
        if not 1 <= self.guidance < math.inf:
            raise AbpError(f"guidance = {self.guidance} is refused; give 1 (none) or more.")

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        image_area: int = SIDE**2,
        n_steps: int | None = None,
        guidance: float | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
    ) -> Self:
        """From a saved pipeline's folder or a hub id; steps and guidance None for the model card's.

        Raises AbpError if unusable.
        """
        folder = loading.locate(cls.kind, source, revision)
        return cls(
            loading.load(cls.kind, folder, dtype=dtype, device=device, unused=("lm_head",)),
            loading.fingerprint(source, folder),
            image_area,
            cls.steps if n_steps is None else n_steps,
            cls.scale if guidance is None else guidance,
        )

    @property
    def name(self) -> str:
        """As Table 1 calls it."""
        return self.title

    @property
    def fingerprint(self) -> str:
        """Hash of weights and settings."""
        settings = [self.title, self.image_area, self.n_steps, self.guidance]
        return digest([self.weights, str(self.pipeline.transformer.dtype), settings])

    @abstractmethod
    def size(self, source: tuple[int, int]) -> tuple[int, int]:
        """Width and height at which a source of this width and height is edited."""

    @abstractmethod
    def n_tokens(self, instruction: str) -> int:
        """Tokens of an instruction and what the pipeline puts around it."""

    @abstractmethod
    def run(
        self, pictures: list[Image.Image], instructions: list[str], seeds: Sequence[int]
    ) -> list[Image.Image]:
        """What the pipeline makes of pictures of one size; of a single one unless `several`."""

    def _edit_many(
        self,
        images: Sequence[ImageLike],
        instructions: Sequence[str],
        seeds: Sequence[int],
        boxes: Sequence[Box | None],
        batch_size: int,
    ) -> list[Image.Image]:
        self._check(instructions)
        sources = [load_image(image) for image in images]
        sizes = [self.size(source.size) for source in sources]
        edits: dict[int, Image.Image] = {}
        with tqdm(total=len(sizes), desc=f"editing, {self.name}", disable=None) as progress:
            for rows in self._batches(sizes, batch_size):
                made = self.run(
                    [sources[row].resize(sizes[row], Image.Resampling.LANCZOS) for row in rows],
                    [instructions[row] for row in rows],
                    [seeds[row] for row in rows],
                )
                for row, edit in zip(rows, made, strict=True):
                    edits[row] = edit.resize(sources[row].size, Image.Resampling.LANCZOS)
                progress.update(len(rows))
        return [edits[row] for row in range(len(sizes))]

    def _batches(self, sizes: list[tuple[int, int]], batch_size: int) -> Iterator[list[int]]:
        """Rows of pictures of one size."""
        most = min(batch_size, max(1, loading.MOST_PIXELS // self.image_area))
        most = most if self.several else 1
        for size in dict.fromkeys(sizes):
            alike = [row for row, other in enumerate(sizes) if other == size]
            for start in range(0, len(alike), most):
                yield alike[start : start + most]

    def _check(self, instructions: Sequence[str]) -> None:
        """Refuse what the text encoders would not read as words, or not to its end."""
        tokenizers = (getattr(self.pipeline, name, None) for name in ("tokenizer", "tokenizer_2"))
        markers = sorted({token for t in tokenizers if t is not None for token in _markers(t)})
        for number, instruction in enumerate(instructions):
            if not isinstance(instruction, str) or not instruction.strip():
                raise AbpError(f"Instruction {number} is empty; say in words what to edit.")
            if marker := next((marker for marker in markers if marker in instruction), None):
                raise AbpError(
                    f"Instruction {number} holds {marker}, which {self.name} does not read as "
                    "text; remove it."
                )
            if (n_tokens := self.n_tokens(instruction)) > self.most_tokens:
                raise AbpError(
                    f"Instruction {number} makes {n_tokens} tokens where {self.name} takes "
                    f"{self.most_tokens}; shorten it."
                )


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One for each edit, so that it does not depend on its batch; noise is drawn on the CPU."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def nearest(
    preferred: Sequence[tuple[int, int]], source: tuple[int, int], area: int, multiple: int
) -> tuple[int, int]:
    """The size of the aspect nearest to the source's, scaled from `SIDE` squared to `area` pixels.

    Args:
        preferred: widths and heights of about `SIDE` squared pixels.
        source: width and height.
        area: in pixels; at `SIDE` squared, the preferred size itself.
        multiple: of both sides, at least one.
    """
    aspect = source[0] / source[1]
    chosen = min(preferred, key=lambda size: abs(size[0] / size[1] - aspect))
    scale = math.sqrt(area) / SIDE
    width, height = (max(1, round(side * scale / multiple)) * multiple for side in chosen)
    return width, height


def _markers(tokenizer: Any) -> set[str]:
    """Tokens that stand for something else than their letters."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    added = (token for token in tokenizer.get_added_vocab() if token[:1] in "<[")
    return {*added, *tokenizer.all_special_tokens}
