"""Fixtures on the tiny random-weight twin of Qwen2.5-VL (profile `smoke`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hubcache import hub_cache
from PIL import Image

from abplib.core import code
from abplib.samples.base import Sample
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.twins import smoke_vlm

__all__ = ["hub_cache"]

SMOKE_AREA = 64 * 64
LONG = (
    "test_workflow.py", "test_readers.py", "test_paper_profile.py", "test_crashes.py",
    "test_making.py", "test_parallel.py", "test_lora_training.py", "test_benchmarks.py",
)  # fmt: skip
"""Files of half a minute or more, the longest first: whole books, every page in a browser, every
chapter, real kills, a miniature end to end, several processes."""
CASES = Path(__file__).parent / "field" / "cases"
"""What people brought: inputs after public reports, by number."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that no process is left alone with one at the end."""
    turn = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: turn.get(item.path.name, len(LONG)))


@pytest.fixture(scope="session")
def smoke_folder() -> Path:
    """A folder that `from_pretrained` reads: 4 blocks of width 64, image tokens of 16 pixels."""
    return smoke_vlm()


@pytest.fixture(scope="session")
def encoder(smoke_folder: Path) -> ConditionEncoder:
    return ConditionEncoder.from_pretrained(smoke_folder, image_area=SMOKE_AREA)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results of the test's own."""
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


class Listed(list[Sample]):
    """A sample set that is written out."""

    name = fingerprint = "listed"


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image that no resizing or cropping leaves as it was."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def images() -> list[Image.Image]:
    """Two images of different shape."""
    return [noise(64, 64, seed=1), noise(120, 60, seed=2)]


@pytest.fixture
def instructions() -> list[str]:
    """Two instructions of different length."""
    return ["remove it", "turn the second red apple from the left into a green pear"]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Edit a file of a copy of the library, which keys are made from: `(file, old, new)`.

    Where `old` is empty, `new` goes to the end of the file.
    """
    copy = tmp_path / "abplib"
    shutil.copytree(code._PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "_PACKAGE", copy)

    def edit(file: str, old: str, new: str) -> None:
        text = (copy / file).read_text()
        assert old in text
        (copy / file).write_text(text.replace(old, new, 1) if old else text + new)

    code._named.cache_clear()  # which names files of the library
    yield edit
    code._named.cache_clear()
