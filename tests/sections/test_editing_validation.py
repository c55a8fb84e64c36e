"""Chapter 5's tables, comparisons, failures and claims on rows whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from abplib.core.errors import AbpError
from abplib.editing.methods import METHODS
from abplib.judging.base import FAILURES, HALLUCINATION, LEAKAGE
from abplib.judging.verdicts import tidy
from abplib.samples.base import Sample
from abplib.sections import editing_validation, localization_gap
from abplib.sections.claims import HOLDS, REVERSED, UNDECIDED
from abplib.sections.estimates import table, written

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
                    "reason": "", "lpips": lpips + own / 100, "l2": lpips / 10,
                }
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    return tidy(judged())


@pytest.fixture(scope="module")
def summary(scores: pd.DataFrame) -> pd.DataFrame:
    return editing_validation.summarise(scores, seed=0)


def test_the_summary_holds_means_errors_and_intervals(
    scores: pd.DataFrame, summary: pd.DataFrame
) -> None:
    own = scores.query("method == 'ours' and metric == 'lpips'")["value"]
    found = summary.loc[("ours", "lpips")]
    assert found["value"] == pytest.approx(own.mean())
    assert found["sem"] == pytest.approx(own.std(ddof=1) / np.sqrt(N))
    assert found["low"] < found["value"] < found["high"]
    assert summary.loc[("baseline", "edit_success"), "value"] == 0.3
    assert set(summary.index.get_level_values("method")) == set(METHODS)


def test_a_sample_with_nothing_outside_its_box_is_left_out_of_the_distance(
    scores: pd.DataFrame,
) -> None:
    full = scores.copy()
    full.loc[(full["sample_id"] == "s0") & (full["metric"] == "lpips"), "value"] = np.nan
    found = editing_validation.summarise(full, seed=0)
    assert found["n"]["ours"][["lpips", "vqa"]].tolist() == [N - 1, N]
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
    assert not {*editing_validation.BEYOND} & {*known.index.get_level_values("method")}


def test_the_measured_table_has_the_same_columns_and_says_which_lpips(
    summary: pd.DataFrame,
) -> None:
    table = editing_validation.measured_table(
        summary, editing_validation.COMPARED, "LPIPS, of some network"
    )
    assert list(table.index) == [METHODS[m].label for m in editing_validation.COMPARED]
    assert table.columns[0] == "LPIPS, of some network ↓"
    assert list(table.columns[1:5]) == list(editing_validation.reported_table().columns[1:])
    assert table.loc["Ours"].iloc[0] == "0.080000 ± 0.000190"
    assert table.loc["Ours", "edit success ↑"].startswith("80.0% [6")


def test_figure_8_has_every_method_with_its_intervals(summary: pd.DataFrame) -> None:
    points = editing_validation.figure_8(summary)
    assert list(points.index) == list(METHODS)
    assert points.loc["paste", ["lpips", "vqa"]].tolist() == [0, 4]
    inner = points.loc[list(editing_validation.COMPARED)]
    assert (inner["vqa_low"] < inner["vqa"]).all() and (inner["lpips"] < inner["lpips_high"]).all()


def test_comparisons_are_paired_and_adjusted(scores: pd.DataFrame) -> None:
    found = editing_validation.comparisons(scores, seed=0)
    assert len(found) == 6 * 3
    assert found["value"]["ours", "vqa"] == pytest.approx(2.0)
    assert found["value"]["ours", "edit_success"] == pytest.approx(0.5)
    smallest = 2e-4  # p-value that there is
    assert found["p"]["ours", "lpips"] == pytest.approx(18 * smallest)
    shown = editing_validation.comparison_table(found, "LPIPS, of some network")
    assert list(shown.columns) == ["LPIPS, of some network", "mean VQA", "edit success"]
    assert shown.loc["Ours", "edit success"].startswith("+50.0% [")
    assert len(shown) == 6
    assert not {"Qwen-Image-Edit", "No edit", "Exact edit pasted"} & set(shown.index)


GAPS = {  # accurate boxes, and what Ours has; what it closes then
    "closed": (38, {}, "closes "),
    "no gap": (13, {}, "closes no part of it that could be told from chance"),
    "a loss": (38, {"ours": (1, 1, 1, 0.2, 0.0)}, "closes none of it, for it succeeds less"),
    "chance": (38, {"ours": BETTER["baseline"]}, "closes no part of it that could be told"),
}


@pytest.mark.parametrize("case", GAPS)
def test_a_part_is_given_of_a_gap_that_is_there_and_of_a_gain(case: str) -> None:
    n_accurate, changed, words = GAPS[case]
    accurate = pd.Series(np.arange(N) < n_accurate)
    success = localization_gap.successes(judged(BETTER | changed))
    gap = localization_gap.gap_of(accurate, success["baseline"])
    assert gap.value == pytest.approx(n_accurate / N - 0.3)
    closed = localization_gap.gap_closed(accurate, success, seed=0)
    found = closed.replace({words: kind for kind, words in localization_gap.PARTS.items()})
    found = found.set_index(["method", "part"])
    assert (("ours", "share") in found.index) == (case == "closed")
    assert (("gt_box", "share") in found.index) == (n_accurate == 38)
    assert found["value"]["lora_no_box", "gain"] == pytest.approx(0.1)
    assert localization_gap.closing(closed, "ours").startswith(words)
    if case == "closed":
        share = found.loc[("ours", "share")]
        assert found["value"]["ours", "gain"] == pytest.approx(0.5)
        assert share["value"] == pytest.approx(0.5 / 0.65)
        assert 0.4 < share["low"] < share["value"] < share["high"] < 1.2
        (part,) = written(found.loc[[("ours", "share")]], ".1%")
        assert localization_gap.closing(closed, "ours") == f"closes {part} of it"


def test_box_quality_counts_a_missing_box_as_a_miss() -> None:
    rows = pd.DataFrame(
        {
            "source": ["proxy"] * 2 + ["vlm"] * 2 + ["exact"] * 2,
            "iou": [0.5, 0.7, 0.0, 0.8, 1.0, 1.0],
            "centre_inside": [True, True, False, True, True, True],
        }
    )
    found = editing_validation.box_quality(rows, seed=0)
    value = found.set_index("name")["value"]
    assert value["box.proxy.iou"] == pytest.approx(0.6)
    assert value["box.vlm.centre_inside"] == 0.5
    shown = table(found, "label", "score", found["fmt"])
    assert list(shown.index) == ["proxy", "VLM, asked", "exact box"]
    assert shown.loc["exact box", "mean IoU"] == "1.000 [1.000, 1.000]"


@pytest.mark.parametrize(
    ("method", "numbers", "changed"),
    [
        ("ours", BETTER["ours"], {}),
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
    checks = editing_validation.claim_checks(tidy(judged(BETTER | {method: numbers})), seed=0)
    found = {check.key: check for check in checks}
    expected = dict.fromkeys(found, HOLDS) | changed
    assert {key: check.verdict for key, check in found.items()} == expected
    if not changed:  # the rival that comes closest is shown
        assert found["ours_vqa"].measured.endswith("against Full description")
        assert found["norm_avg_lpips"].measured.endswith("against Ours")
        assert found["ours_questions"].measured.endswith("against Full description, edit")
        assert found["controls"].measured == "40 of 40 samples"


def test_one_sample_has_no_error_and_decides_nothing() -> None:
    rows = judged()
    single = tidy(rows[rows["index"] == 0])
    checks = {c.key: c.verdict for c in editing_validation.claim_checks(single, seed=0)}
    assert checks.pop("controls") == HOLDS and {*checks.values()} == {UNDECIDED}
    summary = editing_validation.summarise(single, seed=0)
    assert summary.loc[("ours", "vqa"), ["low", "high", "sem"]].isna().all()
    table_1 = editing_validation.measured_table(summary, ["ours"], "LPIPS")
    assert "±" not in table_1.loc["Ours", "VQA edit ↑"]


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
    success = localization_gap.successes(rows)
    assert success["ours"].isna().sum() == 2 and success["gt_box"].notna().all()
    accurate = pd.Series(np.arange(N) >= 2)
    closed = localization_gap.gap_closed(accurate, success, seed=0)
    assert closed.groupby("method")["n"].first()[["ours", "gt_box"]].tolist() == [N - 2, N]
    assert localization_gap.gap_of(accurate, success["baseline"]).n == N
    summary = editing_validation.summarise(tidy(rows), seed=0)
    assert summary.loc[("ours", "edit_success"), "n"] == N - 2
    with pytest.raises(AbpError, match="of no edit by Ours whether it succeeds"):
        localization_gap.successes(left_open("ours", range(N)))


def test_boxes_are_measured_against_the_exact_ones() -> None:
    samples = [Sample(str(i), Image.new("RGB", (8, 8)), "", (0.2, 0.2, 0.4, 0.4)) for i in range(2)]
    rows = editing_validation.box_rows(
        samples, {"exact": [(0.2, 0.2, 0.4, 0.4)] * 2, "vlm": [None, (0.2, 0.2, 0.9, 0.9)]}
    )
    assert list(rows["source"]) == ["exact"] * 2 + ["vlm"] * 2
    assert list(rows["answered"]) == [True, True, False, True]
    assert list(rows["centre_inside"]) == [True, True, False, False]
    assert rows["iou"].tolist() == pytest.approx([1, 1, 0, 0.04 / 0.49])
    corners = {"x1": [0.1, None], "y1": [0.2, None], "x2": [0.3, None], "y2": [0.4, None]}
    answers = pd.DataFrame({**corners, "answered": [True, False]})
    assert editing_validation.answered_boxes(answers) == [(0.1, 0.2, 0.3, 0.4), None]


@pytest.fixture
def boxes() -> pd.DataFrame:
    """The proxy's IoU falls from 1 to 0 along the samples."""
    return pd.DataFrame({"source": "proxy", "index": range(N), "iou": np.linspace(1, 0, N)})


