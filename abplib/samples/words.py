"""Which kind of word a token of an instruction belongs to, by rule and without a tagger.

Instructions are short commands, so little is needed: closed lists of function words, spatial terms
and common adjectives; the first word is the command itself; and of what is left, words in a row end
in their noun and begin with what modifies it ("a shiny *golden* **trophy**").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NOUN, ADJECTIVE, SPATIAL, FUNCTION, OTHER = (
    "noun",
    "adjective",
    "spatial term",
    "template or function word",
    "other",
)
CLASSES = (NOUN, ADJECTIVE, SPATIAL, FUNCTION, OTHER)
"""Of words; OTHER is what holds no letter."""

_SPATIAL = """
left right top bottom middle center centre front back upper lower inner outer corner side edge
leftmost rightmost topmost bottommost frontmost backmost uppermost lowest highest nearest farthest
furthest closest first second third fourth fifth sixth seventh eighth ninth last above below under
beneath behind beside between near next inside outside
"""
_FUNCTION = """
a an the this that these those it its his her their my your of to into in on at from with without
by for as and or but so than then so is are be being was were has have having not no all any each
every both one ones up down out off over away around across through color colour background image
picture photo scene everything look looks like please add remove delete erase replace change turn
make paint put take transform convert swap give move set keep let
"""
_ADJECTIVES = """
red orange yellow green blue purple pink white black brown grey gray gold golden silver beige teal
cyan magenta violet turquoise maroon big small large little tiny huge tall short long wide narrow
thick thin round square old new young bright dark light pale shiny glossy matte wooden metal
metallic plastic ceramic striped spotted dotted transparent empty full open closed broken single
"""

ENGLISH: dict[str, str] = {
    **dict.fromkeys(_ADJECTIVES.split(), ADJECTIVE),
    **dict.fromkeys(_FUNCTION.split(), FUNCTION),
    **dict.fromkeys(_SPATIAL.split(), SPATIAL),
}
"""Closed lists for English edit instructions, lower case."""


def join(pieces: Iterable[str]) -> tuple[list[str], list[int]]:
    """Put a tokenizer's pieces together: the words, and the word that each piece belongs to.

    A word begins where a piece begins with a space, and where letters meet what is none.
    """
    words: list[str] = []
    word_of = []
    for piece in pieces:
        text = piece.strip()
        begins = not words or piece[:1].isspace() or _lettered(words[-1]) != _lettered(text)
        if begins:
            words.append(text)
        else:
            words[-1] += text
        word_of.append(len(words) - 1)
    return words, word_of


def classify(words: Sequence[str]) -> list[str]:
    """The class of each word of one instruction, in order.

    The first word is a command and so of the template. A word that `ENGLISH` lacks is a noun,
    except before a noun or another such word, which it modifies.
    """
    classes = []
    for place, word in enumerate(words):
        following = words[place + 1].lower() if place + 1 < len(words) else ""
        if not _lettered(word):
            classes.append(OTHER)
        elif place == 0:
            classes.append(FUNCTION)
        elif word.lower() in ENGLISH:
            classes.append(ENGLISH[word.lower()])
        else:
            modifies = _lettered(following) and ENGLISH.get(following, NOUN) == NOUN
            classes.append(ADJECTIVE if modifies else NOUN)
    return classes


def _lettered(text: str) -> bool:
    return re.search(r"[^\W\d_]", text) is not None
