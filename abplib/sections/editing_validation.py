"""Whether the recovered box helps the editor: Table 1, paired comparisons, failures.

Chapter 5, section 4.6, Figures 8 to 11. `rows` are those of `verdicts.judged`, one a method and
sample; `scores` those of `verdicts.tidy`, one a method, sample and metric; frames for figures are
as `plots.intervals` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from abplib import paper as reported
from abplib.core.boxes import CORNERS, Box
from abplib.core.stats import Interval, paired_difference
from abplib.editing.methods import CONTROLS, METHODS, OTHERS, Guide, label
from abplib.judging.base import BEST, FAILURES
from abplib.judging.box_accuracy import centre_inside, evaluate_box
from abplib.judging.verdicts import succeeded
from abplib.samples.base import SampleSet
from abplib.sections.claims import HOLDS, REVERSED, ClaimCheck, against
from abplib.sections.estimates import estimates, paired_differences, table, written
from abplib.sections.localization_gap import SUCCESS, counted, successes

COMPARED = ("baseline", "full_description", "norm_avg", "ours")
"""The methods of section 4.6 that edit with Qwen-Image-Edit."""
BEYOND = ("lora_no_box", "vlm_box", "gt_box", "identity", "paste")
"""Bounds and controls, which the paper does not have."""

IN_PAPER = {"baseline": "qwen_image_edit"} | {
    name: name for name in (*COMPARED[1:], "fibo_edit", "flux2_dev", "flux_kontext")
}
"""What Table 1's data call the methods compared and the other systems."""

BOX_SOURCES: dict[Guide, str] = {"proxy": "proxy", "vlm": "VLM, asked", "exact": "exact box"}
BOX_SCORES = {"iou": ("mean IoU", ".3f"), "centre_inside": ("centre inside", ".1%")}
"""Of the boxes that editors are shown: their headings and formats."""

DIFFERENCES = {"lpips": "+.4f", "vqa": "+.3f", "edit_success": "+.1%"}
"""Metrics that methods are compared in, and how their differences are written."""

NOT_TOLD = "kind not told"
BANDS = {0.4: "below 0.4", 0.6: "0.4 to 0.6", 0.8: "0.6 to 0.8", np.inf: "0.8 or more"}
"""Bands of IoU by their upper ends, which belong to the next one."""

_NOTHING = 1e-6
"""A distance that only rounding makes."""


def answered_boxes(answers: pd.DataFrame) -> list[Box | None]:
    """The VLM's boxes in rows of `vlm_boxes.ask`; None where it gave none."""
    corners = answers[CORNERS].to_numpy(float)
    return [
        (x1, y1, x2, y2) if answered else None
        for (x1, y1, x2, y2), answered in zip(corners.tolist(), answers["answered"], strict=True)
    ]


def box_rows(samples: SampleSet, boxes: Mapping[Guide, Sequence[Box | None]]) -> pd.DataFrame:
    """How good the boxes are that editors are shown: one row a source of boxes and sample.

    Columns: source, index, sample_id, those of `box_accuracy.BoxRow`, and centre_inside, whether
    the box's centre lies in the exact box.
    """
    rows = []
    for source, shown in boxes.items():
        for index, box in enumerate(shown):
            sample = samples[index]
            about = {"source": source, "index": index, "sample_id": sample.id}
            inside = box is not None and centre_inside(box, sample.box)
            rows.append({**about, **evaluate_box(sample, box), "centre_inside": inside})
    return pd.DataFrame(rows)


