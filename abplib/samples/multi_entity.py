"""The finished multi-entity set of appendix A.2 as samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.core.images import load_image
from abplib.samples.base import Fact, Sample
from recipes.multi_entity.rows import file_hash
from recipes.multi_entity.stages import MANIFEST, spatial_term

FOLDER = "runs/spatial"
"""Where the profile `paper` looks for the set, in the checkout."""

Split = Literal["training", "evaluation"]


@dataclass(frozen=True, eq=False)
class SpatialSamples:
    """One half of the set; a `SampleSet` whose edits are known."""

    folder: Path
    split: Split

    @property
    def name(self) -> str:
        """As figures call it."""
        return f"multi-entity (A.2), {self.split}"

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        manifest = store.read_json(self.folder / MANIFEST)
        rows: list[dict[str, Any]] = manifest[self.split]
        if store.digest(rows) != manifest["fingerprints"][self.split]:
            raise AbpError(
                f"The rows of {self.folder / MANIFEST} are not those of its hash: restore it, or "
                "run stage split again."
            )
        return rows

    @property
    def fingerprint(self) -> str:
        """Hash of the rows, the hashes of their images among them."""
        return store.digest(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; masks are not known. AbpError where its image is another."""
        row = self._row(index)
        facts: dict[str, Fact] = {"task": "swap"}
        if term := spatial_term(row["instruction"]):
            facts["spatial_term"] = term
        x1, y1, x2, y2 = row["box"]
        image = self._image(row, "source")
        return Sample(row["id"], image, row["instruction"], (x1, y1, x2, y2), facts=facts)

    def edited(self, index: int) -> Image.Image:
        """The target of sample `index`."""
        return self._image(self._row(index), "target")

    def _row(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, none has index {index}")
        return self._rows[index]

    def _image(self, row: dict[str, Any], role: str) -> Image.Image:
        path = self.folder / row[role]
        if file_hash(path) != row[f"{role}_sha256"]:
            raise AbpError(f"{path} is not the image of the manifest: restore it.")
        return load_image(path)


def evaluation() -> SpatialSamples:
    """The half that everything is measured on, in `FOLDER`."""
    return _in_checkout("evaluation")


def tuning() -> SpatialSamples:
    """The half that the LoRA is trained on, and choices are made."""
    return _in_checkout("training")


def _in_checkout(split: Split) -> SpatialSamples:
    folder = paths.root() / FOLDER
    if not (folder / MANIFEST).is_file():
        raise AbpError(
            f"There is no multi-entity set in {folder}: make it, stage by stage, with "
            "`python -m recipes spatial`."
        )
    return SpatialSamples(folder, split)
