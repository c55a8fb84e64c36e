"""The conformance kit passes on eight families, and fails as it should on broken adapters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel

from abplib.core.errors import AbpError
from abplib.vlm.adapters import ADAPTERS, Adapter, Pixtral, QwenVL
from abplib.vlm.conformance import check_encoder, examine
from abplib.vlm.encoder import ConditionEncoder, Encoding
from abplib.vlm.twins import TWINS, save

AREA = 64 * 64


def twin(family: str, adapter: Adapter | None = None) -> ConditionEncoder:
    return ConditionEncoder(*TWINS[family](), image_area=AREA, fingerprint="", adapter=adapter)


def faults(encoder: ConditionEncoder) -> dict[str, str]:
    return {finding.check: finding.fault for finding in examine(encoder) if finding.fault}


@pytest.mark.parametrize("family", TWINS)
def test_a_family_conforms_as_it_is_loaded(family: str, tmp_path: Path) -> None:
    folder = save(*TWINS[family](), tmp_path / "vlm")
    encoder = ConditionEncoder.from_pretrained(folder, image_area=AREA)
    check_encoder(encoder)
    assert len(examine(encoder)) == 11


@pytest.mark.parametrize("family", TWINS)
def test_a_family_conforms_in_half_precision(family: str) -> None:
    encoder = twin(family)
    encoder.model.to(torch.bfloat16)
    check_encoder(encoder)


def test_every_adapter_has_a_twin() -> None:
    assert ADAPTERS.keys() == TWINS.keys()


def test_the_shipped_miniatures_class_conforms(encoder: ConditionEncoder) -> None:
    check_encoder(encoder)


class Flat(QwenVL):
    """Positions are lost, as in diffusers' pipelines."""

    def inputs(self, inputs: BatchFeature, model: PreTrainedModel) -> dict[str, Tensor]:
        given = super().inputs(inputs, model)
        return {name: tensor for name, tensor in given.items() if name != "position_ids"}


class Unmasked(QwenVL):
    """Padding is taken for tokens."""

    def inputs(self, inputs: BatchFeature, model: PreTrainedModel) -> dict[str, Tensor]:
        given = super().inputs(inputs, model)
        return given | {"attention_mask": torch.ones_like(given["attention_mask"])}


class Blind(QwenVL):
    """The picture does not reach the model."""

    def inputs(self, inputs: BatchFeature, model: PreTrainedModel) -> dict[str, Tensor]:
        given = super().inputs(inputs, model)
        return {name: tensor for name, tensor in given.items() if name != "pixel_values"}


class Forgetful(QwenVL):
    """Neither positions nor what they are made from."""

    def inputs(self, inputs: BatchFeature, model: PreTrainedModel) -> dict[str, Tensor]:
        return {name: inputs[name] for name in inputs if name != "mm_token_type_ids"}


class Sideways(QwenVL):
    """Columns before rows."""

    def grids(self, *given: Any) -> list[tuple[int, int]]:
        return [(columns, rows) for rows, columns in super().grids(*given)]


class Unmerged(QwenVL):
    """Patches in place of tokens."""

    def grids(self, *given: Any) -> list[tuple[int, int]]:
        return [(2 * rows, 2 * columns) for rows, columns in super().grids(*given)]


def sabotaged(family: str, kind: type[Adapter], **changes: Any) -> ConditionEncoder:
    """The twin of a family with its adapter spoilt."""
    good = ADAPTERS[family]
    fields = {field.name: getattr(good, field.name) for field in dataclasses.fields(good)}
    return twin(family, kind(**fields | changes))


