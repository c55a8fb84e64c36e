"""A cache of the hub laid out by hand, and no network: what a user has after `hf download`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from abplib.profiles import Profile


def lay(cache: Path, hub_id: str, folder: Path, commit: str, ref: str = "main") -> Path:
    """Put the files of `folder` into `cache` as `hub_id` at `commit`, which `ref` then names."""
    place = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    shutil.copytree(folder.resolve(), snapshot, copy_function=os.symlink)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / ref).write_text(commit)
    return snapshot


def revisions(profile: Profile) -> dict[str | None, str | None]:
    """The revision that a profile names of each of its models."""
    models = {profile.vlm: profile.revision, profile.editor: profile.editor_revision}
    return models | {other.source: other.revision for other in profile.other_editors.values()}


def offline(cache: Path, patch: pytest.MonkeyPatch) -> Path:
    """Take `cache`, which is made, for the hub's, with HF_HUB_OFFLINE=1."""
    cache.mkdir()
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, with HF_HUB_OFFLINE=1."""
    return offline(tmp_path / "hub", monkeypatch)
