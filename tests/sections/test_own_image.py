"""`abp locate`, `abp ground` and `abp states` on a person's own picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import noise
from PIL import Image
from safetensors.torch import load_file

from abplib.__main__ import main
from abplib.experiment import Experiment
from abplib.proxies.qformer import Proxy
from abplib.proxies.selection import GuidingProxy
from abplib.proxies.settings import ProxyConfig
from abplib.sections.own_image import locate
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.grounding import Grounder, Grounding
from abplib.vlm.maps import attention_maps

WORDS = "turn the second red apple into a pear"


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    noise(80, 60).save(path)
    return str(path)


def abp(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--profile", "smoke"])


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


def test_the_picture_is_written_annotated(
    picture: str, guide: GuidingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "guide", lambda _: guide)
    done = abp("locate", picture, WORDS)
    assert done.exit_code == 0, done.output
    out = picture.replace(".png", "-located.png")
    assert done.stdout.splitlines()[0] == "A note."
    assert done.stdout.splitlines()[-1] == out
    with Image.open(out) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    blue = np.abs(pixels - (0x2F, 0x5D, 0x8C)).max(-1) < 12
    assert blue.any()  # the box


def test_states_are_written(picture: str, tmp_path: Path) -> None:
    out = tmp_path / "states.safetensors"
    done = abp("states", picture, "remove it", str(out), "--layer", "1")
    assert done.exit_code == 0, done.output
    states = load_file(out)
    assert states["layer_1"].shape == states["final"].shape
    assert states["prompt_tokens"].sum() > 0


def test_the_answered_box_is_drawn(
    picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Grounder, "locate", lambda *_: [Grounding("said", (0.1, 0.2, 0.5, 0.75))])
    out = tmp_path / "new folder" / "drawn"
    done = abp("ground", picture, "remove it", "--save", str(out))
    assert "box 0.100 0.200 0.500 0.750" in done.stdout
    with Image.open(out) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (80, 60))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("states", "{picture}", "remove it", "{out}", "--layer", "4"), "layers 0 to 3"),
        (("states", "{picture}", "remove it", "{out}", "--layer", "-1"), "no layer -1"),
        (("states", "{picture}", " ", "{out}"), "is empty"),
        (("ground", "{picture}", ""), "is empty"),
        (("locate", "{picture}", " "), "is empty"),  # before a proxy is looked for
        (("locate", "{absent}", WORDS), "no image at"),
        (("ground", "{text}", "remove it"), "cannot be read as an image"),
        (("ground", "{absent}", "remove it"), "no image at"),
        (("ground", "{picture}", "remove it", "--vlm", "{absent}"), "is missing"),
        (("ground", "{picture}", "remove it", "--vlm", "{corrupt}"), "cannot be loaded"),
        (("ground", "{picture}", "remove it", "--vlm", "{weightless}"), "cannot be loaded"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    arguments: tuple[str, ...], said: str, picture: str, tmp_path: Path, smoke_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Experiment, "guide", lambda _: pytest.fail("a proxy was looked for"))
    places = {name: tmp_path / name for name in ("out", "text", "absent", "corrupt", "weightless")}
    places["text"].write_text("no pixels here")
    for name in ("corrupt", "weightless"):
        shutil.copytree(smoke_folder, places[name])
    weights = places["corrupt"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (places["weightless"] / "model.safetensors").unlink()
    done = abp(*(a.format(picture=picture, **places) for a in arguments))
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.strip().count("\n") == 0 and "Traceback" not in done.output
    assert not places["out"].exists()
