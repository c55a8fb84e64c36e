"""Words from tokens, and their classes by rule; the mini world's grammar is the yardstick."""

from __future__ import annotations

import re

import pytest

from abplib.samples.scenes.edits import TASKS, general_edits, multi_entity_edits
from abplib.samples.scenes.objects import COLOURS, KINDS
from abplib.samples.scenes.scene import general_scene, generator, multi_entity_scene
from abplib.samples.words import ADJECTIVE, FUNCTION, NOUN, OTHER, SPATIAL, classify, join


@pytest.mark.parametrize(
    ("pieces", "words", "word_of"),
    [
        (["Turn", " the", " cup", "."], ["Turn", "the", "cup", "."], [0, 1, 2, 3]),
        (["Make", " the", " left", "most", " m", "ug", "!"],
         ["Make", "the", "leftmost", "mug", "!"], [0, 1, 2, 2, 3, 3, 4]),
        (["a", " ", "cup"], ["a", "", "cup"], [0, 1, 2]),
        ([], [], []),
    ],
)  # fmt: skip
def test_pieces_become_words(pieces: list[str], words: list[str], word_of: list[int]) -> None:
    assert join(pieces) == (words, word_of)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("Add a shiny golden trophy beside the dog .",
         [FUNCTION, FUNCTION, ADJECTIVE, ADJECTIVE, NOUN, SPATIAL, FUNCTION, NOUN, OTHER]),
        ("Make the cup blue .", [FUNCTION, FUNCTION, NOUN, ADJECTIVE, OTHER]),
        ("Replace the second quartz cluster", [FUNCTION, FUNCTION, SPATIAL, ADJECTIVE, NOUN]),
        ("Remove 3 cups", [FUNCTION, OTHER, NOUN]),
    ],
)  # fmt: skip
def test_classes_of_words_in_any_instruction(text: str, classes: list[str]) -> None:
    assert classify(text.split()) == classes


def test_the_rule_agrees_with_the_mini_worlds_grammar() -> None:
    """Its kinds are nouns, its colours adjectives, and a term of place is made of such words."""
    grammar = {**dict.fromkeys(KINDS, NOUN), **dict.fromkeys(COLOURS, ADJECTIVE)}
    edits = []
    for seed in range(15):
        edits += multi_entity_edits(multi_entity_scene(seed), generator(seed))
        edits += general_edits(general_scene(seed), generator(seed), 4)
    assert {edit.task for edit in edits} == set(TASKS)
    for edit in edits:
        words = re.findall(r"\w+|[^\w\s]", edit.instruction)
        found = dict(zip(words, classify(words), strict=True))
        assert found["."] == OTHER
        named = {word: kind for word, kind in found.items() if word in grammar}
        assert named == {word: grammar[word] for word in named}, edit.instruction
        if edit.term not in ("attribute", "whole"):
            terms = set(edit.term.split()) - {"from", "the", "of"}
            assert {found[term] for term in terms} == {SPATIAL}, edit.instruction
