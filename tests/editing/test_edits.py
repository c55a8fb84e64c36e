"""Edits are made once, and a killed evaluation goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import QwenImageEditPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.core.parallel import Shard
from abplib.editing import conditions, runs
from abplib.editing.controls import Identity
from abplib.editing.methods import CONTROLS, METHODS
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.samples.base import Sample
from abplib.vlm.loading import Answer

PROFILE = Profile.load("smoke")
SAMPLES = Experiment(PROFILE).evaluation
BOX: Box = (0.1, 0.1, 0.6, 0.6)


@pytest.fixture(scope="module")
def editor() -> QwenImageEditor:
    """The smoke profile's, with the LoRA that reads boxes."""
    return Experiment(PROFILE).editor


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instructions that were carried out, in order; the fifth one kills the process once."""
    carried_out: list[str] = []
    original = QwenImageEditor._edit_many

    def counted(self: Any, images: Any, instructions: Any, *rest: Any) -> Any:
        if 4 <= len(carried_out) < 6:
            carried_out.extend(["killed"] * 2)
            raise KeyboardInterrupt
        carried_out.extend(instructions)
        return original(self, images, instructions, *rest)

    monkeypatch.setattr(QwenImageEditor, "_edit_many", counted)
    monkeypatch.setattr(runs, "_BATCH", 2)
    return carried_out


def pixels(files: Sequence[Path]) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in files]


def test_a_killed_evaluation_goes_on_with_no_edit_done_twice(
    editor: QwenImageEditor, edited: list[str], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        runs.make_edits("baseline", editor, SAMPLES, 5, 0, {}, base=tmp_path / "killed")
    (place,) = (tmp_path / "killed" / "edits").iterdir()
    assert len(list(place.glob("*.png"))) == 4
    found = runs.make_edits("baseline", editor, SAMPLES, 5, 0, {}, base=tmp_path / "killed")
    asked = [SAMPLES[index].instruction for index in range(5)]
    assert edited == [*asked[:4], "killed", "killed", asked[4]]
    runs.make_edits("baseline", editor, SAMPLES, 5, 0, {}, base=tmp_path / "killed")
    assert len(edited) == 7
    whole = runs.make_edits("baseline", editor, SAMPLES, 5, 0, {}, base=tmp_path / "whole")
    for one, other in zip(pixels(found), pixels(whole), strict=True):
        assert (one == other).all()


def test_edits_that_are_there_load_no_editor(
    editor: QwenImageEditor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = runs.make_edits("baseline", editor, SAMPLES, 2, 0, {}, base=tmp_path)
    monkeypatch.setattr(QwenImageEditPipeline, "from_pretrained", None)
    again = Experiment(PROFILE).editor
    assert runs.make_edits("baseline", again, SAMPLES, 2, 0, {}, base=tmp_path) == files


def test_another_lora_edits_anew_and_nothing_else_is(
    editor: QwenImageEditor, tmp_path: Path
) -> None:
    def place(name: str, lora: Path) -> Path:
        given = {"proxy": [BOX]}
        reading = replace(editor, lora=lora)
        return runs.make_edits(name, reading, SAMPLES, 1, 0, given, base=tmp_path)[0].parent

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
    files = runs.make_edits("full_description", editor, SAMPLES, 2, 0, {}, base=tmp_path)
    assert runs.n_cut(files) == 1
    with Image.open(files[0]) as image:
        assert image.info["description"] in {"An apple – red.", "A"}
    assert runs.n_cut(runs.make_edits("identity", editor, SAMPLES, 2, 0, {}, base=tmp_path)) == 0


def test_shards_share_the_samples(
    editor: QwenImageEditor, edited: list[str], tmp_path: Path
) -> None:
    made = [
        runs.make_edits("identity", editor, SAMPLES, 5, 0, {}, shard=Shard(i, 2), base=tmp_path)
        for i in (2, 1)
    ]
    assert [[int(file.stem) for file in files] for files in made] == [[2, 3], [0, 1, 4]]
    before = {file: file.stat().st_mtime_ns for files in made for file in files}
    whole = runs.make_edits("identity", editor, SAMPLES, 5, 0, {}, base=tmp_path)
    assert {file: file.stat().st_mtime_ns for file in whole} == before


def test_a_box_leads_the_edit_and_only_where_the_method_has_one(
    editor: QwenImageEditor, tmp_path: Path
) -> None:
    first, second = (
        runs.make_edits("ours", editor, SAMPLES, 1, 0, {"proxy": [box]}, base=tmp_path)
        for box in (BOX, (0.5, 0.5, 0.9, 0.9))
    )
    assert first[0].parent != second[0].parent
    assert (pixels(first)[0] != pixels(second)[0]).any()
    plain = [
        runs.make_edits("baseline", editor, SAMPLES, 1, 0, given, base=tmp_path / str(place))
        for place, given in enumerate(({}, {"proxy": [BOX]}))
    ]
    assert (pixels(plain[0])[0] == pixels(plain[1])[0]).all()


def test_the_lora_edits_without_a_box_as_well(editor: QwenImageEditor, tmp_path: Path) -> None:
    """The control of Ours: neither the baseline's edit nor one that a box leads."""
    given = {"proxy": [BOX]}
    baseline, alone, ours = (
        pixels(runs.make_edits(name, editor, SAMPLES, 1, 0, given, base=tmp_path))[0]
        for name in ("baseline", "lora_no_box", "ours")
    )
    assert (alone != baseline).any() and (alone != ours).any()


def test_a_sample_without_a_box_is_edited_without_one(
    editor: QwenImageEditor, tmp_path: Path
) -> None:
    (file,) = runs.make_edits("vlm_box", editor, SAMPLES, 1, 0, {"vlm": [None]}, base=tmp_path)
    assert Image.open(file).size == SAMPLES[0].image.size


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
        runs.make_edits(name, editor, SAMPLES, n, 0, guides, base=tmp_path)
    assert not list(tmp_path.rglob("*.png"))


def test_only_known_exact_edits_can_be_pasted(editor: QwenImageEditor, tmp_path: Path) -> None:
    class Photographs:
        """A set whose exact edits nobody knows."""

        name, fingerprint = "photographs", "photographs"

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            return SAMPLES[index]

    with pytest.raises(AbpError, match="The exact edits of photographs are not known"):
        runs.make_edits("paste", editor, Photographs(), 1, 0, {}, base=tmp_path)


def test_controls_run_no_model(editor: QwenImageEditor, edited: list[str], tmp_path: Path) -> None:
    for name in CONTROLS:
        runs.make_edits(name, editor, SAMPLES, 1, 0, {}, base=tmp_path)
    assert not edited and Identity().name == METHODS["identity"].label
