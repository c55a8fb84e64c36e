"""The finished multi-entity set of appendix A.2 as samples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.core.images import load_image
from abplib.samples.base import Fact, Sample

FOLDER = "runs/spatial"
"""Where the profile `paper` looks for the set, in the checkout."""

MANIFEST = "split.json"
N_SCENES = 1000
"""Scenes to begin with. B.2's 3,000 steps of two over 15 passes are 400 training samples, so with
200 to evaluate and half of all held for either, 800 must be left when people have verified them."""
SPATIAL_TERMS = (
    "leftmost", "rightmost", "second from the left", "second from the right",
    "third from the left", "third from the right", "middle", "center", "topmost", "bottommost",
    "top left", "top right", "bottom left", "bottom right", "frontmost", "backmost",
)  # fmt: skip
"""The paper prints the first three and the last two; what lies between is taken here."""

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
        if store.file_hash(path) != row[f"{role}_sha256"]:
            raise AbpError(f"{path} is not the image of the manifest: restore it.")
        return load_image(path)


_TERM = re.compile(
    r"\b(?:(?P<nth>second|third|fourth|fifth|sixth|seventh|eighth|ninth) (?:\w+ )?"
    r"(?:from|to) (?:the )?(?P<start>left|right|top|bottom|front|back)"
    r"|(?P<most>left|right|top|bottom|front|back) ?most"
    r"|(?P<row>top|upper|bottom|lower) (?P<side>left|right)"
    r"|(?P<inner>middle|center|centre|central))\b"
)


def spatial_term(instruction: str) -> str | None:
    """The spatial term that an instruction names first, as `SPATIAL_TERMS` spells its like.

    "Second from left", "fourth dog from the left" and "front-most" are of their kin.
    """
    if (term := _TERM.search(instruction.lower().replace("-", " "))) is None:
        return None
    if term["nth"]:
        return f"{term['nth']} from the {term['start']}"
    if term["most"]:
        return f"{term['most']}most"
    if term["row"]:
        row = {"upper": "top", "lower": "bottom"}.get(term["row"], term["row"])
        return f"{row} {term['side']}"
    return "middle" if term["inner"] == "middle" else "center"


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
