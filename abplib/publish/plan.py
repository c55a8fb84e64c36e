"""What a profile needs and what a machine lacks for it: models, data, services, memory, disk.

Networks of the hub are sized on the meta device, from the few facts of their config.json that
`data/paper/models.yaml` holds; nothing is downloaded. Operations and hours are counted in one
place, `abplib.sections.cost` (chapter 7); here stand those that the paper reports.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from abplib.core import hub, paths
from abplib.core.errors import AbpError
from abplib.editing.methods import CONTROLS, METHODS
from abplib.experiment import Experiment
from abplib.judging.clients import KEYS, Gemini, first_set
from abplib.paper import facts
from abplib.profiles import Profile
from abplib.samples.omniedit import HUB_ID

_SPATIAL = "abplib.samples.multi_entity:"
_PROMPTS = "gemini-2.5-pro"
"""Who writes prompts and structures in appendix A.2."""
_ON_CPU = 8 * 10**9
"""Bytes of weights beyond which a stage takes weeks of CPU cores."""
_BF16 = 2
"""Bytes of a parameter."""

STAGE_HEADER = ("stage", "what it does", "GPU GB", "offloaded", "paper (B.3)")
MODEL_HEADER = ("model", "licence", "gated", "download GB", "here", "source")
FOOTNOTE = (
    "GPU GB: weights alone, in bf16 (a folder's as they are), all together or the largest network "
    "with the rest offloaded; activations come on top. Chapter 7 counts operations."
)


class Machine(NamedTuple):
    """The means of a machine, in bytes."""

    gpu: str | None
    """Name of the largest CUDA GPU; None where there is none."""
    gpu_memory: int
    memory: int
    free_disk: int
    """Where the hub's cache lies."""

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        import torch
        from huggingface_hub.constants import HF_HUB_CACHE

        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        largest = max(gpus, key=lambda gpu: gpu.total_memory, default=None)
        place = next(p for p in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if p.exists())
        return cls(
            largest.name if largest else None,
            largest.total_memory if largest else 0,
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            shutil.disk_usage(place).free,
        )

    def __str__(self) -> str:
        gpu = f"{self.gpu} of {self.gpu_memory / 1e9:.0f} GB" if self.gpu else "no GPU"
        memory, disk = self.memory / 1e9, self.free_disk / 1e9
        return f"{gpu}, {memory:.0f} GB of memory, {disk:.0f} GB of disk free"


class Stage(NamedTuple):
    """One piece of work."""

    name: str
    does: str = ""
    models: tuple[str, ...] = ()
    """Folders or hub ids."""
    lacks: str = ""
    """What is missing whatever the machine: a folder, a set of samples."""
    reported: str = ""
    """Key of the paper's own figures in the data file."""
    service: str = ""
    """Model of a service that is paid for."""
    data: str = ""
    """Hub id of a data set to be fetched, there."""
    n_rows: int = 0


