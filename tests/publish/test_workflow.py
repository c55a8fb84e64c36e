"""The graph of steps: a toy book through it, and the jobs of the paper's on a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import toybook

from abplib.editing.methods import CONTROLS, METHODS
from abplib.profiles import CHAPTERS

WORKFLOW = toybook.REPOSITORY / "workflow"
SOURCE = "book/chapters/02_proxies.md"


def started(where: Path, profile: str, *arguments: str) -> subprocess.Popen[str]:
    """Snakemake under way, in a group of its own with all that it starts."""
    common = ["--snakefile", str(WORKFLOW / "Snakefile"), "--config", f"profile={profile}"]
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", *common, *arguments],
        cwd=where,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(where: Path) -> tuple[int, str]:
    """Exit code and output of building the toy book on this machine."""
    profile = str(WORKFLOW / "profiles" / "local")
    process = started(where, str(where / "toy.yaml"), "--profile", profile)
    said, _ = process.communicate()
    return process.returncode, said


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The checkout of a toy book built by the workflow, and what was said meanwhile."""
    folder = tmp_path_factory.mktemp("toybook") / "a book’s folder"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        toybook.make(folder, patch)
        (folder / "results" / "sweep").mkdir(parents=True)  # its model has no weights
        (folder / "results" / "sweep" / "toy.done").touch()
        code, said = run(folder)
        assert code == 0, said
        yield folder, said


def test_a_person_reads_what_is_done_and_where_the_book_is(built: tuple[Path, str]) -> None:
    folder, said = built
    lines = [line for line in said.splitlines() if line.startswith(("chapter ", "pages: "))]
    assert lines[0] == "chapter 02_proxies: running"
    assert lines[1].startswith("chapter 02_proxies: ready after ")
    assert lines[2] == "pages: running"
    assert "book/_build/html/index.html" in said
    for log in (folder / "results").rglob("*.log"):
        assert str(folder) not in log.read_text() and str(Path.home()) not in log.read_text()


def test_nothing_is_run_again_but_the_page_of_an_edited_chapter(built: tuple[Path, str]) -> None:
    folder, _ = built
    page = folder / "book" / "_build" / "html" / "chapters" / "02_proxies.html"
    before = page.stat().st_mtime_ns
    code, said = run(folder)
    assert (code, page.stat().st_mtime_ns) == (0, before)
    assert "running" not in said
    source = folder / SOURCE
    source.write_text(source.read_text().replace("The number is", "Here, then, the number is"))
    code, said = run(folder)
    assert code == 0
    assert "Here, then, the number is" in page.read_text()
    assert ">0.50<" in page.read_text()
    assert "chapter 02_proxies" not in said
    assert (folder / "ran.txt").read_text() == "x"


def test_a_killed_run_starts_again_and_a_failed_step_says_why(built: tuple[Path, str]) -> None:
    folder, _ = built
    source, page = folder / SOURCE, folder / "book" / "_build" / "html" / "intro.html"
    good, before = source.read_text(), page.read_text()
    stuck = (
        'import time\nPath("stuck.txt").touch()\n'
        'while not Path("go.txt").exists():\n    time.sleep(0.1)\n'
        'raise ValueError("the toy broke")\n'
    )
    source.write_text(good.replace("\n\n\ndef draw", f"\n{stuck}\n\ndef draw"))
    local = str(WORKFLOW / "profiles" / "local")
    process = started(folder, str(folder / "toy.yaml"), "--profile", local)
    try:
        while not (folder / "stuck.txt").exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        (folder / "go.txt").touch()
    code, said = run(folder)
    assert code == 1
    (line,) = (line for line in said.splitlines() if "the toy broke" in line)
    assert line.startswith("chapter 02_proxies: abp: Chapter 02_proxies failed in cell ")
    assert "Traceback" not in said
    assert page.read_text() == before
    ran = (folder / "ran.txt").read_text()
    source.write_text(good)
    assert run(folder)[0] == 0
    assert (folder / "ran.txt").read_text() == ran


def test_the_papers_jobs_have_their_resources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of the README, on a machine without Slurm, models or data."""
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path))
    monkeypatch.delenv("ABP_ROOT", raising=False)  # the toy book's
    shipped = (WORKFLOW / "profiles" / "slurm" / "config.yaml").read_text()
    four = shipped.replace("sweep: {gpu: 1", "sweep: {gpu: 4")  # as a site with such nodes has it
    (tmp_path / "config.yaml").write_text(four)
    asked = ["--dry-run", "--printshellcmds", "--profile", str(tmp_path)]
    process = started(toybook.REPOSITORY, "paper", *asked)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    jobs = [block for block in said.split("\n[") if "\nrule " in block]
    by_rule: dict[str, list[str]] = {}
    for job in jobs:
        by_rule.setdefault(job.split("\nrule ")[1].split(":")[0], []).append(job)
    n_methods = len(METHODS) - len(CONTROLS) + 4  # and four other systems
    assert len(by_rule["edit"]) == 4 * n_methods
    assert len(by_rule["chapter"]) == len(CHAPTERS)
    for rule in ("labels", "sweep", "answers", "edit", "chapter"):
        gpus = 4 if rule == "sweep" else 1
        for job in by_rule[rule]:
            assert f"gpu={gpus}" in job and "threads: 8" in job
            assert "runtime=" in job and "mem_mb=" in job
    (judging,) = (job for job in by_rule["chapter"] if "chapter=05_editing_validation" in job)
    assert "runtime=1440" in judging
    (sweep,) = by_rule["sweep"]
    assert "accelerate.commands.launch --num_processes 4 --module abplib sweep" in sweep
    assert not any("accelerate" in job for job in by_rule["edit"])
    assert not any("gpu=" in job for rule in ("rows", "pages") for job in by_rule[rule])


STUB = """
import os, pathlib, sys, time
place = pathlib.Path("running") / str(os.getpid())
place.parent.mkdir(exist_ok=True)
if sys.argv[1] not in ("omniedit", "pages"):
    place.touch()
    time.sleep(0.2)
    with open("together.txt", "a") as file:
        print(len(list(place.parent.iterdir())), file=file)
    place.unlink()
"""
"""In place of `abp`: how many steps are under way."""

ONE_GPU = """
import sys
if "snakemake" in sys.orig_argv:
    import torch
    torch.cuda.is_available = lambda: True
"""
"""What the workflow's process is told; the steps need no torch."""


def test_one_gpu_has_one_job_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's graph on 16 cores and one GPU, of which torch is told; two steps would fit."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    book = [path.name for path in (toybook.REPOSITORY / "book").iterdir()]
    for name in ("_config.yml", "data", *(f"book/{n}" for n in book if n != "_build")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(toybook.REPOSITORY / name)
    for path, code in {
        root / "abplib/__init__.py": "",
        root / "abplib/__main__.py": STUB,
        elsewhere / "sitecustomize.py": ONE_GPU,
    }.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    monkeypatch.setenv("ABP_ROOT", str(root))
    monkeypatch.delenv("ABP_RESULTS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(elsewhere), str(toybook.REPOSITORY)]))
    local = str(WORKFLOW / "profiles" / "local")
    process = started(elsewhere, "paper", "--profile", local, "--cores", "16")
    said, _ = process.communicate()
    assert process.returncode == 0, said
    together = (root / "together.txt").read_text().split()
    assert len(together) > 15 and set(together) == {"1"}
