"""Tables beside a VLM's weights: shown where they are its own, and told where they are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from abplib.core.errors import AbpError
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.samples.scenes.sets import general
from abplib.sections import shipped
from abplib.vlm.twins import smoke_vlm

ROWS = pd.DataFrame({"kind": ["a", "b"], "value": [0.25, 4.0]})


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    vlm = shutil.copytree(smoke_vlm(), tmp_path / "vlm")
    return Experiment(Profile.load("smoke", vlm=str(vlm)))


def test_what_is_shipped_is_found_and_makes_the_chapters_anew(experiment: Experiment) -> None:
    file, before = Path(experiment.vlm_source) / "t.csv", experiment.model_fingerprint
    assert shipped.find(experiment, "t.csv", "make-it") == (
        None,
        "`make-it` has not been run for this VLM, so nothing is shown.",
    )
    shipped.ship(file, ROWS, experiment.encoder, experiment.evaluation, minutes=3.5)
    found, told = shipped.find(experiment, "t.csv", "make-it")
    assert found is not None and not told and found.run["minutes"] == 3.5
    pd.testing.assert_frame_equal(found.rows, ROWS)
    made = experiment.model_fingerprint
    shipped.ship(file, ROWS, experiment.encoder, experiment.evaluation, minutes=4.0)
    assert len({before, made, experiment.model_fingerprint}) == 3


def test_what_was_made_of_something_else_is_not_shown(experiment: Experiment) -> None:
    file, encoder = Path(experiment.vlm_source) / "t.csv", experiment.encoder
    for vlm, samples in ((encoder, general()), (encoder.untrained(0), experiment.evaluation)):
        shipped.ship(file, ROWS, vlm, samples)
        found, told = shipped.find(experiment, "t.csv", "make-it")
        assert found is None and "of another VLM or on other samples" in told
    shipped.ship(file, ROWS, encoder, experiment.evaluation)
    file.write_text("")
    with pytest.raises(AbpError, match="not a readable table: restore it, or delete it and run"):
        shipped.find(experiment, "t.csv", "make-it")
