"""Attention rows against eager attention; maps and their scores with known answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import noise
from PIL import Image
from torch import Tensor

from abplib.core import paths
from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.prompts import EDIT_TEMPLATE, N_DROPPED
from abplib.samples.base import Sample
from abplib.sections import information_flow
from abplib.sections.information_flow import FlowScores, by_source, map_scores
from abplib.vlm import loading
from abplib.vlm.attention import reading_rows
from abplib.vlm.encoder import ConditionEncoder

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
    prior = information_flow.centre_prior((3, 5))
    assert prior.shape == (3, 5) and prior.argmax() == 7
    torch.testing.assert_close(prior, prior.flip(0, 1))


@dataclass
class Pictures:
    """A `SampleSet` of given images and instructions."""

    images: Sequence[Image.Image]
    instructions: Sequence[str]
    name: str = "pictures"
    fingerprint: str = "0"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"p{index}", self.images[index], self.instructions[index], BOX)


def test_maps_lie_on_the_images_grid(
    encoder: ConditionEncoder, images: list[Image.Image], instructions: list[str]
) -> None:
    encoding = encoder.encode(images, instructions, attention=LAYERS)
    found = information_flow.attention_maps(encoder, images, instructions, LAYERS)
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
    (maps,) = information_flow.attention_maps(
        encoder, [noise(64, 64)], [information_flow.GENERIC], LAYERS
    )
    prompt = maps.relative[:, : maps.n_prompt]
    torch.testing.assert_close(prompt.mean(1), torch.ones(2, 4, 4))
    assert (maps.raw.sum((-2, -1)) < 1).all()


def test_all_tokens_are_scored_and_kept(
    encoder: ConditionEncoder,
    images: list[Image.Image],
    instructions: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = Pictures(images, instructions)
    found = information_flow.score_flow(encoder, samples, 2, LAYERS, base=tmp_path)
    maps = information_flow.attention_maps(encoder, images, instructions, LAYERS)
    n_tokens = [len(m.tokens) for m in maps]
    assert len(found.tokens) == sum(n_tokens) * len(LAYERS) * 2
    rows = found.tokens.query("sample_id == 'p1' and layer == 3 and kind == 'relative'")
    assert (rows["span"] == "prompt").sum() == maps[1].n_prompt
    assert (rows["span"] == "template").tolist()[-5:] == [True] * 5
    row = rows.iloc[4]
    assert row["token"] == maps[1].tokens[4]
    for score, value in map_scores(maps[1].relative[1, 4], BOX).items():
        assert row[score] == pytest.approx(float(value))
    assert row["image_part"] == pytest.approx(float(maps[1].raw[1, 4].sum()))
    chance = found.controls[found.controls["source"] == "chance"]
    assert chance["energy"].tolist() == pytest.approx([0.25, 0.25])
    monkeypatch.setattr(encoder, "encode", None)  # read from disk
    again = information_flow.score_flow(encoder, samples, 2, LAYERS, base=tmp_path)
    pd.testing.assert_frame_equal(again.tokens, found.tokens)
    with pytest.raises(AbpError, match="n is 3, but pictures holds 2 samples"):
        information_flow.score_flow(encoder, samples, 3, LAYERS, base=tmp_path)


def test_sources_are_told_apart() -> None:
    """One sample, l* = 6; prompt tokens 20 to 22 and an image token with the largest share.

    Each score tells the layer in its units and the token in its hundredths.
    """
    shares = pd.DataFrame(
        {
            "sample_id": "s",
            "layer": 6,
            "token": [5, 20, 21, 22],
            "span": ["image", "prompt", "prompt", "prompt"],
            "share": [0.5, 0.1, 0.3, 0.1],
        }
    )
    tokens = pd.DataFrame(
        [
            {
                "sample_id": "s",
                "layer": layer,
                "token": token,
                "kind": kind,
                "image_part": 0.5,
                "span": "prompt" if token < 23 else "template",
            }
            | dict.fromkeys(
                information_flow.SCORES, layer + token / 100 + (kind == "relative") * 100
            )
            for layer in (5, 6, 7)
            for token in (20, 21, 22, 23, 24)
            for kind in ("raw", "relative")
        ]
    )
    controls = pd.DataFrame(
        [
            {"sample_id": s, "source": source} | dict.fromkeys(information_flow.SCORES, 0.25)
            for s in ("s", "unread")
            for source in ("chance", "centre_prior")
        ]
    )
    scores = FlowScores(tokens, controls)

    def found(**options: object) -> dict[str, float]:
        rows = by_source(scores, shares, **options)
        assert rows["sample_id"].unique().tolist() == ["s"]
        return dict(zip(rows["source"], rows["auroc"], strict=True))

    assert found() == pytest.approx(
        {"dominant": 6.21, "random_token": 6.21, "other_layers": 6.21, "last_token": 6.24,
         "chance": 0.25, "centre_prior": 0.25}
    )  # fmt: skip
    two = found(n_dominant=2, kind="relative")  # of equal shares the earlier
    assert two["dominant"] == pytest.approx(106.205)
    assert two["other_layers"] == pytest.approx(106.205)
    uneven = scores.tokens.assign(auroc=lambda t: t["auroc"] + 10 * (t["layer"] == 7))
    scores = FlowScores(uneven, controls)
    assert found()["other_layers"] == pytest.approx(11.21)
    assert found()["dominant"] == pytest.approx(6.21)
