"""The conformance kit passes on eight families, and fails as it should on broken adapters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from familytwins import TWINS
from torch import Tensor

from abplib.core import paths
from abplib.core.errors import AbpError
from abplib.vlm.adapters import ADAPTERS, Adapter
from abplib.vlm.conformance import check_encoder, examine
from abplib.vlm.encoder import ConditionEncoder, Encoding
from abplib.vlm.twins import save

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


def test_the_smoke_twin_and_the_shipped_miniature_conform(encoder: ConditionEncoder) -> None:
    check_encoder(encoder)
    folder = paths.root() / "data/mini/vlm"
    check_encoder(ConditionEncoder.from_pretrained(folder, image_area=128**2))


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Inputs that lack one of them."""
    return lambda given: {key: tensor for key, tensor in given.items() if key != name}


def unmasked(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs whose padding is taken for tokens."""
    return given | {"attention_mask": torch.ones_like(given["attention_mask"])}


def sideways(grids: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Columns before rows."""
    return [(columns, rows) for rows, columns in grids]


def unmerged(grids: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Patches in place of tokens."""
    return [(2 * rows, 2 * columns) for rows, columns in grids]


def sabotaged(family: str, spoilt: dict[str, Any]) -> ConditionEncoder:
    """The twin of a family, its adapter's fields replaced, or what its methods give changed."""
    good = ADAPTERS[family]
    kind = spoilt.get("kind", type(good))
    fields = {field.name: getattr(good, field.name) for field in dataclasses.fields(good)}

    def changed(name: str) -> Callable[..., Any]:
        return lambda self, *given: spoilt[name](getattr(kind, name)(self, *given))

    methods = {name: changed(name) for name in ("inputs", "grids") if name in spoilt}
    own = {name: value for name, value in spoilt.items() if name in fields}
    return twin(family, type("Spoilt", (kind,), methods)(**fields | own))


@pytest.mark.parametrize(
    ("family", "spoilt", "check", "sentence"),
    [
        (
            "qwen2_5_vl", {"inputs": without("position_ids")}, "positions",
            "1-D where Qwen2_5_VLForConditionalGeneration has 3-D ones; pass mm_token_type_ids",
        ),
        (
            "qwen2_vl", {"inputs": unmasked}, "padding",
            r"\d+ real tokens alone and \d+ in a batch, .*; pass the processor's attention_mask on",
        ),
        (
            "qwen3_vl", {"inputs": without("pixel_values")}, "picture",
            "changes nothing in the prompt's .*; pass pixel_values",
        ),
        (
            "qwen2_5_vl", {"grids": sideways}, "grid",
            "wide picture has a grid of 5 x 3 .* give rows first",
        ),
        (
            "qwen3_vl", {"grids": unmerged}, "grid",
            "15 image tokens for a grid of 6 x 10; count .* merged",
        ),
        (
            "internvl", {"image_end": "</img>"}, "spans",
            r"sample 0 reads '\\nremove it' where the instruction is 'remove it'; let .*image_end",
        ),
        (
            "mistral3", {"image_end": "[INST]"}, "spans",
            "do not cover each real token once; mend .* `image_end`",
        ),
        (
            "gemma3", {"image_start": "<start_of_image>"}, "spans",
            "not those of the system prompt alone; let the adapter's `image_start` begin where",
        ),
        (
            "llava_onevision", {"kind": Adapter}, "runs",
            "image tokens make no squares; switch the processor's tiles off .*`options`",
        ),
        ("idefics3", {"options": {}}, "runs", "make no squares; switch the processor's"),
        (
            "qwen3_vl", {"inputs": without("position_ids")}, "runs",
            "mm_token_type_ids.*; give the model what",
        ),
    ],
)  # fmt: skip
def test_a_broken_adapter_is_told_how_to_mend_it(
    family: str, spoilt: dict[str, Any], check: str, sentence: str
) -> None:
    found = faults(sabotaged(family, spoilt))
    assert re.search(sentence, found[check])
    assert all(fault.endswith(".") and "\n" not in fault for fault in found.values())
    if check in ("positions", "padding"):  # what is not broken is not blamed
        assert found.keys() == {check}


def states(change: Callable[[Encoding, dict[Any, Tensor]], dict[Any, Tensor]]) -> Any:
    """An encoding with other states."""
    return lambda right: dataclasses.replace(right, states=change(right, right.states))


def attention(change: Callable[[Tensor], Tensor]) -> Any:
    """An encoding with other attention rows."""
    return lambda right: dataclasses.replace(
        right, attention={layer: change(rows) for layer, rows in right.attention.items()}
    )


@pytest.mark.parametrize(
    ("change", "check", "sentence"),
    [
        (  # counted from the embeddings, as `hidden_states` is
            states(lambda _, s: s | {layer: s[layer - 1] for layer in (1, 2)}), "states",
            r"Layer 1 holds hidden_states\[1\] .* block 1 is hidden_states\[2\]",
        ),
        (
            states(lambda _, s: s | {2: s["final"]}), "last block",
            "Layer 2, the last, comes with the final norm .* before the norm",
        ),
        (
            states(lambda _, s: s | {"final": s[2]}), "final",
            "are not the model's last_hidden_state; take them from its output",
        ),
        (
            states(lambda e, s: {layer: x + ~e.mask[..., None] for layer, x in s.items()}),
            "padding", "is not zero on padding; mask it",
        ),
        (
            attention(lambda rows: rows / 2), "attention rows",
            r"layer 0 sum to 0\.\d+ and not to one, .*; mask what",
        ),
        (
            attention(lambda rows: rows.roll(1, dims=2)), "attention rows",
            "layer 0 differ from eager attention; read queries",
        ),
    ],
)  # fmt: skip
def test_a_broken_encoder_is_told_how_to_mend_it(
    change: Callable[[Encoding], Encoding], check: str, sentence: str
) -> None:
    class Broken(ConditionEncoder):
        def encode(self, *given: Any, **asked: Any) -> Encoding:
            return change(super().encode(*given, **asked))

    encoder = Broken(*TWINS["qwen3_vl"](), image_area=AREA, fingerprint="")
    assert re.search(sentence, faults(encoder)[check])
    with pytest.raises(AbpError, match=sentence):
        check_encoder(encoder)
