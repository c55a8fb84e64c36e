"""Pipelines of diffusers: found in a folder or on the hub, loaded and placed when they are used."""

from __future__ import annotations

import gc
import importlib
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from abplib.core import hub
from abplib.core.errors import AbpError
from abplib.core.store import digest, digest_folder
from abplib.editing.base import Editor

SIDE = 1024
"""Side of the square whose area the pipelines are made for, in pixels."""
MOST_PIXELS = SIDE**2
"""Of the pictures that are edited together; one at a time where each has as many."""
ROOM = 8 * 1024**3
"""Bytes that a GPU needs beside the weights for `MOST_PIXELS`: an estimate."""


@dataclass(frozen=True, eq=False)
class Source:
    """A saved pipeline: known by its files at once, loaded when it is first used."""

    kind: type[DiffusionPipeline]
    name: str
    """A folder or a hub id."""
    commit: str | None
    """Of a hub id."""
    fingerprint: str
    """Hash of what decides the edits: every file of the pipeline's parts, or the commit of a hub
    id, and the dtype."""
    dtype: torch.dtype
    device: torch.device | str
    """Where edits are made."""
    unused: tuple[str, ...] = ()
    """Modules, such as `lm_head`, that no edit needs; they may lack their weights."""
    without: tuple[str, ...] = ()
    """Parts that are not loaded; the pipeline has None in their place."""

    @classmethod
    def find(
        cls,
        kind: type[DiffusionPipeline],
        source: str | Path,
        revision: str | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        unused: tuple[str, ...] = (),
    ) -> Source:
        """From a folder or a hub id, of which nothing is fetched; AbpError where there is none."""
        name, commit = str(source), None
        if Path(source).is_dir():
            files: object = {part: digest_folder(Path(source) / part) for part in _parts(source)}
        elif isinstance(source, Path) or name.count("/") != 1:
            raise AbpError(
                f"There is no pipeline at {source}; give a saved one's folder or a hub id."
            )
        else:
            commit = hub.commit(name, revision)
            files = [name, commit]
        return cls(kind, name, commit, digest([files, str(dtype)]), dtype, device, unused)

    @cached_property
    def folder(self) -> Path:
        """Where its files are; those of a hub id are fetched where they are not here.

        Raises:
            AbpError: they cannot be had.
        """
        if self.commit is None:
            return Path(self.name)
        local = hub.only_here(self.name, self.commit)
        with hub.loading("pipeline", self.name):
            found = self.kind.download(self.name, revision=self.commit, local_files_only=local)
        return Path(found)

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline, frozen and in eval mode, placed as `place` does.

        Raises:
            AbpError: files are missing or corrupt, or the weights are not exactly the models': the
                gaps would be filled with random numbers.
        """
        if not sys.stderr.isatty():
            diffusers_logging.disable_progress_bar()  # of the weights' loading
            transformers_logging.disable_progress_bar()
        models: dict[str, Any] = dict.fromkeys(self.without)
        reports = {}
        parts = _parts(self.folder)
        with hub.loading("pipeline", self.folder):
            for name, (library, class_name) in parts.items():
                part = getattr(importlib.import_module(library), class_name)
                if name not in models and issubclass(part, nn.Module):
                    models[name], reports[name] = part.from_pretrained(
                        self.folder, subfolder=name, dtype=self.dtype, output_loading_info=True
                    )
            pipeline = self.kind.from_pretrained(self.folder, **models)
        for name, report in reports.items():
            wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
            if wrong := [key for key in wrong if key.split(".")[0] not in self.unused]:
                raise AbpError(
                    f"The {name} of {self.folder} lacks or misshapes {len(wrong)} of its tensors "
                    f"({wrong[0]} first); fetch or make the pipeline again."
                )
            models[name].eval().requires_grad_(False)
        pipeline.set_progress_bar_config(disable=True)
        return place(pipeline, torch.device(self.device))

    def let_go(self) -> None:
        """Free its memory; whoever uses it next loads it anew."""
        if self.__dict__.pop("pipeline", None) is not None:
            gc.collect()
            torch.cuda.empty_cache()


@dataclass(frozen=True, eq=False)
class PipelineEditor(Editor):
    """A pipeline with its settings; variants made by `dataclasses.replace` share its weights."""

    kind: ClassVar[type[DiffusionPipeline]]
    title: ClassVar[str]
    """As Table 1 calls the system."""
    steps: ClassVar[int]
    """Denoising steps of the model card."""
    scale: ClassVar[float]
    """Guidance of the model card."""
    unused: ClassVar[tuple[str, ...]] = ()
    """As `Source` has it."""

    source: Source
    image_area: int
    """Pixels at which images are edited, at most `MOST_PIXELS`."""
    n_steps: int
    guidance: float
    """Its scale; 1 for none."""

    def __post_init__(self) -> None:
        """Raises AbpError for pictures that are too large."""
        if self.image_area > MOST_PIXELS:
            raise AbpError(
                f"image_area = {self.image_area} is refused; {self.name} edits at up to "
                f"{SIDE} x {SIDE} pixels."
            )

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

        It is loaded with the first edit. AbpError where there is none.
        """
        return cls(
            Source.find(cls.kind, source, revision, dtype=dtype, device=device, unused=cls.unused),
            image_area,
            cls.steps if n_steps is None else n_steps,
            cls.scale if guidance is None else guidance,
        )

    @property
    def pipeline(self) -> Any:
        """Loaded when it is first asked for; AbpError if it is unusable."""
        return self.source.pipeline

    @property
    def name(self) -> str:
        """As Table 1 calls it."""
        return self.title

    @property
    def fingerprint(self) -> str:
        """Hash of weights and settings, for which nothing is loaded."""
        settings = [self.title, self.image_area, self.n_steps, self.guidance]
        return digest([self.source.fingerprint, settings])

    def load(self) -> None:
        """Load the pipeline."""
        _ = self.pipeline

    def let_go(self) -> None:
        """Free the pipeline's memory."""
        self.source.let_go()


def place(pipeline: Any, device: torch.device) -> Any:
    """Put all parts on the device where they fit, or each one only while it works.

    Raises AbpError where a GPU has no room for the largest part.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        parts = {
            name: sum(t.nbytes for t in (*part.parameters(), *part.buffers()))
            for name, part in pipeline.components.items()
            if isinstance(part, nn.Module)
        }
        largest = max(parts, key=lambda name: parts[name])
        if parts[largest] + ROOM > free:
            raise AbpError(
                f"The {largest} needs {(parts[largest] + ROOM) / 1e9:.0f} GB of GPU memory to work "
                f"in, and {free / 1e9:.0f} GB are free; free some or take a larger GPU."
            )
        if sum(parts.values()) + ROOM > free:
            pipeline.enable_model_cpu_offload(device=device)
            return pipeline
    return pipeline.to(device)


def awake(part: nn.Module) -> Any:
    """The part, brought to where it works if it is offloaded, as calling the whole of it does."""
    hook = getattr(part, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(part)
    return part


def _parts(folder: str | Path) -> dict[str, tuple[str, str]]:
    """Library and class of each part, by name; AbpError where no index of them is readable."""
    if not (Path(folder) / "model_index.json").is_file():
        raise AbpError(f"The folder {folder} holds no model_index.json; give a saved pipeline's.")
    with hub.loading("pipeline", folder):
        config = DiffusionPipeline.load_config(folder)
    return {
        name: (value[0], value[1])
        for name, value in config.items()
        if isinstance(value, list) and value[0] is not None
    }
