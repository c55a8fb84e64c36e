"""Profiles: the models, sample sets and budgets that a chapter runs with, as data.

Everything that differs between a test in seconds, a laptop and a GPU is a field of `Profile`; the
analysis itself has no branch on it. A profile is a YAML file, one of those shipped in
`abplib/profiles/` (asked for by name) or one's own (asked for by its path, ending in `.yaml`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from abplib import paths
from abplib.errors import AbpError, explain
from abplib.lora.settings import Count, LoraTraining
from abplib.references import content_of, function_of, source_of
from abplib.results import digest, digest_files
from abplib.samples import SampleSet

_SHIPPED = Path(__file__).with_name("profiles")

LABELS_FILE = "labels.parquet"
"""Name of the file of shipped labels in a VLM's folder."""

Reference = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
"""`module:function`, a function without arguments."""

OtherEditorName = Literal["qwen_image_edit_2509", "fibo_edit", "flux2_dev", "flux_kontext"]
"""Systems beside Qwen-Image-Edit; see `abplib.editors.others`."""


class OtherEditor(BaseModel):
    """Which files of another system edit, and with which settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: Annotated[str, Field(min_length=1)]
    """Named as `Profile.vlm` is."""
    revision: str | None = None
    """Revision of a hub id; None for its newest."""
    n_steps: Count | None = None
    """Denoising steps; None for the model card's."""
    guidance: Annotated[float, Field(ge=1)] | None = None
    """Likewise."""


