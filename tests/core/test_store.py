"""Atomic files, keyed folders."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock, Timeout
from pydantic import BaseModel
from safetensors import SafetensorError

from abplib.core import store
from abplib.core.errors import AbpError

FRAME = pd.DataFrame({"configuration": ["final", "layer_0"], "iou": [0.5, float("nan")]})


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    store.write_text(path, "whole")
    with pytest.raises(KeyboardInterrupt), store.replacing(path) as scratch:
        scratch.write_text("ha")
        raise KeyboardInterrupt
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(AbpError, match=r"No space left.*ABP_RESULTS"), store.replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(AbpError, match=r"No space left.*ABP_RESULTS"), store.replacing(path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    (tmp_path / "file").touch()
    with pytest.raises(AbpError, match="Cannot write"):
        store.write_text(tmp_path / "file" / "below.txt", "x")


def test_one_process_computes_and_a_killed_one_holds_nobody_up(tmp_path: Path) -> None:
    place = tmp_path / "sweep" / "key"
    holding = (
        "import sys, time; from pathlib import Path; from abplib.core import store\n"
        "with store.alone(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(place)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(Timeout), FileLock(tmp_path / "sweep" / ".key.lock", timeout=0):
            pass
        with store.alone(place.with_name("other")):
            process.kill()
    with store.alone(place):
        assert not place.exists()


def test_what_killed_writers_left_goes_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "sweep" / "key"
    left = [
        place.with_name(".key.7.tmp"),
        place / ".checkpoint.safetensors.7.tmp",
        place / "proxies" / "final" / ".config.json.7.tmp",
    ]
    kept = [
        place.with_name(".key2.7.tmp"),  # another place
        place / "checkpoint.safetensors",
        place / ".inputs.json.7.tmp",  # which `folder` may be writing
    ]
    for path in (*left, *kept):
        store.write_text(path, "ha")
    with store.alone(place):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in kept)
    inputs = store.folder("sweep", base=tmp_path, lr=1) / "inputs.json"
    inputs.rename(inputs.with_name(".inputs.json.7.tmp"))
    store.folder("sweep", base=tmp_path, lr=1)
    assert not inputs.with_name(".inputs.json.7.tmp").exists()


def test_a_place_that_cannot_be_locked_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AbpError, match=r"Cannot lock .*ABP_RESULTS"):
        store.alone(tmp_path / "file" / "key").__enter__()


def test_json_round_trip_and_its_refusals(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    store.write_json(path, {"error": 0.1, "n": [1, None]})
    assert store.read_json(path) == {"error": 0.1, "n": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(path, {"error": float("nan")})
    path.write_text("{")
    with pytest.raises(AbpError, match=r"a\.json is not readable JSON"):
        store.read_json(path)
    with pytest.raises(AbpError, match=r"b\.json is missing"):
        store.read_json(tmp_path / "b.json")


def test_parquet_keeps_values_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    store.write_parquet(path, FRAME, {"vlm": "abc", "n": 2})
    frame, metadata = store.read_parquet(path)
    pd.testing.assert_frame_equal(frame, FRAME)
    assert metadata == {"vlm": "abc", "n": 2}
    path.write_bytes(b"PAR1")
    with pytest.raises(AbpError, match="not a readable table"):
        store.read_parquet(path)
    with pytest.raises(AbpError, match="is missing"):
        store.read_parquet(tmp_path / "b.parquet")


def test_a_folder_is_found_by_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path))
    place = store.folder("sweep", lr=1e-3, layers=[1, 2])
    assert place.parent == tmp_path / "sweep"
    assert place == store.folder("sweep", layers=[1, 2], lr=1e-3)
    assert place != store.folder("sweep", layers=[2, 1], lr=1e-3)
    assert store.read_json(place / "inputs.json") == {"lr": 1e-3, "layers": [1, 2]}
    assert store.summary_of(place) is None
    store.mark_done(place, seconds=2.5)
    assert store.summary_of(place) == {"seconds": 2.5}


class Note(BaseModel):
    """A line."""

    text: str


def test_a_half_line_is_no_line_and_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "notes.jsonl"
    assert store.read_lines(path, Note) == []
    for text in ("ä", "b\nb"):
        store.append_line(path, Note(text=text))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"text": "c')
    assert [note.text for note in store.read_lines(path, Note)] == ["ä", "b\nb"]
    store.append_line(path, Note(text="d"))
    assert path.read_bytes() == whole + b'{"text":"d"}\n'
    path.write_bytes(b"{")
    store.append_line(path, Note(text="e"))
    assert [note.text for note in store.read_lines(path, Note)] == ["e"]


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}\n")
    with pytest.raises(AbpError, match=r"Line 1 of .*file is no note"):
        store.read_lines(tmp_path / "file", Note)
    with pytest.raises(AbpError, match=r"Cannot write .*lines before are kept"):
        store.append_line(tmp_path / "file" / "notes.jsonl", Note(text="a"))
    with pytest.raises(AbpError, match="cannot be read"):
        store.read_lines(tmp_path, Note)
