"""What chapters share: numbers with intervals, the paper's numbers."""

from __future__ import annotations

import json
import math

import pytest

from abplib.chapter import record
from abplib.core import paths
from abplib.core.errors import AbpError
from abplib.core.stats import Interval
from abplib.paper import numbers, reported
from abplib.sections.claims import Measure, beside_paper


class Recorder:
    """Stands for a chapter: keeps what `value` was given."""

    def __init__(self) -> None:
        self.given: dict[str, object] = {}

    def value(self, name: str, value: float, **rest: object) -> None:
        self.given = {"name": name, "value": value, **rest}


def test_record_leaves_out_an_interval_that_is_not_known() -> None:
    chapter = Recorder()
    record(chapter, "ch1.a", Interval(0.5, 0.4, 0.6, 9), "fraction", paper=0.7)  # type: ignore[arg-type]
    assert chapter.given == {
        "name": "ch1.a", "value": 0.5, "n": 9, "unit": "fraction", "low": 0.4, "high": 0.6,
        "paper": 0.7,
    }  # fmt: skip
    record(chapter, "ch1.a", Interval(0.5, math.nan, math.nan, 1), "fraction")  # type: ignore[arg-type]
    assert chapter.given == {"name": "ch1.a", "value": 0.5, "n": 1, "unit": "fraction"}


def test_the_table_sets_the_paper_beside_the_run() -> None:
    here = Interval(0.8, 0.7, 0.9, 200)
    measures = [Measure("a", "one", here, "fraction", 0.89), Measure("b", "two", here, "fraction")]
    table = beside_paper(measures)
    assert list(table.index) == ["one", "two"]
    assert table.loc["one", "paper"] == 0.89
    assert math.isnan(table.loc["two", "paper"])
    assert table.loc["two", "this run"] == 0.8


def test_every_number_of_the_paper_says_where_it_stands() -> None:
    path = paths.root() / "data" / "paper" / "reported.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["numbers"]
    assert all({"value", "unit", "where"} == entry.keys() for entry in entries.values())
    assert numbers()["n_train"] == numbers()["n_batches"] * numbers()["batch_size"]
    assert reported("vlm_box_accuracy") == 0.89
    with pytest.raises(AbpError, match="reports no 'vlm_accuracy'"):
        reported("vlm_accuracy")
