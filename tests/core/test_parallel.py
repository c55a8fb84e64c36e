"""Work side by side: threads of a process, processes of a group, shards of a step."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from abplib.__main__ import main
from abplib.core import parallel
from abplib.core.errors import AbpError
from abplib.core.parallel import ALL, Shard, at_once, side_by_side, streamed

LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


@pytest.fixture(params=[1, 2])
def n(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads of torch, restored afterwards."""
    former = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(former)


def test_results_come_in_order_and_threads_are_as_before(n: int) -> None:
    assert list(side_by_side(lambda x: x * x, range(7))) == [x * x for x in range(7)]
    assert list(side_by_side(lambda x: x, [])) == []
    assert torch.get_num_threads() == at_once("cpu") == n and at_once("meta") == 1


def test_as_many_at_once_as_there_are_threads(n: int) -> None:
    together = threading.Barrier(n, timeout=20)

    def job(_item: int) -> tuple[int, int]:
        together.wait()  # breaks unless n jobs are under way
        return threading.get_ident(), torch.get_num_threads()

    found = list(side_by_side(job, range(2 * n)))
    assert {threads for _, threads in found} == {1}
    assert len({thread for thread, _ in found}) == n


def test_a_stream_is_taken_from_as_jobs_are_started(n: int) -> None:
    taken = []
    stream = (taken.append(item) or item for item in range(7))
    found = streamed(lambda x: x * x, stream)
    assert next(found) == 0
    assert len(taken) == n
    assert list(found) == [x * x for x in range(1, 7)]


def test_what_a_job_raises_comes_in_its_turn(n: int) -> None:
    done = []
    with pytest.raises(ZeroDivisionError):
        for result in side_by_side(lambda x: 6 // x, [3, 2, 0, 1]):
            done.append(result)
    assert done == [2, 3]
    assert torch.get_num_threads() == n


@pytest.mark.parametrize("of", [1, 3, 8])
def test_all_shards_together_take_each_part_once(of: int) -> None:
    taken = [part for i in range(of) for part in Shard.read(f"{i + 1}-of-{of}").take(range(7))]
    assert sorted(taken) == list(range(7)) == list(ALL.take(range(7)))


@pytest.mark.parametrize("text", ["0-of-2", "3-of-2", "1-of-0", "1/2", "", "-1-of-2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(AbpError, match=r"no shard .*: give one such as 2-of-4"):
        Shard.read(text)


def test_two_processes_make_the_sweep_of_one(
    tmp_path: Path, smoke_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch's parts are added up in another order, and no more differs."""
    one, two = tmp_path / "one", tmp_path / "two"
    command = ["sweep", "--profile", "smoke"]
    shutil.copytree(smoke_folder.parent, one / "twins")
    monkeypatch.setenv("ABP_RESULTS", str(one))
    assert CliRunner().invoke(main, command).exit_code == 0
    done = subprocess.run(
        [sys.executable, *LAUNCH, "abplib", *command],
        env={**os.environ, "ABP_RESULTS": str(two), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tables = [path.relative_to(one) for path in one.glob("s*/*/[cs]*s.parquet")]
    assert len(tables) == 2
    for table in tables:
        pd.testing.assert_frame_equal(
            pd.read_parquet(one / table), pd.read_parquet(two / table), rtol=0, atol=1e-4
        )
    proxies = [path.relative_to(one) for path in one.glob("sweep/*/proxies/*/*/model.safetensors")]
    assert len(proxies) > 6
    for proxy in proxies:  # one step of Adam
        torch.testing.assert_close(
            load_file(two / proxy), load_file(one / proxy), rtol=0, atol=1e-3
        )


def test_one_process_is_a_group_of_one(tmp_path: Path) -> None:
    tensor = torch.ones(3)
    parallel.add_up([tensor])
    assert tensor.tolist() == [1, 1, 1]
    assert parallel.share() == Shard(1, 1) and parallel.is_first()
    assert parallel.gathered(["a"]) == ["a"]
    with parallel.alone(tmp_path / "place"):
        parallel.wait()
