"""Work side by side on CPU cores."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from abplib.core.parallel import at_once, side_by_side, streamed


@pytest.fixture(autouse=True, params=[1, 2])
def n(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads of torch, restored afterwards."""
    former = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(former)


def test_results_come_in_order_and_threads_are_as_before(n: int) -> None:
    assert list(side_by_side(lambda x: x * x, range(7))) == [x * x for x in range(7)]
    assert list(side_by_side(lambda x: x, [])) == []
    assert torch.get_num_threads() == at_once("cpu") == n


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


def test_other_devices_take_one_job_at_a_time() -> None:
    assert at_once("meta") == 1