def test_every_edit_is_counted_once_by_what_became_of_it() -> None:
    rows = judged()
    rows.loc[(rows["method"] == "ours") & (rows["index"] == N - 1), "failure"] = HALLUCINATION
    counts = editing_validation.failure_modes(rows)
    assert list(counts.columns) == ["success", *FAILURES]
    assert counts.loc["Ours", ["success", LEAKAGE, HALLUCINATION]].tolist() == [32, 7, 1]
    assert (counts.sum(axis=1) == N).all() and len(counts) == 7  # no controls
    untold = editing_validation.failure_modes(rows.assign(failure=None))
    assert untold.loc["Qwen-Image-Edit", "kind not told"] == 28


def test_edits_that_the_judge_left_open_are_counted_nowhere(boxes: pd.DataFrame) -> None:
    rows = left_open("ours", [0, 39])
    counts = editing_validation.failure_modes(rows).loc["Ours"]
    assert counts[["success", LEAKAGE]].tolist() == [31, 7]
    found = editing_validation.success_by_overlap(rows, boxes)
    assert list(found["note"]) == ["n = 15", "n = 8", "n = 8", "n = 7"] * 2
    open_ones = left_open("baseline", range(20))
    shown = editing_validation.failures_by_box(open_ones, boxes, N)
    assert set(shown["index"]) <= set(range(20, N))


