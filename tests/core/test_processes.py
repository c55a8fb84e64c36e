"""Several processes train what one would have trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from abplib.core import parallel
from abplib.core.parallel import Shard

LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def swept(results: Path, *how: str) -> Path:
    """The folder that `abplib sweep` left under the smoke profile, started as said."""
    done = subprocess.run(
        [sys.executable, *how, "abplib", "sweep", "--profile", "smoke"],
        env={**os.environ, "ABP_RESULTS": str(results), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (results / "sweep").glob("*/")
    return folder


def test_two_processes_make_the_sweep_of_one(tmp_path: Path) -> None:
    """Each batch's parts are added up in another order, and no more differs."""
    one, two = swept(tmp_path / "one", "-m"), swept(tmp_path / "two", *LAUNCH)
    assert one.name == two.name
    for table in ("curves.parquet", "../../scores/*/samples.parquet"):
        (first,), (second,) = one.glob(table), two.glob(table)
        pd.testing.assert_frame_equal(
            pd.read_parquet(first), pd.read_parquet(second), rtol=0, atol=1e-4
        )
    proxies = sorted(path.parent.name for path in one.glob("proxies/*/model.safetensors"))
    assert len(proxies) == 6
    for name in proxies:
        weights, expected = (
            load_file(run / "proxies" / name / "model.safetensors") for run in (two, one)
        )
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-3)  # one step of Adam


def test_one_process_is_a_group_of_one(tmp_path: Path) -> None:
    tensor = torch.ones(3)
    parallel.add_up([tensor])
    assert tensor.tolist() == [1, 1, 1]
    assert parallel.share() == Shard(1, 1) and parallel.is_first()
    assert parallel.gathered(["a"]) == ["a"]
    with parallel.alone(tmp_path / "place"):
        parallel.wait()
