"""What a profile needs and what a machine lacks for it: models, data, services, memory, disk.

Networks of the hub are sized on the meta device, from the few facts of their config.json that
`data/paper/models.yaml` holds, and so is what training keeps beside them; nothing is downloaded.
"""

from __future__ import annotations

import importlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from abplib.core import hub, paths, store
from abplib.core.errors import AbpError
from abplib.editing.methods import CONTROLS, METHODS
from abplib.experiment import Experiment
from abplib.judging.clients import Gemini, gemini_client
from abplib.paper import facts
from abplib.profiles import Profile
from abplib.samples.multi_entity import N_SCENES
from abplib.samples.omniedit import HUB_ID

_SPATIAL, _OMNIEDIT = "abplib.samples.multi_entity:", "abplib.samples.omniedit:"
_PROMPTS = "gemini-2.5-pro"
"""Who writes prompts and structures in appendix A.2."""
_ON_CPU = 8 * 10**9
"""Bytes of weights beyond which a stage takes weeks of CPU cores."""
_BF16, _TRAINED = 2, 16
"""Bytes of a parameter; of one that is trained, with its gradient and Adam's moments in fp32."""

STAGE_HEADER = ("stage", "what it does", "GPU GB", "offloaded", "paper (B.3)")
MODEL_HEADER = ("model", "licence", "gated", "download GB", "here", "source")
FOOTNOTE = (
    "GPU GB: weights in bf16 (a folder's as they are) and what training keeps beside them, all "
    "together or with the largest network alone and the rest offloaded; activations come on top."
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
    """Folders or hub ids of what is in memory together."""
    part: str = ""
    """The one network of these that is; empty for all."""
    trained: int = 0
    """Parameters that are trained beside them."""
    lacks: str = ""
    """What is missing whatever the machine: a folder, a set of samples."""
    reported: str = ""
    """Key of the paper's own figures in the data file."""
    service: str = ""
    """Model of a service that is paid for."""
    n_rows: int = 0
    """Rows of OmniEdit to be fetched."""

    @property
    def sizes(self) -> list[int]:
        """Bytes of each network in memory, and of what is trained; none where not known."""
        found = [networks(source) for source in self.models]
        held = [n for sized in found for name, n in sized.items() if self.part in ("", name)]
        return [*held, self.trained * _TRAINED] if held else []


def stages(profile: Profile) -> Iterator[Stage]:
    """The stages of a profile's chapters, in the order in which they can be run."""
    from abplib.sections.cost import gpu_hours

    made, n = Experiment(profile), profile.n_eval
    n_train = profile.sweep.n_batches * profile.sweep.batch_size
    for role in ("evaluation", "training", "tuning"):
        if not (lack := _refusal(partial(getattr, made, role))):
            continue
        if role == "evaluation" and profile.eval_set.startswith(_SPATIAL):
            mistral = "mistralai/Mistral-Small-3.2-24B-Instruct-2506"
            yield Stage("prompts, structures (A.2)", f"{N_SCENES:,} scenes", service=_PROMPTS)
            yield Stage("images (A.2)", f"{N_SCENES:,} images", ("briaai/FIBO",))
            yield Stage("edits (A.2)", f"{N_SCENES:,} edits", ("Qwen/Qwen-Image-Edit-2509",))
            yield Stage("instructions (A.2)", f"{N_SCENES:,} pairs described", (mistral,))
        fetched = role == "training" and profile.train_set.startswith(_OMNIEDIT)
        yield Stage(f"{role} samples", lacks=lack, n_rows=n_train if fetched else 0)
    if lack := _refusal(lambda: made.vlm_source):
        yield Stage("VLM", "all chapters", lacks=lack)
        return
    vlm = (made.vlm_source,)
    if profile.labels == "predicted":
        yield Stage("labels (ch. 2)", f"the VLM answers {n_train:,} training samples", vlm)
    trained, operations = bank(made.vlm_source, profile)
    does = f"{n_train:,} passes feed all"
    if operations:
        hours = gpu_hours(operations, peak="tflops_tf32")
        does += f"; {operations:.1e} operations in TF32, {hours:.2g} h of the paper's GPU"
    yield Stage("proxies (ch. 2)", does, vlm, trained=trained, reported="proxies")
    yield Stage("untrained decoder (ch. 2)", f"{n_train:,} passes feed the control", vlm)
    yield Stage("boxes, routing, flow (ch. 1, 3, 4)", f"{n:,} samples are read", vlm)
    if profile.editor is None:
        return
    if lack := _refusal(lambda: made.editor_source):
        yield Stage("edits (ch. 1, 5)", lacks=lack)
        return
    editor, budget = made.editor_source, profile.lora_training
    if profile.lora is not None and not made.lora_place.is_dir():
        does = f"{budget.steps:,} steps of {budget.batch} samples: abp train-lora"
        trained = lora_parameters(editor, budget.rank)
        yield Stage("LoRA (B.2)", does, (editor,), "transformer", trained, reported="lora")
    n_edits = n * (len(METHODS) - len(CONTROLS))
    does = f"{n_edits:,} edits of {profile.n_steps} steps"
    yield Stage("edits (ch. 1, 5)", does, (*vlm, editor))
    for name, about in profile.other_editors.items():
        if lack := _refusal(partial(made.other_source, name)):
            yield Stage(f"{name} (ch. 5)", lacks=lack)
            continue
        source = made.other_source(name)
        steps = about.n_steps or facts()["models"].get(source, {}).get("steps", "its own")
        yield Stage(f"{name} (ch. 5)", f"{n:,} edits of {steps} steps", (source,))
    if profile.judge.endswith(":gemini"):
        does = f"{n * (len(METHODS) + len(profile.other_editors)):,} edits, repeatedly"
        yield Stage("judging (ch. 5)", does, service=profile.judge_model or Gemini.model)


def _refusal(part: Callable[[], object]) -> str:
    """The sentence that says why something cannot be had; empty where it can."""
    try:
        part()
    except AbpError as error:
        return str(error)
    return ""


def n_shards(n_rows: int) -> int:
    """How many shards of OmniEdit hold so many rows."""
    about = facts()["data"][HUB_ID]
    return math.ceil(n_rows / about["rows"] * about["shards"])


def bank(source: str, profile: Profile) -> tuple[int, float]:
    """Parameters of a sweep's proxies together, and the operations of their training.

    Nothing where the shape of the VLM, a folder's or a hub id's, is not known.
    """
    import torch
    from transformers import AutoConfig, Qwen2_5_VLConfig

    from abplib.proxies.configurations import configurations
    from abplib.proxies.qformer import Proxy
    from abplib.sections import cost
    from abplib.vlm.encoder import middle_layers

    if (shape := _shape(source, "vlm")) is None:
        return 0, 0.0
    config = AutoConfig.for_model(**shape)
    width, depth = config.get_text_config().hidden_size, config.get_text_config().num_hidden_layers
    known: Any = SimpleNamespace(n_layers=depth, middle_layers=middle_layers(depth))
    chosen, settings = configurations(known), profile.sweep
    with torch.device("meta"):
        proxies = [Proxy(settings.proxy_config(width, len(c.layers))) for c in chosen]
    trained = sum(weight.numel() for proxy in proxies for weight in proxy.parameters())
    if not isinstance(config, Qwen2_5_VLConfig):
        return trained, 0.0
    read = cost.measured("benchmarks/results/sweep_cost.json")["settings"]["lengths"]
    lengths = cost.lengths_at(config, profile.image_area, read)
    each = cost.learning_flops(chosen, width, settings, lengths)
    return trained, float(each * settings.n_batches * settings.batch_size)


@cache
def lora_parameters(source: str, rank: int) -> int:
    """Parameters of a LoRA on an editor's transformer; 0 where its shape is not known."""
    from abplib.editing.lora.adapter import add_lora

    if (shape := _shape(source, "transformer")) is None:
        return 0
    network = _network("diffusers:QwenImageTransformer2DModel", shape)
    add_lora(network, rank, 0, trained=False)
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


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
    made = {name: _network(part["class"], part["config"]) for name, part in parts.items()}
    return {name: _BF16 * sum(w.numel() for w in made[name].parameters()) for name in made}


def _shape(source: str, part: str) -> dict[str, Any] | None:
    """The configuration of a network in a folder or of a hub id; None where it is not known."""
    if Path(source).is_dir():
        places = (Path(source) / part / "config.json", Path(source) / "config.json")
        found: dict[str, Any] = store.read_json(next(p for p in places if p.is_file()))
        return found
    known = facts()["models"].get(source)
    return None if known is None else known["parts"][part]["config"]


def _network(kind: str, config: Mapping[str, Any]) -> Any:
    """A network of a class with a configuration, without memory for its weights."""
    import torch
    from transformers import AutoConfig

    module, _, name = kind.partition(":")
    maker = getattr(importlib.import_module(module), name)
    with torch.device("meta"):
        if module == "transformers":
            return maker(AutoConfig.for_model(**config))
        return maker.from_config(config)


def stage_rows(planned: Sequence[Stage]) -> Iterator[tuple[str, ...]]:
    """STAGE_HEADER's columns for each stage."""
    for stage in planned:
        shown = ("unknown", "unknown") if stage.models else ("", "")
        if sizes := stage.sizes:
            shown = (f"{sum(sizes) / 1e9:.3g}", f"{max(sizes) / 1e9:.3g}")
        told = facts()["paper"].get(stage.reported)
        paper = f"{told['hours']} h, {told['gigabytes']} GB ({told['per']})" if told else ""
        yield stage.name, stage.does, *shown, paper


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
        size, here = (size, "no") if hub.cached(source) is None else ("0", "yes")
        yield source, *told, size, here, about.get("source", "")
    for n_rows in (stage.n_rows for stage in planned if stage.n_rows):
        about, shards = facts()["data"][HUB_ID], n_shards(n_rows)
        size = f"{about['bytes'] / 1e9 * shards / about['shards']:.0f} ({shards} shards)"
        yield HUB_ID, about["licence"], about["gated"], size, "no", about["source"]
    for name in dict.fromkeys(stage.service for stage in planned if stage.service):
        about = facts()["services"].get(name, {"licence": "unknown"})
        yield name, about["licence"], "key", "", "", ""


def missing(planned: Sequence[Stage], machine: Machine) -> list[str]:
    """One sentence for each thing that keeps a stage from running on a machine."""
    found = [stage.lacks for stage in planned if stage.lacks]
    models = dict.fromkeys(s for stage in planned for s in stage.models if not Path(s).is_dir())
    absent = [source for source in models if hub.cached(source) is None]
    n_rows = sum(stage.n_rows for stage in planned)
    asked = [partial(hub.check_access, source, "model") for source in absent]
    if n_rows:
        asked.append(partial(hub.check_access, HUB_ID, "dataset"))
    asked += [partial(gemini_client, stage.service) for stage in planned if stage.service]
    found += filter(None, map(_refusal, asked))
    about = facts()["data"][HUB_ID]  # of whose rows the sources stay, half of the images
    size = sum(sum(networks(source).values()) for source in absent)
    size += round(about["bytes"] * n_rows / about["rows"] / 2)
    if size > machine.free_disk:
        found.append(
            f"Models and images to download take {size / 1e9:.0f} GB and "
            f"{machine.free_disk / 1e9:.0f} GB of disk are free: point HF_HOME at a larger disk, "
            "and fetch data to one (--out)."
        )
    for stage in planned:
        found += _memory(stage, machine)
    return list(dict.fromkeys(found))


def _memory(stage: Stage, machine: Machine) -> Iterator[str]:
    whole, largest = sum(stage.sizes), max(stage.sizes, default=0)
    needs = f"{largest / 1e9:.0f} GB"
    if machine.gpu is None and whole > _ON_CPU:
        yield f"Stage {stage.name} would take weeks on CPU cores: use a GPU of {needs} or more."
    elif machine.gpu is not None and largest > machine.gpu_memory:
        yield (
            f"Stage {stage.name} keeps {needs} of weights on the GPU and "
            f"{machine.gpu} has {machine.gpu_memory / 1e9:.0f} GB: use a larger one."
        )
    elif machine.gpu is not None and whole > machine.gpu_memory + machine.memory:
        yield (
            f"Stage {stage.name} has {whole / 1e9:.0f} GB of weights, more than GPU and memory "
            "hold together: use a larger machine."
        )
