"""`abp locate`: the proxy's box and the VLM's maps of one pass, on a person's own picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import noise
from PIL import Image

from abplib.__main__ import main
from abplib.experiment import Experiment
from abplib.proxies.qformer import Proxy
from abplib.proxies.selection import GuidingProxy
from abplib.proxies.settings import ProxyConfig
from abplib.sections.information_flow import attention_maps
from abplib.sections.own_image import locate
from abplib.vlm.encoder import ConditionEncoder

WORDS = "turn the second red apple into a pear"


@pytest.fixture
def guide(encoder: ConditionEncoder) -> GuidingProxy:
    torch.manual_seed(0)
    return GuidingProxy(
        Proxy(ProxyConfig(state_width=encoder.width, width=16, n_heads=2)).eval(), 2, 0.5, "A note."
    )


def test_box_and_maps_are_those_of_the_proxy_and_the_vlm(
    encoder: ConditionEncoder, guide: GuidingProxy
) -> None:
    picture = noise(96, 64)
    found = locate(encoder, guide, picture, WORDS)
    encoding = encoder.encode([picture], [WORDS], layers=[2])
    states = encoding.states[2][:, None]
    box = guide.proxy(states, encoding.mask)[0]
    assert found.box == pytest.approx(box.tolist())
    maps = attention_maps(encoder, [picture], [WORDS], [2])[0]
    torch.testing.assert_close(found.last_map, maps.raw[0, -1])
    weights = torch.cat([w[0] for w in guide.proxy.attention(states, encoding.mask)])
    share = weights.sum((0, 1, 2))[maps.tokens[: maps.n_prompt]]
    torch.testing.assert_close(found.dominant_map, maps.raw[0, int(share.argmax())])
    place = maps.tokens[int(share.argmax())]
    token = encoder.processor.tokenizer.decode([int(encoding.input_ids[0, place])])
    assert found.token == token.strip()


def abp(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["locate", *arguments, "--profile", "smoke"])


def test_the_picture_is_written_annotated(
    tmp_path: Path, guide: GuidingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "guide", lambda _: guide)
    noise(80, 60).save(tmp_path / "mine.jpg")
    done = abp(str(tmp_path / "mine.jpg"), WORDS)
    assert done.exit_code == 0, done.output
    out = tmp_path / "mine-located.png"
    assert done.stdout.splitlines()[0] == "A note."
    assert done.stdout.splitlines()[-1] == str(out)
    with Image.open(out) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    blue = np.abs(pixels - (0x2F, 0x5D, 0x8C)).max(-1) < 12
    assert blue.any()  # the box


def test_bad_input_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "guide", lambda _: pytest.fail("a proxy was looked for"))
    noise(80, 60).save(tmp_path / "mine.png")
    for path, words, said in (
        (tmp_path / "mine.png", " ", "is empty"),
        (tmp_path / "absent.png", WORDS, "no image at"),
    ):
        done = abp(str(path), words)
        assert done.exit_code == 2 and said in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "mine-located.png").exists()
