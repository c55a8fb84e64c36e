"""Every benchmark at its smallest, and the page's numbers from what they find."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from test_cost import WINDOWED

from abplib.core.errors import AbpError
from abplib.plots import cost as plots
from abplib.proxies.qformer import Proxy
from abplib.proxies.settings import ProxyConfig
from abplib.sections import cost
from benchmarks import (
    attention_rows,
    bank,
    evaluation,
    hooks,
    measuring,
    one_pass,
    sweep_cost,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """All results at their smallest, as they come back from their files."""
    small: dict[str, Any] = {"profile": "smoke", "threads": 1, "repeats": 2}
    made = {
        "one_pass": one_pass.measure(**small),
        "bank": bank.measure(**small),
        "sweep_cost": sweep_cost.measure(**small),
        "hooks": hooks.measure(
            "smoke", WINDOWED, repeats=2, n_samples=2, n_larger=1, image_area=168 * 168
        ),
        "attention_rows": attention_rows.measure((32, 64), repeats=1),
        "evaluation": evaluation.measure(**small, n_samples=2),
    }
    return json.loads(json.dumps(made))


def ratios(results: dict[str, Any]) -> pd.DataFrame:
    return cost.ratios("benchmarks/ratios.csv", results)


def test_ways_take_turns_in_random_order_after_a_warm_up() -> None:
    gone: list[str] = []
    taken = measuring.take_turns({n: lambda n=n: gone.append(n) for n in "abc"}, repeats=8)
    turns = ["".join(gone[start : start + 3]) for start in range(0, len(gone), 3)]
    assert len(turns) == 9
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"}
    assert len(set(turns)) > 2
    assert all(len(clock) == 8 for found in taken.values() for clock in found.values())


def test_ratios_are_taken_turn_by_turn() -> None:
    found = measuring.summary([2.0, 30.0, 4.0], [1.0, 10.0, 4.0])
    assert found.pop("ratio") == {"median": 2.0, "low": 1.5, "high": 2.5}
    assert found == {"median": 4.0, "low": 3.0, "high": 17.0, "n": 3}


def test_the_peak_is_that_of_the_work() -> None:
    idle = measuring.peak_mib(lambda: None)
    assert 100 < measuring.peak_mib(lambda: torch.ones(128 * 2**18)) - idle < 200  # 128 MiB


def test_work_that_fails_has_no_peak(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="status 256"):
        measuring.peak_mib(lambda: sys.exit("no room"))
    assert "no room" in capfd.readouterr().err


def test_results_say_what_ran_and_not_where(found: dict[str, Any]) -> None:
    for result in found.values():
        assert set(result) >= {"machine", "settings"}
        assert set(result["machine"]) >= {"processor", "threads", "python", "torch", "transformers"}
        told = json.dumps(result)
        assert str(Path.home()) not in told and platform.node() not in told


def test_all_ratios_come_out_of_the_results(found: dict[str, Any]) -> None:
    made = ratios(found)
    assert (made["low"] <= made["ratio"]).all() and (made["ratio"] <= made["high"]).all()
    assert (
        made.loc["bank", "ratio"]
        == (found["bank"]["ways"]["plain_loop"]["seconds"]["ratio"]["median"])
    )
    assert list(made.loc[["rows.time", "rows.memory"], "n"]) == [1, 3]


def test_projecting_states_is_the_same_function() -> None:
    proxy = Proxy(ProxyConfig(state_width=24, n_layers=2, width=16, n_queries=3))
    states, mask = torch.randn(2, 2, 5, 24), torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    expected = proxy(states, mask)
    torch.testing.assert_close(bank.projecting(proxy)(states, mask), expected)


def test_the_results_that_are_shipped_have_them_all(found: dict[str, Any]) -> None:
    shipped = {name: cost.measured(f"benchmarks/results/{name}.json") for name in found}
    assert set(ratios(shipped).index) == set(ratios(found).index)
    assert set(cost.breakdown(shipped["sweep_cost"]).index) == set(cost.STAGES.values())


def test_a_result_of_another_shape_is_one_sentence(found: dict[str, Any]) -> None:
    former = json.loads(json.dumps(found))
    del former["bank"]["ways"]["plain_loop"]
    with pytest.raises(
        AbpError, match=r"bank has no 'plain_loop': run `python -m benchmarks\.bank"
    ):
        ratios(former)


def test_a_target_is_a_lower_or_an_upper_bound(found: dict[str, Any]) -> None:
    result = json.loads(json.dumps(found))
    runs = result["one_pass"]["ways"]["one_run_each"]["seconds"]["ratio"]
    memory = result["sweep_cost"]["ways"]["sweep"]["peak_mib"]["ratio"]
    for factor, met in ((4.9, False), (5.0, True)):
        runs["median"] = factor
        assert ratios(result).loc["one_pass", "met"] is met
    for factor, met in ((1.5, True), (1.6, False)):
        memory["median"] = factor
        assert ratios(result).loc["sweep.memory", "met"] is met
    assert ratios(result).loc["evaluation", "met"] is None


def test_the_time_is_broken_down(found: dict[str, Any]) -> None:
    stages = cost.breakdown(found["sweep_cost"])
    assert list(stages.index) == list(cost.STAGES.values())
    assert stages["share"].sum() == pytest.approx(1)
    passed = stages.loc["VLM pass"]
    assert passed["rate"] == passed["operations"] / passed["seconds"]
    assert stages["of_machine"].notna().sum() == 2
    assert plots.breakdown(stages).axes
    halves = [cost.sweep_hours(found["sweep_cost"], n) for n in (1000, 2000)]
    assert halves[1] == 2 * halves[0] > 0


def test_the_papers_scale(found: dict[str, Any]) -> None:
    scale = cost.at_scale(found["sweep_cost"])
    text = found["sweep_cost"]["settings"]["lengths"]
    extra = text["kept"] - text["grid"][0] * text["grid"][1]
    assert list(scale.index) == [16**2 + extra, 37**2 + extra]
    # 28 blocks of 233 million weights, each used twice for a token; vision and system prompt beside
    assert (scale["vlm"] > 128_000 * scale.index * 13e9).all()
    assert (scale["vlm"] < 128_000 * scale.index * 26e9).all()
    assert scale["run"].to_numpy() == pytest.approx(scale["runs"].to_numpy() / 30)
    assert (scale["one_pass"] < scale["runs"] / 20).all()
    assert cost.paper_hours() == {"run": 2.0, "runs": 60.0}


def test_a_missing_result_is_one_sentence() -> None:
    said = r"no benchmarks/results/absent\.json: run `python -m benchmarks\.absent`"
    with pytest.raises(AbpError, match=said):
        cost.measured("benchmarks/results/absent.json")


def test_a_gpu_script_runs_at_another_geometry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"tiny/model": {"parts": {"vlm": {"config": WINDOWED}}}}
    monkeypatch.setattr(sweep_cost, "facts", lambda: {"models": known})
    monkeypatch.setattr(measuring, "RESULTS", tmp_path / "benchmarks" / "results")
    options = "--profile smoke --vlm tiny/model --image-area 28224 --to tiny --repeats 1"
    outcome = CliRunner().invoke(sweep_cost.main, options.split(), catch_exceptions=False)
    assert outcome.output == "benchmarks/results/tiny.json written\n"
    made = json.loads((tmp_path / "benchmarks" / "results" / "tiny.json").read_text())
    assert made["settings"]["random_weights"]
    assert made["settings"]["lengths"]["grid"] == [6, 6]
    assert made["settings"]["configurations"] == 3 + 2
    assert isinstance(cost.breakdown(made), pd.DataFrame)
