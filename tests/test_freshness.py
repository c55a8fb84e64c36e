"""What is computed again after a change of a prompt, a parser, an adapter, the LoRA, a judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from abplib.core import code

ASKING = {"proxies.labels", "sections.vlm_boxes"}
"""Computations in which the VLM answers with boxes."""
READING = {"proxies.attention", "proxies.selection", "sections.information_flow"}
"""Those that read its states."""
TRAINING = {"proxies.sweep"}
"""Those that also train on its answers."""
EDITING = {"editing.runs", "editing.lora.pairs", "editing.lora.training"}
JUDGING = {"judging.verdicts"}
STEPS = ASKING | READING | TRAINING | EDITING | JUDGING


def keys() -> dict[str, str]:
    """The part of each stored computation's key that is code."""
    return {step: code.digest(f"import abplib.{step}") for step in STEPS}


@pytest.mark.parametrize(
    ("file", "old", "concerned"),
    [
        ("prompts.py", "Generate a bounding box", ASKING | TRAINING),
        ("prompts.py", "Describe the key features", STEPS),
        ("prompts.py", "You are a helpful assistant", set()),
        ("vlm/answers.py", "", ASKING | TRAINING),
        ("vlm/grounding.py", "", ASKING | TRAINING),
        ("vlm/adapters.py", "", STEPS),
        ("proxies/bank.py", "", TRAINING),
        ("editing/lora/adapter.py", "", {"editing.lora.training"}),
        ("editing/qwen_pipeline.py", "", EDITING | JUDGING),
        ("judging/preservation.py", "", JUDGING),
        ("publish/pages.py", "", set()),
    ],
)
def test_a_change_recomputes_what_reaches_it_and_nothing_else(
    library: Callable[..., None], file: str, old: str, concerned: set[str]
) -> None:
    before = keys()
    library(file, old, "Said otherwise" if old else "\nCHANGED = True\n")
    after = keys()
    assert {step for step in STEPS if after[step] != before[step]} == concerned


def test_prose_recomputes_nothing(library: Callable[..., None]) -> None:
    before = keys()
    library("vlm/adapters.py", '"""', '"""Said in other words. ')
    assert keys() == before
