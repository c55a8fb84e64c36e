"""Kinds of failure and bands of boxes, counted on rows whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_validation import N, judged, left_open

from abplib.judging.base import FAILURES, HALLUCINATION, LEAKAGE
from abplib.sections import failing


@pytest.fixture
def boxes() -> pd.DataFrame:
    """The proxy's IoU falls from 1 to 0 along the samples."""
    return pd.DataFrame({"source": "proxy", "index": range(N), "iou": np.linspace(1, 0, N)})


def test_every_edit_is_counted_once_by_what_became_of_it() -> None:
    rows = judged()
    rows.loc[(rows["method"] == "ours") & (rows["index"] == N - 1), "failure"] = HALLUCINATION
    counts = failing.kinds(rows)
    assert list(counts.columns) == ["success", *FAILURES]
    assert counts.loc["Ours", ["success", LEAKAGE, HALLUCINATION]].tolist() == [32, 7, 1]
    assert (counts.sum(axis=1) == N).all() and len(counts) == 7  # no controls


def test_a_failure_whose_kind_nobody_told_is_counted_as_such() -> None:
    rows = judged().assign(failure=None)
    assert failing.kinds(rows).loc["Qwen-Image-Edit", "kind not told"] == 28


def test_edits_that_the_judge_left_open_are_counted_nowhere(boxes: pd.DataFrame) -> None:
    rows = left_open("ours", [0, 39])
    assert failing.kinds(rows).loc["Ours", ["success", LEAKAGE]].tolist() == [31, 7]
    for half in failing.by_overlap(rows, boxes).values():
        assert list(half["note"]) == ["n = 15", "n = 8", "n = 8", "n = 7"]
    open_ones = left_open("baseline", range(20))
    assert set(failing.failures_by_box(open_ones, boxes, N)["index"]) <= set(range(20, N))


def test_success_goes_by_the_band_of_the_box_on_the_same_samples(boxes: pd.DataFrame) -> None:
    found = failing.by_overlap(judged(), boxes)  # Ours succeeds on the first 32, without on 16
    assert list(found) == ["Ours", "LoRA, no box"]
    ours, alone = found.values()
    assert list(ours["label"]) == ["below 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 or more"]
    assert list(ours["note"]) == list(alone["note"]) == ["n = 16", "n = 8", "n = 8", "n = 8"]
    assert ours["value"].tolist() == [0.5, 1, 1, 1] and alone["value"].tolist() == [0, 0, 1, 1]


def test_a_band_begins_at_its_lower_end_and_empty_ones_are_left_out() -> None:
    one = pd.DataFrame({"source": "proxy", "index": range(N), "iou": 0.6})
    assert list(failing.by_overlap(judged(), one)["Ours"]["label"]) == ["0.6 to 0.8"]


def test_figure_10_takes_baseline_failures_from_the_best_box_to_the_worst() -> None:
    rows = judged()  # the baseline succeeds on the first 12
    boxes = pd.DataFrame({"source": "proxy", "index": range(N), "iou": np.linspace(1, 0, N)})
    assert list(failing.failures_by_box(rows, boxes)["index"]) == [12, 26, 39]
    rows["success"] = True
    assert list(failing.failures_by_box(rows, boxes)["index"]) == [0, 20, 39]
    assert len(failing.failures_by_box(rows[rows["index"] == 5], boxes)) == 1
