"""Chapter 5's comparison of trained conditions on rows whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from abplib.core.errors import AbpError
from abplib.experiment import Experiment
from abplib.plots.conditions import trained_conditions as draw
from abplib.profiles import Profile
from abplib.samples.scenes.sets import evaluation
from abplib.sections import trained_conditions
from abplib.sections.trained_conditions import LABELS, RATES, Trained

ALTERED = {"final": 8, "middle": 32, "pooled": 8, "stacked": 10, "final_untold": 7}
"""Of 40 samples, from the first."""


def rows() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "condition": name, "sample_id": f"s{i}", "target_altered": i < altered,
                "others_altered": (i % 2) / 2, "edit_success": i < altered - 4, "accuracy": 4,
                "leakage": 2 + i % 2, "failure": None,
            }
            for name, altered in ALTERED.items()
            for i in range(40)
        ]
    )  # fmt: skip


def run(**changes: Any) -> dict[str, Any]:
    about = {"layers": [1, 3], "parameters": 1_234_567, "minutes": 9.6, "held_out_loss": 0.25}
    made = {
        "vlm": "v", "samples": evaluation().fingerprint, "device": "cpu",
        "conditions": {name: about for name in LABELS}
        | {"stacked": about | {"parameters": 1_300_000, "minutes": 11.0}},
        "plan": {
            "shape": {"layers": 4, "heads": 4, "head_dim": 32},
            "dit": {"schedule": {"steps": 900}, "batch": 32, "scenes": 1280},
            "samples": 40, "n_steps": 12, "guidance": 3.0,
        },
    }  # fmt: skip
    return made | changes


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    made = Experiment(Profile.load("smoke", comparison=str(tmp_path / "conditions.csv")))
    vars(made)["encoder"] = SimpleNamespace(fingerprint="v")
    return made


def ship(experiment: Experiment, made: dict[str, Any]) -> None:
    path = experiment.comparison_file
    assert path is not None
    rows().to_csv(path, index=False)
    path.with_suffix(".json").write_text(json.dumps(made))


def test_a_profile_without_a_comparison_shows_none_and_says_so(experiment: Experiment) -> None:
    assert trained_conditions.find(Experiment(Profile.load("smoke"))) == (
        None, "The profile smoke comes with no such comparison; none is shown.",
    )  # fmt: skip
    trained, told = trained_conditions.find(experiment)
    assert trained is None and "has not been made yet" in told


@pytest.mark.parametrize("changes", [{"vlm": "another"}, {"samples": "others"}])
def test_a_comparison_of_something_else_is_not_shown(
    experiment: Experiment, changes: dict[str, Any]
) -> None:
    ship(experiment, run(**changes))
    trained, told = trained_conditions.find(experiment)
    assert trained is None and "another VLM or on other samples" in told


def test_a_comparison_is_read_as_made_and_told_in_a_sentence(experiment: Experiment) -> None:
    ship(experiment, run())
    trained, told = trained_conditions.find(experiment)
    assert trained is not None
    pd.testing.assert_frame_equal(
        trained.rows.drop(columns="failure"), rows().drop(columns="failure")
    )
    assert told == (
        "Each has 4 blocks of width 128 (1,234,567 to 1,300,000 parameters) and learned from 900 "
        "batches of 32 pairs of 1280 scenes, in 10 to 11 minutes (cpu); each then edited the same "
        "40 samples in 12 steps at a guidance of 3."
    )


def test_a_broken_table_is_one_sentence(experiment: Experiment, tmp_path: Path) -> None:
    ship(experiment, run())
    (tmp_path / "conditions.csv").write_text("")
    with pytest.raises(AbpError, match="not a readable table: restore it"):
        trained_conditions.find(experiment)


def test_a_new_comparison_makes_the_chapters_anew(experiment: Experiment) -> None:
    before = experiment.model_fingerprint
    ship(experiment, run())
    made = experiment.model_fingerprint
    ship(experiment, run(device="cuda"))
    assert len({before, made, experiment.model_fingerprint}) == 3


def test_rates_are_those_of_the_rows() -> None:
    found = trained_conditions.rates(rows(), seed=0)
    assert found.keys() == {(name, measure) for name in LABELS for measure in RATES}
    for name, altered in ALTERED.items():
        assert found[name, "target_altered"].value == altered / 40
        assert found[name, "edit_success"].value == (altered - 4) / 40
        others = found[name, "others_altered"]
        assert others.low < others.value == 0.25 < others.high


def test_only_a_real_difference_to_the_final_states_is_significant() -> None:
    compared = trained_conditions.against_final(rows())
    assert "final" not in {name for name, _ in compared}
    middle, pooled = compared["middle", "target_altered"], compared["pooled", "target_altered"]
    assert middle.found.value == 0.6 and middle.found.low > 0 and middle.p < 0.001
    assert pooled.found.value == 0 and pooled.p == 1
    assert compared["stacked", "target_altered"].p == 1  # 0.5, adjusted
    table = trained_conditions.against_table(compared)
    assert list(table.index) == [LABELS[name] for name in LABELS if name != "final"]
    assert table.loc["One middle layer", "target altered"].endswith("p < 0.001")


def test_the_table_has_a_row_a_condition() -> None:
    table = trained_conditions.rate_table(
        Trained(rows(), run()), trained_conditions.rates(rows(), seed=0)
    )
    assert list(table.index) == list(LABELS.values())
    assert table.loc["Final states", "target altered"].startswith("20.0% [")
    assert table.loc["Final states", "leakage score"] == "2.50"
    assert set(table["layers"]) == {"1, 3"} and set(table["held-out loss"]) == {"0.2500"}


def test_the_figure_puts_every_rate_at_its_place() -> None:
    found = trained_conditions.rates(rows(), seed=0)
    figure = draw(found)
    (axes,) = figure.axes
    for line, measure in zip(axes.lines, RATES, strict=True):
        assert list(line.get_xdata()) == [found[name, measure].value for name in LABELS]
    places = [place for line in axes.lines for place in line.get_ydata()]
    assert len(set(places)) == len(places)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(LABELS.values())
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(RATES.values())
