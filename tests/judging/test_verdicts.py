"""Verdicts are asked for once."""

from __future__ import annotations

from pathlib import Path

import pytest
from saying import Saying

from abplib.editing import runs
from abplib.experiment import Experiment
from abplib.judging import verdicts
from abplib.judging.base import Judgement
from abplib.judging.preservation import Preservation
from abplib.profiles import Profile

PROFILE = Profile.load("smoke")
SAMPLES = Experiment(PROFILE).evaluation


def test_verdicts_are_asked_for_once_and_stand_beside_the_distances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path))
    files: dict[str, list[Path | None]] = {
        name: [*runs.make_edits(name, Experiment(PROFILE).editor, SAMPLES, 2, 0, {})]
        for name in ("identity", "paste")
    }
    judge = Saying(Judgement(True, None, 4, 3, 2, "as asked"))
    preservation = Preservation()
    found = verdicts.judged(files, SAMPLES, judge, preservation)
    assert judge.asked == [0, 1]  # both methods together
    assert list(found["method"]) == ["identity"] * 2 + ["paste"] * 2
    assert list(found["sample_id"][:2]) == [SAMPLES[0].id, SAMPLES[1].id]
    assert found["lpips"].abs().max() < 1e-6 and (found["l2"] == 0).all()
    again = verdicts.judged({"paste": files["paste"]}, SAMPLES, judge, preservation)
    assert again.equals(found[2:].reset_index(drop=True)) and judge.asked == [0, 1]
    assert all(kind is None for kind in again["failure"][again["success"]])
    tidy = verdicts.tidy(found).set_index(["sample_id", "method", "metric"])["value"]
    assert tidy[SAMPLES[0].id, "paste", "vqa"] == 3
    assert tidy[SAMPLES[0].id, "paste", "edit_success"] == 1

    holed = files | {"identity": [None, files["identity"][1]], "paste": [None, None]}
    rows = verdicts.judged(holed, SAMPLES, judge, preservation)  # an edit that could not be made
    assert judge.asked == [0, 1, 1]
    assert list(rows["success"].isna()) == [True, False, True, True]
    assert rows["lpips"].notna().sum() == verdicts.succeeded(rows[:2]).sum() == 1
