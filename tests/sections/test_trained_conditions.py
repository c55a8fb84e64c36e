"""Chapter 5's comparison of trained conditions on rows whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from abplib.core.errors import AbpError
from abplib.experiment import Experiment
from abplib.plots.intervals import intervals
from abplib.profiles import Profile
from abplib.samples.scenes.sets import evaluation
from abplib.sections import trained_conditions
from abplib.sections.estimates import table
from abplib.sections.trained_conditions import LABELS, RATES, Trained
from abplib.vlm.loading import fingerprint
from abplib.vlm.twins import smoke_vlm

ALTERED = {
    ("final", "none"): 8, ("middle", "none"): 32, ("pooled", "none"): 8,
    ("final", "many"): 10, ("middle", "many"): 7, ("pooled", "many"): 9,
}  # fmt: skip
"""Of 40 samples, from the first."""


def rows() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "condition": condition, "by_place": amount, "sample_id": f"s{i}",
                "target_altered": i < altered, "others_altered": (i % 2) / 2,
                "edit_success": i < altered - 4, "accuracy": 4, "leakage": 2 + i % 2,
                "failure": None,
            }
            for (condition, amount), altered in ALTERED.items()
            for i in range(40)
        ]
    )  # fmt: skip


def run(**changes: Any) -> dict[str, Any]:
    about = {"layers": [1, 3], "parameters": 1_234_567, "held_out_loss": 0.25}
    runs = [
        {"condition": c, "by_place": a, "minutes": 9.6 + (c == "pooled"), **about}
        for c, a in ALTERED
    ]
    made = {
        "vlm": fingerprint(smoke_vlm()), "samples": evaluation().fingerprint, "device": "cpu",
        "runs": runs,
        "plan": {
            "shape": {"layers": 4, "heads": 4, "head_dim": 32},
            "dit": {"schedule": {"steps": 900}, "batch": 32, "scenes": 1280},
            "by_place": {"none": 0.0, "many": 0.5},
            "samples": 40, "n_steps": 12, "guidance": 3.0,
        },
    }  # fmt: skip
    return made | changes


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    made = Experiment(Profile.load("smoke", comparison=str(tmp_path / "conditions.csv")))
    vars(made)["evaluation"] = evaluation()
    return made


def ship(experiment: Experiment, made: dict[str, Any]) -> None:
    path = experiment.comparison_file
    assert path is not None
    rows().to_csv(path, index=False)
    path.with_suffix(".json").write_text(json.dumps(made))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (None, "has not been made yet"),
        ({"vlm": "another"}, "another VLM or on other samples"),
        ({"samples": "others"}, "another VLM or on other samples"),
    ],
)
def test_a_comparison_of_nothing_or_of_something_else_is_not_shown(
    experiment: Experiment, changes: dict[str, Any] | None, said: str
) -> None:
    if changes is not None:
        ship(experiment, run(**changes))
    trained, told = trained_conditions.find(experiment)
    assert trained is None and said in told
    assert trained_conditions.find(Experiment(Profile.load("smoke"))) == (
        None, "The profile smoke comes with no such comparison; none is shown.",
    )  # fmt: skip


def test_a_comparison_is_read_as_made_and_told_in_a_sentence(experiment: Experiment) -> None:
    ship(experiment, run())
    trained, told = trained_conditions.find(experiment)
    assert trained is not None
    known = trained.rows.drop(columns="failure")
    pd.testing.assert_frame_equal(known, rows().drop(columns="failure"))
    assert told == (
        "Each has 4 blocks of width 128 (1,234,567 parameters) and learned from 900 batches of 32 "
        "pairs of 1280 scenes, in 10 to 11 minutes (cpu); each then edited the same 40 samples in "
        "12 steps at a guidance of 3."
    )
    assert experiment.comparison_file is not None
    experiment.comparison_file.write_text("")
    with pytest.raises(AbpError, match="not a readable table: restore it"):
        trained_conditions.find(experiment)


def test_a_new_comparison_makes_the_chapters_anew(experiment: Experiment) -> None:
    before = experiment.model_fingerprint
    ship(experiment, run())
    made = experiment.model_fingerprint
    ship(experiment, run(device="cuda"))
    assert len({before, made, experiment.model_fingerprint}) == 3


def test_rates_are_those_of_the_rows() -> None:
    made = trained_conditions.rates(Trained(rows(), run()), seed=0)
    found = made.set_index(["condition", "by_place", "measure"])
    assert set(found.index) == {(*key, measure) for key in ALTERED for measure in RATES}
    for key, altered in ALTERED.items():
        assert found["value"][*key, "target_altered"] == altered / 40
        assert found["value"][*key, "edit_success"] == (altered - 4) / 40
        others = found.loc[(*key, "others_altered")]
        assert others["low"] < others["value"] == 0.25 < others["high"]
    assert found["name"]["final", "many", "edit_success"] == "conditions.final.many.edit_success"


def test_only_a_real_difference_to_the_plain_training_is_significant() -> None:
    compared = trained_conditions.against_plain(Trained(rows(), run()))
    found = compared.set_index(["label", "rate"])
    assert len(found) == 2 * (len(ALTERED) - 1)
    middle = found.loc[("One middle layer, 0% by place", "target altered")]
    assert middle["value"] == 0.6 and middle["low"] > 0 and middle["p"] < 0.001
    pooled = found.loc[("Middle layers pooled, 0% by place", "target altered")]
    assert pooled["value"] == 0 and pooled["p"] == 1
    assert found["p"]["Final states, 50% by place", "target altered"] == 1  # 0.5, adjusted
    assert "Final states, 0% by place" not in set(compared["label"])
    shown = table(compared, "label", "rate", "+.1%")
    assert shown.loc["One middle layer, 0% by place", "target altered"].endswith("p < 0.001")


def test_table_and_figure_show_every_training() -> None:
    trained = Trained(rows(), run())
    found = trained_conditions.rates(trained, seed=0)
    shown = trained_conditions.rate_table(trained, found)
    assert len(shown) == len(ALTERED)
    assert shown.loc["Final states, 50% by place", "target altered"].startswith("25.0% [")
    assert shown.loc["Final states, 50% by place", "leakage score"] == "2.50"
    assert set(shown["layers"]) == {"1, 3"} and set(shown["held-out loss"]) == {"0.2500"}
    figure = intervals(found, "rate")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["0% by place", "50% by place"]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == list(LABELS.values())
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(RATES.values())
