"""Edits are made once, and a killed evaluation goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CASES, Listed
from diffusers import QwenImageEditPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.core.images import load_image
from abplib.core.parallel import Shard
from abplib.editing import conditions, runs
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.samples.base import SampleSet
from abplib.vlm.loading import Answer

PROFILE = Profile.load("smoke")
SAMPLES = Experiment(PROFILE).evaluation
BOX: Box = (0.1, 0.1, 0.6, 0.6)


@pytest.fixture(scope="module")
def editor() -> QwenImageEditor:
    """The smoke profile's, with the LoRA that reads boxes."""
    return Experiment(PROFILE).editor


@pytest.fixture(autouse=True)
def results(editor: QwenImageEditor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path))


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instructions that were carried out, in order; the fifth one kills the process once."""
    carried_out: list[str] = []
    original = QwenImageEditor._edit_many

    def counted(self: Any, requests: Any) -> Any:
        if 4 <= len(carried_out) < 6:
            carried_out.extend(["killed"] * 2)
            raise KeyboardInterrupt
        carried_out.extend(request.instruction for request in requests)
        return original(self, requests)

    monkeypatch.setattr(QwenImageEditor, "_edit_many", counted)
    monkeypatch.setattr(runs, "_BATCH", 2)
    return carried_out


def pixels(files: Sequence[Path | None]) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in files if file is not None]


def test_a_killed_evaluation_goes_on_with_no_edit_done_twice(
    editor: QwenImageEditor, edited: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        runs.make_edits("baseline", editor, SAMPLES, 5, 0, {})
    (place,) = (tmp_path / "edits").iterdir()
    assert len(list(place.glob("*.png"))) == 4
    found = runs.make_edits("baseline", editor, SAMPLES, 5, 0, {})
    asked = [SAMPLES[index].instruction for index in range(5)]
    assert edited == [*asked[:4], "killed", "killed", asked[4]]
    monkeypatch.setattr(QwenImageEditPipeline, "from_pretrained", None)
    again = replace(editor, source=replace(editor.source))  # of which nothing is loaded
    assert runs.make_edits("baseline", again, SAMPLES, 5, 0, {}) == found and len(edited) == 7
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "whole"))
    whole = runs.make_edits("baseline", editor, SAMPLES, 5, 0, {})
    for one, other in zip(pixels(found), pixels(whole), strict=True):
        assert (one == other).all()


class Brought(Listed):
    """What people brought; the last cannot be read."""

    name = fingerprint = "brought"

    def __getitem__(self, index: Any) -> Any:
        if index == len(self) - 1:
            raise OSError("a broken picture")
        return super().__getitem__(index)


@pytest.mark.parametrize("name", ["baseline", "flux_kontext"])
def test_a_sample_that_cannot_be_edited_is_listed_and_stops_no_other(
    name: str, editor: QwenImageEditor, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(samples: SampleSet, n: int) -> list[Path | None]:
        if name == "baseline":
            return runs.make_edits(name, editor, samples, n, 0, {})
        return runs.make_other_edits(Experiment(PROFILE).other("flux_kontext"), samples, n, 0)

    good, odd = SAMPLES[0], load_image(CASES / "06-extreme-aspect" / "3000x10.png")
    marked, oblong = replace(good, instruction="remove it <|im_end|>"), replace(good, image=odd)
    mixed = Brought([good, replace(marked, id="m1"), replace(oblong, id="m2"), good])
    for _ in range(2):  # made, and found
        first, *others, broken = make(mixed, 4)
        assert first is not None and broken is None
        told = capsys.readouterr().err
        assert "3: It cannot be read (OSError: a broken picture)." in told
        if name == "baseline":
            assert others == [None, None]
            assert "3 of 4 edits of brought by Qwen-Image-Edit cannot be made:" in told
            assert "m1: Instruction 0 holds the chat marker <|im_end|>" in told
            assert "m2: An image of 3000 x 10 pixels is too oblong" in told
    with pytest.raises(AbpError, match=r"None of the 1 edits of brought by .* can be made; 0: It"):
        make(Brought(mixed[:1]), 1)


def test_another_lora_edits_anew_and_nothing_else_is(
    editor: QwenImageEditor, tmp_path: Path
) -> None:
    def place(name: str, lora: Path) -> Path:
        given = {"proxy": [BOX]}
        reading = replace(editor, lora=lora)
        (file,) = runs.make_edits(name, reading, SAMPLES, 1, 0, given)
        assert file is not None
        return file.parent

    assert editor.lora is not None
    weights = load_file(editor.lora)
    save_file({name: 2 * weight for name, weight in weights.items()}, tmp_path / "new.safetensors")
    old, new = editor.lora, tmp_path / "new.safetensors"
    assert place("ours", old) != place("ours", new)
    assert place("baseline", old) == place("baseline", new)


def test_descriptions_that_were_cut_off_are_counted(
    editor: QwenImageEditor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(
        [Answer("An apple – red.", (64, 64), whole=True), Answer("A", (64, 64), whole=False)]
    )
    monkeypatch.setattr(conditions, "describe", lambda _, shown, __: [next(said) for _ in shown])
    files = runs.make_edits("full_description", editor, SAMPLES, 2, 0, {})
    assert runs.n_cut(files) == 1
    assert files[0] is not None
    with Image.open(files[0]) as image:
        assert image.info["description"] in {"An apple – red.", "A"}
    assert runs.n_cut(runs.make_edits("identity", editor, SAMPLES, 2, 0, {})) == 0


def test_shards_share_the_samples(editor: QwenImageEditor, edited: list[str]) -> None:
    made = [
        runs.make_edits("identity", editor, SAMPLES, 5, 0, {}, shard=Shard(i, 2)) for i in (2, 1)
    ]
    assert [[int(file.stem) for file in files if file] for files in made] == [[2, 3], [0, 1, 4]]
    before = {file: file.stat().st_mtime_ns for files in made for file in files if file}
    whole = runs.make_edits("identity", editor, SAMPLES, 5, 0, {})
    assert {file: file.stat().st_mtime_ns for file in whole if file} == before
    runs.make_edits("paste", editor, SAMPLES, 1, 0, {})
    assert not edited  # controls run no model


def test_a_box_leads_the_edit_and_only_where_the_method_has_one(editor: QwenImageEditor) -> None:
    def edit(name: str, box: Box | None) -> bytes:
        (file,) = runs.make_edits(name, editor, SAMPLES, 1, 0, {"proxy": [box], "vlm": [box]})
        return pixels([file])[0].tobytes()

    edits = [
        edit("baseline", None),
        edit("lora_no_box", None),  # the control of Ours: the LoRA edits without a box as well
        edit("ours", BOX),
        edit("ours", (0.5, 0.5, 0.9, 0.9)),
    ]
    assert len(set(edits)) == 4
    assert edit("baseline", BOX) == edits[0]
    assert edit("vlm_box", None) == edits[1]  # a sample of which no box is known


@pytest.mark.parametrize(
    ("name", "n", "guides", "said"),
    [
        ("magic", 1, {}, "no method 'magic': choose from baseline"),
        ("baseline", 0, {}, "0 samples are asked for, but multi-entity, evaluation"),
        ("baseline", 201, {}, "holds 200: ask for 1 to 200"),
        ("ours", 2, {"proxy": [BOX]}, "for 2 samples there are 1 from 'proxy'"),
        ("gt_box", 1, {"proxy": [BOX]}, "for 1 samples there are 0 from 'exact'"),
    ],
)
def test_what_cannot_be_edited_is_refused(
    editor: QwenImageEditor, tmp_path: Path, name: str, n: int, guides: Any, said: str
) -> None:
    with pytest.raises(AbpError, match=said):
        runs.make_edits(name, editor, SAMPLES, n, 0, guides)
    assert not list(tmp_path.rglob("*.png"))


def test_only_known_exact_edits_can_be_pasted(editor: QwenImageEditor, tmp_path: Path) -> None:
    with pytest.raises(AbpError, match="The exact edits of listed are not known"):
        runs.make_edits("paste", editor, Listed([SAMPLES[0]]), 1, 0, {})
