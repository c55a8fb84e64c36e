"""What a change to a file of the library concerns."""

from __future__ import annotations

import inspect
from pathlib import Path

import click
import pytest
import toybook

from abplib.core import code as sources
from abplib.core.cells import code_cells
from abplib.core.errors import AbpError
from abplib.profiles import Profile
from abplib.publish import steps
from abplib.publish.pages import chapters

PACKAGE = toybook.REPOSITORY / "abplib"


def reached(*code: str) -> set[str]:
    """Names of the files of the library, relative to it."""
    return {path.relative_to(PACKAGE).as_posix() for path in sources.reached(*code)}


def reached_by(step: click.Command) -> set[str]:
    return reached(inspect.getsource(step.callback))


def test_imports_are_followed_wherever_they_stand() -> None:
    assert reached("import numpy, os.path") == set()
    assert reached("from abplib.core import errors") == {
        "__init__.py",
        "core/__init__.py",
        "core/errors.py",
    }
    assert reached("def late():\n    import abplib.core.store") >= {
        "core/store.py",
        "core/errors.py",
    }
    assert reached("from abplib.samples.scenes.sets import evaluation") >= {
        "samples/scenes/__init__.py",
        "samples/scenes/sets.py",
        "samples/scenes/scene.py",
        "samples/base.py",  # through the others
    }


def test_modules_that_a_profile_names_are_followed() -> None:
    assert "judging/scene_oracle.py" in reached(repr(Profile.load("mini").model_dump()))
    assert reached("'abplib.absent:thing', 'abplib is a word', 'otherlib.mini.sets:x'") <= {
        "__init__.py"
    }


def test_a_plot_concerns_its_chapters_and_no_step() -> None:
    users = {name for name in chapters() if "plots/decodability.py" in reached(*code_cells(name))}
    assert users == {"02_proxies"}
    for step in (steps.labels, steps.sweep, steps.answers, steps.edit):
        assert not any(file.startswith("plots/") for file in reached_by(step))


def test_no_computation_follows_what_runs_chapters() -> None:
    runners = {"publish/pages.py", "publish/notebooks.py", "publish/steps.py", "__main__.py"}
    for name in chapters():
        assert not runners & reached(*code_cells(name))


def test_a_step_follows_its_profile_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = toybook.make(tmp_path, monkeypatch)
    before = steps.key(steps.sweep.callback, str(profile)), steps.key("02_proxies", str(profile))
    profile.write_text(profile.read_text().replace("lr: 1.0e-3", "lr: 2.0e-3"))
    after = steps.key(steps.sweep.callback, str(profile)), steps.key("02_proxies", str(profile))
    assert len({*before, *after}) == 4
    profile.write_text(profile.read_text().replace("vlm: model", "vlm: data/absent"))
    assert "data/absent is missing" in steps.key(steps.sweep.callback, str(profile))
    with pytest.raises(AbpError, match="Unknown profile"):
        steps.key(steps.sweep.callback, "absent")


def test_a_chapter_follows_the_files_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = str(toybook.make(tmp_path, monkeypatch))
    assert sources.named_files(
        "x = 'toy.yaml', 'model/config.json', 'no/such.json', '/etc/passwd'"
    ) == [tmp_path / "model" / "config.json"]
    chapter = tmp_path / "book" / "chapters" / "02_proxies.md"
    chapter.write_text(chapter.read_text().replace('Path("ran.txt")', 'Path("found/it.json")'))
    keys = [steps.key("02_proxies", profile)]
    (tmp_path / "found").mkdir()
    for text in ("1", "2"):
        (tmp_path / "found" / "it.json").write_text(text)
        keys.append(steps.key("02_proxies", profile))
    assert len(set(keys)) == 3


def test_cells_that_are_no_python_are_named() -> None:
    with pytest.raises(AbpError, match=r"not plain Python: '%matplotlib inline'"):
        sources.reached("import os\n%matplotlib inline\n")
