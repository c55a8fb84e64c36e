"""Both halves of chapter 1 on made-up rows: counted, compared, and shown by rule."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from abplib.core.errors import AbpError
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.experiment import Experiment
from abplib.judging.base import FAILURES, LEAKAGE, NO_EDIT, WRONG_OBJECT
from abplib.plots import pictures
from abplib.profiles import Profile
from abplib.samples.base import Sample
from abplib.sections import localization_gap, vlm_boxes
from abplib.sections.localization_gap import EDIT_OUTCOMES, HALVES, SUCCESS
from abplib.sections.vlm_boxes import ACCURATE, BOX_OUTCOMES, CUT, NO_BOX, SPILLED
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.grounding import Grounder, Grounding


def answers(accurate: list[bool], iou: list[float] | None = None) -> pd.DataFrame:
    """Rows of `vlm_boxes.ask`, as far as they are used."""
    n = len(accurate)
    return pd.DataFrame(
        {
            "index": range(n),
            "sample_id": [f"s{i}" for i in range(n)],
            "instruction": "move it",
            "answered": True,
            "accurate": accurate,
            "outcome": [ACCURATE if ok else WRONG_OBJECT for ok in accurate],
            "iou": iou or [0.9 if ok else 0.1 for ok in accurate],
            **dict.fromkeys(("x1", "y1"), 0.25),
            **dict.fromkeys(("x2", "y2"), 0.5),
            "n_objects": [4 + i % 2 for i in range(n)],
            "spatial_term": [("leftmost", "second from the left")[i % 2] for i in range(n)],
        }
    )


def verdicts(outcomes: list[str | None]) -> pd.DataFrame:
    """Rows of `edits.judged`; an outcome is a kind of failure, None a success."""
    n = len(outcomes)
    return pd.DataFrame(
        {
            "method": "baseline",
            "index": range(n),
            "sample_id": [f"s{i}" for i in range(n)],
            "success": [kind is None for kind in outcomes],
            "failure": outcomes,
            **dict.fromkeys(("edit", "accuracy", "leakage"), 2),
            "reason": "It is so.",
            "lpips": 0.1,
        }
    )


def rows(
    accurate: list[bool], outcomes: list[str | None], iou: list[float] | None = None
) -> pd.DataFrame:
    return localization_gap.beside(answers(accurate, iou), verdicts(outcomes))


MIXED = rows(
    [True, True, True, True, False, False],
    [None, LEAKAGE, WRONG_OBJECT, LEAKAGE, None, NO_EDIT],
    [0.9, 0.8, 0.85, 0.95, 0.2, 0.1],
)


def test_halves_meet_sample_by_sample() -> None:
    assert list(MIXED["edit_outcome"]) == [
        SUCCESS, LEAKAGE, WRONG_OBJECT, LEAKAGE, SUCCESS, NO_EDIT
    ]  # fmt: skip
    assert list(MIXED["outcome"]) == [ACCURATE] * 4 + [WRONG_OBJECT] * 2
    assert localization_gap.paired(MIXED) == (1, 3, 1, 1)
    told = verdicts([None, LEAKAGE, None]).astype({"success": object})
    told.loc[0, "success"] = None  # left open, so left out
    found = localization_gap.beside(answers([True, True, False]).set_axis([7, 8, 9]), told)
    assert list(found["index"]) == [1, 2] and list(found["edit_outcome"]) == [LEAKAGE, SUCCESS]
    assert localization_gap.paired(found) == (0, 1, 1, 0)
    shuffled = verdicts([None, LEAKAGE])[::-1]
    for other in (shuffled, verdicts([None])):
        with pytest.raises(AbpError, match="not about the same samples"):
            localization_gap.beside(answers([True, False]), other)


def test_numbers_of_the_edits_are_beside_the_papers() -> None:
    found = localization_gap.edit_numbers(MIXED).set_index("name")
    assert found["value"].to_dict() == pytest.approx({"edit_success": 2 / 6, "no_edit_rate": 1 / 6})
    assert found["paper"]["edit_success"] == 0.575
    assert found["low"]["edit_success"] < 2 / 6 < found["high"]["edit_success"]


def test_figure_1_follows_the_first_rule_that_any_sample_fits() -> None:
    cases = [
        (MIXED, "s2", "went to another object"),
        (rows([False, True], [WRONG_OBJECT, LEAKAGE]), "s1", "accurate and whose edit failed"),
        (rows([True, False], [None, NO_EDIT]), "s1", "none failed where the box is accurate"),
        (rows([False, True], [None, None]), "s0", "no edit failed"),
    ]
    for frame, sample, words in cases:
        shown, rule = localization_gap.discrepancy(frame)
        assert list(shown["sample_id"]) == [sample]
        assert words in rule


def test_the_first_pages_sample_has_the_median_box_of_the_proxy() -> None:
    frame = rows([True] * 4, [WRONG_OBJECT, WRONG_OBJECT, WRONG_OBJECT, LEAKAGE])
    frame["proxy_iou"] = [0.9, 0.0, 0.7, 0.1]
    shown, rule = localization_gap.discrepancy(frame, proxy_iou=True)
    assert list(shown["sample_id"]) == ["s2"]
    assert "went to another object" in rule and "median" in rule


def test_figure_2_shows_each_kind_where_the_box_is_best() -> None:
    shown, among = localization_gap.failures(MIXED)
    assert list(shown["edit_outcome"]) == [NO_EDIT, WRONG_OBJECT, LEAKAGE]
    assert list(shown["sample_id"]) == ["s5", "s2", "s3"]  # no accurate box has the first kind
    assert among == "all failures"
    every = rows([True] * len(FAILURES), list(FAILURES))
    assert list(localization_gap.failures(every)[0]["edit_outcome"]) == list(FAILURES)
    two = rows([False, True], [LEAKAGE, LEAKAGE], [0.8, 0.6])  # accurate before a higher IoU
    assert list(localization_gap.failures(two)[0]["sample_id"]) == ["s1"]
    shown, among = localization_gap.failures(rows([True, False], [None, None]))
    assert list(shown["sample_id"]) == ["s0"] and "no edit failed" in among


def test_groups_are_ordered_by_the_vlms_rate_and_numbers_as_numbers() -> None:
    frame = asked().assign(success=True)
    by_term = localization_gap.both_rates(frame, "term")
    assert list(dict.fromkeys(by_term["label"])) == ["a", "b"]
    assert list(by_term["value"][::2]) == [1.0, 0.4]
    by_count = localization_gap.both_rates(frame, "n_objects")
    assert list(dict.fromkeys(by_count["label"])) == ["4", "9", "10"]
    found = localization_gap.both_rates(MIXED, "spatial_term")
    rates = found.set_index(["label", "half"])["value"].unstack()
    assert rates[HALVES["success"]].to_dict() == {"leftmost": 2 / 3, "second from the left": 0}
    assert set(found["note"]) == {"n = 3"}


def test_the_papers_rates_stand_beside_this_runs() -> None:
    found = localization_gap.beside_the_papers(MIXED).set_index(["label", "half"])
    assert found["value"]["paper"].to_list() == [0.89, 0.575]
    assert found["value"]["this run"].to_list() == pytest.approx([4 / 6, 2 / 6])
    assert found.loc["paper", ["low", "high"]].isna().all(axis=None)
    assert found["note"].unique().tolist() == ["gap 31.5 points", "gap 33.3 points"]


def test_a_pair_shows_the_box_on_the_source_alone() -> None:
    picture, edit = Image.new("RGB", (40, 40), "gray"), Image.new("RGB", (40, 40), "red")
    sample = Sample("s2", picture, "move it", (0.2, 0.2, 0.5, 0.5))
    left, right = pictures.pair(sample, edit, MIXED.iloc[2].to_dict())
    assert (left.image, left.boxes["box of the VLM"]) == (picture, (0.25, 0.25, 0.5, 0.5))
    assert (right.image, list(right.boxes)) == (edit, ["exact box"])
    assert (left.title, right.title) == ("VLM: accurate", "edit: wrong object")
    assert (left.text, right.text) == ("move it", "")
    silent = {**MIXED.iloc[5].to_dict(), "answered": False}
    assert list(pictures.answered(sample, silent).boxes) == ["exact box"]


def test_the_editor_edits_without_its_lora_and_its_vlm_is_compared(
    encoder: ConditionEncoder, tmp_path: Path
) -> None:
    editor = Experiment(Profile.load("smoke")).baseline
    assert editor.lora is None
    assert localization_gap.same_vlm(encoder, editor)
    assert "pipeline" not in vars(editor.source)  # the transformer stays where it is
    folder = Path(shutil.copytree(editor.source.folder, tmp_path / "editor"))
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values())).add_(1)
    save_file(tensors, weights, metadata={"format": "pt"})
    other = QwenImageEditor.from_pretrained(folder)
    assert not localization_gap.same_vlm(encoder, other)


class Halves:
    """Two objects, the left and the right half of the image; the left one is asked for."""

    name = "halves"
    fingerprint = "halves"

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        masks = np.zeros((2, 20, 20), dtype=bool)
        masks[0, :, :10], masks[1, :, 10:] = True, True
        picture = Image.new("RGB", (20, 20))
        facts = {"spatial_term": "leftmost", "n_objects": 2}
        return Sample(str(index), picture, "move it", (0, 0, 0.5, 1), masks, 0, facts)


def asked() -> pd.DataFrame:
    kinds = [ACCURATE] * 5 + [WRONG_OBJECT] * 2 + [CUT]
    overlaps = [0.7, 0.9, 0.8, 0.95, 0.6, 0.1, 0.05, 0.4]
    return pd.DataFrame({"outcome": kinds, "iou": overlaps}).assign(
        answered=True,
        accurate=lambda f: f["outcome"] == ACCURATE,
        acc50=lambda f: f["iou"] >= 0.5,
        wrong_entity=lambda f: f["outcome"] == WRONG_OBJECT,
        center_error=0.1,
        term=list("aaabbbbb"),
        n_objects=[4, 10, 4, 4, 4, 4, 4, 9],
    )


@pytest.fixture
def saying(monkeypatch: pytest.MonkeyPatch) -> list[list[Grounding]]:
    """What the VLM is made to answer, call by call."""
    queue: list[list[Grounding]] = []
    monkeypatch.setattr(Grounder, "_answers", lambda _self, _chats: queue.pop(0))
    return queue


def test_ask_makes_one_row_a_sample_and_asks_once(
    encoder: ConditionEncoder, saying: list[list[Grounding]], results: Path
) -> None:
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    saying.append([Grounding("L", left), Grounding("R", right), Grounding("?", None)])
    found = vlm_boxes.ask(encoder, Halves(), 3)
    assert list(found["outcome"]) == [ACCURATE, WRONG_OBJECT, NO_BOX]
    assert list(found["answer"]) == ["L", "R", "?"]
    assert list(found["iou"]) == [1, 0, 0]
    assert found["x1"].isna().tolist() == [False, False, True]
    again = vlm_boxes.ask(encoder, Halves(), 3)  # the queue is empty
    pd.testing.assert_frame_equal(again, found)
    with pytest.raises(AbpError, match=r"4 samples are asked for, but halves holds 3"):
        vlm_boxes.ask(encoder, Halves(), 4)


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        ({"answered": False}, NO_BOX),
        ({"accurate": True}, ACCURATE),
        ({"wrong_entity": True, "coverage": 0.1}, WRONG_OBJECT),
        ({"coverage": 0.89}, CUT),
        ({"coverage": 0.9}, SPILLED),
    ],
)
def test_every_answer_has_one_outcome(given: dict[str, object], outcome: str) -> None:
    base = {"answered": True, "accurate": False, "wrong_entity": False, "coverage": 1.0}
    assert vlm_boxes.box_outcome({**base, **given}) == outcome


def test_examples_follow_their_rule() -> None:
    shown = vlm_boxes.examples(asked())
    assert list(shown["iou"]) == [0.95, 0.8, 0.6, 0.05, 0.4]
    only = vlm_boxes.examples(asked().iloc[[6]])
    assert list(only["outcome"]) == [WRONG_OBJECT]


def test_shares_cover_all_outcomes() -> None:
    found = localization_gap.shares(asked()["outcome"], BOX_OUTCOMES)
    assert list(found["label"]) == list(BOX_OUTCOMES)
    assert found["value"].sum() == pytest.approx(1)
    assert found["note"][0] == "5 of 8"
    edits = localization_gap.shares(MIXED["edit_outcome"], EDIT_OUTCOMES).set_index("label")
    assert list(edits.index) == [SUCCESS, *FAILURES]
    assert edits.loc[LEAKAGE, "note"] == "2 of 6"


def test_measures_leave_silent_samples_out_of_the_centre_error_alone() -> None:
    frame = asked()
    frame.loc[7, ["answered", "center_error", "iou"]] = [False, np.nan, 0.0]
    found = vlm_boxes.vlm_numbers(frame, seed=0).set_index("name")
    assert found["value"]["vlm_box_accuracy"] == 5 / 8
    assert found["paper"]["vlm_box_accuracy"] == 0.89
    assert (found["n"]["center_error"], found["n"]["vlm_mean_iou"]) == (7, 8)
    assert found["value"]["no_box_rate"] == 1 / 8
    assert found["value"]["wrong_entity_rate"] == 2 / 8
    silent = frame.assign(answered=False, accurate=False, center_error=np.nan, outcome=NO_BOX)
    found = vlm_boxes.vlm_numbers(silent, seed=0).set_index("name")["value"]
    assert "center_error" not in found
    assert (found["no_box_rate"], found["vlm_box_accuracy"]) == (1, 0)
    assert list(vlm_boxes.examples(silent)["outcome"]) == [NO_BOX]
