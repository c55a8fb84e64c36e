"""The VLM by its hub id: out of a cache without a network, and from nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from conftest import noise
from hubcache import lay
from safetensors.torch import load_file

from abplib.__main__ import main
from abplib.profiles import Profile
from abplib.vlm import loading
from abplib.vlm.loading import Answer

COMMANDS = {
    "ground": ["photo.png", "remove it"],
    "states": ["photo.png", "remove it", "out.safetensors", "--layer", "1"],
    "labels": ["-n", "2"],
    "sweep": [],
}
SWEEP = {"n_batches": 1, "batch_size": 2, "n_curve_eval": 2, "width": 8, "n_queries": 2}


@pytest.fixture
def profile(tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The profile `smoke` with a VLM of the hub; the working directory holds a picture."""
    smoke = Profile.load("smoke", vlm="org/vlm", labels="exact", n_eval=2, sweep=SWEEP)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(smoke.model_dump()))
    noise(64, 64).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return "own.yaml"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_on_a_vlm_out_of_the_cache(
    command: str,
    profile: str,
    hub_cache: Path,
    smoke_folder: Path,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def say(chats: Any, *_: Any, **__: Any) -> list[Answer]:
        return [Answer("[16, 32, 48, 64]", (64, 64))] * len(chats["input_ids"])

    monkeypatch.setattr(loading, "generate_text", say)
    lay(hub_cache, "org/vlm", smoke_folder, "c0ffee" + "0" * 34)
    done = CliRunner().invoke(main, [command, *COMMANDS[command], "--profile", profile])
    assert done.exit_code == 0, done.output
    if command == "ground":
        assert "box 0.250 0.500 0.750 1.000" in done.stdout
    elif command == "states":
        assert set(load_file("out.safetensors")) == {"final", "layer_1", "prompt_tokens"}
    else:
        kept = {"labels": "answers/*/*.parquet", "sweep": "sweep/*/done.json"}
        assert list(results.glob(kept[command]))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_vlm_that_is_nowhere_is_one_sentence(command: str, profile: str, hub_cache: Path) -> None:
    done = CliRunner().invoke(main, [command, *COMMANDS[command], "--profile", profile])
    assert (done.exit_code, done.stdout) == (2, "")
    said = done.stderr.strip().splitlines()
    assert len(said) == 1
    assert "org/vlm is not here and the hub cannot be reached: connect to the network" in said[0]
