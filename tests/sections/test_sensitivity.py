"""Verdicts under other choices, on rows whose answer is known."""

from __future__ import annotations

import pandas as pd

from abplib.sections import sensitivity
from abplib.sections.sensitivity import CLAIMS, KEYS
from abplib.sections.shipped import Shipped


def made() -> Shipped:
    """Nothing changes but for twice the width, which reverses one verdict."""
    choices = [("as_taken", "as in this book"), *((key, f"another {key}") for key in KEYS)]
    rows = [
        (
            *choice,
            claim,
            "does not hold" if choice[0] == "width" and claim == "one_pass" else "holds",
        )
        for choice in [*choices, ("width", "a third width")]
        for claim in CLAIMS
    ]
    return Shipped(pd.DataFrame(rows, columns=["key", "taken", "claim", "verdict"]), {})


def test_what_differs_from_the_first_line_is_marked() -> None:
    table = sensitivity.verdict_table(made())
    assert list(table.index)[:2] == ["as in this book", "another n_queries"]
    assert list(table.columns) == list(CLAIMS.values())
    marked = table.apply(lambda column: column.str.endswith(" *"))
    assert list(table.index[marked.any(axis=1)]) == ["another width", "a third width"]
    assert table.loc["a third width", "in one pass"] == "no *"
    assert marked.to_numpy().sum() == 2


def test_what_changes_with_a_choice_is_said() -> None:
    told = sensitivity.changes(made())
    assert told == {**dict.fromkeys(KEYS, "none"), "width": "in one pass"}
    assert set(sensitivity.changes(None).values()) == {"not varied here"}
