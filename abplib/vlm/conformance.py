"""The conformance kit: does an encoder read its VLM as it says?

An adapter that is wrong mostly says nothing: states come from the neighbouring block, positions
fall back to a plain count, and every later number is a little off. The kit runs two pictures of
different shape, and instructions of different length, through the encoder, and holds the result
against transformers' own outputs of one whole pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel
from transformers.utils import ModelOutput

from abplib.core.errors import AbpError
from abplib.vlm.encoder import ConditionEncoder, Encoding

INSTRUCTIONS = ("remove it", "turn the second red apple from the left into a green pear")
_SIZES = ((96, 64), (64, 128))  # width and height: one wide, one tall
_AREA = 224 * 224  # eager attention holds whole maps, so pictures stay small


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    fault: str
    """A sentence that says what is wrong and how to mend it; empty where nothing is."""


def check_encoder(encoder: ConditionEncoder) -> None:
    """Raise AbpError with the fault of every check that an encoder fails."""
    if faults := [finding.fault for finding in examine(encoder) if finding.fault]:
        raise AbpError(" ".join(faults))


@torch.inference_mode()
def examine(encoder: ConditionEncoder) -> list[Finding]:
    """All checks, in order; where the encoder does not run at all, that alone.

    Memory: full attention maps of all blocks over a few hundred tokens.
    """
    try:
        trial = Trial(encoder)
    except AbpError as error:
        return [Finding("runs", f"The encoder does not run: {error}")]
    except Exception as error:  # whatever a model raises on wrong inputs
        reason = f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')[:400]}"
        fault = (
            f"The encoder does not run ({reason}); give the model what its processor made, and "
            "what it needs beside that, from the adapter's `inputs`."
        )
        return [Finding("runs", fault)]
    checked = [Finding(name, next(check(trial), "")) for name, check in CHECKS.items()]
    return [Finding("runs", ""), *checked]


class Trial:
    """One pass of the encoder, and what transformers gives for the same call."""

    def __init__(self, encoder: ConditionEncoder) -> None:
        self.encoder, self.model = copy.copy(encoder), encoder.model
        self.encoder.image_area = min(encoder.image_area, _AREA)
        self.images = [_noise(size, seed) for seed, size in enumerate(_SIZES)]
        self.encoding = self.encode(self.images, INSTRUCTIONS)
        inputs = self.encoder.prepare(self.images, INSTRUCTIONS).inputs
        self.given = BatchFeature(inputs).to(self.model.device, self.model.dtype)
        self.n_dropped = self.given["input_ids"].shape[1] - self.encoding.mask.shape[1]
        with _watched(self.model) as called:
            self.hidden = self._reference("sdpa").hidden_states
        self.positions = called.get("position_ids")
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

    def alike(self, states: Tensor, expected: Tensor) -> bool:
        """Whether two tensors agree, to a part of the largest value."""
        return error_of(states, expected) <= self.tolerance


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """While the body runs, what the decoder is called with, by keyword."""
    call: dict[str, Any] = {}
    handle = model.get_decoder().register_forward_pre_hook(
        lambda _part, _args, given: call.update(given), with_kwargs=True
    )
    try:
        yield call
    finally:
        handle.remove()


def error_of(states: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest expected value; inf for another shape."""
    if states.shape != expected.shape:
        return float("inf")
    return float((states.float() - expected.float()).abs().max() / expected.float().abs().max())


