"""Chapter 5's tables, comparisons and verdicts on rows whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from abplib.core.errors import AbpError
from abplib.core.stats import with_interval
from abplib.editing.methods import METHODS
from abplib.judging.verdicts import tidy
from abplib.samples.base import Sample
from abplib.sections import closing, editing_validation
from abplib.sections.claims import HOLDS, REVERSED, UNDECIDED

N = 40
BETTER = {  # edit, accuracy, leakage (means), LPIPS, part of the edits that succeed
    "baseline": (1.5, 1.5, 1.5, 0.12, 0.3),
    "full_description": (2.5, 2.5, 2.0, 0.10, 0.5),
    "norm_avg": (0.5, 0.5, 1.0, 0.05, 0.1),
    "ours": (3.5, 3.5, 3.5, 0.08, 0.8),
    "lora_no_box": (2.0, 2.0, 2.0, 0.09, 0.4),
    "vlm_box": (3.5, 3.5, 3.5, 0.08, 0.9),
    "gt_box": (3.8, 3.8, 3.8, 0.08, 1.0),
    "identity": (0, 0, 4, 0.0, 0.0),
    "paste": (4, 4, 4, 0.0, 1.0),
}


def judged(means: dict[str, tuple[float, ...]] = BETTER) -> pd.DataFrame:
    """`edits.judged` of N samples, of scores spread evenly about the means."""
    shift = np.linspace(-0.2, 0.2, N)
    parts = []
    for place, (method, (edit, accuracy, leakage, lpips, success)) in enumerate(means.items()):
        own = np.roll(shift, 7 * place) * (method not in ("identity", "paste"))
        succeeds = np.arange(N) < success * N
        parts.append(
            pd.DataFrame(
                {
                    "method": method, "index": range(N), "sample_id": [f"s{i}" for i in range(N)],
                    "success": succeeds, "failure": np.where(succeeds, None, "leakage"),
                    "edit": edit + own, "accuracy": accuracy + own, "leakage": leakage + own,
                    "reason": "", "lpips": lpips + own / 100, "lpips_zero_fill": lpips + own / 50,
                    "lpips_spatial": lpips + own / 100, "l2": lpips / 10, "ssim": 1 - lpips,
                }
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    return tidy(judged())


@pytest.fixture(scope="module")
def summary(scores: pd.DataFrame) -> editing_validation.Summary:
    return editing_validation.summarise(scores, seed=0)


def verdicts(means: dict[str, tuple[float, ...]]) -> dict[str, str]:
    return {v.key: v.verdict for v in editing_validation.claim_checks(tidy(judged(means)), seed=0)}


def test_tidy_gives_the_mean_of_the_three_questions(scores: pd.DataFrame) -> None:
    wide = scores.pivot(index=["method", "sample_id"], columns="metric", values="value")
    assert wide.loc[("identity", "s3"), "vqa"] == pytest.approx(4 / 3)
    assert {"vqa_edit", "vqa_accuracy", "vqa_leakage", "edit_success", "l2"} <= set(wide)


def test_the_summary_holds_means_errors_and_intervals(
    scores: pd.DataFrame, summary: editing_validation.Summary
) -> None:
    own = scores.query("method == 'ours' and metric == 'lpips'")["value"]
    found = summary["ours", "lpips"]
    assert found.found.value == pytest.approx(own.mean())
    assert found.sem == pytest.approx(own.std(ddof=1) / np.sqrt(N))
    assert found.found.low < found.found.value < found.found.high
    assert summary["baseline", "edit_success"].found[0] == 0.3
    assert {method for method, _ in summary} == set(METHODS)


def test_a_sample_with_nothing_outside_its_box_is_left_out_of_the_distance(
    scores: pd.DataFrame,
) -> None:
    full = scores.copy()
    full.loc[(full["sample_id"] == "s0") & (full["metric"] == "lpips"), "value"] = np.nan
    found = editing_validation.summarise(full, seed=0)
    assert (found["ours", "lpips"].found.n, found["ours", "vqa"].found.n) == (N - 1, N)
    assert editing_validation.difference(full, "lpips", "ours", "baseline", seed=0).n == N - 1


def test_the_reported_table_is_the_papers() -> None:
    table = editing_validation.reported_table()
    assert list(table.columns) == [
        "LPIPS comp. ↓", "L2 comp. ↓", "VQA edit ↑", "VQA accuracy ↑", "VQA leakage ↑",
    ]  # fmt: skip
    assert list(table.index)[:2] == ["Ours", "Qwen Image Edit"]
    assert table.loc["Norm-AVG", "LPIPS comp. ↓"] == "0.0700 ± 0.0037 *"
    assert table.loc["Full description", "VQA leakage ↑"] == "3.4150 ± 0.0911"
    assert table.map(lambda cell: cell.endswith("*")).sum().tolist() == [1] * 5


def test_the_papers_numbers_go_to_the_methods_they_are_about() -> None:
    known = editing_validation.reported_values()
    assert known["baseline", "lpips"] == 0.1191
    assert known["ours", "vqa"] == pytest.approx((3.255 + 3.33 + 3.55) / 3)
    assert known["baseline", "edit_success"] == 0.575
    assert not any(method in editing_validation.BEYOND for method, _ in known)


def test_the_measured_table_has_the_same_columns_and_says_which_lpips(
    summary: editing_validation.Summary,
) -> None:
    table = editing_validation.measured_table(
        summary, editing_validation.COMPARED, "LPIPS, of some network"
    )
    assert list(table.index) == [METHODS[m].label for m in editing_validation.COMPARED]
    assert table.columns[0] == "LPIPS, of some network ↓"
    assert list(table.columns[1:5]) == list(editing_validation.reported_table().columns[1:])
    assert table.loc["Ours"].iloc[0] == "0.0800 ± 0.0002"
    assert table.loc["Ours", "edit success ↑"].startswith("80.0% [6")


def test_one_sample_has_no_error_and_no_interval(scores: pd.DataFrame) -> None:
    single = editing_validation.summarise(scores[scores["sample_id"] == "s0"], seed=0)
    table = editing_validation.measured_table(single, ["ours"], "LPIPS")
    assert "±" not in table.loc["Ours", "VQA edit ↑"]
    assert "[" not in with_interval(single["ours", "vqa"].found)


def test_figure_8_has_every_method_with_its_intervals(summary: editing_validation.Summary) -> None:
    points = editing_validation.figure_8(summary)
    assert list(points.index) == list(METHODS)
    assert points.loc["paste", ["lpips", "vqa"]].tolist() == [0, 4]
    inner = points.loc[list(editing_validation.COMPARED)]
    assert (inner["vqa_low"] < inner["vqa"]).all() and (inner["lpips"] < inner["lpips_high"]).all()


def test_comparisons_are_paired_and_adjusted(scores: pd.DataFrame) -> None:
    found = {(c.method, c.metric): c for c in editing_validation.comparisons(scores, seed=0)}
    assert len(found) == 6 * 3
    assert found["ours", "vqa"].found.value == pytest.approx(2.0)
    assert found["ours", "edit_success"].found.value == pytest.approx(0.5)
    assert found["ours", "lpips"].p == pytest.approx(18 * 2e-4)  # the smallest there is, times 18
    table = editing_validation.comparison_table(list(found.values()), "LPIPS, of some network")
    assert list(table.columns) == ["LPIPS, of some network", "mean VQA", "edit success"]
    assert table.loc["Ours", "edit success"].startswith("+50.0% [")
    assert len(table) == 6
    assert not {"Qwen-Image-Edit", "No edit", "Exact edit pasted"} & set(table.index)


def test_the_part_of_the_gap_that_boxes_close() -> None:
    accurate = pd.Series(np.arange(N) >= 2)
    success = closing.successes(judged())
    closed = closing.gap_closed(accurate, success, seed=0)
    gap = closing.gap_of(accurate, success["baseline"])
    assert gap.value == pytest.approx(0.95 - 0.3)
    ours = closed["ours"]
    assert ours.gain.value == pytest.approx(0.5)
    assert ours.share is not None
    assert ours.share.value == pytest.approx(0.5 / 0.65)
    assert 0.4 < ours.share.low < ours.share.value < ours.share.high < 1.2
    assert closed["lora_no_box"].gain.value == pytest.approx(0.1)
    assert closing.closed_words(ours) == f"closes {with_interval(ours.share, '.1%')} of it"
    assert closed["gt_box"].share.value == pytest.approx(0.7 / 0.65)  # type: ignore[union-attr]
    assert closing.gap_table(closed).loc["Ours", "gained on the baseline"].startswith("+50.0%")


def test_no_part_is_given_of_a_gap_that_may_not_be_there() -> None:
    accurate = pd.Series(np.arange(N) < 13)  # as good as the baseline's 12
    closed = closing.gap_closed(accurate, closing.successes(judged()), seed=0)
    assert all(found.share is None for found in closed.values())
    assert set(closing.gap_table(closed)["part of the gap"]) == {"–"}


def test_no_part_of_the_gap_is_closed_by_a_loss_or_by_chance() -> None:
    accurate = pd.Series(np.arange(N) < 38)
    worse = closing.successes(judged(BETTER | {"ours": (1, 1, 1, 0.2, 0.0)}))
    lost = closing.gap_closed(accurate, worse, seed=0)["ours"]
    assert lost.share is None and lost.gain.high < 0
    assert "closes none of it" in closing.closed_words(lost)
    same = closing.gap_closed(accurate, worse.assign(ours=worse["baseline"]), seed=0)["ours"]
    assert same.share is None
    assert "told from chance" in closing.closed_words(same)


def test_readings_of_what_changes_outside_are_ranked(summary: editing_validation.Summary) -> None:
    means = editing_validation.readings(summary)
    assert editing_validation.reordered(means) == []
    table = editing_validation.reading_table(means)
    assert table.loc["Norm-AVG", "composite"] == "0.0500 (1)"
    assert table.loc["Norm-AVG", "SSIM"] == "0.9500 (1)"  # the highest changes least
    means.loc["ours", "lpips_spatial"] = 0.2
    means.loc["ours", "ssim"] = 0.99
    assert editing_validation.reordered(means) == ["spatial", "SSIM"]


def test_box_quality_counts_a_missing_box_as_a_miss() -> None:
    rows = pd.DataFrame(
        {
            "source": ["proxy"] * 2 + ["vlm"] * 2 + ["exact"] * 2,
            "iou": [0.5, 0.7, 0.0, 0.8, 1.0, 1.0],
            "centre_inside": [True, True, False, True, True, True],
        }
    )
    found = editing_validation.box_quality(rows, seed=0)
    assert found["proxy", "iou"].value == pytest.approx(0.6)
    assert found["vlm", "centre_inside"][0] == 0.5
    table = editing_validation.box_table(found)
    assert list(table.index) == ["proxy", "VLM, asked", "exact box"]
    assert table.loc["exact box", "mean IoU"] == "1.000 [1.000, 1.000]"


def test_samples_are_ordered_by_what_ours_gains() -> None:
    rows = judged()
    assert len(editing_validation.by_gain(rows)) == N
    points = {("ours", 3): 9.0, ("ours", 17): -9.0}
    for (method, index), edit in points.items():
        rows.loc[(rows["method"] == method) & (rows["index"] == index), "edit"] = edit
    order = editing_validation.by_gain(rows)
    assert (order[0], order[-1]) == (3, 17)


def test_success_rates_say_how_many(summary: editing_validation.Summary) -> None:
    found = editing_validation.success_rates(summary)
    assert list(found["label"]) == [m.label for m in METHODS.values()]
    assert found["note"][0] == "12 of 40"


def test_the_papers_claims_hold_where_the_rows_say_so() -> None:
    assert set(verdicts(BETTER).values()) == {HOLDS}


@pytest.mark.parametrize(
    ("method", "numbers", "changed"),
    [
        ("ours", (1.0, 1.0, 1.0, 0.2, 0.0), {
            "ours_vqa": REVERSED, "ours_questions": REVERSED, "ours_success": REVERSED,
            "ours_lpips": REVERSED}),
        ("ours", BETTER["baseline"], {
            "ours_vqa": REVERSED, "ours_questions": REVERSED, "ours_success": UNDECIDED,
            "ours_lpips": UNDECIDED}),
        ("full_description", BETTER["baseline"], {"strongest_baseline": UNDECIDED}),
        ("norm_avg", (3.0, 3.0, 3.0, 0.3, 0.4), {
            "strongest_baseline": REVERSED, "norm_avg_lpips": REVERSED,
            "norm_avg_vqa": REVERSED}),
        ("identity", (0, 0, 4, 0.01, 0.0), {"controls": REVERSED}),
        ("paste", (4, 4, 3, 0.0, 1.0), {"controls": REVERSED}),
    ],
)  # fmt: skip
def test_verdicts_turn_with_the_rows(
    method: str, numbers: tuple[float, ...], changed: dict[str, str]
) -> None:
    expected = dict.fromkeys(verdicts(BETTER), HOLDS) | changed
    assert verdicts(BETTER | {method: numbers}) == expected


def test_a_claim_shows_the_rival_that_comes_closest() -> None:
    rows = {v.key: v for v in editing_validation.claim_checks(tidy(judged()), seed=0)}
    assert rows["ours_vqa"].measured.endswith("against Full description")
    assert rows["norm_avg_lpips"].measured.endswith("against Ours")
    assert rows["ours_questions"].measured.endswith("against Full description, edit")
    assert rows["controls"].measured == "40 of 40 samples"


def test_nothing_is_decided_by_one_sample() -> None:
    rows = judged()
    found = {
        v.key: v for v in editing_validation.claim_checks(tidy(rows[rows["index"] == 0]), seed=0)
    }
    assert found.pop("controls").verdict == HOLDS
    assert {v.verdict for v in found.values()} == {UNDECIDED}


def left_open(method: str, indices: Sequence[int]) -> pd.DataFrame:
    """`judged` without the verdicts on some of a method's edits."""
    scores = ["edit", "accuracy", "leakage"]
    rows = judged().astype({"success": object} | dict.fromkeys(scores, float))
    chosen = (rows["method"] == method) & rows["index"].isin(indices)
    rows.loc[chosen, ["success", "failure"]] = None
    rows.loc[chosen, scores] = np.nan
    return rows


