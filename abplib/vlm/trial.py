"""The conformance kit's trial: one pass of an encoder beside transformers' own of the same call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from abplib.vlm.encoder import ConditionEncoder, Encoding

INSTRUCTIONS = ("remove it", "turn the second red apple from the left into a green pear")
_SIZES = ((96, 64), (64, 128))  # width and height: one wide, one tall
_AREA = 224 * 224  # eager attention holds whole maps, so pictures stay small


class Trial:
    """One pass of the encoder, and what transformers gives for the same call."""

    def __init__(self, encoder: ConditionEncoder) -> None:
        self.encoder, self.model = copy.copy(encoder), encoder.model
        self.encoder.image_area = min(encoder.image_area, _AREA)
        self.images = [_noise(size, seed) for seed, size in enumerate(_SIZES)]
        with _watched(self.model) as called:
            self.encoding = self.encode(self.images, INSTRUCTIONS)
        self.given = {k: v for k, v in called["model"].items() if isinstance(v, Tensor)}
        self.positions = called["decoder"].get("position_ids")
        self.n_dropped = self.given["input_ids"].shape[1] - self.encoding.mask.shape[1]
        self.hidden = self._reference("sdpa").hidden_states
        self.eager = self._reference("eager").attentions
        self.tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2

    def encode(self, images: list[Image.Image], instructions: tuple[str, ...]) -> Encoding:
        every = range(self.encoder.n_layers)
        return self.encoder.encode(images, instructions, layers=every, final=True, attention=every)

    def _reference(self, attention: str) -> ModelOutput:
        parts = ("text_config", "vision_config")
        before = {p: getattr(self.model.config, p)._attn_implementation for p in parts}
        self.model.set_attn_implementation(dict.fromkeys(parts, attention))
        try:
            return self.model.base_model(
                **self.given,
                use_cache=False,
                output_hidden_states=True,
                output_attentions=attention == "eager",
            )
        finally:
            self.model.set_attn_implementation(before)

    def kept(self, states: Tensor) -> Tensor:
        """[B, S, d] of the reference -> its real kept tokens, one after the other."""
        return states[:, self.n_dropped :][self.encoding.mask]

    def read(self, layer: int | str) -> Tensor:
        """The same of the encoder."""
        return self.encoding.states[layer][self.encoding.mask]  # type: ignore[index]

    def alike(self, found: Tensor, expected: Tensor) -> bool:
        """Whether two tensors agree, to a part of the largest value."""
        return error_of(found, expected) <= self.tolerance


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[dict[str, dict[str, Any]]]:
    """While the body runs, what the model and its decoder are called with, by keyword."""
    calls: dict[str, dict[str, Any]] = {}

    def storing(name: str) -> Callable[..., None]:
        def hook(_module: object, _args: object, kwargs: dict[str, Any]) -> None:
            calls[name] = kwargs

        return hook

    parts = {"model": model.base_model, "decoder": model.get_decoder()}
    handles = [
        part.register_forward_pre_hook(storing(name), with_kwargs=True)
        for name, part in parts.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def error_of(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest expected value; inf for another shape."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def _noise(size: tuple[int, int], seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)
