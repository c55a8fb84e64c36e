"""Whether the recovered box helps the editor: Table 1, paired comparisons, the gap.

Chapter 5, section 4.6, Figures 8 to 11. `scores` are rows of `edits.tidy`: one a sample, method
and metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from abplib import paper as reported
from abplib.core.boxes import Box
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
from abplib.judging.base import BEST
from abplib.judging.box_accuracy import centre_inside, evaluate_box
from abplib.proxies.baselines import CORNERS
from abplib.samples.base import SampleSet
from abplib.sections.claims import HOLDS, REVERSED, ClaimCheck, against

COMPARED = ("baseline", "full_description", "norm_avg", "ours")
"""The methods of section 4.6 that edit with Qwen-Image-Edit."""
BEYOND = ("lora_no_box", "vlm_box", "gt_box", "identity", "paste")
"""Bounds and controls, which the paper does not have."""
TUNED = tuple(name for name, method in METHODS.items() if method.lora)
"""Methods under the LoRA: with a box, and without one to tell what the LoRA alone gains."""

_SYSTEMS = ("fibo_edit", "flux2_dev", "flux_kontext")

IN_PAPER = {"baseline": "qwen_image_edit"} | {name: name for name in (*COMPARED[1:], *_SYSTEMS)}
"""What Table 1's data call the methods compared and the other systems."""

BOX_SOURCES: dict[Guide, str] = {"proxy": "proxy", "vlm": "VLM, asked", "exact": "exact box"}

READINGS = {
    "lpips": "composite", "lpips_zero_fill": "zero fill", "lpips_spatial": "spatial",
    "ssim": "SSIM",
}  # fmt: skip
"""The three ways to take LPIPS outside a box, and SSIM there; see `abplib.judging.preservation`."""

_NOTHING = 1e-6
"""A distance that only rounding makes."""

DIFFERENCES = {"lpips": "+.4f", "vqa": "+.3f", "edit_success": "+.1%"}
"""Metrics that methods are compared in, and how their differences are written."""


class Mean(NamedTuple):
    """A mean of Table 1."""

    found: Interval
    sem: float
    """Standard error; NaN of one sample."""


Summary = dict[tuple[str, str], Mean]
"""Means by method and metric."""


def box_quality(rows: pd.DataFrame, seed: int) -> dict[tuple[str, str], Interval]:
    """Mean IoU and rate of centres inside the exact box, of `guides.box_rows`.

    By source and metric (iou, centre_inside); bootstrap and Wilson intervals. No box is a miss.
    """
    found = {}
    for source, group in rows.groupby("source", sort=False):
        inside = wilson(int(group["centre_inside"].sum()), len(group))
        found[str(source), "iou"] = bootstrap_mean(group["iou"].to_numpy(), seed=seed)
        found[str(source), "centre_inside"] = inside
    return found