class Profile(BaseModel):
    """One way to run every chapter; frozen, and strict about types and names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    title: str
    """How figures call the profile."""
    note: str = ""
    """What a reader must know about its numbers (random weights, ...); shown with every figure."""

    vlm: Annotated[str, Field(min_length=1)]
    """A folder (relative to the checkout, or absolute), a hub id, or a `module:function` that
    returns a folder."""
    revision: str | None = None
    """Revision of a hub id."""
    image_area: Count
    """Pixels of the image that the VLM sees."""
    dtype: Literal["float32", "bfloat16"] = "float32"

    editor: Annotated[str, Field(min_length=1)] | None = None
    """The Qwen-Image-Edit that edits, named as `vlm` is; it brings its own copy of that."""
    editor_revision: str | None = None
    """Revision of its hub id."""
    n_steps: Annotated[int, Field(ge=2)] = 50
    """Denoising steps (model card: 50)."""
    guidance: Annotated[float, Field(ge=1)] = 4.0
    """Scale of classifier-free guidance (model card: 4)."""
    lora: str | None = None
    """Folder of the LoRA that reads boxes, inside the editor's folder or on its own."""
    lora_training: LoraTraining = LoraTraining()
    """Budget of `abp train-lora`; what is left out is the paper's."""
    proxy: str | None = None
    """Folder of the trained proxy that tells the editor where; without one, chapter 2's is used."""
    comparison: str | None = None
    """Table that `train-conditions` made around `vlm`, which chapter 5 shows."""
    other_editors: dict[OtherEditorName, OtherEditor] = {}
    """Systems that chapter 5 sets beside the editor."""
    judge: Reference = "abplib.judges.oracle:SceneOracle"
    """What judges edits: a class of `abplib.judges`."""
    human_labels: Annotated[str, Field(min_length=1)] | None = None
    """What people said (`abplib.human.labels`), as a file: it then decides which of the VLM's boxes
    are accurate and which edits succeed."""

    eval_set: Reference
    train_set: Reference
    tuning_set: Reference
    """Samples with exact boxes that choices are made on; none of them is evaluated."""
    n_eval: Count
    """Samples evaluated, from the start of `eval_set`."""

    labels: Literal["predicted", "exact"] = "predicted"
    """Whose boxes proxies are trained on: the VLM's own (the paper), or the samples' exact ones."""
    n_batches: Count
    """Batches that every proxy is trained on (paper: 2000)."""
    batch_size: Count
    micro_batch: Count
    """Samples of a batch that go through the VLM together: as many as memory takes."""
    lr: Annotated[float, Field(gt=0, le=1)]
    """Adam's learning rate at its peak (paper: 1e-4)."""
    width: Count
    """Width of a proxy's blocks; a multiple of `n_heads`."""
    n_queries: Count
    n_heads: Count
    eval_every: Count
    """Batches between two points of an evaluation curve."""
    n_curve_eval: Count
    """Samples behind each point of an evaluation curve, from the start of `eval_set`."""

    @classmethod
    def load(cls, name: str, **overrides: Any) -> Profile:
        """The profile called `name` (or read from that `.yaml` file) with fields overridden.

        Raises:
            AbpError: there is no such profile, or a field is unknown or ill-typed.
        """
        fields: Any = _read(_locate(name))
        if not isinstance(fields, dict):
            raise AbpError(f"Profile {name!r} is not a mapping of field names to values.")
        try:
            return cls.model_validate({**fields, **overrides})
        except ValidationError as error:
            raise AbpError(f"Profile {name!r}: {explain(error)}.") from error

    @property
    def vlm_source(self) -> str:
        """What `from_pretrained` takes: an existing folder, or a hub id.

        Raises:
            AbpError: `vlm` names a folder that is not there, or a function that is not.
        """
        return source_of("vlm", self.vlm, "Qwen/Qwen2.5-VL-7B-Instruct")

    @property
    def editor_source(self) -> str:
        """The same of the editor.

        Raises:
            AbpError: the profile has none, or as `vlm_source` does.
        """
        if self.editor is None:
            raise AbpError(
                f"Profile {self.name!r} has no editor: set editor to the folder of a "
                "Qwen-Image-Edit or to its hub id."
            )
        return source_of("editor", self.editor, "Qwen/Qwen-Image-Edit")

    def other_source(self, name: OtherEditorName) -> str:
        """The same of another system's editor.

        Raises:
            AbpError: the profile does not name it, or as `vlm_source` does.
        """
        if name not in self.other_editors:
            raise AbpError(
                f"Profile {self.name!r} has no {name}: name its source under other_editors."
            )
        source = self.other_editors[name].source
        return source_of(f"other_editors.{name}.source", source, "black-forest-labs/FLUX.2-dev")

    @property
    def lora_place(self) -> Path:
        """Where the LoRA lies, or goes when it is trained.

        Raises:
            AbpError: the profile names none.
        """
        if self.lora is None:
            raise AbpError(f"Profile {self.name!r} has no LoRA: set lora to the folder of one.")
        inside = Path(self.editor_source) / self.lora
        return inside if inside.parent.is_dir() else paths.root() / self.lora

    @property
    def lora_folder(self) -> Path:
        """Where the LoRA lies.

        Raises:
            AbpError: the profile names none, or its folder is not there.
        """
        folder = self.lora_place
        if not folder.is_dir():
            raise AbpError(
                f"There is no LoRA in {folder}: restore it, or train one by `abp train-lora "
                f"--profile {self.name}`."
            )
        return folder

    @property
    def proxy_folder(self) -> Path | None:
        """Where the shipped proxy lies, if the profile names one."""
        return None if self.proxy is None else paths.root() / self.proxy

    @property
    def comparison_file(self) -> Path | None:
        """Where the comparison of trained conditions lies, if the profile names one."""
        return None if self.comparison is None else paths.root() / self.comparison

    @property
    def evaluation(self) -> SampleSet:
        """The samples that results are measured on; the first `n_eval` are used."""
        return _sample_set(self.eval_set, paths.root())

    @property
    def training(self) -> SampleSet:
        """The samples that proxies are trained on."""
        return _sample_set(self.train_set, paths.root())

    @property
    def tuning(self) -> SampleSet:
        """The samples that choices are made on."""
        return _sample_set(self.tuning_set, paths.root())

    @property
    def human_labels_file(self) -> Path | None:
        """The file of `human_labels`, if the profile names one.

        Raises:
            AbpError: it is not there.
        """
        if self.human_labels is None:
            return None
        path = paths.root() / self.human_labels
        if not path.is_file():
            raise AbpError(
                f"There are no labels at {path}: make them with book/annotation.md, or leave "
                "human_labels out."
            )
        return path

    @property
    def judging(self) -> Any:
        """The judge, made anew."""
        return function_of(self.judge)()

    @property
    def model_fingerprint(self) -> str:
        """Hash of the files of VLM, editors, LoRA, proxy and comparison, or of hub ids."""
        parts = [content_of(self.vlm_source, self.revision)]
        if self.editor is not None:
            parts.append(content_of(self.editor_source, self.editor_revision))
        for name, other in self.other_editors.items():
            parts.append(content_of(self.other_source(name), other.revision))
            if self.lora is not None and self.lora_place.is_dir():
                parts.append(content_of(str(self.lora_place)))
        if (proxy := self.proxy_folder) is not None and proxy.is_dir():
            parts.append(content_of(str(proxy)))
        if (table := self.comparison_file) is not None:
            files = (table, table.with_suffix(".json"))
            parts += [digest_files(file) for file in files if file.is_file()]
        return digest(parts)

    @property
    def data_fingerprint(self) -> str:
        """Hash of the contents of all sample sets, and of people's labels."""
        sets = (self.evaluation, self.training, self.tuning)
        told = [samples.fingerprint for samples in sets]
        if (labels := self.human_labels_file) is not None:
            told.append(digest_files(labels))
        return digest(told)


def known_profiles() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def require_known(name: str) -> str:
    """`name` itself, where a profile is called so.

    Raises:
        AbpError: there is no such profile.
    """
    _locate(name)
    return name


@cache
def _sample_set(reference: str, _root: Path) -> SampleSet:
    """What a function returns in a checkout, made once: it may read files there."""
    made = function_of(reference)()
    if not isinstance(made, SampleSet):
        raise AbpError(f"{reference!r} returned {type(made).__name__}, which is no SampleSet.")
    return made


def _locate(name: str) -> Path:
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else _SHIPPED / f"{name}.yaml"
    if (own or name in known_profiles()) and path.is_file():
        return path
    raise AbpError(
        f"Unknown profile {name!r}: choose from {', '.join(known_profiles())}, or give the path of "
        "a .yaml file."
    )


def _read(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise AbpError(f"Profile file {path} is not readable YAML: {reason}.") from error
