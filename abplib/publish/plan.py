"""What a profile's stages take: passes and steps, memory, models, data; and what is not here.

Networks of the hub are sized on the meta device, from the few facts of their config.json that
`data/paper/models.yaml` holds, and so is what training keeps beside them; nothing is downloaded.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pandas as pd

from abplib.core import hub, store
from abplib.core.errors import AbpError
from abplib.editing.methods import CONTROLS, METHODS
from abplib.experiment import Experiment
from abplib.judging.clients import Gemini, gemini_client
from abplib.paper import facts
from abplib.profiles import Profile
from abplib.samples.multi_entity import N_SCENES
from abplib.samples.omniedit import HUB_ID

_SPATIAL, _OMNIEDIT = "abplib.samples.multi_entity:", "abplib.samples.omniedit:"
_A2 = {
    "images (A.2)": "briaai/FIBO",
    "edits (A.2)": "Qwen/Qwen-Image-Edit-2509",
    "instructions (A.2)": "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
}
"""Which model does which stage of the multi-entity set."""
_BF16, _TRAINED = 2, 16
"""Bytes of a parameter; of one that is trained, with its gradient and Adam's moments in fp32."""

FOOTNOTE = (
    "GPU GB: weights in bf16 (a folder's as they are) and what training keeps beside them, all "
    "together or with the largest network alone and the rest offloaded; activations come on top."
)


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
    """The sentence that says why it cannot run."""
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
            for name, source in _A2.items():
                yield Stage(name, f"{N_SCENES:,} scenes", (source,))
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
    yield Stage("proxies (ch. 2)", does, vlm, trained=trained)
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
        yield Stage("LoRA (B.2)", does, (editor,), "transformer", trained)
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
        lack = _refusal(partial(gemini_client, profile.judge_model or Gemini.model))
        yield Stage("judging (ch. 5)", does, lacks=lack)


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

    from abplib.proxies.configurations import swept
    from abplib.proxies.qformer import Proxy
    from abplib.sections import cost
    from abplib.vlm.encoder import middle_layers

    if (shape := _shape(source, "vlm")) is None:
        return 0, 0.0
    config = AutoConfig.for_model(**shape)
    width, depth = config.get_text_config().hidden_size, config.get_text_config().num_hidden_layers
    known: Any = SimpleNamespace(n_layers=depth, middle_layers=middle_layers(depth))
    chosen, settings = swept(known, profile.n_untrained, 0), profile.sweep
    with torch.device("meta"):
        proxies = [Proxy(settings.proxy_config(width, len(c.layers))) for c in chosen]
    each = sum(weight.numel() for proxy in proxies for weight in proxy.parameters())
    trained = settings.n_seeds * each
    if not isinstance(config, Qwen2_5_VLConfig):
        return trained, 0.0
    read = cost.measured("benchmarks/results/sweep_cost.json")["settings"]["lengths"]
    lengths = cost.lengths_at(config, profile.image_area, read)
    sample = cost.learning_flops(chosen, width, settings, lengths)
    return trained, float(sample * settings.n_batches * settings.batch_size)


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


def stage_table(planned: Sequence[Stage]) -> pd.DataFrame:
    """One row a stage: what it does, and bytes on the GPU in GB."""
    rows = []
    for stage in planned:
        shown = ("unknown", "unknown") if stage.models else ("", "")
        if sizes := stage.sizes:
            shown = (f"{sum(sizes) / 1e9:.3g}", f"{max(sizes) / 1e9:.3g}")
        rows.append((stage.name, stage.does, *shown))
    return pd.DataFrame(rows, columns=["stage", "what it does", "GPU GB", "offloaded"])


def model_table(planned: Sequence[Stage]) -> pd.DataFrame:
    """One row for each model and data set of the hub: terms, and what is to be downloaded in GB."""
    rows = []
    for source in _of_the_hub(planned):
        about = facts()["models"].get(source, {})
        size = f"{sum(networks(source).values()) / 1e9:.3g}" if about else "unknown"
        rows.append((source, about.get("licence", "unknown"), about.get("gated", "unknown"), size))
    if n_rows := sum(stage.n_rows for stage in planned):
        about, shards = facts()["data"][HUB_ID], n_shards(n_rows)
        size = f"{about['bytes'] / 1e9 * shards / about['shards']:.0f} ({shards} shards)"
        rows.append((HUB_ID, about["licence"], about["gated"], size))
    return pd.DataFrame(rows, columns=["from the hub", "licence", "gated", "GB"])


def missing(planned: Sequence[Stage]) -> list[str]:
    """One sentence for each thing that keeps a stage from running."""
    asked = [partial(hub.check_access, s) for s in _of_the_hub(planned) if hub.cached(s) is None]
    if any(stage.n_rows for stage in planned):
        asked.append(partial(hub.check_access, HUB_ID, "dataset"))
    found = [stage.lacks for stage in planned] + [_refusal(ask) for ask in asked]
    return list(dict.fromkeys(filter(None, found)))


def _of_the_hub(planned: Sequence[Stage]) -> list[str]:
    models = (source for stage in planned for source in stage.models)
    return [source for source in dict.fromkeys(models) if not Path(source).is_dir()]
