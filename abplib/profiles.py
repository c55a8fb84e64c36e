"""Profiles: the models, sample sets and budgets that a chapter runs with, as data.

Everything that differs between a test in seconds, a laptop and a GPU is a field of `Profile`. A
profile is a YAML file, one of those shipped in `abplib/profiles/` (asked for by name) or one's own
(asked for by its path, ending in `.yaml`). A chapter's parameters are fields that may be replaced
for one run, None standing for the profile's own value, and a few of the chapter's own: its
`parameters` cell assigns the same names and defaults, papermill or the command line replaces some
of them, and `parse` refuses what does not fit before any work starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, create_model, field_validator

from abplib.core.errors import AbpError, explain
from abplib.core.settings import Count, Number, Settings
from abplib.editing.lora.settings import LoraTraining
from abplib.proxies.settings import SweepSettings

_SHIPPED = Path(__file__).with_name("profiles")

LABELS_FILE = "labels.parquet"
"""Name of the file of shipped labels in a VLM's folder."""

Reference = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
"""`module:function`, a function without arguments."""

OtherEditorName = Literal["qwen_image_edit_2509", "fibo_edit", "flux2_dev", "flux_kontext"]
"""Systems beside Qwen-Image-Edit; see `abplib.editing.methods`."""


Name = Annotated[str, Field(min_length=1)]
Guidance = Annotated[Number, Field(ge=1)]


class OtherEditor(Settings):
    """Which files of another system edit, and with which settings."""

    source: Name
    """Named as `Profile.vlm` is."""
    revision: str | None = None
    """Revision of a hub id; None for its newest."""
    n_steps: Count | None = None
    """Denoising steps; None for the model card's."""
    guidance: Guidance | None = None
    """Likewise."""


class Profile(Settings):
    """One way to run every chapter."""

    name: str
    title: str
    """How figures call the profile."""
    note: str = ""
    """What a reader must know about its numbers (random weights, ...); shown with every figure."""

    vlm: Name
    """A folder (relative to the checkout, or absolute), a hub id, or a `module:function` that
    returns a folder."""
    revision: str | None = None
    """Revision of a hub id."""
    image_area: Count
    """Pixels of the image that the VLM sees."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    repetition_penalty: Annotated[Number, Field(gt=0)] = 1.0
    """Of the VLM's answers; 1 for plain greedy decoding (A.1), whatever its checkpoint says."""

    editor: Name | None = None
    """The Qwen-Image-Edit that edits, named as `vlm` is; it brings its own copy of that."""
    editor_revision: str | None = None
    """Revision of its hub id."""
    n_steps: Annotated[int, Field(ge=2)] = 50
    """Denoising steps (model card: 50)."""
    guidance: Guidance = 4.0
    """Scale of classifier-free guidance (model card: 4)."""
    lora: str | None = None
    """Folder of the LoRA that reads boxes, inside the editor's folder or on its own."""
    lora_training: LoraTraining = LoraTraining()
    """Budget of `abp train-lora`; what is left out is the paper's."""
    proxy: str | None = None
    """Folder of the trained proxy that tells the editor where; without one, chapter 2's is used."""
    other_editors: dict[OtherEditorName, OtherEditor] = Field(default_factory=dict)
    """Systems that chapter 5 sets beside the editor."""
    judge: Reference = "abplib.judging.scene_oracle:SceneOracle"
    """What judges edits: a class of `abplib.judging`."""
    judge_model: Name | None = None
    """The model that judges, where the judge asks one; another's answers are not taken for its."""
    human_labels: Name | None = None
    """What people said (`abplib.judging.human.labels`), as a file: it then decides which of the
    VLM's boxes are accurate and which edits succeed."""
    lpips_side: Count | None = 256
    """Pixels of an image's longer side under LPIPS; None for the images' own size."""

    eval_set: Reference
    train_set: Reference
    tuning_set: Reference
    """Samples with exact boxes that choices are made on; none of them is evaluated."""
    lora_set: Reference | None = None
    """Samples that the LoRA learns from; those of `tuning_set` where none is named."""
    n_eval: Count
    """Samples evaluated, from the start of `eval_set`."""

    labels: Literal["predicted", "exact"] = "predicted"
    """Whose boxes proxies are trained on: the VLM's own (the paper), or the samples' exact ones."""
    sweep: SweepSettings = SweepSettings()
    """Shape and budget of chapter 2's proxies; what is left out is the paper's."""
    n_untrained: Count = 3
    """Layers of an untrained decoder that proxies are trained on too, evenly spaced: a control."""

    @classmethod
    def load(cls, name: str, **overrides: Any) -> Profile:
        """The profile called `name` (or read from that `.yaml` file) with fields overridden.

        Of `sweep`, those fields that are given.

        Raises:
            AbpError: there is no such profile, or a field is unknown or ill-typed.
        """
        fields: Any = _read(_locate(name))
        if not isinstance(fields, dict):
            raise AbpError(f"Profile {name!r} is not a mapping of field names to values.")
        if isinstance(sweep := fields.get("sweep", {}), dict):
            fields["sweep"] = sweep | overrides.pop("sweep", {})
        try:
            return cls.model_validate({**fields, **overrides})
        except ValidationError as error:
            raise AbpError(f"Profile {name!r}: {explain(error)}.") from error


