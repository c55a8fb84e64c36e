"""Chapter 2's errors and verdicts on rows whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from abplib.core.stats import Interval
from abplib.proxies.configurations import Configuration
from abplib.proxies.labels import Labels
from abplib.sections import decodability
from abplib.sections.decodability import HOLDS, REVERSED, UNDECIDED

GROUPS = {
    "layer_0": "outer",
    "layer_1": "middle",
    "layer_2": "middle",
    "final": "final",
    "middle_prompt": "middle_prompt",
}
ERRORS = {
    "layer_0": 0.2,
    "layer_1": 0.08,
    "layer_2": 0.12,
    "final": 0.15,
    "middle_prompt": 0.15,
    "centre_prior": 0.3,
    "text_only": 0.11,
}


def samples(errors: dict[str, float] = ERRORS) -> pd.DataFrame:
    """40 samples of different difficulty, plus noise of each configuration's own."""
    random = np.random.default_rng(0)
    hardness = random.normal(0, 0.05, 40)
    parts = []
    for name, error in errors.items():
        center = error + hardness + random.normal(0, 0.01, 40)
        parts.append(
            pd.DataFrame({"sample_id": np.arange(40), "center_error": center}).assign(
                configuration=name, iou=0.5, acc50=1.0
            )
        )
    return pd.concat(parts, ignore_index=True)


def curves(**lines: list[float]) -> pd.DataFrame:
    rows = [
        {"configuration": name, "step": 10 * (place + 1), "center_error": error}
        for name, line in lines.items()
        for place, error in enumerate(line)
    ]
    return pd.DataFrame(rows)


CURVES = {
    "layer_0": [0.4, 0.3, 0.25],
    "layer_1": [0.3, 0.2, 0.1],
    "layer_2": [0.3, 0.2, 0.1],
    "final": [0.4, 0.3, 0.2],
    "middle_prompt": [0.2, 0.2, 0.2],
}


def test_groups_follow_the_layers_that_are_read() -> None:
    chosen = [
        Configuration("layer_0", (0,)),
        Configuration("layer_1", (1,)),
        Configuration("final", ("final",)),
        Configuration("middle_prompt", (1,), "prompt"),
    ]
    found = decodability.groups_of(chosen, middle=(1,))
    assert found == {name: GROUPS[name] for name in found}


def test_final_errors_are_means_with_intervals() -> None:
    frame = samples()
    found = decodability.final_errors(frame, seed=0)
    assert list(found.index) == list(ERRORS)
    mean = frame.query("configuration == 'final'")["center_error"].mean()
    assert found.loc["final", "value"] == pytest.approx(mean)
    assert (found["low"] < found["value"]).all() and (found["value"] < found["high"]).all()
    assert (found["n"] == 40).all()


def test_differences_are_paired() -> None:
    paired = decodability.difference(samples(), ["layer_1", "layer_2"], ["final"], seed=0)
    assert paired.value == pytest.approx(-0.05, abs=0.01)
    single = decodability.final_errors(samples(), seed=0).loc["final"]
    assert paired.high - paired.low < 0.5 * (single["high"] - single["low"])


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.2, -0.1, HOLDS),
        (0.1, 0.2, REVERSED),
        (-0.1, 0.1, UNDECIDED),
        (np.nan, np.nan, UNDECIDED),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side(low: float, high: float, verdict: str) -> None:
    assert decodability.verdict_of(Interval(0.0, low, high, 9)) == verdict


def test_batches_to_takes_the_first_evaluation_as_low() -> None:
    found = decodability.batches_to(curves(a=[0.3, 0.1, 0.2], b=[0.3, 0.3, 0.3]), 0.1)
    assert found == {"a": 20.0, "b": np.inf}


def test_verdicts_on_known_rows() -> None:
    found = {
        v.key: v.verdict for v in decodability.verdicts(samples(), curves(**CURVES), GROUPS, seed=0)
    }
    assert found == {
        "one_pass": HOLDS,
        "middle_final": HOLDS,
        "middle_outer": HOLDS,
        "middle_faster": HOLDS,
        "prompt_fastest": HOLDS,
        "prompt_final": UNDECIDED,
        "prompt_text_only": REVERSED,
    }


def test_verdicts_turn_with_the_rows() -> None:
    worse = {**ERRORS, "layer_1": 0.4, "layer_2": 0.4}
    slower = {**CURVES, "layer_1": [0.4, 0.3, 0.3], "middle_prompt": [0.4, 0.3, 0.2]}
    rows = decodability.verdicts(samples(worse), curves(**slower), GROUPS, seed=0)
    found = {v.key: v for v in rows}
    for key in ("one_pass", "middle_final", "middle_outer"):
        assert found[key].verdict == REVERSED
    assert found["middle_faster"].verdict == REVERSED  # one at batch 20, one never
    assert found["middle_faster"].measured == "batch never against 30"
    assert found["prompt_fastest"].verdict == REVERSED


def test_unusable_labels_are_counted_by_reason() -> None:
    frame = pd.DataFrame({"reason": ["", "", "no_box", "too_large"]})
    found = decodability.label_table(Labels(frame, {}, ""))
    assert found["samples"].to_dict() == {"usable": 2, "no box": 1, "box too large": 1}
    assert found["part"].sum() == pytest.approx(1)


def test_the_table_puts_the_lowest_error_first() -> None:
    errors = decodability.final_errors(samples(), seed=0)
    table = decodability.configuration_table(errors)
    assert table.index[0] == "layer 1"
    assert table.index[-1] == "centre prior"
    assert table.loc["final", "centre error"] == errors.loc["final", "value"]


def test_settings_are_written_whole_where_they_are() -> None:
    assert format(128000.0, decodability.format_of(128000.0, 320)) == "128,000"
    assert format(1e-3, decodability.format_of(1e-3, np.nan)) == "0.001"
    assert format(1.0, decodability.format_of(1.0374, 1.0)) == "1"
