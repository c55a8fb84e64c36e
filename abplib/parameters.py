"""What each chapter can be asked: names, types, ranges, defaults.

None stands for the profile's own value. A chapter's `parameters` cell assigns the same names and
the same defaults (`abplib.book` checks that when it makes the notebooks), papermill or the command
line replaces some of them, and `parse` refuses what does not fit before any work starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from abplib.errors import AbpError, explain
from abplib.profiles import Count, Profile, require_known


class ChapterParameters(BaseModel):
    """Parameters that every chapter has."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    profile: str = "mini"
    """Name of a shipped profile, or the path of a `.yaml` file."""
    vlm: Annotated[str, Field(min_length=1)] | None = None
    """Another model: a folder, a hub id or a `module:function`."""
    n_samples: Count | None = None
    """Samples evaluated."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    _check_profile = field_validator("profile")(require_known)

    def resolve(self) -> Profile:
        """The profile, with this run's own values in place of its."""
        own = self.model_dump(exclude_none=True)
        given = {name: value for name, value in own.items() if name in Profile.model_fields}
        if self.n_samples is not None:
            given["n_eval"] = self.n_samples
        if "vlm" in given:
            given["revision"] = None
        if "editor" in given:
            given["editor_revision"] = None
        return Profile.load(self.profile, **given)


class LocalizationGap(ChapterParameters):
    """Chapter 1."""

    editor: Annotated[str, Field(min_length=1)] | None = None
    """Another editor, named as `vlm` is."""
    n_steps: Annotated[int, Field(ge=2)] | None = None
    """Denoising steps."""
    guidance: Annotated[float, Field(ge=1)] | None = None
    """Scale of classifier-free guidance; 1 for none."""
    human_labels: Annotated[str, Field(min_length=1)] | None = None
    """A file of people's labels, relative to the checkout."""


class Proxies(ChapterParameters):
    """Chapter 2."""

    n_batches: Count | None = None
    """Batches that every proxy is trained on."""
    batch_size: Count | None = None
    lr: Annotated[float, Field(gt=0, le=1)] | None = None
    """Adam's learning rate at its peak."""


class Decomposition(Proxies):
    """Chapters 3 and 4: what chapter 2 takes, whose proxy they look into, and how they look."""

    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """VLM layers of which the proxy reads the prompt tokens; None for chapter 2's middle layers."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """T of section 4.4: a decisive head's mean drop exceeds it."""
    n_tokens: Count = 1
    """Dominant tokens of a sample."""

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: list[int] | None) -> list[int] | None:
        if layers is not None and layers != sorted(set(layers)):
            raise ValueError("it should name each layer once, in ascending order")
        return layers


class EditingValidation(LocalizationGap):
    """Chapter 5: what chapter 1 takes."""


class Adapting(ChapterParameters):
    """Chapter 6, which brings a model of its own: another Qwen3-VL goes in as `vlm`."""

    vlm: Annotated[str, Field(min_length=1)] = "abplib.testing.twins:qwen3_vl_folder"


CHAPTERS: dict[str, type[ChapterParameters]] = {
    "01_localization_gap": LocalizationGap,
    "02_proxies": Proxies,
    "03_decomposition": Decomposition,
    "04_information_flow": Decomposition,
    "05_editing_validation": EditingValidation,
    "06_adapting": Adapting,
    "07_cost": ChapterParameters,
}


def model_of(chapter: str) -> type[ChapterParameters]:
    """The parameters of the chapter called `chapter`.

    Raises:
        AbpError: there is no such chapter.
    """
    if chapter not in CHAPTERS:
        raise AbpError(f"Unknown chapter {chapter!r}: choose from {', '.join(CHAPTERS)}.")
    return CHAPTERS[chapter]


def parse(chapter: str, values: Mapping[str, Any]) -> ChapterParameters:
    """Check `values` against the chapter's parameters; what is not given keeps its default.

    Raises:
        AbpError: naming the unknown parameter and the nearest known one, or the ill-typed or
            out-of-range value and what is expected.
    """
    model = model_of(chapter)
    known = list(model.model_fields)
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}."
            raise AbpError(f"Chapter {chapter} has no parameter {name!r}: {hint}")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise AbpError(f"Chapter {chapter}: {explain(error)}.") from error
