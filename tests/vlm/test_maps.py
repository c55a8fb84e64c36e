"""Attention rows against eager attention; maps on the image's grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image
from torch import Tensor

from abplib.core import paths
from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.prompts import EDIT_TEMPLATE
from abplib.vlm import loading
from abplib.vlm.attention import reading_rows
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.maps import GENERIC, attention_maps, centre_prior, map_scores

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def miniature() -> ConditionEncoder:
    """The trained miniature VLM."""
    return ConditionEncoder.from_pretrained(paths.root() / "data/mini/vlm", image_area=128 * 128)


def eager_maps(encoder: ConditionEncoder, **inputs: Tensor) -> tuple[Tensor, ...]:
    """Every layer's whole map, mean over its heads: [B, S, S] each."""
    encoder.model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.no_grad():
            output = encoder.model.model(**inputs, use_cache=False, output_attentions=True)
    finally:
        encoder.model.set_attn_implementation({"text_config": "sdpa"})
    return tuple(heads.mean(1) for heads in output.attentions)


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
    torch.testing.assert_close(reader.attention[2].sum(-1), torch.ones(2, 2))
    expected = eager_maps(miniature, **inputs)[2].take_along_dim(rows[..., None], 1)
    torch.testing.assert_close(reader.attention[2], expected, rtol=0, atol=1e-5)


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


BOX: Box = (0.25, 0.0, 0.75, 0.5)
"""Of 4 x 4 cells the four in rows 0 and 1, columns 1 and 2."""


def spike(row: int, column: int, rest: float = 0.0) -> Tensor:
    values = torch.full((4, 4), rest)
    values[row, column] = 1.0
    return values


@pytest.mark.parametrize(
    ("values", "box", "expected"),
    [
        (torch.ones(4, 4), BOX, (0.25, 0.25, 0.25, 0.5)),  # what chance scores
        (spike(1, 2), BOX, (1, 1, 1, 5 / 8)),  # above 12 of 12, and equal for the other three
        (spike(3, 3), BOX, (0, 0, 0, 11 / 24)),
        (spike(0, 0, rest=0.2), BOX, (0, 0, 0.2, 11 / 24)),
        (spike(1, 2) + spike(3, 3), BOX, (0.5, 0.5, 0.5, (11.5 + 3 * 5.5) / 48)),
        (spike(0, 0), (0.15, 0.0, 0.5, 0.5), (0, 1, 0.4, None)),  # centre 0.125, 0.025 short
        (spike(0, 0), (0.17, 0.0, 0.5, 0.5), (0, 0, 0.32, None)),  # 0.045 short
        (spike(2, 2), (0.0, 0.0, 1.0, 1.0), (1, 1, 1, float("nan"))),
    ],
)
def test_scores_of_a_map(
    values: Tensor, box: Box, expected: tuple[float, float, float, float | None]
) -> None:
    found = [float(score) for score in map_scores(values, box).values()]
    for score, answer in zip(found, expected, strict=True):
        assert answer is None or score == pytest.approx(answer, abs=1e-6, nan_ok=True)


def test_auroc_is_that_of_the_pixels() -> None:
    """Cells cut by the box's edge count in part: compare with all pairs of small pixels."""
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    box = (0.1, 0.25, 0.7, 0.875)
    found = map_scores(maps, box)["auroc"]
    assert found.shape == (2, 3)
    pixels = maps.repeat_interleave(8, -2).repeat_interleave(10, -1)  # 32 x 50
    inside = torch.zeros(32, 50, dtype=torch.bool)
    inside[8:28, 5:35] = True
    for place in np.ndindex(2, 3):
        p, q = pixels[place][inside], pixels[place][~inside]
        ordered = torch.sign(p[:, None] - q).double()
        assert found[place].item() == pytest.approx(float((ordered.mean() + 1) / 2))


def test_scores_do_not_depend_on_the_maps_scale() -> None:
    maps = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    for score, scaled in zip(
        map_scores(maps, BOX).values(), map_scores(1e-4 * maps, BOX).values(), strict=True
    ):
        torch.testing.assert_close(score, scaled, rtol=1e-5, atol=1e-7)


def test_the_centre_prior_peaks_in_the_middle() -> None:
    prior = centre_prior((3, 5))
    assert prior.shape == (3, 5) and prior.argmax() == 7
    torch.testing.assert_close(prior, prior.flip(0, 1))