def box_table(quality: Mapping[tuple[str, str], Interval]) -> pd.DataFrame:
    """`box_quality` as a page shows it."""
    rows = {
        name: {
            "mean IoU": with_interval(quality[source, "iou"]),
            "centre inside": with_interval(quality[source, "centre_inside"], ".1%"),
        }
        for source, name in BOX_SOURCES.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("box of")


def summarise(scores: pd.DataFrame, seed: int) -> Summary:
    """Mean of each method and metric with its 95 % interval.

    Wilson's for edit_success, the bootstrap's (BCa) for the rest. A sample that a metric has no
    value for is left out of its n.
    """
    found: Summary = {}
    for method, of_method in scores.groupby("method", sort=False):
        for metric, group in of_method.groupby("metric", sort=False):
            values = group["value"].dropna().to_numpy()
            if metric == "edit_success":
                mean = wilson(int(values.sum()), len(values))
            else:
                mean = bootstrap_mean(values, seed=seed)
            found[str(method), str(metric)] = Mean(mean, mean_sem(values)[1])
    return found


def reported_table() -> pd.DataFrame:
    """Table 1 as printed, a row a method; what is bold in print carries an asterisk."""
    table = reported.table_1()
    cells = table["printed"] + table["bold"].map({True: " *", False: ""})
    wide = table.assign(cell=cells).pivot(index="name", columns="metric", values="cell")
    wide = wide.loc[table["name"].unique(), list(_headings())]
    return wide.rename(columns=_headings()).rename_axis(index="method", columns=None)


def measured_table(summary: Summary, methods: Sequence[str], name_of_lpips: str) -> pd.DataFrame:
    """Table 1's columns as this run measured them, and the part of edits that succeed."""
    headings = _headings() | {"lpips": f"{name_of_lpips} ↓"}
    rows = {}
    for method in methods:
        cells = {heading: _cell(summary[method, metric]) for metric, heading in headings.items()}
        cells["edit success ↑"] = with_interval(summary[method, "edit_success"].found, ".1%")
        rows[label(method)] = cells
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def figure_8(summary: Summary) -> pd.DataFrame:
    """Figure 8's points as measured, in the form that `plots.validation.trade_off` reads."""
    rows = {}
    for method in _measured(summary):
        row: dict[str, str | float] = {"name": label(method)}
        for metric in ("lpips", "vqa"):
            found = summary[method, metric].found
            row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
        rows[method] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def reported_values() -> dict[tuple[str, str], float]:
    """The paper's number for a method and metric, where it has one."""
    table = reported.table_1()
    of = {name: method for method, name in IN_PAPER.items()}
    ours = table[table["method"].isin(of)]
    known = {
        (of[method], metric): float(mean)
        for method, metric, mean in zip(ours["method"], ours["metric"], ours["mean"], strict=True)
    }
    vqa = reported.figure_8()["vqa"]
    known |= {(method, "vqa"): float(vqa[name]) for method, name in IN_PAPER.items()}
    return known | {("baseline", "edit_success"): reported.reported("edit_accuracy")}


def difference(scores: pd.DataFrame, metric: str, first: str, second: str, seed: int) -> Interval:
    """Mean of one method less that of another on the same samples, with its BCa interval."""
    return paired_difference(*_pairs(scores, metric, first, second), seed=seed)


class Comparison(NamedTuple):
    """A method against the baseline in one metric."""

    method: str
    metric: str
    found: Interval
    """The method's mean less the baseline's, paired by sample."""
    p: float
    """Two-sided sign-flip test, Holm-adjusted for all comparisons."""


def comparisons(scores: pd.DataFrame, seed: int) -> list[Comparison]:
    """Every method that edits against the baseline, in what Figure 8 shows and in success."""
    others = [name for name in METHODS if name not in ("baseline", *CONTROLS)]
    asked = [(method, metric) for method in others for metric in DIFFERENCES]
    pairs = [_pairs(scores, metric, method, "baseline") for method, metric in asked]
    found = [paired_difference(*pair, seed=seed) for pair in pairs]
    adjusted = holm([sign_flip_test(*pair, seed=seed) for pair in pairs])
    return [
        Comparison(*about, interval, float(p))
        for about, interval, p in zip(asked, found, adjusted, strict=True)
    ]


def comparison_table(compared: Sequence[Comparison], name_of_lpips: str) -> pd.DataFrame:
    """`comparisons` as a page shows it: a row a method, a difference and a p-value a metric."""
    names = {"lpips": name_of_lpips, "vqa": "mean VQA", "edit_success": "edit success"}
    rows: dict[str, dict[str, str]] = {}
    for c in compared:
        cell = f"{with_interval(c.found, DIFFERENCES[c.metric])}, p {p_words(c.p)}"
        rows.setdefault(METHODS[c.method].label, {})[names[c.metric]] = cell
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("less the baseline")


def readings(summary: Summary) -> pd.DataFrame:
    """Mean LPIPS of the methods compared (rows) by each of `READINGS` (columns)."""
    values = [[summary[method, r].found.value for r in READINGS] for method in COMPARED]
    return pd.DataFrame(values, index=list(COMPARED), columns=list(READINGS))


def reading_table(means: pd.DataFrame) -> pd.DataFrame:
    """`readings` as a page shows it: mean and, in brackets, rank from the least change."""
    cells = means.map("{:.4f}".format) + " (" + _ranks(means).astype(str) + ")"
    labels = {method: METHODS[method].label for method in COMPARED}
    return cells.rename(index=labels, columns=READINGS).rename_axis("method")


def reordered(means: pd.DataFrame) -> list[str]:
    """Names of the readings by which the methods stand in another order than by the first."""
    ranks = _ranks(means)
    return [name for r, name in READINGS.items() if not ranks[r].equals(ranks["lpips"])]


def by_gain(rows: pd.DataFrame) -> list[int]:
    """Indices of samples from ours' largest gain in mean VQA on the baseline to its largest loss.

    `rows` as `edits.judged` gives them; ties keep the order of the samples, and those of which a
    score is open are left out.
    """
    points = rows.assign(vqa=rows[["edit", "accuracy", "leakage"]].mean(axis=1))
    table = points.pivot(index="index", columns="method", values="vqa")
    known = (table["ours"] - table["baseline"]).dropna()
    gains = known.sort_values(ascending=False, kind="stable")
    return [int(index) for index in gains.index.to_numpy()]


def success_rates(summary: Summary) -> pd.DataFrame:
    """Edit success of each method, as `plots.localization.rates` reads it."""
    rows = []
    for method in _measured(summary):
        rate = summary[method, "edit_success"].found
        note = f"{round(rate.value * rate.n)} of {rate.n}"
        rows.append({"label": label(method), **rate._asdict(), "note": note})
    return pd.DataFrame(rows)


def _measured(summary: Summary) -> list[str]:
    """All methods, and the other systems that were run."""
    return [*METHODS, *(name for name in OTHERS if (name, "vqa") in summary)]


def _pairs(
    scores: pd.DataFrame, metric: str, first: str, second: str
) -> tuple[np.ndarray, np.ndarray]:
    """Values of two methods on the samples that both have one of."""
    table = scores[scores["metric"] == metric].pivot(
        index="sample_id", columns="method", values="value"
    )
    both = table[[first, second]].dropna()
    return both[first].to_numpy(), both[second].to_numpy()


def _ranks(means: pd.DataFrame) -> pd.DataFrame:
    """Ranks of `readings` from the least change outside; SSIM, a likeness, falls as that grows."""
    return means.assign(ssim=-means["ssim"]).rank(method="min").astype(int)


def _headings() -> dict[str, str]:
    """Table 1's metrics and their printed headings, with the arrow of what is better."""
    arrows = {"lower": "↓", "higher": "↑"}
    table = reported.table_1().drop_duplicates("metric")
    written = table["heading"] + " " + table["better"].map(arrows)
    return dict(zip(table["metric"], written, strict=True))


def _cell(mean: Mean) -> str:
    """Mean and standard error as Table 1 prints them; the mean alone of one sample."""
    error = "" if np.isnan(mean.sem) else f" ± {mean.sem:.4f}"
    return f"{mean.found.value:.4f}{error}"


def claim_checks(scores: pd.DataFrame, seed: int) -> list[ClaimCheck]:
    """What of section 4.6 and Table 1 holds on this run, by differences paired by sample."""

    def check(
        key: str, claim: str, where: str, method: str, rivals: Sequence[str],
        metrics: Sequence[str], above: bool = True,
    ) -> ClaimCheck:  # fmt: skip
        found = {
            label(rival) + (f", {metric.removeprefix('vqa_')}" if len(metrics) > 1 else ""):
                difference(scores, metric, method, rival, seed)
            for rival in rivals for metric in metrics
        }  # fmt: skip
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
    nothing, exact = table.loc["identity"], table.loc["paste"]
    right = (
        (nothing[["vqa_edit", "vqa_accuracy", "edit_success"]] == 0).all(axis=1)
        & (nothing["vqa_leakage"] == BEST)
        & (exact["vqa"] == BEST)
        & (exact["edit_success"] == 1)
        & ~(nothing["lpips"] > _NOTHING)
        & ~(exact["lpips"] > _NOTHING)
    )
    verdict = HOLDS if right.all() else REVERSED
    measured = f"{int(right.sum())} of {len(right)} samples"
    return ClaimCheck("controls", "Controls score as they must", "a check", measured, verdict)


def answered_boxes(rows: pd.DataFrame) -> list[Box | None]:
    """The VLM's boxes in rows of `localization.ask`; None where it gave none."""
    corners = rows[CORNERS].to_numpy(float)
    return [
        (x1, y1, x2, y2) if answered else None
        for (x1, y1, x2, y2), answered in zip(corners.tolist(), rows["answered"], strict=True)
    ]


def box_rows(samples: SampleSet, found: Mapping[Guide, Sequence[Box | None]]) -> pd.DataFrame:
    """How good the boxes are that editors are shown: one row a source of boxes and sample.

    Columns: source, index, sample_id, those of `metrics.BoxRow`, and centre_inside, whether the
    box's centre lies in the exact box.
    """
    rows = []
    for source, shown in found.items():
        for index, box in enumerate(shown):
            sample = samples[index]
            about = {"source": source, "index": index, "sample_id": sample.id}
            inside = box is not None and centre_inside(box, sample.box)
            rows.append({**about, **evaluate_box(sample, box), "centre_inside": inside})
    return pd.DataFrame(rows)