def test_success_goes_by_the_band_of_the_box_on_the_same_samples(boxes: pd.DataFrame) -> None:
    found = editing_validation.success_by_overlap(
        judged(), boxes
    )  # Ours succeeds on the first 32, without on 16
    (_, ours), (_, alone) = found.groupby("method", sort=False)
    assert list(found["method"].unique()) == ["Ours", "LoRA, no box"]
    assert list(ours["label"]) == ["below 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 or more"]
    assert list(ours["note"]) == list(alone["note"]) == ["n = 16", "n = 8", "n = 8", "n = 8"]
    assert ours["value"].tolist() == [0.5, 1, 1, 1] and alone["value"].tolist() == [0, 0, 1, 1]
    edges = editing_validation.success_by_overlap(judged(), boxes.assign(iou=0.6))
    assert list(edges["label"]) == ["0.6 to 0.8"] * 2  # a band has its lower end; none is empty


def test_figure_10_takes_baseline_failures_from_the_best_box_to_the_worst() -> None:
    rows = judged()  # the baseline succeeds on the first 12
    boxes = pd.DataFrame({"source": "proxy", "index": range(N), "iou": np.linspace(1, 0, N)})
    assert list(editing_validation.failures_by_box(rows, boxes)["index"]) == [12, 26, 39]
    rows["success"] = True
    assert list(editing_validation.failures_by_box(rows, boxes)["index"]) == [0, 20, 39]
    assert len(editing_validation.failures_by_box(rows[rows["index"] == 5], boxes)) == 1
