"""The attention that is read is the proxy's own, and is kept."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Listed
from PIL import Image

from abplib.core.errors import AbpError
from abplib.proxies.attention import read_attention
from abplib.proxies.configurations import Configuration
from abplib.proxies.qformer import Proxy
from abplib.proxies.settings import ProxyConfig
from abplib.samples.base import Sample
from abplib.vlm.encoder import ConditionEncoder

pytestmark = pytest.mark.usefixtures("results")


@pytest.fixture
def samples(images: list[Image.Image], instructions: list[str]) -> Listed:
    pairs = enumerate(zip(images, instructions, strict=True))
    return Listed(Sample(f"p{i}", image, text, (0, 0, 0.5, 0.5)) for i, (image, text) in pairs)


@pytest.fixture
def folders(encoder: ConditionEncoder, tmp_path: Path) -> list[Path]:
    """Untrained proxies of two layers, of two seeds."""
    torch.manual_seed(0)
    config = ProxyConfig(
        state_width=encoder.width, n_layers=2, width=8, n_queries=3, n_heads=2, n_blocks=2
    )
    for seed in ("0", "1"):
        Proxy(config).save(tmp_path / seed, encoder.fingerprint)
    return [tmp_path / "0", tmp_path / "1"]


@pytest.mark.parametrize("tokens", ["prompt", "all"])
def test_weights_are_the_proxys_own(
    encoder: ConditionEncoder,
    samples: Listed,
    folders: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    tokens: str,
) -> None:
    configuration = Configuration("two", (3, 1), tokens)
    monkeypatch.setattr(encoder, "over", partial(encoder.over, batch=1))  # of different length
    found = read_attention(encoder, samples, 2, configuration, folders)
    assert found.layers == (3, 1) and found.n_heads == 2
    assert found.tokens["sample_id"].unique().tolist() == ["p0", "p1"]
    assert found.weights.shape[:5] == (2, 2, 4, 3, 2)  # seeds first
    np.testing.assert_allclose(found.weights.sum((-2, -1)), 1, rtol=1e-5)
    proxies = [Proxy.load(folder, encoder.fingerprint) for folder in folders]
    for row in range(2):
        alone = encoder.encode([samples[row].image], [samples[row].instruction], layers=(1, 3))
        read = configuration.select(alone)
        expected = torch.stack([torch.cat(proxy.attention(*read), 1)[0] for proxy in proxies])
        length = expected.shape[-1]
        np.testing.assert_allclose(found.weights[:, row, ..., :length], expected, atol=1e-6)
        assert not found.weights[:, row, ..., length:].any()
        told = found.tokens[found.tokens["sample_id"] == f"p{row}"]
        assert told["slot"].tolist() == list(range(length))
        prompt = told[told["span"] == "prompt"]
        assert "".join(prompt["text"]) == samples[row].instruction
        assert prompt["token"].tolist() == alone.prompt_tokens[0].nonzero()[:, 0].tolist()
        assert (told["span"] == "image").sum() == (
            0 if tokens == "prompt" else math.prod(alone.grids[0])
        )
    monkeypatch.setattr(encoder, "encode", None)  # read from disk
    again = read_attention(encoder, samples, 2, configuration, folders)
    np.testing.assert_array_equal(again.weights, found.weights)


def test_bad_input_is_refused(
    encoder: ConditionEncoder, samples: Listed, folders: list[Path]
) -> None:
    two = Configuration("two", (1, 3), "prompt")
    for n in (0, 3):
        with pytest.raises(AbpError, match=f"{n} samples are asked for, but listed holds 2"):
            read_attention(encoder, samples, n, two, folders)
