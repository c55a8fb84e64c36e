"""Chapter 1's rows and what is computed from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from abplib.core.errors import AbpError
from abplib.samples.base import Sample
from abplib.sections import localization
from abplib.sections.localization import ACCURATE, CUT, NO_BOX, OUTCOMES, SPILLED, WRONG_OBJECT
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.grounding import Grounder, Grounding


class Halves:
    """Two objects, the left and the right half of the image; the left one is asked for."""

    name = "halves"
    fingerprint = "halves"

    def __init__(self, masks: bool = True) -> None:
        self.masks = masks

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        masks = np.zeros((2, 20, 20), dtype=bool)
        masks[0, :, :10], masks[1, :, 10:] = True, True
        picture = Image.new("RGB", (20, 20))
        facts = {"spatial_term": "leftmost", "n_objects": 2}
        shown = masks if self.masks else None
        return Sample(str(index), picture, "move it", (0, 0, 0.5, 1), shown, 0, facts)


def row(**given: object) -> dict[str, object]:
    base = {"answered": True, "accurate": False, "wrong_entity": False, "coverage": 1.0}
    return {**base, **given}


def rows() -> pd.DataFrame:
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
    monkeypatch.setattr(Grounder, "locate", lambda self, images, instructions: queue.pop(0))
    return queue


def test_ask_makes_one_row_a_sample_and_asks_once(
    encoder: ConditionEncoder, saying: list[list[Grounding]], tmp_path: Path
) -> None:
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    saying.append([Grounding("L", left, 1), Grounding("R", right, 1), Grounding("?", None, 0)])
    found = localization.ask(encoder, Halves(), 3, base=tmp_path)
    assert list(found["outcome"]) == [ACCURATE, WRONG_OBJECT, NO_BOX]
    assert list(found["answer"]) == ["L", "R", "?"]
    assert list(found["iou"]) == [1, 0, 0]
    assert found["x1"].isna().tolist() == [False, False, True]
    again = localization.ask(encoder, Halves(), 3, base=tmp_path)  # the queue is empty
    pd.testing.assert_frame_equal(again, found)


def test_ask_refuses_more_samples_than_there_are(encoder: ConditionEncoder, tmp_path: Path) -> None:
    with pytest.raises(AbpError, match=r"4 samples are asked for, but halves holds 3"):
        localization.ask(encoder, Halves(), 4, base=tmp_path)


def test_without_masks_the_boxes_alone_decide(
    encoder: ConditionEncoder, saying: list[list[Grounding]], tmp_path: Path
) -> None:
    wide, narrow, right = (0.0, 0.0, 0.9, 1.0), (0.0, 0.0, 0.2, 1.0), (0.5, 0.0, 1.0, 1.0)
    said = [wide, narrow, right]
    saying.append([Grounding("", box, 1) for box in said])
    found = localization.ask(encoder, Halves(masks=False), 3, base=tmp_path)
    assert list(found["outcome"]) == [ACCURATE, CUT, WRONG_OBJECT]


def test_every_answer_has_one_outcome() -> None:
    assert localization.outcome(row(answered=False)) == NO_BOX
    assert localization.outcome(row(accurate=True)) == ACCURATE
    assert localization.outcome(row(wrong_entity=True, coverage=0.1)) == WRONG_OBJECT
    assert localization.outcome(row(coverage=0.89)) == CUT
    assert localization.outcome(row(coverage=0.9)) == SPILLED


def test_examples_follow_their_rule() -> None:
    shown = localization.examples(rows())
    assert list(shown["iou"]) == [0.95, 0.8, 0.6, 0.05, 0.4]
    only = localization.examples(rows().iloc[[6]])
    assert list(only["outcome"]) == [WRONG_OBJECT]


def test_rates_are_counted_and_ordered() -> None:
    by_term = localization.rates(rows(), "accurate", "term")
    assert list(by_term["label"]) == ["a", "b"]
    assert list(by_term["value"]) == [1.0, 0.4]
    assert list(by_term["note"]) == ["n = 3", "n = 5"]
    by_count = localization.rates(rows(), "accurate", "n_objects")
    assert list(by_count["label"]) == ["4", "9", "10"]


def test_shares_cover_all_outcomes() -> None:
    found = localization.shares(rows())
    assert list(found["label"]) == list(OUTCOMES)
    assert found["value"].sum() == pytest.approx(1)
    assert list(found["note"]) == ["5 of 8", "2 of 8", "1 of 8", "0 of 8", "0 of 8"]


def test_measures_leave_silent_samples_out_of_the_centre_error_alone() -> None:
    frame = rows()
    frame.loc[7, ["answered", "center_error", "iou"]] = [False, np.nan, 0.0]
    found = {m.name: m for m in localization.vlm_measures(frame, seed=0)}
    assert found["vlm_box_accuracy"].found.value == 5 / 8
    assert found["vlm_box_accuracy"].paper == 0.89
    assert (found["center_error"].found.n, found["vlm_mean_iou"].found.n) == (7, 8)
    assert found["no_box_rate"].found.value == 1 / 8
    assert found["wrong_entity_rate"].found.value == 2 / 8


def test_a_model_that_gives_no_box_has_no_centre_error(
    encoder: ConditionEncoder, saying: list[list[Grounding]], tmp_path: Path
) -> None:
    saying.append([Grounding("", None, 0)] * 2)
    silent = localization.ask(encoder, Halves(), 2, base=tmp_path)
    found = {m.name: m.found.value for m in localization.vlm_measures(silent, seed=0)}
    assert "center_error" not in found
    assert (found["no_box_rate"], found["vlm_box_accuracy"], found["vlm_mean_iou"]) == (1, 0, 0)
    assert list(localization.examples(silent)["outcome"]) == [NO_BOX]
