"""What is planted is found, and nothing is found where nothing is planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toysweep import LEARNS

from abplib.core import store
from abplib.sections import instrument


def trials(strength: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.setenv("ABP_RESULTS", str(folder))
    monkeypatch.setattr(instrument, "STRENGTHS", (strength,))
    return store.read_parquet(instrument.planted(LEARNS, 0.5, 1) / "samples.parquet")[0]


def test_a_strong_plant_is_named_once_the_proxy_has_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trials(20.0, tmp_path, monkeypatch)
    by_budget = found.groupby("samples")[["layer", "token", "both", "named"]].mean()
    assert (by_budget.iloc[-1] >= 0.95).all()
    assert by_budget["both"].iloc[0] < 0.5 and not by_budget["named"].iloc[0]
    errors = found.groupby("samples")["center_error"].mean()
    assert errors.iloc[-1] < errors.iloc[0] / 3


def test_without_a_plant_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = trials(0.0, tmp_path, monkeypatch)
    assert not found["named"].any()
    last = found[found["samples"] == found["samples"].max()]
    assert abs(last["layer"].mean() - 1 / instrument.N_LAYERS) < 0.1
    assert abs(last["both"].mean() - instrument.CHANCE) < 0.05


def test_rates_are_over_seeds_and_samples() -> None:
    right = np.array([[True] * 10, [False] * 10])
    rows = [
        {"strength": 8.0, "samples": 64, "seed": s, "sample": i, "both": right[s, i]}
        for s in range(2)
        for i in range(10)
    ]
    (rate,) = instrument.rates(pd.DataFrame(rows), "both", 0).to_dict("records")
    assert (rate["value"], rate["low"], rate["high"], rate["n"]) == (0.5, 0.0, 1.0, 10)
    assert rate["seeds"] == (1.0, 0.0)