def test_edits_without_a_verdict_are_left_out_pair_by_pair() -> None:
    rows = left_open("ours", [0, 39])
    success = closing.successes(rows)
    assert success["ours"].isna().sum() == 2 and success["gt_box"].notna().all()
    accurate = pd.Series(np.arange(N) >= 2)
    closed = closing.gap_closed(accurate, success, seed=0)
    assert (closed["ours"].gain.n, closed["gt_box"].gain.n) == (N - 2, N)
    assert closing.gap_of(accurate, success["baseline"]).n == N
    summary = editing_validation.summarise(tidy(rows), seed=0)
    assert summary["ours", "edit_success"].found.n == N - 2
    assert sorted(editing_validation.by_gain(rows)) == list(range(1, N - 1))


def test_a_judge_that_gives_no_success_is_named() -> None:
    with pytest.raises(AbpError, match="of no edit by Ours whether it succeeds"):
        closing.successes(left_open("ours", range(N)))


def test_boxes_are_measured_against_the_exact_ones() -> None:
    samples = [Sample(str(i), Image.new("RGB", (8, 8)), "", (0.2, 0.2, 0.4, 0.4)) for i in range(2)]
    rows = editing_validation.box_rows(
        samples, {"exact": [(0.2, 0.2, 0.4, 0.4)] * 2, "vlm": [None, (0.2, 0.2, 0.9, 0.9)]}
    )
    assert list(rows["source"]) == ["exact"] * 2 + ["vlm"] * 2
    assert list(rows["answered"]) == [True, True, False, True]
    assert list(rows["centre_inside"]) == [True, True, False, False]
    assert rows["iou"].tolist() == pytest.approx([1, 1, 0, 0.04 / 0.49])


def test_an_answer_without_a_box_gives_none() -> None:
    corners = {"x1": [0.1, None], "y1": [0.2, None], "x2": [0.3, None], "y2": [0.4, None]}
    rows = pd.DataFrame({**corners, "answered": [True, False]})
    assert editing_validation.answered_boxes(rows) == [(0.1, 0.2, 0.3, 0.4), None]