def stages(profile: Profile) -> Iterator[Stage]:
    """The stages of a profile's chapters, in the order in which they can be run."""
    made, n = Experiment(profile), profile.n_eval
    n_train = profile.sweep.n_batches * profile.sweep.batch_size
    for role in ("evaluation", "training", "tuning"):
        if not (lack := _lack(made, role)):
            continue
        if role == "evaluation" and profile.eval_set.startswith(_SPATIAL):
            yield Stage("prompts, structures (A.2)", f"{2 * n:,} scenes", service=_PROMPTS)
            yield Stage("images (A.2)", f"{2 * n:,} images", ("briaai/FIBO",))
            yield Stage("edits (A.2)", f"{2 * n:,} edits", ("Qwen/Qwen-Image-Edit-2509",))
            mistral = "mistralai/Mistral-Small-3.2-24B-Instruct-2506"
            yield Stage("instructions (A.2)", f"{2 * n:,} pairs described", (mistral,))
        fetched = role == "training" and profile.train_set.startswith("abplib.samples.omniedit")
        stage = Stage(f"{role} samples", lacks=lack)
        yield stage._replace(data=HUB_ID, n_rows=n_train) if fetched else stage
    if lack := _lack(made, "vlm_source"):
        yield Stage("VLM", "all chapters", lacks=lack)
    else:
        vlm = (made.vlm_source,)
        if profile.labels == "predicted":
            yield Stage("labels (ch. 2)", f"the VLM answers {n_train:,} training samples", vlm)
        yield Stage("proxies (ch. 2)", f"{n_train:,} passes feed all", vlm, reported="proxies")
        yield Stage("boxes, routing, flow (ch. 1, 3, 4)", f"{n:,} samples are read", vlm)
    if profile.editor is None:
        return
    if lack := _lack(made, "editor_source"):
        yield Stage("edits (ch. 1, 5)", lacks=lack)
        return
    editor, budget = (made.editor_source,), profile.lora_training
    if profile.lora is not None and not made.lora_place.is_dir():
        does = f"{budget.steps:,} steps of {budget.batch} samples: abp train-lora"
        yield Stage("LoRA (B.2)", does, editor, reported="lora")
    n_edits = n * (len(METHODS) - len(CONTROLS))
    yield Stage("edits (ch. 1, 5)", f"{n_edits:,} edits of {profile.n_steps} steps", editor)
    for name in profile.other_editors:
        try:
            yield Stage(f"{name} (ch. 5)", f"{n:,} edits", (made.other_source(name),))
        except AbpError as error:
            yield Stage(f"{name} (ch. 5)", lacks=str(error))
    if profile.judge.endswith(":gemini"):
        does = f"{n * len(METHODS):,} edits, repeatedly"
        yield Stage("judging (ch. 5)", does, service=profile.judge_model or Gemini.model)


def _lack(made: Experiment, part: str) -> str:
    try:
        getattr(made, part)
    except AbpError as error:
        return str(error)
    return ""


@cache
def networks(source: str) -> dict[str, int]:
    """Bytes of the weights of each network in a folder or of a hub id; none where not known.

    Raises:
        AbpError: the folder holds no weights.
    """
    if Path(source).is_dir():
        files = list(Path(source).rglob("*.safetensors"))
        if not files:
            raise AbpError(f"The folder {source} holds no weights: restore it, or make the model.")
        return {
            place.name: sum(f.stat().st_size for f in files if f.parent == place)
            for place in {file.parent for file in files}
            if (place / "config.json").is_file()  # else an adapter, or kept beside the model
        }
    parts = facts()["models"].get(source, {"parts": {}})["parts"]
    return {name: _BF16 * _parameters(**part) for name, part in parts.items()}


def _parameters(**shape: Any) -> int:
    """How many parameters a class has with a configuration, without memory for them."""
    import torch
    from transformers import AutoConfig

    module, _, kind = shape["class"].partition(":")
    maker, config = getattr(importlib.import_module(module), kind), shape["config"]
    with torch.device("meta"):
        of_hub = module == "transformers"
        network = maker(AutoConfig.for_model(**config)) if of_hub else maker(**config)
    return sum(weight.numel() for weight in network.parameters())


def stage_rows(planned: Sequence[Stage]) -> Iterator[tuple[str, ...]]:
    """STAGE_HEADER's columns for each stage."""
    for stage in planned:
        sizes = [size / 1e9 for source in stage.models for size in networks(source).values()]
        shown = (f"{sum(sizes):.3g}", f"{max(sizes):.3g}") if sizes else ("", "")
        told = facts()["paper"].get(stage.reported)
        yield (
            stage.name,
            stage.does,
            *(("unknown", "unknown") if stage.models and not sizes else shown),
            f"{told['hours']} h, {told['gigabytes']} GB ({told['per']})" if told else "",
        )


