"""Chapter 2's errors and claims on rows whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from abplib.proxies.labels import Labels
from abplib.sections import decodability
from abplib.sections.claims import HOLDS, REVERSED, UNDECIDED
from abplib.sections.decodability import UNREAD

GROUPS = {
    "layer_0": "outer",
    "layer_1": "middle",
    "layer_2": "middle",
    "final": "final",
    "middle_prompt": "middle_prompt",
    "input": "control",
    "untrained.1": "control",
}
ERRORS = {
    "layer_0": 0.2,
    "layer_1": 0.08,
    "layer_2": 0.12,
    "final": 0.15,
    "middle_prompt": 0.15,
    "input": 0.25,
    "untrained.1": 0.25,
    "centre_prior": 0.3,
    "text_only": 0.11,
}


def samples(*seeds: dict[str, float]) -> pd.DataFrame:
    """40 samples of different difficulty, plus noise of each seed's and configuration's own.

    Two seeds of `ERRORS` where none are given; what reads no states is of seed 0 alone.
    """
    random = np.random.default_rng(0)
    hardness = random.normal(0, 0.05, 40)
    parts = []
    for seed, errors in enumerate(seeds or (ERRORS, ERRORS)):
        for name, error in errors.items():
            center = error + hardness + random.normal(0, 0.01, 40)
            part = pd.DataFrame({"sample_id": np.arange(40), "center_error": center})
            if not seed or name not in ("centre_prior", "text_only"):
                parts.append(part.assign(configuration=name, seed=seed, iou=0.5, acc50=1.0))
    return pd.concat(parts, ignore_index=True)


def curves(seed: int = 0, **lines: list[float]) -> pd.DataFrame:
    rows = [
        {"configuration": name, "seed": seed, "step": 10 * (place + 1), "center_error": error}
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
    "input": [0.2, 0.2, 0.2],  # as fast as the prompt tokens, but in no group of the paper's
    "untrained.1": [0.4, 0.4, 0.4],
}


def grouped(n_layers: int, middle: range) -> dict[str, list[int]]:
    names = [f"layer_{layer}" for layer in range(n_layers)]
    found = decodability.groups_of(names, n_layers, middle)
    return {
        group: [layer for layer, name in enumerate(names) if found[name] == group]
        for group in ("outer", "middle", "between")
    }


def test_groups_are_the_papers_at_its_depth_and_scaled_elsewhere() -> None:
    assert grouped(28, range(15, 25)) == {
        "outer": [*range(14), 25, 26], "middle": [*range(15, 25)], "between": [14, 27],
    }  # fmt: skip
    assert grouped(8, range(5, 8)) == {"outer": [0, 1, 2, 3], "middle": [5, 6, 7], "between": [4]}
    others = ["final", "middle_prompt", "input", "untrained.7"]
    found = decodability.groups_of(others, 8, range(5, 8))
    assert list(found.values()) == ["final", "middle_prompt", "control", "control"]


def test_final_errors_are_means_with_intervals() -> None:
    frame = samples()
    found = decodability.final_errors(frame, GROUPS, seed=0)
    assert list(found.index) == list(ERRORS)
    mean = frame.query("configuration == 'final'")["center_error"].mean()
    assert found.loc["final", "value"] == pytest.approx(mean)
    assert (found["low"] < found["value"]).all() and (found["value"] < found["high"]).all()
    assert (found["n"] == 40).all()
    alone = frame.query("configuration == 'final'").groupby("seed")["center_error"].mean()
    assert found.loc["final", "seeds"] == pytest.approx(tuple(alone))
    assert found.loc["centre_prior", "seeds"] == ()
    told = found[["label", "group"]].T
    assert told["layer_1"].tolist() == ["layer 1", "middle layers"]
    assert decodability.groups_of(["prompt_1", "prompt_final"], 3, [1]) == {
        "prompt_1": "prompt",
        "prompt_final": "prompt",
    }
    assert decodability.label_of("prompt_1") == "prompt tokens, layer 1"
    assert decodability.label_of("prompt_final") == "prompt tokens, final"
    assert told["untrained.1"].tolist() == ["untrained, layer 1", "no trained decoder"]
    assert told["text_only"].tolist() == ["spatial term alone", UNREAD]
    table = decodability.configuration_table(found)
    assert (table.index[0], table.index[-1]) == ("layer 1", "centre prior")
    assert table.loc["final", "centre error"] == found.loc["final", "value"]
    assert table.loc["final", "SD of seeds"] == pytest.approx(alone.std())
    assert np.isnan(table.loc["centre prior", "SD of seeds"])


def test_curves_stand_in_the_order_of_their_groups_and_of_time() -> None:
    worse = curves(**CURVES).assign(seed=1, center_error=lambda rows: rows["center_error"] + 0.1)
    shuffled = pd.concat([curves(**CURVES), worse]).sample(frac=1, random_state=0)
    rows = decodability.curve_rows(shuffled, GROUPS | {"prompt_1": "prompt"})
    assert rows["configuration"].unique().tolist() == list(GROUPS)
    assert rows["step"].tolist() == [10, 20, 30] * len(GROUPS)
    prompt = rows[rows["configuration"] == "middle_prompt"].iloc[0]
    assert prompt[["low", "center_error", "high"]].tolist() == pytest.approx([0.2, 0.25, 0.3])
    assert [*prompt[["label", "group"]]] == ["middle prompt", "prompt tokens of the middle layers"]


def test_differences_are_paired() -> None:
    paired = decodability.difference(samples(), ["layer_1", "layer_2"], ["final"], seed=0)
    assert paired.value == pytest.approx(-0.05, abs=0.01) and len(paired.seeds) == 2
    prior = decodability.difference(samples(), ["layer_1"], ["centre_prior"], seed=0)
    assert prior.seeds == pytest.approx((-0.22, -0.22), abs=0.01)
    single = decodability.final_errors(samples(), GROUPS, seed=0).loc["final"]
    assert paired.high - paired.low < 0.5 * (single["high"] - single["low"])


def test_batches_to_takes_the_first_evaluation_as_low() -> None:
    found = decodability.batches_to(curves(a=[0.3, 0.1, 0.2], b=[0.3, 0.3, 0.3]), 0.1)
    assert found.to_dict() == {"a": 20.0, "b": np.inf}


def test_claims_on_known_rows() -> None:
    checks = decodability.check_claims(samples(), curves(**CURVES), GROUPS, seed=0)
    assert {check.key: check.verdict for check in checks} == {
        "one_pass": HOLDS,
        "middle_final": HOLDS,
        "middle_outer": HOLDS,
        "middle_faster": HOLDS,
        "prompt_fastest": HOLDS,
        "prompt_final": UNDECIDED,
        "prompt_text_only": REVERSED,
        "decoder": HOLDS,
    }


def test_claims_on_which_seeds_disagree_are_undecided() -> None:
    worse = {**ERRORS, "layer_1": 0.4, "layer_2": 0.4}
    slower = curves(1, **{**CURVES, "layer_1": [0.4, 0.3, 0.3], "layer_2": [0.4, 0.3, 0.3]})
    lines = pd.concat([curves(**CURVES), slower])
    checks = decodability.check_claims(samples(ERRORS, worse), lines, GROUPS, seed=0)
    found = {check.key: check for check in checks}
    for key in ("one_pass", "middle_final", "middle_outer", "decoder", "middle_faster"):
        assert found[key].verdict == UNDECIDED
    assert found["prompt_fastest"].verdict == HOLDS  # to both
    assert found["middle_faster"].measured == "batch 20, never against 30, 30"


def test_claims_turn_with_the_rows() -> None:
    worse = {**ERRORS, "layer_1": 0.4, "layer_2": 0.4}
    slower = {**CURVES, "layer_1": [0.4, 0.3, 0.3], "middle_prompt": [0.4, 0.3, 0.2]}
    checks = decodability.check_claims(samples(worse), curves(**slower), GROUPS, seed=0)
    found = {check.key: check for check in checks}
    for key in ("one_pass", "middle_final", "middle_outer", "decoder", "prompt_fastest"):
        assert found[key].verdict == REVERSED
    assert found["middle_faster"].verdict == REVERSED  # one at batch 20, one never
    assert found["middle_faster"].measured == "batch never against 30"


def test_unusable_labels_are_counted_by_reason() -> None:
    frame = pd.DataFrame({"reason": ["", "", "no_box", "too_large"]})
    found = decodability.label_table(Labels(frame, {}, ""))
    assert found["samples"].to_dict() == {"usable": 2, "no box": 1, "box too large": 1}
    assert found["part"].sum() == pytest.approx(1)


def test_settings_are_written_whole_where_they_are() -> None:
    assert format(128000.0, decodability.format_of(128000.0, 320)) == "128,000"
    assert format(1.0, decodability.format_of(1.0374, 1.0)) == "1"
    assert [decodability.written(x) for x in (1e-3, np.nan, 64.0)] == ["0.001", "–", "64"]
