"""Chapter 5's comparison of trained conditions on rows whose answer is known."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from abplib.core import store
from abplib.experiment import Experiment
from abplib.plots.intervals import intervals
from abplib.profiles import Profile
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
        "vlm": fingerprint(smoke_vlm()), "samples": "", "device": "cpu",
        "runs": runs,
        "plan": {
            "shape": {"layers": 4, "heads": 4, "head_dim": 32},
            "dit": {"schedule": {"steps": 900}, "batch": 32, "scenes": 1280},
            "by_place": {"none": 0.0, "many": 0.5},
            "samples": 40, "n_steps": 12, "guidance": 3.0,
        },
    }  # fmt: skip
    return made | changes


def test_a_comparison_is_told_in_a_sentence(tmp_path: Path) -> None:
    vlm = shutil.copytree(smoke_vlm(), tmp_path / "vlm")
    experiment = Experiment(Profile.load("smoke", vlm=str(vlm)))
    assert trained_conditions.find(experiment) == (
        None,
        "`python -m recipes train-conditions` has not been run for this VLM, so nothing is shown.",
    )
    rows().to_csv(vlm / trained_conditions.FILE, index=False)
    started = trained_conditions.transformer_of(Path(experiment.editor_source))
    about = run(samples=experiment.evaluation.fingerprint, transformer=started)
    store.write_json((vlm / trained_conditions.FILE).with_suffix(".json"), about)
    trained, told = trained_conditions.find(experiment)
    assert trained is not None and len(trained.rows) == len(rows())
    assert told == (
        "Each has 4 blocks of width 128 (1,234,567 parameters) and learned from 900 more batches "
        "of 32 pairs of 1280 scenes, in 10 to 11 minutes (cpu); each then edited the same 40 "
        "samples in 12 steps at a guidance of 3."
    )
    for other in (about | {"transformer": "another"}, run(samples=about["samples"])):
        store.write_json((vlm / trained_conditions.FILE).with_suffix(".json"), other)
        assert trained_conditions.find(experiment)[1] == (
            f"{told} They go on from another transformer than this editor's: "
            "`python -m recipes train-conditions` makes them anew."
        )


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


def test_sure_differences_are_named() -> None:
    against = pd.DataFrame(
        {"label": ["A", "B"], "rate": "edit success", "value": [0.25, 0.1], "p": [0.01, 0.2]}
    )
    assert trained_conditions.found(against) == (
        "Of 2 differences to the plain one, 1 is sure at a level of 0.05 after Holm's adjustment: "
        "A (edit success +25.0%)."
    )
    assert "none is sure" in trained_conditions.found(against.assign(p=1.0))