@pytest.mark.parametrize(
    ("family", "kind", "changes", "check", "sentence"),
    [
        (
            "qwen2_5_vl", Flat, {}, "positions",
            "1-D where Qwen2_5_VLForConditionalGeneration has 3-D ones; pass mm_token_type_ids",
        ),
        (
            "qwen2_vl", Unmasked, {}, "padding",
            r"\d+ real tokens alone and \d+ in a batch, .*; pass the processor's attention_mask on",
        ),
        ("qwen3_vl", Blind, {}, "picture", "changes nothing in the prompt's .*; pass pixel_values"),
        ("qwen2_5_vl", Sideways, {}, "grid", "wide picture has a grid of 5 x 3 .* give rows first"),
        ("qwen3_vl", Unmerged, {}, "grid", "15 image tokens for a grid of 6 x 10; count .* merged"),
        (
            "internvl", Adapter, {"image_end": "</img>"}, "spans",
            r"sample 0 reads '\\nremove it' where the instruction is 'remove it'; let .*image_end",
        ),
        (
            "mistral3", Pixtral, {"image_end": "[INST]"}, "spans",
            "do not cover each real token once; mend .* `image_end`",
        ),
        (
            "gemma3", Adapter, {"image_start": "<start_of_image>"}, "spans",
            "not those of the system prompt alone; let the adapter's `image_start` begin where",
        ),
        (
            "llava_onevision", Adapter, {}, "runs",
            "image tokens make no squares; switch the processor's tiles off .*`options`",
        ),
        ("idefics3", Adapter, {"options": {}}, "runs", "make no squares; switch the processor's"),
        ("qwen3_vl", Forgetful, {}, "runs", "mm_token_type_ids.*; give the model what"),
    ],
)  # fmt: skip
def test_a_broken_adapter_is_told_how_to_mend_it(
    family: str, kind: type[Adapter], changes: dict[str, Any], check: str, sentence: str
) -> None:
    found = faults(sabotaged(family, kind, **changes))
    assert re.search(sentence, found[check])
    assert all(fault.endswith(".") and "\n" not in fault for fault in found.values())


def test_what_is_not_broken_is_not_blamed() -> None:
    assert faults(sabotaged("qwen2_5_vl", Flat)).keys() == {"positions"}
    assert faults(sabotaged("qwen2_vl", Unmasked)).keys() == {"padding"}


class Shifted(ConditionEncoder):
    """Counts from the embeddings, as `hidden_states` does."""

    def encode(self, *given: Any, layers: Sequence[int] = (), **asked: Any) -> Encoding:
        below = super().encode(*given, layers=[max(0, layer - 1) for layer in layers], **asked)
        states = {l: s for l, s in below.states.items() if l == "final"}
        states |= {layer: below.states[max(0, layer - 1)] for layer in layers}
        return dataclasses.replace(below, states=states)


class Normed(ConditionEncoder):
    """Takes the last block's output from `hidden_states[-1]`."""

    def encode(self, *given: Any, **asked: Any) -> Encoding:
        raw = super().encode(*given, **asked)
        states = raw.states | {self.n_layers - 1: raw.states["final"]}
        return dataclasses.replace(raw, states=states)


class Raw(ConditionEncoder):
    """Takes the last block's output for the final states."""

    def encode(self, *given: Any, **asked: Any) -> Encoding:
        right = super().encode(*given, **asked)
        states = right.states | {"final": right.states[self.n_layers - 1]}
        return dataclasses.replace(right, states=states)


class Leaking(ConditionEncoder):
    """Attention rows that lack a part."""

    def encode(self, *given: Any, **asked: Any) -> Encoding:
        right = super().encode(*given, **asked)
        half = {layer: rows / 2 for layer, rows in right.attention.items()}
        return dataclasses.replace(right, attention=half)


class Crossed(ConditionEncoder):
    """Attention rows of the neighbouring token."""

    def encode(self, *given: Any, **asked: Any) -> Encoding:
        right = super().encode(*given, **asked)
        rolled = {layer: rows.roll(1, dims=2) for layer, rows in right.attention.items()}
        return dataclasses.replace(right, attention=rolled)


class Smeared(ConditionEncoder):
    """States are left on padding."""

    def encode(self, *given: Any, **asked: Any) -> Encoding:
        right = super().encode(*given, **asked)
        states = {layer: s + ~right.mask[..., None] for layer, s in right.states.items()}
        return dataclasses.replace(right, states=states)


@pytest.mark.parametrize(
    ("kind", "check", "sentence"),
    [
        (Shifted, "states", r"Layer 1 holds hidden_states\[1\] .* block 1 is hidden_states\[2\]"),
        (Normed, "last block", "Layer 2, the last, comes with the final norm .* before the norm"),
        (Raw, "final", "are not the model's last_hidden_state; take them from its output"),
        (Leaking, "attention rows", r"layer 0 sum to 0\.\d+ and not to one, .*; mask what"),
        (Crossed, "attention rows", "layer 0 differ from eager attention; read queries"),
        (Smeared, "padding", "is not zero on padding; mask it"),
    ],
)
def test_a_broken_encoder_is_told_how_to_mend_it(
    kind: type[ConditionEncoder], check: str, sentence: str
) -> None:
    encoder = kind(*TWINS["qwen3_vl"](), image_area=AREA, fingerprint="")
    assert re.search(sentence, faults(encoder)[check])
    with pytest.raises(AbpError, match=sentence):
        check_encoder(encoder)
