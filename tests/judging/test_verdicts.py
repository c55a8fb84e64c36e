"""Verdicts are asked for once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from abplib.editing import runs
from abplib.experiment import Experiment
from abplib.judging import verdicts
from abplib.judging.base import Judgement
from abplib.judging.preservation import Preservation
from abplib.profiles import Profile
from abplib.samples.base import SampleSet

PROFILE = Profile.load("smoke")
SAMPLES = Experiment(PROFILE).evaluation


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


def test_verdicts_are_asked_for_once_and_stand_beside_the_distances(tmp_path: Path) -> None:
    files = {
        name: runs.make_edits(name, Experiment(PROFILE).editor, SAMPLES, 2, 0, {}, base=tmp_path)
        for name in ("identity", "paste")
    }
    assert (np.asarray(Image.open(files["identity"][1])) == np.asarray(SAMPLES[1].image)).all()
    judge, preservation = CountingJudge(), Preservation()
    found = verdicts.judged(files, SAMPLES, judge, preservation, base=tmp_path)
    assert judge.asked == [0, 1]  # both methods together
    assert list(found["method"]) == ["identity"] * 2 + ["paste"] * 2
    assert list(found["sample_id"][:2]) == [SAMPLES[0].id, SAMPLES[1].id]
    assert found["lpips"].abs().max() < 1e-6 and (found["l2"] == 0).all()
    again = verdicts.judged(files, SAMPLES, judge, preservation, base=tmp_path)
    assert again.equals(found) and judge.asked == [0, 1]
    assert all(kind is None for kind in again["failure"][again["success"]])
    tidy = verdicts.tidy(found).set_index(["sample_id", "method", "metric"])["value"]
    assert tidy[SAMPLES[0].id, "paste", "vqa"] == 3
    assert tidy[SAMPLES[0].id, "paste", "edit_success"] == 1
