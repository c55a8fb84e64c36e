from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toybook
from click.testing import CliRunner, Result
from conftest import noise
from safetensors.torch import load_file

from abplib.__main__ import main
from abplib.core import paths
from abplib.vlm import grounding


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return toybook.make(tmp_path, monkeypatch)


def abp(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def refused(result: Result, said: str) -> None:
    """One sentence on stderr, nothing else, exit code 2."""
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("n_batchs", "40", "'n_batchs': did you mean n_batches?"),
        ("n_batches", "many", "n_batches = 'many' is refused"),
        ("n_batches", "0", "n_batches = 0 is refused"),
        ("n_batches", "1.0", "n_batches = 1.0 is refused"),
        ("n_batches", "True", "n_batches = True is refused"),
        ("profile", "smok", "Unknown profile 'smok'"),
    ],
)
def test_parameters_are_refused_before_anything_runs(
    toy: Path, name: str, value: str, said: str
) -> None:
    refused(abp("chapter", "02_proxies", "-p", name, value), said)
    assert not (toy.parent / "results").exists()


def test_unknown_chapters_and_profiles_are_refused(toy: Path) -> None:
    refused(abp("chapter", "03_absent"), "Unknown chapter '03_absent'")
    refused(abp("pages", "--profile", "smok"), "Unknown profile 'smok'")
    refused(abp("edit", "magic", "--profile", "smoke"), "no method 'magic': choose from baseline")
    refused(abp("sweep", "--profile", "smok"), "Unknown profile 'smok'")
    refused(abp("labels", "--profile", "smoke", "--shard", "3-of-2"), "no shard '3-of-2'")


def test_a_refusal_of_the_installed_command_has_no_traceback(toy: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "abplib", "chapter", "02_proxies", "-p", "n_batches", "0"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(toy.parent), *sys.path])},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("abp: Chapter 02_proxies: n_batches = 0 is refused")
    assert done.stderr.count("\n") == 1


def test_a_chapter_with_a_missing_source_is_named(toy: Path) -> None:
    refused(abp("chapter", "01_localization_gap", "-p", "profile", str(toy)), "has no source")


def test_notebooks_are_checked_and_made(toy: Path) -> None:
    refused(abp("notebooks", "--check"), "Out of date: 02_proxies.ipynb")
    assert abp("notebooks").exit_code == 0
    assert abp("notebooks", "--check").exit_code == 0


def test_the_command_finds_modules_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `python -m abplib` does."""
    (tmp_path / "nearby.py").write_text("def toys(): raise SystemExit('found')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    abp("sweep", "--profile", "smok")
    assert importlib.util.find_spec("nearby") is not None


def test_paths_may_hold_blanks_and_any_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chapters and the graph of steps do so in `tests/publish`."""
    smoke = paths.root() / "abplib/profiles/smoke.yaml"
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "Ergebnisse ü"))
    monkeypatch.chdir(tmp_path)
    Path("größe x.yaml").write_text(smoke.read_text())
    noise(64, 48).save("ein Bild.png")
    asked = ("ein Bild.png", "Turn it blue.", "--profile", "größe x.yaml")
    monkeypatch.setattr(grounding, "MAX_NEW_TOKENS", 4)
    assert "The answer holds no box" in abp("ground", *asked).stderr  # of random weights
    done = abp("states", *asked, "Zustände x.safetensors")
    assert done.exit_code == 0, done.stderr
    assert set(load_file("Zustände x.safetensors")) == {"final", "prompt_tokens"}


def test_a_chapters_inputs_are_told_without_importing_torch() -> None:
    """Whose import takes seconds, in the process that starts each chapter's kernel too."""
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import abplib.__main__\n"
        "from abplib import chapter, profiles\n"
        "from abplib.publish import notebooks\n"
        "print(chapter.folder('07_cost', profiles.parse('07_cost', {})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "chapters/07_cost" in done.stdout
