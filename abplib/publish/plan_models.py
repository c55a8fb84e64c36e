"""Models as far as planning needs them: licence, gate, parameters, cost of a pass.

Parameters of a hub's model are counted on the meta device, from the few facts of its config.json
that `data/paper/models.yaml` holds; those of a folder are read from the headers of its weights.
Neither loads a weight.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from abplib.core import paths, store
from abplib.core.errors import AbpError

FACTS = "data/paper/models.yaml"

_BF16 = 2
"""Bytes of a parameter."""
_JOINT = "transformer_blocks."
"""Where diffusers keeps blocks in which image and text tokens have weights of their own."""


@dataclass(frozen=True)
class Part:
    """One network of a model."""

    name: str
    parameters: int
    seen: int
    """Parameters that one token passes; half of those of joint blocks."""
    attention: int
    """Blocks times width: a pass over T tokens costs 4 T^2 of it for attention."""
    token_side: int
    """Pixels along the side of the square that an image token stands for."""

    def flops(self, n_tokens: int) -> float:
        """Floating-point operations of one forward pass."""
        return 2.0 * self.seen * n_tokens + 4.0 * self.attention * n_tokens**2


@dataclass(frozen=True)
class Model:
    """A model of the hub, or in a folder."""

    source: str
    """Hub id, or path of the folder."""
    licence: str
    gated: str
    """yes, no or unknown."""
    parts: tuple[Part, ...]
    bytes: int
    """Of the weights: in bf16 for a hub's model, as they are for a folder's."""
    steps: int = 1
    """Denoising steps (model card)."""
    passes: int = 1
    """Of the transformer in a step."""

    @property
    def parameters(self) -> int:
        """Of all parts."""
        return sum(part.parameters for part in self.parts)

    @property
    def largest(self) -> int:
        """Bytes of the largest part: what a GPU holds when the others are offloaded."""
        return round(self.bytes * max(p.parameters for p in self.parts) / self.parameters)

    def part(self, *names: str) -> Part:
        """The first part that is called one of `names`."""
        for name in names:
            for part in self.parts:
                if part.name == name:
                    return part
        raise AbpError(
            f"{self.source} has no part {' or '.join(names)}: it is no model of this kind."
        )


@cache
def facts() -> dict[str, Any]:
    """The data file."""
    path = paths.root() / FACTS
    if not path.is_file():
        raise AbpError(f"{path} is missing: restore it from the repository.")
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


@cache
def model_of(source: str) -> Model | None:
    """The model in a folder or of a hub id; None for a hub id that the data file does not know.

    Raises:
        AbpError: the folder holds no weights.
    """
    if Path(source).is_dir():
        return _in_folder(Path(source))
    known = facts()["models"].get(source)
    if known is None:
        return None
    parts = tuple(_on_meta(name, **part) for name, part in known["parts"].items())
    return Model(
        source,
        known["licence"],
        known["gated"],
        parts,
        _BF16 * sum(part.parameters for part in parts),
        known.get("steps", 1),
        known.get("passes", 1),
    )


def _on_meta(name: str, **shape: Any) -> Part:
    """Count the parameters of a class with a configuration, without memory for them."""
    module, _, kind = shape["class"].partition(":")
    config = shape["config"]
    maker = getattr(importlib.import_module(module), kind)
    with torch.device("meta"):
        if module == "transformers":
            from transformers import AutoConfig

            network = maker(AutoConfig.for_model(**config))
        else:
            network = maker(**config)
    return _part(name, config, {key: p.numel() for key, p in network.named_parameters()})


def _in_folder(folder: Path) -> Model:
    """The networks of a saved model: the folder itself, or those of its folders with weights."""
    parts, size = [], 0
    for place in sorted({file.parent for file in folder.rglob("*.safetensors")}):
        config = place / "config.json"
        if not config.is_file() or place not in (folder, *folder.iterdir()):
            continue  # an adapter, or something kept beside the model
        counts: dict[str, int] = {}
        for file in place.glob("*.safetensors"):
            size += file.stat().st_size
            with safe_open(file, "pt") as weights:
                names = weights.keys()
                counts |= {name: math.prod(weights.get_slice(name).get_shape()) for name in names}
        name = "vlm" if place == folder else place.name
        parts.append(_part(name, store.read_json(config), counts))
    if not parts:
        raise AbpError(f"The folder {folder} holds no weights: restore it, or make the model.")
    return Model(str(folder), "see its folder", "no", tuple(parts), size)


def _part(name: str, config: Mapping[str, Any], counts: Mapping[str, int]) -> Part:
    total = sum(counts.values())
    joint = sum(n for key, n in counts.items() if key.startswith(_JOINT))
    text, vision = config.get("text_config") or config, config.get("vision_config") or {}
    if "attention_head_dim" in text:  # a diffusion transformer
        blocks = text["num_layers"] + text.get("num_single_layers", 0)
        attention = blocks * text["num_attention_heads"] * text["attention_head_dim"]
        side = 16
    else:
        blocks = text.get("num_hidden_layers") or text.get("num_layers") or 0
        attention = blocks * (text.get("hidden_size") or text.get("d_model") or 0)
        side = vision.get("patch_size", 14) * vision.get("spatial_merge_size", 2)
    return Part(name, total, total - joint // 2, attention, side)
