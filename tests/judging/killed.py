"""A run that asks a loopback server; a test kills it, then goes on with it."""

from __future__ import annotations

import sys
from pathlib import Path

import openai._base_client as pauses
from PIL import Image

from abplib.judging.asking import Question
from abplib.judging.clients import OpenAICompatible
from abplib.judging.vlm_judge import VqaJudge

N, PARALLEL = 150, 4


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (number // 256, number % 256, 0))


def ask(record: Path) -> None:
    """Have all `N` questions answered."""
    questions = [
        Question(f"s{n}", "Move it.", (picture(0), picture(1), picture(2 + n)), 0) for n in range(N)
    ]
    judge = VqaJudge(OpenAICompatible("some-vlm"), record, parallel=PARALLEL, answers=8)
    judge.ask(questions)


if __name__ == "__main__":
    pauses.INITIAL_RETRY_DELAY = 0.001
    ask(Path(sys.argv[1]))