def _noise(size: tuple[int, int], seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


Faults = Iterator[str]
"""Of one check; the first counts."""


def _shapes(trial: Trial) -> Faults:
    config, states = trial.model.config.get_text_config(), trial.encoding.states
    n_layers, width = trial.encoder.n_layers, trial.encoder.width
    if n_layers != config.num_hidden_layers:
        yield (
            f"The encoder has {n_layers} layers where the model has {config.num_hidden_layers} "
            "decoder blocks; read those of model.get_decoder()."
        )
    expected = (*trial.encoding.mask.shape, config.hidden_size)
    for layer, kept in states.items():
        if kept.shape != expected or width != config.hidden_size:
            yield (
                f"Layer {layer} has the shape {list(kept.shape)}, the encoder the width {width}, "
                f"where {list(expected)} is due; keep whole states of all kept tokens."
            )


def _spans(trial: Trial) -> Faults:
    encoding, tokenizer = trial.encoding, trial.encoder.processor.tokenizer
    prefix, _ = trial.encoder.adapter.texts(trial.encoder.processor)
    expected = tokenizer(prefix, add_special_tokens=False).input_ids
    for row, dropped in enumerate(trial.given["input_ids"][:, : trial.n_dropped].tolist()):
        if dropped != expected:
            yield (
                f"The {trial.n_dropped} tokens dropped from sample {row} end in "
                f"{tokenizer.decode(dropped[-4:])!r} and are not those of the system prompt alone; "
                "let the adapter's `image_start` begin where a token does."
            )
    spans = (encoding.image_tokens, encoding.prompt_tokens, encoding.template_tokens)
    if not torch.equal(torch.stack(spans).sum(0), encoding.mask.long()):
        yield (
            "The spans image, prompt and template do not cover each real token once; mend the "
            "adapter's `image_tokens`, or `image_end` where the prompt holds image tokens."
        )
    for row, instruction in enumerate(INSTRUCTIONS):
        said = tokenizer.decode(encoding.input_ids[row][encoding.prompt_tokens[row]])
        if said.strip(" ") != instruction:
            yield (
                f"The prompt span of sample {row} reads {said!r} where the instruction is "
                f"{instruction!r}; let the adapter's `image_end` be all that stands between the "
                "last image token and the instruction."
            )


def _grid(trial: Trial) -> Faults:
    encoding, token = trial.encoding, trial.model.config.image_token_id
    for row, (n_rows, n_columns) in enumerate(encoding.grids):
        ids = encoding.input_ids[row][encoding.image_tokens[row]]
        if len(ids) != n_rows * n_columns or (ids != token).any():
            yield (
                f"Sample {row} has {int((ids == token).sum())} image tokens for a grid of {n_rows} "
                f"x {n_columns}; count rows and columns of merged tokens in the adapter's `grids`."
            )
    (wide_rows, wide_columns), (tall_rows, tall_columns) = encoding.grids
    if wide_rows > wide_columns or tall_rows < tall_columns:
        yield (
            f"A wide picture has a grid of {wide_rows} x {wide_columns} and a tall one of "
            f"{tall_rows} x {tall_columns}; let the adapter's `grids` give rows first."
        )


def _positions(trial: Trial) -> Faults:
    positions, encoding = trial.positions, trial.encoding
    name, rope = type(trial.model).__name__, trial.model.config.get_text_config().rope_parameters
    if "mrope_section" not in (rope or {}):
        if positions is not None:
            steps = positions[:, trial.n_dropped :].expand(len(encoding.mask), -1).diff(dim=1)
            if (steps[encoding.mask[:, 1:]] != 1).any():
                yield f"{name} counts positions along the sequence; leave `position_ids` out."
        return
    lost = (
        f"Positions are 1-D where {name} has 3-D ones; pass mm_token_type_ids to the model, or "
        "`position_ids` of its get_rope_index, from the adapter's `inputs`."
    )
    if positions is None or positions.ndim != 3:
        yield lost
        return
    for row, (n_rows, n_columns) in enumerate(encoding.grids):
        places = positions[-2:, row, trial.n_dropped :][:, encoding.image_tokens[row]].cpu()
        if torch.equal(places[0], places[1]):
            yield lost
        if places.shape[1] != n_rows * n_columns:
            continue  # the grid's own check says so
        due = torch.meshgrid(torch.arange(n_rows), torch.arange(n_columns), indexing="ij")
        if not torch.equal(places - places[:, :1], torch.stack(due).flatten(1)):
            yield (
                f"The positions of sample {row} do not go row by row over its grid of {n_rows} x "
                f"{n_columns}; give get_rope_index the grids that the processor made."
            )


def _states(trial: Trial) -> Faults:
    for layer in range(trial.encoder.n_layers - 1):
        read, expected = trial.read(layer), trial.kept(trial.hidden[layer + 1])
        if trial.alike(read, expected):
            continue
        for index, other in enumerate(trial.hidden):
            if trial.alike(read, trial.kept(other)):
                yield (
                    f"Layer {layer} holds hidden_states[{index}] where the output of block {layer} "
                    f"is hidden_states[{layer + 1}], [0] being the embeddings; shift the layers."
                )
        yield (
            f"Layer {layer} differs from hidden_states[{layer + 1}] by "
            f"{error_of(read, expected):.1g} of its size; read the output of the decoder block "
            "itself."
        )


def _last_block(trial: Trial) -> Faults:
    last = trial.encoder.n_layers - 1
    read, final = trial.read(last), trial.kept(trial.hidden[-1])
    if trial.alike(read, final):
        yield (
            f"Layer {last}, the last, comes with the final norm applied, as hidden_states[-1] "
            "does; read the output of the last decoder block before the norm."
        )
    if not trial.alike(trial.model.get_decoder().norm(read), final):
        yield (
            f"Layer {last}, the last, does not give the model's final states under the final norm; "
            "read the output of the last decoder block."
        )


def _final(trial: Trial) -> Faults:
    if not trial.alike(trial.read("final"), trial.kept(trial.hidden[-1])):
        yield "The `final` states are not the model's last_hidden_state; take them from its output."


def _rows(trial: Trial) -> Faults:
    encoding = trial.encoding
    after = encoding.mask & (encoding.prompt_tokens.cumsum(1) > 0)
    for layer, alpha in encoding.attention.items():
        eager = trial.eager[layer].float().mean(1)[:, trial.n_dropped :]
        for row, real in enumerate(after):
            dropped, expected = eager[row][real].tensor_split([trial.n_dropped], dim=1)
            mine = alpha[row, : len(expected)]
            total = mine.sum(1) + dropped.sum(1)
            if not trial.alike(total, torch.ones_like(total)):
                yield (
                    f"Attention rows of layer {layer} sum to {float(total[0]):.3g} and not to one, "
                    "the dropped part included; mask what a token cannot see before the softmax."
                )
            if not trial.alike(mine, expected):
                yield (
                    f"Attention rows of layer {layer} differ from eager attention; read queries "
                    "and keys after their norms and rotary positions, with the block's own mask."
                )


def _padding(trial: Trial) -> Faults:
    together = trial.encoding
    for row, (image, instruction) in enumerate(zip(trial.images, INSTRUCTIONS, strict=True)):
        alone = trial.encode([image], (instruction,))
        n_alone, n_together = int(alone.mask.sum()), int(together.mask[row].sum())
        if n_alone != n_together:
            yield (
                f"Sample {row} has {n_alone} real tokens alone and {n_together} in a batch, so "
                "padding is taken for tokens; pass the processor's attention_mask on."
            )
        for layer, states in alone.states.items():
            padded = together.states[layer][row]
            if not trial.alike(padded[: len(states[0])], states[0]):
                yield (
                    f"Layer {layer} of sample {row} is another alone than in a batch; pad on the "
                    "right and pass the processor's attention_mask on."
                )
            if padded[n_together:].any():
                yield f"Layer {layer} of sample {row} is not zero on padding; mask it."


def _picture(trial: Trial) -> Faults:
    prompt = trial.encoding.prompt_tokens
    other = trial.encode([ImageOps.invert(image) for image in trial.images], INSTRUCTIONS)
    if torch.equal(other.states["final"][prompt], trial.encoding.states["final"][prompt]):
        yield "Another picture changes nothing in the prompt's states; pass pixel_values on."


CHECKS: dict[str, Callable[[Trial], Faults]] = {
    "layers and widths": _shapes,
    "spans": _spans,
    "grid": _grid,
    "positions": _positions,
    "states": _states,
    "last block": _last_block,
    "final": _final,
    "attention rows": _rows,
    "padding": _padding,
    "picture": _picture,
}
"""What is checked after the encoder has run."""
