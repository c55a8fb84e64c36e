"""`abp ground` and `abp states` on a person's own picture: what they give, what they refuse."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import noise
from PIL import Image
from safetensors.torch import load_file

from abplib.__main__ import main
from abplib.vlm.grounding import Grounder, Grounding


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    noise(80, 60).save(path)
    return str(path)


def abp(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--profile", "smoke"])


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
        (("ground", "{text}", "remove it"), "cannot be read as an image"),
        (("ground", "{absent}", "remove it"), "no image at"),
        (("ground", "{picture}", "remove it", "--vlm", "{absent}"), "is missing"),
        (("ground", "{picture}", "remove it", "--vlm", "{corrupt}"), "cannot be loaded"),
        (("ground", "{picture}", "remove it", "--vlm", "{weightless}"), "cannot be loaded"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    arguments: tuple[str, ...], said: str, picture: str, tmp_path: Path, smoke_folder: Path
) -> None:
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
