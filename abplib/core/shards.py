"""Parts of a step that several processes work on, each in a job of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from abplib.core.errors import AbpError

_T = TypeVar("_T")


class Shard(NamedTuple):
    """One of `of` parts of some work, counted from 1; by default all of it."""

    number: int = 1
    of: int = 1

    @classmethod
    def read(cls, text: str) -> Shard:
        """The shard called `text`, such as `2-of-4`.

        Raises:
            AbpError: there is no such shard.
        """
        match = re.fullmatch(r"(\d+)-of-(\d+)", text)
        shard = cls(*map(int, match.groups())) if match else cls(0)
        if not 1 <= shard.number <= shard.of:
            raise AbpError(f"There is no shard {text!r}: give one such as 2-of-4.")
        return shard

    def take(self, parts: Sequence[_T]) -> Sequence[_T]:
        """Every `of`-th of the parts: all shards together take each part once."""
        return parts[self.number - 1 :: self.of]


ALL = Shard()
"""All of the work."""