def box_quality(boxes: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean IoU and rate of centres inside the exact box, of `box_rows`; no box is a miss.

    As `estimates`, a row a source and score; the label is the source's, `score` the heading.
    """
    columns = {
        (source, score): boxes[score][boxes["source"] == source]
        for source in BOX_SOURCES
        for score in BOX_SCORES
    }
    return estimates(columns.items(), seed).assign(
        name=[f"box.{source}.{score}" for source, score in columns],
        label=[BOX_SOURCES[source] for source, _ in columns],
        score=[BOX_SCORES[score][0] for _, score in columns],
        fmt=[BOX_SCORES[score][1] for _, score in columns],
        unit="fraction",
    )


def summarise(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`estimates` of each method and metric, by these; and label, and sem, the standard error.

    Wilson's intervals for edit_success. A sample that a metric has no value for is left out.
    """
    groups = scores.groupby(["method", "metric"], sort=False)["value"]
    columns = {
        key: own.astype("boolean" if "edit_success" in key else float) for key, own in groups
    }
    means = estimates(columns.items(), seed).rename_axis(["method", "metric"])
    return means.assign(label=means.index.get_level_values("method").map(label), sem=groups.sem())


def table_1_numbers(summary: pd.DataFrame, name_of_lpips: str) -> pd.DataFrame:
    """`summarise`'s means, named, in their units and beside the paper's, to be recorded."""
    units = {
        "lpips": name_of_lpips, "l2": "squared difference of pixels in [0, 1]",
        "edit_success": "fraction",
        **dict.fromkeys(("vqa", *reported.VQA), "points of 4"),
    }  # fmt: skip
    known = summary[summary.index.get_level_values("metric").isin(units)]
    return (
        known.assign(paper=reported_values())
        .reset_index()
        .assign(
            name=lambda rows: rows["method"] + "." + rows["metric"],
            unit=lambda rows: rows["metric"].map(units),
            fmt=lambda rows: rows["metric"].map({"edit_success": ".1%"}).fillna(".4f"),
        )
    )


def reported_table() -> pd.DataFrame:
    """Table 1 as printed, a row a method; what is bold in print carries an asterisk."""
    printed = reported.table_1()
    cells = printed.assign(
        cell=printed["printed"] + printed["bold"].map({True: " *", False: ""}),
        heading=printed["metric"].map(_headings()),
    )
    wide = cells.set_index(["name", "heading"])["cell"].unstack(sort=False)
    return wide.rename_axis(index="method", columns=None)


def measured_table(
    summary: pd.DataFrame, methods: Sequence[str], name_of_lpips: str
) -> pd.DataFrame:
    """Table 1's columns as this run measured them, and the part of edits that succeed."""
    headings = _headings() | {"lpips": f"{name_of_lpips} ↓"}
    errors = summary["sem"].map(" ± {:.6f}".format).where(summary["sem"].notna(), "")
    cells = (summary["value"].map("{:.6f}".format) + errors).unstack("metric")
    made = cells.loc[list(methods), list(headings)].rename(columns=headings)
    made["edit success ↑"] = written(_success(summary), ".1%")
    return made.rename(index=label).rename_axis(index="method", columns=None)


def figure_8(summary: pd.DataFrame) -> pd.DataFrame:
    """Figure 8's points as measured, in the form that `editing_validation.trade_off` draws."""
    rows = summary.loc[_measured(summary)].reset_index()
    wide = rows.pivot(index="method", columns="metric", values=["value", "low", "high"])
    points: dict[str, Any] = {"name": wide.index.map(label)}
    for metric in ("lpips", "vqa"):
        points |= {metric: wide["value", metric]}
        points |= {f"{metric}_{end}": wide[end, metric] for end in ("low", "high")}
    return pd.DataFrame(points, index=wide.index).loc[_measured(summary)]


def reported_values() -> pd.Series:
    """The paper's numbers by method and metric."""
    printed = reported.table_1().pivot(index="method", columns="metric", values="mean")
    ours = {theirs: name for name, theirs in IN_PAPER.items()}
    known = printed.assign(vqa=reported.figure_8()["vqa"]).loc[list(ours)].rename(index=ours)
    known.loc["baseline", "edit_success"] = reported.reported("edit_accuracy")
    return pd.Series(known.stack())


def difference(scores: pd.DataFrame, metric: str, first: str, second: str, seed: int) -> Interval:
    """Mean of one method less that of another on the same samples, with its BCa interval."""
    return paired_difference(*_pairs(scores, metric, first, second), seed=seed)


def comparisons(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Every method that edits less the baseline, in what Figure 8 shows and in success.

    As `estimates`, paired by sample, by method and metric; and p, of the two-sided sign-flip test,
    Holm-adjusted for all comparisons.
    """
    others = [name for name in METHODS if name not in ("baseline", *CONTROLS)]
    pairs = {
        (method, metric): _pairs(scores, metric, method, "baseline")
        for method in others
        for metric in DIFFERENCES
    }
    return paired_differences(pairs, seed).rename_axis(["method", "metric"])


def comparison_table(compared: pd.DataFrame, name_of_lpips: str) -> pd.DataFrame:
    """`comparisons` as a page shows it: a row a method, a difference and a p-value a metric."""
    names = {"lpips": name_of_lpips, "vqa": "mean VQA", "edit_success": "edit success"}
    rows = compared.reset_index()
    fmt = rows["metric"].map(DIFFERENCES)
    rows = rows.assign(method=rows["method"].map(label), metric=rows["metric"].map(names))
    return table(rows, "method", "metric", fmt).rename_axis("less the baseline")


def success_rates(summary: pd.DataFrame) -> pd.DataFrame:
    """Edit success of each method, for `intervals`, with counts as notes."""
    return counted(_success(summary).loc[_measured(summary)])


def failure_modes(rows: pd.DataFrame) -> pd.DataFrame:
    """How many edits of each method that edits (rows) succeed, or fail in each way (columns).

    Edits that the judge left open are counted in none.
    """
    success = succeeded(rows[~rows["method"].isin(CONTROLS)])
    edited = rows.loc[success.index]
    kind = edited["failure"].fillna(NOT_TOLD).where(~success, SUCCESS)
    counts = pd.crosstab(edited["method"], kind)
    kinds = [SUCCESS, *FAILURES] + [NOT_TOLD] * (NOT_TOLD in counts)
    counts = counts.reindex(index=edited["method"].unique(), columns=kinds, fill_value=0)
    return counts.rename(index=label).rename_axis(index="method", columns=None)


def success_by_overlap(rows: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """Success with the proxy's box by its IoU, and of the same LoRA on these samples without one.

    For `intervals`, by method, from the poorest of `BANDS` on, over the samples on which both edits
    are judged; bands without one are left out.
    """
    overlaps = boxes[boxes["source"] == "proxy"].set_index("index")["iou"]
    success = successes(rows)[["ours", "lora_no_box"]].dropna().astype(bool)
    ends = [0, *BANDS]
    bands = pd.cut(overlaps.loc[success.index], ends, right=False, labels=list(BANDS.values()))
    columns = (
        ((label(str(method)), band), own)
        for method in success
        for band, own in success[method].groupby(bands, observed=True)
    )
    rates = estimates(columns).rename_axis(["method", "label"]).reset_index()
    return rates.assign(note="n = " + rates["n"].astype(str))


def failures_by_box(rows: pd.DataFrame, boxes: pd.DataFrame, n: int = 3) -> pd.DataFrame:
    """Figure 10's samples: baseline failures, from the best to the worst box of the proxy.

    Evenly spaced ranks by the IoU of the proxy's box among the samples on which the baseline's edit
    fails (among all where none does). Columns: those of `rows`, and iou.
    """
    overlaps = boxes[boxes["source"] == "proxy"][["index", "iou"]]
    joined = rows[rows["method"] == "baseline"].merge(overlaps, on="index")
    failed = joined["success"].eq(False)  # and not open
    pool = joined[failed] if failed.any() else joined
    ranked = pool.sort_values("iou", ascending=False, kind="stable")
    return ranked.iloc[np.linspace(0, len(ranked) - 1, min(n, len(ranked))).round().astype(int)]


def claim_checks(scores: pd.DataFrame, seed: int) -> list[ClaimCheck]:
    """What of section 4.6 and Table 1 holds on this run, by differences paired by sample."""

    def check(
        key: str, claim: str, where: str, method: str, rivals: Sequence[str],
        metrics: Sequence[str], above: bool = True,
    ) -> ClaimCheck:  # fmt: skip
        about = {m: f", {m.removeprefix('vqa_')}" if len(metrics) > 1 else "" for m in metrics}
        apart = {
            label(rival) + about[metric]: difference(scores, metric, method, rival, seed)
            for rival in rivals
            for metric in metrics
        }
        fmt = DIFFERENCES.get(metrics[0], DIFFERENCES["vqa"])
        return against(key, claim, where, apart, above=above, fmt=fmt)

    return [
        check("ours_vqa", "Ours has the highest mean VQA score", "4.6, Figure 8",
              "ours", COMPARED[:3], ["vqa"]),
        check("ours_questions", "Ours leads in each of the three questions", "C.1",
              "ours", COMPARED[:3], reported.VQA),
        check("ours_success", "Ours succeeds more often than the baseline", "4.6",
              "ours", ["baseline"], ["edit_success"]),
        check("ours_lpips", "Ours changes less outside the box than the baseline", "Table 1",
              "ours", ["baseline"], ["lpips"], above=False),
        check("strongest_baseline", "Full description is the strongest baseline", "4.6",
              "full_description", ["baseline", "norm_avg"], ["vqa"]),
        check("norm_avg_lpips", "Norm-AVG changes least outside the box", "Table 1",
              "norm_avg", ["baseline", "full_description", "ours"], ["lpips"], above=False),
        check("norm_avg_vqa", "Norm-AVG has a lower mean VQA score than the baseline", "Figure 8",
              "norm_avg", ["baseline"], ["vqa"], above=False),
        _controls(scores),
    ]  # fmt: skip


def _controls(scores: pd.DataFrame) -> ClaimCheck:
    """Whether no edit and the exact edit score on every sample as they must."""
    wide = scores.pivot(index=["method", "sample_id"], columns="metric", values="value")
    nothing, exact = (
        wide.query("method == @name").droplevel("method") for name in ("identity", "paste")
    )
    right = (
        nothing[["vqa_edit", "vqa_accuracy", "edit_success"]].eq(0).all(axis=1)
        & nothing["vqa_leakage"].eq(BEST)
        & exact["vqa"].eq(BEST)
        & exact["edit_success"].eq(1)
        & ~(nothing["lpips"] > _NOTHING)
        & ~(exact["lpips"] > _NOTHING)
    )
    verdict = HOLDS if right.all() else REVERSED
    measured = f"{int(right.sum())} of {len(right)} samples"
    return ClaimCheck("controls", "Controls score as they must", "a check", measured, verdict)


def _success(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows of edit success, by method."""
    return summary[summary.index.get_level_values("metric") == "edit_success"].droplevel("metric")


def _measured(summary: pd.DataFrame) -> list[str]:
    """All methods, and the other systems that were run."""
    return [*METHODS, *(name for name in OTHERS if (name, "vqa") in summary.index)]


def _pairs(
    scores: pd.DataFrame, metric: str, first: str, second: str
) -> tuple[np.ndarray, np.ndarray]:
    """Values of two methods on the samples that both have one of."""
    own = scores[scores["metric"] == metric]
    both = own.pivot(index="sample_id", columns="method", values="value")[[first, second]].dropna()
    return both[first].to_numpy(), both[second].to_numpy()


def _headings() -> dict[str, str]:
    """Table 1's metrics and their printed headings, with the arrow of what is better."""
    printed = reported.table_1().drop_duplicates("metric").set_index("metric")
    arrows = printed["better"].map({"lower": " ↓", "higher": " ↑"})
    return dict(zip(printed.index, printed["heading"] + arrows, strict=True))
