"""A run that asks a loopback server; a test kills it, then goes on with it."""

from __future__ import annotations

import sys
from pathlib import Path

import openai._base_client as pauses
from PIL import Image

from abplib.judging.asking import Asker, Question
from abplib.judging.clients import OpenAICompatible

N, PARALLEL = 700, 4


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (number // 256, number % 256, 0))


def ask(address: str, record: Path) -> None:
    """Have all `N` questions answered."""
    questions = [
        Question(f"s{n}", "Move it.", (picture(0), picture(1), picture(2 + n)), 0) for n in range(N)
    ]
    wire = OpenAICompatible("some-vlm", address)
    Asker(wire, record, parallel=PARALLEL, answers=8).ask(questions)


if __name__ == "__main__":
    pauses.INITIAL_RETRY_DELAY = 0.001
    ask(sys.argv[1], Path(sys.argv[2]))
