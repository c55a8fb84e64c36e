"""What the diffusion transformer is conditioned on: the baseline and its variants (section 4.6).

- `final`: the last layer's normed states, Qwen-Image-Edit's own condition.
- `norm_avg`: every layer's states layer-normalised without parameters, and their mean over the
  layers (Wang et al. 2025). Layers are those of `hidden_states[1:]`: the raw outputs of all
  blocks but the last, whose output is normed.
- `full_description`: under the edit template the VLM writes what it sees, then what the edit
  changes, greedily; a second pass gives the final states of image, instruction and that text. The
  paper leaves open how they are put together; here the user's turn is the image, the instruction, a
  space and the text.

The negative prompt is read in the same way; it is not described.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from abplib.editing.methods import Kind
from abplib.prompts import EDIT_TEMPLATE
from abplib.vlm import loading as vlms
from abplib.vlm.encoder import NOTHING, ConditionEncoder, Prepared, concatenated
from abplib.vlm.loading import Answer

MAX_DESCRIPTION = 1024
"""New tokens that a description may have: the features of the image come before the place."""


@dataclass(frozen=True, eq=False)
class Condition:
    """What the transformer reads of B samples."""

    states: Tensor
    """[B, T, d], zero on padding."""
    mask: Tensor
    """Bool [B, T]: real tokens, first in each row."""
    described: tuple[Answer, ...] = ()
    """What the VLM wrote of each sample, where it was asked to."""

    def __getitem__(self, rows: Sequence[int]) -> Condition:
        """The condition of some samples, in the order asked for."""
        return Condition(self.states[rows], self.mask[rows])


def stacked(first: Condition, second: Condition) -> Condition:
    """The samples of both, one after the other."""
    both = (first, second)
    states = concatenated([condition.states for condition in both])
    return Condition(states, concatenated([condition.mask for condition in both]))


def positive(
    encoder: ConditionEncoder,
    kind: Kind,
    images: Sequence[Image.Image],
    instructions: Sequence[str],
) -> Condition:
    """The condition of one instruction for each image.

    Raises AbpError as `ConditionEncoder.prepare` does.
    """
    described: list[Answer] = []
    if kind == "full_description":
        described = describe(encoder, images, instructions)
        instructions = [
            f"{instruction} {answer.text}".strip()
            for instruction, answer in zip(instructions, described, strict=True)
        ]
    read = _read(encoder, kind, encoder.prepare(images, instructions))
    return replace(read, described=tuple(described))


def negative(encoder: ConditionEncoder, kind: Kind, images: Sequence[Image.Image]) -> Condition:
    """The condition of the pipeline's negative prompt for each image."""
    return _read(encoder, kind, encoder.prepare(images, [NOTHING] * len(images)))


def describe(
    encoder: ConditionEncoder, images: Sequence[Image.Image], instructions: Sequence[str]
) -> list[Answer]:
    """What the VLM writes under the edit template: the picture, then what the edit changes."""
    texts = [EDIT_TEMPLATE.format(instruction) for instruction in instructions]
    model, processor = encoder.model, encoder.processor
    chats = vlms.chats(images, texts, model, processor, encoder.image_area)
    answers = vlms.generate_text(chats, model, processor, max_new_tokens=MAX_DESCRIPTION)
    markers = re.compile(r"<\|\w+\|>")  # that stayed
    return [answer._replace(text=markers.sub("", answer.text).strip()) for answer in answers]


def _read(encoder: ConditionEncoder, kind: Kind, prepared: Prepared) -> Condition:
    if kind == "norm_avg":
        encoding = encoder.encode(prepared, layers=range(encoder.n_layers - 1), final=True)
        width = (encoder.width,)  # in float32; padding stays 0
        layers = [F.layer_norm(states.float(), width) for states in encoding.states.values()]
        mean = torch.stack(layers).mean(0).to(encoder.model.dtype)
        return Condition(mean, encoding.mask)
    encoding = encoder.encode(prepared, final=True)
    return Condition(encoding.states["final"], encoding.mask)