def known_profiles() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def _locate(name: str) -> Path:
    if name in known_profiles():
        return _SHIPPED / f"{name}.yaml"
    if name.lower().endswith((".yaml", ".yml")) and Path(name).is_file():
        return Path(name)
    raise AbpError(
        f"Unknown profile {name!r}: choose from {', '.join(known_profiles())}, or give the path of "
        "a .yaml file."
    )


def _read(path: Path) -> object:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise AbpError(f"Profile file {path} is not readable YAML: {reason}.") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


class ChapterParameters(Settings):
    """Parameters that every chapter has."""

    profile: str = "mini"
    """Name of a shipped profile, or the path of a `.yaml` file."""
    vlm: Name | None = None
    """Another model: a folder, a hub id or a `module:function`."""
    n_samples: Count | None = None
    """Samples evaluated."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("profile")
    @classmethod
    def _known(cls, profile: str) -> str:
        _locate(profile)
        return profile

    def resolve(self) -> Profile:
        """The profile, with this run's own values in place of its."""
        given = self.model_dump(exclude_none=True)
        own = {name: value for name, value in given.items() if name in Profile.model_fields}
        if sweep := {k: v for k, v in given.items() if k in SweepSettings.model_fields}:
            own["sweep"] = sweep
        if self.n_samples is not None:
            own["n_eval"] = self.n_samples
        for model, revision in (("vlm", "revision"), ("editor", "editor_revision")):
            if model in own:
                own[revision] = None
        return Profile.load(self.profile, **own)


class _Attention(ChapterParameters):
    """Whose proxy chapters 3 and 4 look into, and how they look."""

    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """VLM layers of which the proxy reads the prompt tokens; None for chapter 2's middle layers."""
    threshold: Annotated[Number, Field(ge=0, lt=1)] = 0.5
    """T of section 4.4: a decisive head's mean drop exceeds it."""
    n_tokens: Count = 1
    """Dominant tokens of a sample."""

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: list[int] | None) -> list[int] | None:
        if layers is not None and layers != sorted(set(layers)):
            raise ValueError("it should name each layer once, in ascending order")
        return layers


def _with(
    *names: str, base: type[ChapterParameters] = ChapterParameters
) -> type[ChapterParameters]:
    """`base`, and fields of a profile or of its sweep that may be replaced."""
    known = Profile.model_fields | SweepSettings.model_fields
    given: dict[str, Any] = {
        name: (Annotated[known[name].annotation, Field(), *known[name].metadata] | None, None)
        for name in names
    }
    return create_model("Parameters", __base__=base, **given)


_EDITING = ("editor", "n_steps", "guidance", "human_labels")
_TRAINING = ("n_batches", "batch_size", "lr")
CHAPTERS: dict[str, type[ChapterParameters]] = {
    "00_specimen": _with("editor", "n_steps", "guidance"),
    "01_localization_gap": _with(*_EDITING),
    "02_proxies": _with(*_TRAINING),
    "03_decomposition": _with(*_TRAINING, base=_Attention),
    "04_information_flow": _with(*_TRAINING, base=_Attention),
    "05_editing_validation": _with(*_EDITING),
    "06_adapting": create_model(  # brings a model of its own: another Qwen3-VL goes in as `vlm`
        "Parameters", __base__=ChapterParameters, vlm=(Name, "abplib.vlm.twins:qwen3_vl_folder")
    ),
    "07_cost": ChapterParameters,
    "08_explorer": _with(*_EDITING),
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