def model_rows(planned: Sequence[Stage]) -> Iterator[tuple[str, ...]]:
    """MODEL_HEADER's columns for each model, data set and service."""
    for source in dict.fromkeys(source for stage in planned for source in stage.models):
        if Path(source).is_dir():
            folder, inside = Path(source), Path(source).is_relative_to(paths.root())
            name = folder.relative_to(paths.root()).as_posix() if inside else folder.name
            yield name, "see its folder", "no", "0", "yes", ""
            continue
        about = facts()["models"].get(source, {})
        told = [str(about.get(key, "unknown")) for key in ("licence", "gated")]
        size = f"{sum(networks(source).values()) / 1e9:.3g}" if about else "unknown"
        here = hub.cached(source) is not None
        yield (
            source,
            *told,
            "0" if here else size,
            "yes" if here else "no",
            about.get("source", ""),
        )
    for stage in planned:
        if stage.data:
            about = facts()["data"][stage.data]
            n_shards = math.ceil(stage.n_rows / about["rows"] * about["shards"])
            size = f"{about['bytes'] / 1e9 * n_shards / about['shards']:.0f} ({n_shards} shards)"
            yield stage.data, about["licence"], about["gated"], size, "no", about["source"]
    for name in dict.fromkeys(stage.service for stage in planned if stage.service):
        about = facts()["services"].get(name, {"licence": "unknown"})
        yield name, about["licence"], "key", "", "", ""


def missing(planned: Sequence[Stage], machine: Machine) -> list[str]:
    """One sentence for each thing that keeps a stage from running on a machine."""
    found = [stage.lacks for stage in planned if stage.lacks]
    models = dict.fromkeys(s for stage in planned for s in stage.models if not Path(s).is_dir())
    absent = [source for source in models if hub.cached(source) is None]
    asked: list[tuple[str, hub.Kind]] = [(source, "model") for source in absent]
    asked += [(stage.data, "dataset") for stage in planned if stage.data]
    for name, kind in asked:
        try:
            hub.check_access(name, kind)
        except AbpError as error:
            found.append(str(error))
    for name in dict.fromkeys(stage.service for stage in planned if stage.service):
        found += _service(name)
    size = sum(sum(networks(source).values()) for source in absent)
    for stage in planned:
        if stage.data:  # the sources stay, half of the images of its rows
            about = facts()["data"][stage.data]
            size += round(about["bytes"] * stage.n_rows / about["rows"] / 2)
    if size > machine.free_disk:
        found.append(
            f"Models and images to download take {size / 1e9:.0f} GB and "
            f"{machine.free_disk / 1e9:.0f} GB of disk are free: point HF_HOME at a larger disk, "
            "and fetch data to one (--out)."
        )
    for stage in planned:
        found += _memory(stage, machine)
    return list(dict.fromkeys(found))


def _service(model: str) -> Iterator[str]:
    if importlib.util.find_spec("google.genai") is None:
        yield (
            f"{model} cannot be asked, google-genai is not installed: run "
            '`pip install "abplib[judges]"`.'
        )
    elif not first_set(*KEYS):
        yield f"{model} cannot be asked, there is no key for it in the environment: set {KEYS[0]}."


def _memory(stage: Stage, machine: Machine) -> Iterator[str]:
    sizes = [size for source in stage.models for size in networks(source).values()]
    whole, largest = sum(sizes), max(sizes, default=0)
    if machine.gpu is None and whole > _ON_CPU:
        yield (
            f"Stage {stage.name} would take weeks on CPU cores: use a GPU of {largest / 1e9:.0f} "
            "GB or more."
        )
    elif machine.gpu is not None and largest > machine.gpu_memory:
        yield (
            f"Stage {stage.name} keeps {largest / 1e9:.0f} GB of weights on the GPU and "
            f"{machine.gpu} has {machine.gpu_memory / 1e9:.0f} GB: use a larger one."
        )
    elif machine.gpu is not None and whole > machine.gpu_memory + machine.memory:
        yield (
            f"Stage {stage.name} has {whole / 1e9:.0f} GB of weights, more than GPU and memory "
            "hold together: use a larger machine."
        )
