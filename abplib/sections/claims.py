"""What of section 4.6's claims holds on a run, decided by rule; chapter 5.

`scores` are rows of `edits.tidy`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from abplib.core.stats import Interval, with_interval
from abplib.editing.methods import METHODS
from abplib.judging.base import BEST
from abplib.paper import VQA
from abplib.sections.decodability import HOLDS, REVERSED, UNDECIDED, Verdict, verdict_of
from abplib.sections.editing_validation import COMPARED, DIFFERENCES, difference

_NOTHING = 1e-6  # a distance that only rounding makes


def verdicts(scores: pd.DataFrame, seed: int) -> list[Verdict]:
    """What of section 4.6 holds on this run, by paired intervals; see `_against`."""
    others = COMPARED[:3]
    return [
        _against(
            scores, seed, "ours_vqa", "Ours has the highest mean VQA score", "4.6, Figure 8",
            "ours", others, ("vqa",),
        ),
        _against(
            scores, seed, "ours_questions", "Ours leads in each of the three questions", "C.1",
            "ours", others, VQA,
        ),
        _against(
            scores, seed, "ours_success", "Ours succeeds more often than the baseline", "4.6",
            "ours", ("baseline",), ("edit_success",),
        ),
        _against(
            scores, seed, "ours_lpips", "Ours changes less outside the box than the baseline",
            "Table 1", "ours", ("baseline",), ("lpips",), lower=True,
        ),
        _against(
            scores, seed, "strongest_baseline", "Full description is the strongest baseline", "4.6",
            "full_description", ("baseline", "norm_avg"), ("vqa",),
        ),
        _against(
            scores, seed, "norm_avg_lpips", "Norm-AVG changes least outside the box", "Table 1",
            "norm_avg", ("baseline", "full_description", "ours"), ("lpips",), lower=True,
        ),
        _against(
            scores, seed, "norm_avg_vqa", "Norm-AVG has a lower mean VQA score than the baseline",
            "Figure 8", "norm_avg", ("baseline",), ("vqa",), lower=True,
        ),
        _controls(scores),
    ]  # fmt: skip


def _against(
    scores: pd.DataFrame,
    seed: int,
    key: str,
    claim: str,
    where: str,
    method: str,
    rivals: Sequence[str],
    metrics: Sequence[str],
    *,
    lower: bool = False,
) -> Verdict:
    """Of the claim that a method is above (or below) each rival in each metric.

    It holds where all intervals of the differences lie on the claim's side of zero, does not hold
    where one lies on the other side, and is undecided otherwise. Shown is the difference that goes
    least the claim's way.
    """
    found = {
        (rival, metric): difference(scores, metric, method, rival, seed)
        for rival in rivals
        for metric in metrics
    }
    decided = {verdict_of(d if lower else _mirrored(d)) for d in found.values()}
    verdict = REVERSED if REVERSED in decided else UNDECIDED if UNDECIDED in decided else HOLDS
    hardest = max(found, key=lambda of: found[of].high if lower else -found[of].low)
    (rival, metric), least = hardest, found[hardest]
    fmt = DIFFERENCES.get(metric, DIFFERENCES["vqa"])
    measured = f"{with_interval(least, fmt)} against {METHODS[rival].label}"
    if len(metrics) > 1:
        measured += f", {metric.removeprefix('vqa_')}"
    return Verdict(key, claim, where, measured, verdict, least)


def _controls(scores: pd.DataFrame) -> Verdict:
    """Whether no edit and the exact edit score on every sample as they must."""
    table = scores.pivot(index=["method", "sample_id"], columns="metric", values="value")
    nothing, exact = table.loc["identity"], table.loc["paste"]
    right = (
        (nothing["vqa_edit"] == 0)
        & (nothing["vqa_accuracy"] == 0)
        & (nothing["vqa_leakage"] == BEST)
        & (nothing["edit_success"] == 0)
        & (exact["vqa"] == BEST)
        & (exact["edit_success"] == 1)
        & ~(nothing["lpips"] > _NOTHING)
        & ~(exact["lpips"] > _NOTHING)
    )
    verdict = HOLDS if right.all() else REVERSED
    measured = f"{int(right.sum())} of {len(right)} samples"
    return Verdict("controls", "Controls score as they must", "a check", measured, verdict)


def _mirrored(found: Interval) -> Interval:
    return Interval(-found.value, -found.high, -found.low, found.n)
