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
from abplib.core.stats import (
    Interval,
    bootstrap_mean,
    holm,
    mean_sem,
    p_words,
    paired_difference,
    sign_flip_test,
    wilson,
    with_interval,
)
from abplib.editing.methods import CONTROLS, METHODS, OTHERS, Guide, label
from abplib.judging.base import BEST, FAILURES
from abplib.judging.box_accuracy import centre_inside, evaluate_box
from abplib.judging.verdicts import succeeded
from abplib.samples.base import SampleSet
from abplib.sections.claims import HOLDS, REVERSED, ClaimCheck, against, measure
from abplib.sections.localization_gap import SUCCESS, successes

COMPARED = ("baseline", "full_description", "norm_avg", "ours")
"""The methods of section 4.6 that edit with Qwen-Image-Edit."""
BEYOND = ("lora_no_box", "vlm_box", "gt_box", "identity", "paste")
"""Bounds and controls, which the paper does not have."""

IN_PAPER = {"baseline": "qwen_image_edit"} | {
    name: name for name in (*COMPARED[1:], "fibo_edit", "flux2_dev", "flux_kontext")
}
"""What Table 1's data call the methods compared and the other systems."""

BOX_SOURCES: dict[Guide, str] = {"proxy": "proxy", "vlm": "VLM, asked", "exact": "exact box"}

READINGS = {
    "lpips": "composite", "lpips_zero_fill": "zero fill", "lpips_spatial": "spatial",
    "ssim": "SSIM",
}  # fmt: skip
"""The three ways to take LPIPS outside a box, and SSIM there; see `abplib.judging.preservation`."""

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
    """Mean IoU and rate of centres inside the exact box, of `box_rows`: `measure`s by source.

    The label is the source's. Bootstrap and Wilson intervals; no box is a miss.
    """
    numbers = []
    for source, title in BOX_SOURCES.items():
        name, own = f"box.{source}", boxes[boxes["source"] == source]
        overlap = bootstrap_mean(own["iou"].to_numpy(), seed=seed)
        inside = wilson(int(own["centre_inside"].sum()), len(own))
        numbers.append(measure(f"{name}.iou", title, overlap, "fraction"))
        numbers.append(measure(f"{name}.centre_inside", title, inside, "fraction"))
    return pd.DataFrame(numbers)


def box_table(quality: pd.DataFrame) -> pd.DataFrame:
    """`box_quality` as a page shows it."""
    headings = {"iou": ("mean IoU", ".3f"), "centre_inside": ("centre inside", ".1%")}
    cells: dict[str, dict[str, str]] = {}
    row: Any
    for row in quality.itertuples():
        heading, fmt = headings[row.name.rsplit(".", 1)[1]]
        cells.setdefault(row.label, {})[heading] = with_interval(_interval(row), fmt)
    return pd.DataFrame.from_dict(cells, orient="index").rename_axis("box of")


