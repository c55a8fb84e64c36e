"""Attention rows against eager attention; maps on the image's grid."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import noise
from PIL import Image
from torch import Tensor

from abplib.core import paths
from abplib.core.errors import AbpError
from abplib.prompts import EDIT_TEMPLATE, N_DROPPED
from abplib.vlm import loading
from abplib.vlm.attention import reading_rows
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.maps import GENERIC, attention_maps

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def miniature() -> ConditionEncoder:
    """The trained miniature VLM."""
    return ConditionEncoder.from_pretrained(paths.root() / "data/mini/vlm", image_area=128 * 128)


@pytest.fixture(params=["smoke twin", "miniature"])
def any_encoder(
    request: pytest.FixtureRequest, encoder: ConditionEncoder, miniature: ConditionEncoder
) -> Iterator[ConditionEncoder]:
    yield encoder if request.param == "smoke twin" else miniature


def eager_maps(encoder: ConditionEncoder, **inputs: Tensor) -> tuple[Tensor, ...]:
    """Every layer's whole map, mean over its heads: [B, S, S] each."""
    encoder.model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.no_grad():
            output = encoder.model.model(**inputs, use_cache=False, output_attentions=True)
    finally:
        encoder.model.set_attn_implementation({"text_config": "sdpa"})
    return tuple(heads.mean(1) for heads in output.attentions)


def test_rows_are_those_of_eager_attention(
    any_encoder: ConditionEncoder, images: list[Image.Image], instructions: list[str]
) -> None:
    prepared = any_encoder.prepare(images, instructions)
    encoding = any_encoder.encode(prepared, attention=LAYERS)
    assert not encoding.mask.all()  # two image sizes, right-padded
    maps = eager_maps(any_encoder, **prepared.inputs)
    assert set(encoding.attention) == set(LAYERS)
    for layer in LAYERS:
        for row, prompt in enumerate(encoding.prompt_tokens):
            after = encoding.mask[row] & (prompt.cumsum(0) > 0)
            n = int(after.sum())
            assert n == prompt.sum() + len(["<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"])
            found = encoding.attention[layer][row]
            expected = maps[layer][row, N_DROPPED:, N_DROPPED:][after]
            torch.testing.assert_close(found[:n], expected, rtol=0, atol=1e-5)
            assert not found[n:].any()
            to_image = found[:n, encoding.image_tokens[row]].sum(-1)
            assert ((to_image > 0) & (to_image <= 1)).all()


def test_rows_are_padding_safe_on_the_left_too(
    miniature: ConditionEncoder, images: list[Image.Image], instructions: list[str]
) -> None:
    inputs = loading.tokenize(
        [loading.fit_image(image, miniature.image_area, miniature.processor) for image in images],
        [EDIT_TEMPLATE.format(instruction) for instruction in instructions],
        miniature.processor,
        padding_side="left",
    )
    assert (inputs["attention_mask"][:, 0] == 0).any()
    n_tokens = inputs["input_ids"].shape[1]
    rows = torch.tensor([[n_tokens - 1, n_tokens - 9], [n_tokens - 5, n_tokens - 2]])
    with torch.no_grad(), reading_rows(miniature.model, [2], rows) as reader:
        miniature.model.model(**inputs, use_cache=False, row_reader=reader)
    torch.testing.assert_close(reader.found[2].sum(-1), torch.ones(2, 2))
    expected = eager_maps(miniature, **inputs)[2].take_along_dim(rows[..., None], 1)
    torch.testing.assert_close(reader.found[2], expected, rtol=0, atol=1e-5)


def test_reading_leaves_model_and_states_as_they_were(
    encoder: ConditionEncoder, images: list[Image.Image], instructions: list[str]
) -> None:
    plain = encoder.encode(images, instructions, layers=LAYERS, final=True)
    read = encoder.encode(images, instructions, layers=LAYERS, final=True, attention=LAYERS)
    assert not plain.attention
    for layer, states in plain.states.items():
        assert torch.equal(states, read.states[layer])
    with pytest.raises(KeyError), reading_rows(encoder.model, [0], torch.zeros(1, 1).long()):
        raise KeyError
    assert encoder.model.config.text_config._attn_implementation == "sdpa"
    assert encoder.model.config.vision_config._attn_implementation == "sdpa"
    with pytest.raises(AbpError, match="no layer 4"):
        encoder.encode(images, instructions, attention=(4,))


def test_maps_lie_on_the_images_grid(
    encoder: ConditionEncoder, images: list[Image.Image], instructions: list[str]
) -> None:
    encoding = encoder.encode(images, instructions, attention=LAYERS)
    found = attention_maps(encoder, images, instructions, LAYERS)
    for row, maps in enumerate(found):
        rows, columns = encoding.grids[row]
        prompt = encoding.prompt_tokens[row].nonzero()[:, 0].tolist()
        assert maps.n_prompt == len(prompt) and maps.tokens[: len(prompt)].tolist() == prompt
        assert maps.tokens[-1] == encoding.mask[row].sum() - 1
        assert maps.raw.shape == (2, len(maps.tokens), rows, columns)
        assert maps.baseline.shape == (2, rows, columns)
        image = encoding.image_tokens[row].nonzero()[:, 0]  # row-major over the grid
        expected = encoding.attention[3][row, 1, image[columns]]
        assert maps.raw[1, 1, 1, 0] == expected


def test_relative_maps_of_the_generic_instruction_are_one_on_average(
    encoder: ConditionEncoder,
) -> None:
    (maps,) = attention_maps(encoder, [noise(64, 64)], [GENERIC], LAYERS)
    prompt = maps.relative[:, : maps.n_prompt]
    torch.testing.assert_close(prompt.mean(1), torch.ones(2, 4, 4))
    assert (maps.raw.sum((-2, -1)) < 1).all()


def test_the_untrained_twin_is_of_the_same_make_and_seeded(encoder: ConditionEncoder) -> None:
    before = torch.random.get_rng_state()
    twins = [encoder.untrained(seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [twin.model.state_dict() for twin in twins]
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])
    assert weights[0].keys() == encoder.model.state_dict().keys()
    assert not torch.equal(weights[0][name], encoder.model.state_dict()[name])
    assert len({encoder.fingerprint, *(twin.fingerprint for twin in twins)}) == 3
    encoding = twins[0].encode([noise(64, 64)], ["move it"], attention=[2])
    assert encoding.attention[2].isfinite().all()
