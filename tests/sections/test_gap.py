"""Both halves of chapter 1 on made-up rows: counted, compared, and shown by rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection
from PIL import Image

from abplib.core.errors import AbpError
from abplib.core.stats import PairedTable
from abplib.experiment import Experiment
from abplib.judging.base import FAILURES, LEAKAGE, NO_EDIT, WRONG_OBJECT
from abplib.plots import gap as plots
from abplib.plots.pictures import gallery
from abplib.profiles import Profile, parse
from abplib.samples.base import Sample
from abplib.sections import localization_gap
from abplib.sections.localization import ACCURATE
from abplib.sections.localization import WRONG_OBJECT as WRONG_BOX
from abplib.sections.localization_gap import SUCCESS
from abplib.vlm.encoder import ConditionEncoder


def answers(accurate: list[bool], iou: list[float] | None = None) -> pd.DataFrame:
    """Rows of `localization.ask`, as far as they are used."""
    n = len(accurate)
    return pd.DataFrame(
        {
            "index": range(n),
            "sample_id": [f"s{i}" for i in range(n)],
            "instruction": "move it",
            "answered": True,
            "accurate": accurate,
            "outcome": [ACCURATE if ok else WRONG_BOX for ok in accurate],
            "iou": iou or [0.9 if ok else 0.1 for ok in accurate],
            **dict.fromkeys(("x1", "y1"), 0.25),
            **dict.fromkeys(("x2", "y2"), 0.5),
            "n_objects": [4 + i % 2 for i in range(n)],
            "spatial_term": [("leftmost", "second from the left")[i % 2] for i in range(n)],
        }
    )


def verdicts(outcomes: list[str | None]) -> pd.DataFrame:
    """Rows of `edits.judged`; an outcome is a kind of failure, None a success."""
    n = len(outcomes)
    return pd.DataFrame(
        {
            "method": "baseline",
            "index": range(n),
            "sample_id": [f"s{i}" for i in range(n)],
            "success": [kind is None for kind in outcomes],
            "failure": outcomes,
            **dict.fromkeys(("edit", "accuracy", "leakage"), 2),
            "reason": "It is so.",
            "lpips": 0.1,
        }
    )


def rows(
    accurate: list[bool], outcomes: list[str | None], iou: list[float] | None = None
) -> pd.DataFrame:
    return localization_gap.beside(answers(accurate, iou), verdicts(outcomes))


MIXED = rows(
    [True, True, True, True, False, False],
    [None, LEAKAGE, WRONG_OBJECT, LEAKAGE, None, NO_EDIT],
    [0.9, 0.8, 0.85, 0.95, 0.2, 0.1],
)


def test_halves_meet_sample_by_sample() -> None:
    assert list(MIXED["edit_outcome"]) == [
        SUCCESS, LEAKAGE, WRONG_OBJECT, LEAKAGE, SUCCESS, NO_EDIT
    ]  # fmt: skip
    assert list(MIXED["outcome"]) == [ACCURATE] * 4 + [WRONG_BOX] * 2
    shuffled = verdicts([None, LEAKAGE])[::-1]
    for other in (shuffled, verdicts([None])):
        with pytest.raises(AbpError, match="not about the same samples"):
            localization_gap.beside(answers([True, False]), other)


def test_samples_whose_edit_is_left_open_are_left_out() -> None:
    told = verdicts([None, LEAKAGE, None]).astype({"success": object})
    told.loc[0, "success"] = None
    found = localization_gap.beside(answers([True, True, False]).set_axis([7, 8, 9]), told)
    assert list(found["index"]) == [1, 2] and list(found["edit_outcome"]) == [LEAKAGE, SUCCESS]
    assert localization_gap.counted(found) == PairedTable(
        both=0, only_first=1, only_second=1, neither=0
    )


def test_the_table_counts_each_sample_once() -> None:
    table = localization_gap.counted(MIXED)
    assert table == PairedTable(both=1, only_first=3, only_second=1, neither=1)
    shown = localization_gap.count_table(table)
    assert shown.loc["accurate"].tolist() == [1, 3, 4]
    assert shown.loc["not accurate"].tolist() == [1, 1, 2]
    assert shown.loc["all"].tolist() == [2, 4, 6]


def test_measures_are_in_their_units_beside_the_papers() -> None:
    found = {m.name: m for m in localization_gap.gap_measures(MIXED)}
    assert found["edit_success"].found.value == pytest.approx(2 / 6)
    assert found["edit_success"].paper == 0.575
    assert found["no_edit_rate"].found.value == pytest.approx(1 / 6)
    points = found["gap_points"]
    assert points.found.value == pytest.approx(100 * (4 - 2) / 6)
    assert points.found.low < points.found.value < points.found.high
    assert (points.paper, points.unit, points.found.n) == (pytest.approx(31.5), "points", 6)


def test_figure_1_follows_the_first_rule_that_any_sample_fits() -> None:
    cases = [
        (MIXED, "s2", "went to another object"),
        (rows([False, True], [WRONG_OBJECT, LEAKAGE]), "s1", "accurate and whose edit failed"),
        (rows([True, False], [None, NO_EDIT]), "s1", "none failed where the box is accurate"),
        (rows([False, True], [None, None]), "s0", "no edit failed"),
    ]
    for frame, sample, words in cases:
        shown, rule = localization_gap.discrepancy(frame)
        assert list(shown["sample_id"]) == [sample]
        assert words in rule


def test_figure_2_shows_each_kind_where_the_box_is_best() -> None:
    shown, among = localization_gap.failures(MIXED)
    assert list(shown["edit_outcome"]) == [NO_EDIT, WRONG_OBJECT, LEAKAGE]
    assert list(shown["sample_id"]) == ["s5", "s2", "s3"]  # no accurate box has the first kind
    assert among == "all failures"
    every = rows([True] * len(FAILURES), list(FAILURES))
    assert list(localization_gap.failures(every)[0]["edit_outcome"]) == list(FAILURES)


def test_figure_2_prefers_an_accurate_box_to_one_of_a_higher_iou() -> None:
    shown, _ = localization_gap.failures(rows([False, True], [LEAKAGE, LEAKAGE], [0.8, 0.6]))
    assert list(shown["sample_id"]) == ["s1"]


def test_figure_2_shows_a_success_where_no_edit_failed() -> None:
    shown, among = localization_gap.failures(rows([True, False], [None, None]))
    assert list(shown["sample_id"]) == ["s0"]
    assert "no edit failed" in among


def test_shares_of_edits_cover_all_kinds() -> None:
    found = localization_gap.edit_shares(MIXED)
    assert list(found["label"]) == [SUCCESS, *FAILURES]
    assert found["value"].sum() == pytest.approx(1)
    assert found.set_index("label").loc[LEAKAGE, "note"] == "2 of 6"


def test_both_halves_of_a_group_stand_in_one_line() -> None:
    vlm, editor = localization_gap.by(MIXED, "spatial_term").values()
    assert list(vlm["label"]) == list(editor["label"])
    assert vlm.set_index("label")["value"].to_dict() == pytest.approx(
        {"leftmost": 2 / 3, "second from the left": 2 / 3}
    )
    assert editor.set_index("label")["value"].to_dict() == pytest.approx(
        {"leftmost": 2 / 3, "second from the left": 0}
    )
    vlm, editor = localization_gap.overall(MIXED).values()
    assert list(vlm["value"]) == [0.89, pytest.approx(4 / 6)]
    assert list(editor["value"]) == [0.575, pytest.approx(2 / 6)]
    assert list(vlm["note"]) == ["gap 31.5 points", "gap 33.3 points"]


def test_rates_of_both_are_drawn_with_the_intervals_that_are_known() -> None:
    halves = localization_gap.overall(MIXED)
    figure = plots.both(halves)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["paper", "this run"]
    assert [text.get_text() for text in axes.texts] == ["gap 31.5 points", "gap 33.3 points"]
    names = [text.get_text() for key in figure.legends for text in key.get_texts()]
    assert names == list(halves)
    for line, spans, rows_ in zip(axes.lines, axes.collections, halves.values(), strict=True):
        assert isinstance(spans, LineCollection)
        assert list(line.get_xdata()) == list(rows_["value"])
        drawn = [s for s in spans.get_segments() if len(s) and np.isfinite(s).all()]
        assert len(drawn) == 1
        assert drawn[0][:, 0] == pytest.approx(rows_.loc[1, ["low", "high"]].to_list())


def test_a_pair_shows_the_box_on_the_source_alone() -> None:
    picture, edit = Image.new("RGB", (40, 40), "gray"), Image.new("RGB", (40, 40), "red")
    sample = Sample("s2", picture, "move it", (0.2, 0.2, 0.5, 0.5))
    left, right = plots.pair(sample, edit, MIXED.iloc[2].to_dict())
    assert (left.image, left.answer) == (picture, (0.25, 0.25, 0.5, 0.5))
    assert (right.image, right.answer) == (edit, None)
    assert (left.title, right.title) == ("VLM: accurate", "edit: wrong object")
    assert (left.text, right.text) == ("move it", "")
    silent = {**MIXED.iloc[5].to_dict(), "answered": False}
    figure = gallery([left, right, *plots.pair(sample, edit, silent)])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[-1] == "edit: no edit"


def test_the_editor_edits_without_its_lora_and_its_vlm_is_compared(
    encoder: ConditionEncoder,
) -> None:
    editor = Experiment(Profile.load("smoke")).baseline
    assert editor.lora is None
    assert localization_gap.same_vlm(encoder, editor)
    other = replace(editor)
    with torch.no_grad():
        next(other.pipeline.text_encoder.parameters()).add_(1)
    assert not localization_gap.same_vlm(encoder, other)


def test_chapter_1_takes_another_editor_and_its_settings() -> None:
    given = {"profile": "smoke", "editor": "org/editor", "n_steps": 7, "guidance": 1.5}
    profile = parse("01_localization_gap", given).resolve()
    assert (profile.editor, profile.n_steps, profile.guidance) == ("org/editor", 7, 1.5)
    for refused in ({"n_steps": 1}, {"guidance": 0.5}, {"editor": ""}):
        with pytest.raises(AbpError, match=f"{next(iter(refused))} = .* is refused"):
            parse("01_localization_gap", refused)
