"""Edits and verdicts are made once, and a killed evaluation goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from abplib import edits
from abplib.analysis import load_editor
from abplib.boxes import Box
from abplib.editors.controls import Identity
from abplib.editors.qwen_image_edit import QwenImageEditor
from abplib.errors import AbpError
from abplib.judges.base import Judgement
from abplib.methods import CONTROLS, METHODS
from abplib.preservation import Preservation
from abplib.profiles import Profile
from abplib.samples import Sample, SampleSet
from abplib.shards import Shard

PROFILE = Profile.load("smoke")
SAMPLES = PROFILE.evaluation
BOX: Box = (0.1, 0.1, 0.6, 0.6)


@pytest.fixture(scope="module")
def editor() -> QwenImageEditor:
    """The smoke profile's, with the LoRA that reads boxes."""
    return load_editor(PROFILE)


class CountingJudge:
    """Calls every edit a success and remembers whom it was asked about."""

    name = "counting"
    fingerprint = "counting"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def judge(
        self, samples: SampleSet, index: int, edited_images: Sequence[Image.Image]
    ) -> list[Judgement]:
        self.asked.append(index)
        return [Judgement(True, None, 4, 3, 2, "as asked")] * len(edited_images)


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
    monkeypatch.setattr(edits, "_BATCH", 2)
    return carried_out


def pixels(files: Sequence[Path]) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in files]


def test_a_killed_evaluation_goes_on_with_no_edit_done_twice(
    editor: QwenImageEditor, edited: list[str], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        edits.make_edits("baseline", editor, SAMPLES, 5, 0, {}, base=tmp_path / "killed")
    (place,) = (tmp_path / "killed" / "edits").iterdir()
    assert len(list(place.glob("*.png"))) == 4
    found = edits.make_edits("baseline", editor, SAMPLES, 5, 0, {}, base=tmp_path / "killed")
    asked = [SAMPLES[index].instruction for index in range(5)]
    assert edited == [*asked[:4], "killed", "killed", asked[4]]
    edits.make_edits("baseline", editor, SAMPLES, 5, 0, {}, base=tmp_path / "killed")
    assert len(edited) == 7
    whole = edits.make_edits("baseline", editor, SAMPLES, 5, 0, {}, base=tmp_path / "whole")
    for one, other in zip(pixels(found), pixels(whole), strict=True):
        assert (one == other).all()


def test_shards_share_the_samples(
    editor: QwenImageEditor, edited: list[str], tmp_path: Path
) -> None:
    made = [
        edits.make_edits("identity", editor, SAMPLES, 5, 0, {}, shard=Shard(i, 2), base=tmp_path)
        for i in (2, 1)
    ]
    assert [[int(file.stem) for file in files] for files in made] == [[2, 3], [0, 1, 4]]
    before = {file: file.stat().st_mtime_ns for files in made for file in files}
    whole = edits.make_edits("identity", editor, SAMPLES, 5, 0, {}, base=tmp_path)
    assert {file: file.stat().st_mtime_ns for file in whole} == before


def test_a_box_leads_the_edit_and_only_where_the_method_has_one(
    editor: QwenImageEditor, tmp_path: Path
) -> None:
    first, second = (
        edits.make_edits("ours", editor, SAMPLES, 1, 0, {"proxy": [box]}, base=tmp_path)
        for box in (BOX, (0.5, 0.5, 0.9, 0.9))
    )
    assert first[0].parent != second[0].parent
    assert (pixels(first)[0] != pixels(second)[0]).any()
    plain = [
        edits.make_edits("baseline", editor, SAMPLES, 1, 0, given, base=tmp_path / str(place))
        for place, given in enumerate(({}, {"proxy": [BOX]}))
    ]
    assert (pixels(plain[0])[0] == pixels(plain[1])[0]).all()


def test_the_lora_edits_without_a_box_as_well(editor: QwenImageEditor, tmp_path: Path) -> None:
    """The control of Ours: neither the baseline's edit nor one that a box leads."""
    given = {"proxy": [BOX]}
    baseline, alone, ours = (
        pixels(edits.make_edits(name, editor, SAMPLES, 1, 0, given, base=tmp_path))[0]
        for name in ("baseline", "lora_no_box", "ours")
    )
    assert (alone != baseline).any() and (alone != ours).any()


def test_a_sample_without_a_box_is_edited_without_one(
    editor: QwenImageEditor, tmp_path: Path
) -> None:
    (file,) = edits.make_edits("vlm_box", editor, SAMPLES, 1, 0, {"vlm": [None]}, base=tmp_path)
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
        edits.make_edits(name, editor, SAMPLES, n, 0, guides, base=tmp_path)
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
        edits.make_edits("paste", editor, Photographs(), 1, 0, {}, base=tmp_path)


def test_verdicts_are_asked_for_once_and_stand_beside_the_distances(
    editor: QwenImageEditor, tmp_path: Path
) -> None:
    files = {
        name: edits.make_edits(name, editor, SAMPLES, 2, 0, {}, base=tmp_path)
        for name in ("identity", "paste")
    }
    assert (pixels(files["identity"])[1] == np.asarray(SAMPLES[1].image)).all()
    judge, preservation = CountingJudge(), Preservation()
    found = edits.judged(files, SAMPLES, judge, preservation, base=tmp_path)
    assert judge.asked == [0, 1]  # both methods together
    assert list(found["method"]) == ["identity"] * 2 + ["paste"] * 2
    assert list(found["sample_id"][:2]) == [SAMPLES[0].id, SAMPLES[1].id]
    assert found["lpips"].abs().max() < 1e-6 and (found["l2"] == 0).all()
    again = edits.judged(files, SAMPLES, judge, preservation, base=tmp_path)
    assert again.equals(found) and judge.asked == [0, 1]
    assert all(kind is None for kind in again["failure"][again["success"]])
    tidy = edits.tidy(found).set_index(["sample_id", "method", "metric"])["value"]
    assert tidy[SAMPLES[0].id, "paste", "vqa"] == 3
    assert tidy[SAMPLES[0].id, "paste", "edit_success"] == 1


def test_controls_run_no_model(editor: QwenImageEditor, edited: list[str], tmp_path: Path) -> None:
    for name in CONTROLS:
        edits.make_edits(name, editor, SAMPLES, 1, 0, {}, base=tmp_path)
    assert not edited and Identity().name == METHODS["identity"].label
