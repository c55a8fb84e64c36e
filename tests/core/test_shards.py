from __future__ import annotations

import pytest

from abplib.core.errors import AbpError
from abplib.core.parallel import ALL, Shard


@pytest.mark.parametrize("of", [1, 3, 8])
def test_all_shards_together_take_each_part_once(of: int) -> None:
    taken = [part for i in range(of) for part in Shard.read(f"{i + 1}-of-{of}").take(range(7))]
    assert sorted(taken) == list(range(7))


def test_without_a_shard_all_is_done() -> None:
    assert list(ALL.take("abc")) == list("abc")


@pytest.mark.parametrize("text", ["0-of-2", "3-of-2", "1-of-0", "1/2", "", "-1-of-2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(AbpError, match=r"no shard .*: give one such as 2-of-4"):
        Shard.read(text)
