from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from PIL import Image

from abplib.editing import conditions
from abplib.editing.conditions import Condition, describe, negative, positive
from abplib.editing.methods import Kind
from abplib.vlm.encoder import NOTHING, ConditionEncoder

Batch = tuple[list[Image.Image], list[str]]


@pytest.fixture
def batch(images: list[Image.Image], instructions: list[str]) -> Batch:
    return images, instructions


@pytest.fixture
def talkative(encoder: ConditionEncoder) -> ConditionEncoder:
    """Weights large enough for random texts to depend on the image and the instruction."""
    model = copy.deepcopy(encoder.model)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not model.lm_head:
            module.weight.mul_(8)
    return ConditionEncoder(model, encoder.processor, image_area=encoder.image_area, fingerprint="")


def script(
    encoder: ConditionEncoder,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
    ends: Sequence[str] = ("<|im_end|>",) * 2,
) -> None:
    """Let the model write `said`, in turn, whatever it is shown."""
    tokenizer = encoder.processor.tokenizer
    remaining = (text + end for text, end in zip(said, ends, strict=False))

    def generate(*, input_ids: torch.Tensor, max_new_tokens: int, **_: Any) -> torch.Tensor:
        assert max_new_tokens == 1024
        texts = [next(remaining) for _ in input_ids]
        padded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        return torch.cat([input_ids, padded.input_ids], dim=1)

    monkeypatch.setattr(encoder.model, "generate", generate)


def same(one: Condition, other: Condition) -> None:
    assert torch.equal(one.mask, other.mask)
    torch.testing.assert_close(one.states, other.states, rtol=0, atol=1e-6)


def test_a_description_is_read_with_image_and_instruction(
    encoder: ConditionEncoder, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(encoder, monkeypatch, ["A red apple.<|fim_pad|>", ""])
    images, (first, second) = batch
    found = positive(encoder, "full_description", *batch)
    same(found, positive(encoder, "final", images, [f"{first} A red apple.", second]))


def test_descriptions_are_the_same_whatever_the_batch(
    talkative: ConditionEncoder, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "MAX_DESCRIPTION", 8)
    alone = [describe(talkative, [image], [text])[0] for image, text in zip(*batch, strict=True)]
    assert alone[0].text != alone[1].text
    assert describe(talkative, *batch) == alone


def test_a_description_tells_whether_it_was_cut(
    encoder: ConditionEncoder, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(
        encoder, monkeypatch, ["A red apple.", "A green pear that goes on"], ends=["<|im_end|>", ""]
    )
    described = positive(encoder, "full_description", *batch).described
    assert [(answer.text, answer.whole) for answer in described] == [
        ("A red apple.", True),
        ("A green pear that goes on", False),
    ]
    assert not positive(encoder, "final", *batch).described


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_negative_prompt_is_read_in_the_same_way_and_not_described(
    encoder: ConditionEncoder, batch: Batch, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(encoder, monkeypatch, [])
    images, _ = batch
    alike: Kind = "final" if kind == "full_description" else kind
    same(negative(encoder, kind, images), positive(encoder, alike, images, [NOTHING] * 2))