def summarise(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean of each method and metric: value, low, high, n, sem, by method and metric; and label.

    The 95 % intervals are Wilson's for edit_success, the bootstrap's (BCa) for the rest; sem is the
    standard error, NaN of one sample. A sample that a metric has no value for is left out of its n.
    """
    means = {}
    for (method, metric), own in scores.groupby(["method", "metric"], sort=False):
        values = own["value"].dropna().to_numpy()
        if metric == "edit_success":
            mean = wilson(int(values.sum()), len(values))
        else:
            mean = bootstrap_mean(values, seed=seed)
        about = {"label": label(str(method)), **mean._asdict(), "sem": mean_sem(values)[1]}
        means[method, metric] = about
    return pd.DataFrame.from_dict(means, orient="index").rename_axis(["method", "metric"])


def table_1_numbers(summary: pd.DataFrame, name_of_lpips: str) -> pd.DataFrame:
    """`summarise`'s means, named, in their units and beside the paper's, to be recorded."""
    units = {
        "lpips": name_of_lpips, "l2": "squared difference of pixels in [0, 1]",
        "ssim": "mean structural similarity", "edit_success": "fraction",
        **dict.fromkeys(("vqa", *reported.VQA), "points of 4"),
    }  # fmt: skip
    known = summary[summary.index.get_level_values("metric").isin(units)].reset_index()
    paper = reported_values()
    keys = zip(known["method"], known["metric"], strict=True)
    return known.assign(
        name=known["method"] + "." + known["metric"],
        unit=known["metric"].map(units),
        paper=[paper.get(key, np.nan) for key in keys],
        fmt=known["metric"].map({"edit_success": ".1%"}).fillna(".4f"),
    )


def reported_table() -> pd.DataFrame:
    """Table 1 as printed, a row a method; what is bold in print carries an asterisk."""
    table = reported.table_1()
    cells = table["printed"] + table["bold"].map({True: " *", False: ""})
    wide = table.assign(cell=cells).pivot(index="name", columns="metric", values="cell")
    wide = wide.loc[table["name"].unique(), list(_headings())]
    return wide.rename(columns=_headings()).rename_axis(index="method", columns=None)


def measured_table(
    summary: pd.DataFrame, methods: Sequence[str], name_of_lpips: str
) -> pd.DataFrame:
    """Table 1's columns as this run measured them, and the part of edits that succeed."""
    headings = _headings() | {"lpips": f"{name_of_lpips} ↓"}
    errors = summary["sem"].map(" ± {:.4f}".format).where(summary["sem"].notna(), "")
    cells = (summary["value"].map("{:.4f}".format) + errors).unstack("metric")
    table = cells.loc[list(methods), list(headings)].rename(columns=headings)
    table["edit success ↑"] = [
        with_interval(_interval(summary.loc[method, "edit_success"]), ".1%") for method in methods
    ]
    return table.rename(index=label).rename_axis(index="method", columns=None)


def figure_8(summary: pd.DataFrame) -> pd.DataFrame:
    """Figure 8's points as measured, in the form that `editing_validation.trade_off` draws."""
    wide = summary[["value", "low", "high"]].unstack("metric").loc[_measured(summary)]
    points: dict[str, Any] = {"name": [label(method) for method in wide.index]}
    for metric in ("lpips", "vqa"):
        points |= {metric: wide["value", metric]}
        points |= {f"{metric}_{end}": wide[end, metric] for end in ("low", "high")}
    return pd.DataFrame(points, index=wide.index)


def reported_values() -> dict[tuple[str, str], float]:
    """The paper's number for a method and metric, where it has one."""
    table, vqa = reported.table_1().set_index(["method", "metric"]), reported.figure_8()["vqa"]
    known = {
        (method, metric): float(table.loc[(name, metric), "mean"])
        for method, name in IN_PAPER.items()
        for metric in table.loc[name].index
    }
    known |= {(method, "vqa"): float(vqa[name]) for method, name in IN_PAPER.items()}
    return known | {("baseline", "edit_success"): reported.reported("edit_accuracy")}


def difference(scores: pd.DataFrame, metric: str, first: str, second: str, seed: int) -> Interval:
    """Mean of one method less that of another on the same samples, with its BCa interval."""
    return paired_difference(*_pairs(scores, metric, first, second), seed=seed)


def comparisons(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Every method that edits less the baseline, in what Figure 8 shows and in success.

    Columns: method, metric, value, low, high, n (paired by sample), and p, of the two-sided
    sign-flip test, Holm-adjusted for all comparisons.
    """
    others = [name for name in METHODS if name not in ("baseline", *CONTROLS)]
    tests = [(method, metric) for method in others for metric in DIFFERENCES]
    pairs = [_pairs(scores, metric, method, "baseline") for method, metric in tests]
    found = pd.DataFrame([paired_difference(*pair, seed=seed) for pair in pairs])
    found.insert(0, "method", [method for method, _ in tests])
    found.insert(1, "metric", [metric for _, metric in tests])
    return found.assign(p=holm([sign_flip_test(*pair, seed=seed) for pair in pairs]))


def comparison_table(compared: pd.DataFrame, name_of_lpips: str) -> pd.DataFrame:
    """`comparisons` as a page shows it: a row a method, a difference and a p-value a metric."""
    names = {"lpips": name_of_lpips, "vqa": "mean VQA", "edit_success": "edit success"}
    rows: dict[str, dict[str, str]] = {}
    row: Any
    for row in compared.itertuples():
        difference = with_interval(_interval(row), DIFFERENCES[row.metric])
        cell = f"{difference}, p {p_words(row.p)}"
        rows.setdefault(label(row.method), {})[names[row.metric]] = cell
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("less the baseline")


def readings(summary: pd.DataFrame) -> pd.DataFrame:
    """Mean LPIPS of the methods compared (rows) by each of `READINGS` (columns)."""
    return summary["value"].unstack("metric").loc[list(COMPARED), list(READINGS)]


def reading_table(means: pd.DataFrame) -> pd.DataFrame:
    """`readings` as a page shows it: mean and, in brackets, rank from the least change."""
    cells = means.map("{:.4f}".format) + " (" + _ranks(means).astype(str) + ")"
    table = cells.rename(index=label, columns=READINGS)
    return table.rename_axis(index="method", columns=None)


def reordered(means: pd.DataFrame) -> list[str]:
    """Names of the readings by which the methods stand in another order than by the first."""
    ranks = _ranks(means)
    return [name for r, name in READINGS.items() if not ranks[r].equals(ranks["lpips"])]


def by_gain(rows: pd.DataFrame) -> list[int]:
    """Indices of samples from ours' largest gain in mean VQA on the baseline to its largest loss.

    Ties keep the order of the samples; those of which a score is open are left out.
    """
    points = rows.assign(vqa=rows[["edit", "accuracy", "leakage"]].mean(axis=1))
    table = points.pivot(index="index", columns="method", values="vqa")
    known = (table["ours"] - table["baseline"]).dropna()
    gains = known.sort_values(ascending=False, kind="stable")
    return [int(index) for index in gains.index.to_numpy()]


def success_rates(summary: pd.DataFrame) -> pd.DataFrame:
    """Edit success of each method, for `intervals`, with counts as notes."""
    rates = summary.xs("edit_success", level="metric").loc[_measured(summary)]
    counts = (rates["value"] * rates["n"]).round().astype(int)
    return rates.assign(note=counts.astype(str) + " of " + rates["n"].astype(str))


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
    methods = ["ours", "lora_no_box"]
    success = successes(rows)[methods].dropna().astype(bool)
    bands = np.digitize(overlaps.loc[success.index], list(BANDS)[:-1])
    lines = []
    for method in methods:
        for band, name in enumerate(BANDS.values()):
            if len(own := success[method][bands == band]):
                rate = wilson(int(own.sum()), len(own))
                lines.append({"label": name, "method": label(method), **rate._asdict(),
                              "note": f"n = {rate.n}"})  # fmt: skip
    return pd.DataFrame(lines)


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
    ranks = np.linspace(0, len(ranked) - 1, min(n, len(ranked))).round().astype(int)
    return ranked.iloc[ranks]


def claim_checks(scores: pd.DataFrame, seed: int) -> list[ClaimCheck]:
    """What of section 4.6 and Table 1 holds on this run, by differences paired by sample."""

    def check(
        key: str, claim: str, where: str, method: str, rivals: Sequence[str],
        metrics: Sequence[str], above: bool = True,
    ) -> ClaimCheck:  # fmt: skip
        found = {}
        for rival in rivals:
            for metric in metrics:
                question = f", {metric.removeprefix('vqa_')}" if len(metrics) > 1 else ""
                least = difference(scores, metric, method, rival, seed)
                found[label(rival) + question] = least
        fmt = DIFFERENCES.get(metrics[0], DIFFERENCES["vqa"])
        return against(key, claim, where, found, above=above, fmt=fmt)

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
    table = scores.pivot(index=["method", "sample_id"], columns="metric", values="value")
    nothing, exact = (
        table.query("method == @name").droplevel("method") for name in ("identity", "paste")
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


def _measured(summary: pd.DataFrame) -> list[str]:
    """All methods, and the other systems that were run."""
    return [*METHODS, *(name for name in OTHERS if (name, "vqa") in summary.index)]


def _interval(row: Any) -> Interval:
    return Interval(float(row.value), float(row.low), float(row.high), int(row.n))


def _pairs(
    scores: pd.DataFrame, metric: str, first: str, second: str
) -> tuple[np.ndarray, np.ndarray]:
    """Values of two methods on the samples that both have one of."""
    own = scores[scores["metric"] == metric]
    table = own.pivot(index="sample_id", columns="method", values="value")
    both = table[[first, second]].dropna()
    return both[first].to_numpy(), both[second].to_numpy()


def _ranks(means: pd.DataFrame) -> pd.DataFrame:
    """Ranks of `readings` from the least change outside; SSIM, a likeness, falls as that grows."""
    return means.assign(ssim=-means["ssim"]).rank(method="min").astype(int)


def _headings() -> dict[str, str]:
    """Table 1's metrics and their printed headings, with the arrow of what is better."""
    table = reported.table_1().drop_duplicates("metric")
    written = table["heading"] + " " + table["better"].map({"lower": "↓", "higher": "↑"})
    return dict(zip(table["metric"], written, strict=True))
