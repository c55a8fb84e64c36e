"""A run that asks a loopback server; a test kills it, then goes on with it."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from abplib.judging.asking import Asker, Manner
from abplib.judging.clients import OpenAICompatible
from abplib.judging.questions import Question
from abplib.judging.record import Record

N, PARALLEL = 1400, 4


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (number // 256, number % 256, 0))


def ask(address: str, record: Path) -> None:
    """Have all `N` questions answered."""
    questions = [
        Question(f"s{n}", "Move it.", picture(0), picture(1), picture(2 + n), 0) for n in range(N)
    ]
    manner = Manner(parallel=PARALLEL, per_minute=1e6, answers=8, first_pause=0.001,
                    longest_pause=0.005)  # fmt: skip
    Asker(OpenAICompatible("some-vlm", address), Record(record), manner).ask(questions)


if __name__ == "__main__":
    ask(sys.argv[1], Path(sys.argv[2]))
