"""Pipelines of diffusers: found in a folder or on the hub, loaded whole, placed by free memory."""

from __future__ import annotations

import gc
import hashlib
import importlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from abplib.core import hub
from abplib.core.errors import AbpError

P = TypeVar("P", bound=DiffusionPipeline)

MOST_PIXELS = 1024 * 1024
"""Of the pictures that are edited together; one at a time where each has as many."""
ROOM = 8 * 1024**3
"""Bytes that a GPU needs beside the weights for `MOST_PIXELS`: an estimate."""

UNLOADABLE = (
    OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError,
    SafetensorError,
)  # fmt: skip
"""What the libraries raise on files that are missing, corrupt or of another model."""


def locate(kind: type[DiffusionPipeline], source: str | Path, revision: str | None = None) -> Path:
    """The folder of a pipeline: a given one, or a hub id's, which is fetched where it is not here.

    Raises AbpError where there is none and none can be had.
    """
    if Path(source).is_dir():
        if not (Path(source) / "model_index.json").is_file():
            raise AbpError(
                f"The folder {source} holds no model_index.json; give a saved pipeline's."
            )
        return Path(source)
    if isinstance(source, Path) or source.count("/") != 1:
        raise AbpError(f"There is no pipeline at {source}; give a saved one's folder or a hub id.")
    local = hub.only_here(source, revision)
    try:
        with hub.explained(source):
            try:
                return Path(kind.download(source, revision=revision, local_files_only=local))
            except OSError as error:  # in which diffusers hides what the hub said
                raise (error.__cause__ or error) from None
    except AbpError:
        raise
    except UNLOADABLE as error:
        raise _unusable(source, error) from error


def fingerprint(source: str | Path, folder: Path) -> str:
    """Hash of what decides the edits: every file of the parts of the pipeline in `folder`.

    A folder is hashed by content, a hub pipeline by its commit.
    """
    told = hashlib.sha256()
    if not Path(source).is_dir():
        told.update(f"{source}@{folder.name}".encode())
        return told.hexdigest()
    for part in sorted(_parts(folder)):
        for path in sorted(path for path in (folder / part).iterdir() if path.is_file()):
            told.update(f"{part}/{path.name}".encode())
            with path.open("rb") as file:
                told.update(hashlib.file_digest(file, "sha256").digest())
    return told.hexdigest()


def load(
    kind: type[P],
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    unused: Collection[str] = (),
    without: Collection[str] = (),
) -> P:
    """The pipeline, frozen and in eval mode, placed as `place` does.

    Args:
        kind: the pipeline's class.
        folder: as `locate` gives it.
        dtype: of all weights.
        device: where edits are made.
        unused: modules, such as `lm_head`, that no edit needs; they may lack their weights.
        without: parts that are not loaded; the pipeline has None in their place.

    Raises:
        AbpError: files are missing or corrupt, or the weights are not exactly the models': the
            gaps would be filled with random numbers.
    """
    if not sys.stderr.isatty():
        diffusers_logging.disable_progress_bar()  # of the weights' loading
        transformers_logging.disable_progress_bar()
    models: dict[str, Any] = dict.fromkeys(without)
    reports = {}
    try:
        for name, (library, class_name) in _parts(folder).items():
            if name in without:
                continue
            part = getattr(importlib.import_module(library), class_name)
            if issubclass(part, nn.Module):
                models[name], reports[name] = part.from_pretrained(
                    folder, subfolder=name, dtype=dtype, output_loading_info=True
                )
        pipeline = kind.from_pretrained(folder, **models)
    except UNLOADABLE as error:
        raise _unusable(folder, error) from error
    for name, report in reports.items():
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        if wrong := [key for key in wrong if key.split(".")[0] not in unused]:
            raise AbpError(
                f"The {name} of {folder} lacks or misshapes {len(wrong)} of its tensors "
                f"({wrong[0]} first); fetch or make the pipeline again."
            )
        models[name].eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return place(pipeline, torch.device(device))


def place(pipeline: P, device: torch.device) -> P:
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


def reason(error: BaseException) -> str:
    """What an error says, as a part of a sentence."""
    return " ".join(str(error).split()).rstrip(".")[:200]


def _unusable(source: str | Path, error: BaseException) -> AbpError:
    return AbpError(
        f"The pipeline {source} cannot be loaded ({reason(error)}); fetch or make it again."
    )


def _parts(folder: Path) -> dict[str, tuple[str, str]]:
    """Library and class of each part, by name."""
    config = DiffusionPipeline.load_config(folder)
    return {
        name: (value[0], value[1])
        for name, value in config.items()
        if isinstance(value, list) and value[0] is not None
    }
