"""The localization gap: one instruction put to the VLM and to the editor that it conditions.

Chapter 1, section 4.1, Figures 1 and 2; and what the methods of chapter 5 close of it. A row is a
sample: what the VLM answered and, beside it, what a judge says of the edit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap

from abplib.core import store
from abplib.core.errors import AbpError
from abplib.core.stats import (
    Interval,
    PairedTable,
    proportion_difference,
    with_interval,
)
from abplib.core.store import stored
from abplib.editing.loading import Source
from abplib.editing.methods import METHODS, label
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.judging.base import FAILURES, NO_EDIT, WRONG_OBJECT
from abplib.judging.verdicts import VERDICTS, succeeded
from abplib.paper import reported
from abplib.sections.claims import measure
from abplib.sections.vlm_boxes import rate_of
from abplib.vlm.encoder import ConditionEncoder

SUCCESS = "success"
EDIT_OUTCOMES = (SUCCESS, *FAILURES)
"""What can become of an edit."""

TUNED = tuple(name for name, method in METHODS.items() if method.lora)
"""Methods under the LoRA: with a box, and without one to tell what the LoRA alone gains."""

HALVES = {"accurate": "VLM: accurate box", "success": "editor: successful edit"}
"""The two answers on each sample, by their column, and how figures call them."""


def same_vlm(encoder: ConditionEncoder, editor: QwenImageEditor) -> bool:
    """Whether the VLM that is asked and the one that conditions the editor have equal weights.

    Answered once. The editor's is read alone, on the CPU, where tensors are compared one at a time.
    """
    return bool(store.read_json(_compared(encoder, editor.source) / "done.json")["same"])


@stored("same_vlm")
def _compared(place: Path, encoder: ConditionEncoder, source: Source) -> dict[str, bool]:
    alone = replace(source, without=("transformer", "vae"), device="cpu")
    conditioning = alone.pipeline.text_encoder.state_dict()
    standalone = encoder.model.state_dict()
    same = standalone.keys() == conditioning.keys() and all(
        torch.equal(weight.cpu(), conditioning[name]) for name, weight in standalone.items()
    )
    return {"same": same}


def beside(answers: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Both halves in one row a sample, without the samples of whose edit nothing is decided.

    Columns: those of `ask`, those of `verdicts.VERDICTS`, and edit_outcome, one of `EDIT_OUTCOMES`.

    Args:
        answers: rows of `ask`.
        verdicts: rows of `verdicts.judged`, of one method.

    Raises:
        AbpError: the two are not about the same samples, one row each, or as `succeeded`.
    """
    about = [half[["index", "sample_id"]].reset_index(drop=True) for half in (answers, verdicts)]
    if not about[0].equals(about[1]):
        raise AbpError(
            f"{len(answers)} answers and {len(verdicts)} verdicts are not about the same samples: "
            "ask and edit the same ones, and give the verdicts of one method."
        )
    success = succeeded(verdicts.set_axis(answers.index))
    judged = verdicts[list(VERDICTS)].set_axis(answers.index).loc[success.index]
    judged["success"] = success
    outcome = judged["failure"].where(~success, SUCCESS).rename("edit_outcome")
    return pd.concat([answers.loc[success.index], judged, outcome], axis=1)


def paired(rows: pd.DataFrame) -> PairedTable:
    """The 2 x 2 table of section 4.1: accurate boxes first, successful edits second."""
    return PairedTable.of(rows["accurate"].to_numpy(), rows["success"].to_numpy())


def edit_numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """The editor's success and the edits that changed nothing, beside the paper's."""
    unchanged = rate_of(rows["edit_outcome"] == NO_EDIT)
    return pd.DataFrame(
        [
            measure("edit_success", "successful edits", rate_of(rows["success"]), "fraction",
                    reported("edit_accuracy")),
            measure("no_edit_rate", NO_EDIT, unchanged, "fraction"),
        ]
    )  # fmt: skip


def both_rates(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Accurate boxes and successful edits in each group of the column `by`, for `intervals`.

    Columns: label, half, value, low, high (Wilson, 95 %), n, note; numbers in order, words by the
    VLM's rate, larger groups first.
    """
    groups = list(rows.groupby(by, sort=True))
    if not pd.api.types.is_numeric_dtype(rows[by]):
        groups.sort(key=lambda group: (-group[1]["accurate"].mean(), -len(group[1])))
    return pd.DataFrame(
        {"label": str(label), "half": half, **rate_of(group[column])._asdict(),
         "note": f"n = {len(group)}"}
        for label, group in groups
        for column, half in HALVES.items()
    )  # fmt: skip


def beside_the_papers(rows: pd.DataFrame) -> pd.DataFrame:
    """Both rates over all samples in the same form, the paper's above this run's, and the gaps."""
    paper = {"accurate": reported("vlm_box_accuracy"), "success": reported("edit_accuracy")}
    gaps = reported("localization_gap"), proportion_difference(paired(rows)).value
    notes = [f"gap {100 * gap:.1f} points" for gap in gaps]
    rates = []
    for column, half in HALVES.items():
        here = rate_of(rows[column])._asdict()
        rates.append({"label": "paper", "half": half, "value": paper[column], "note": notes[0]})
        rates.append({"label": "this run", "half": half, **here, "note": notes[1]})
    return pd.DataFrame(rates)


def shares(outcomes: pd.Series, kinds: Sequence[str]) -> pd.DataFrame:
    """The part that each kind of outcome has, for `intervals`, in the order of `kinds`."""
    rates = {kind: rate_of(outcomes == kind) for kind in kinds}
    return pd.DataFrame(
        {"label": kind, **rate._asdict(), "note": f"{(outcomes == kind).sum()} of {rate.n}"}
        for kind, rate in rates.items()
    )


def discrepancy(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Figure 1's sample, as the only row, and the words of the rule that chose it."""
    known, failed = rows["accurate"], ~rows["success"]
    fitting, rule = _first_rule(
        rows,
        [
            ("whose box is accurate and whose edit went to another object",
             known & (rows["failure"] == WRONG_OBJECT)),
            ("whose box is accurate and whose edit failed", known & failed),
            ("whose edit failed, since none failed where the box is accurate", failed),
            ("of all, since no edit failed", known | ~known),
        ],
    )  # fmt: skip
    return fitting.head(1), f"the first sample {rule}"


def failures(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Figure 2's samples, and in words what they were chosen among.

    Of each kind of failure that occurs, in the order of `FAILURES`: one on which the VLM's box is
    accurate, where there is any, and of those the one with the highest IoU; ties go to the first
    sample.
    """
    failed = ~rows["success"]
    among, words = _first_rule(
        rows,
        [("all failures", failed), ("all samples, since no edit failed", failed | ~failed)],
    )
    best = among.sort_values(["accurate", "iou"], ascending=False, kind="stable")
    kinds = [best[best["edit_outcome"] == kind].head(1) for kind in EDIT_OUTCOMES]
    return pd.concat(kinds), words


def successes(rows: pd.DataFrame) -> pd.DataFrame:
    """Whether each edit succeeds: index (of the sample) by method; NA if open."""
    told = rows.assign(success=succeeded(rows).astype("boolean"))
    return told.pivot(index="index", columns="method", values="success")


def gap_of(accurate: pd.Series, success: pd.Series) -> Interval:
    """How much more often the VLM's box is accurate than the baseline's edit succeeds.

    Both by the sample's index, over the samples on which both are known.
    """
    return proportion_difference(PairedTable.of(*_known(accurate, success)))


class Closed(NamedTuple):
    """What a method under the LoRA gains on the baseline."""

    gain: Interval
    """In success, as a fraction of the samples; Newcombe's interval."""
    share: Interval | None
    """The gain as a fraction of the gap, BCa interval; None where there may be no gain or gap."""

    @property
    def words(self) -> str:
        """Which part of the gap that is, as the end of a sentence about the method."""
        if self.share is not None:
            return f"closes {with_interval(self.share, '.1%')} of it"
        if self.gain.high < 0:
            return "closes none of it, for it succeeds less often than the baseline"
        return "closes no part of it that could be told from chance"


def gap_closed(accurate: pd.Series, success: pd.DataFrame, seed: int) -> dict[str, Closed]:
    """How much of the localization gap the methods under the LoRA close.

    A share is given where the whole intervals of gap and gain lie above zero: there is no part of a
    gap that may not be there, and none is closed by a loss.

    Args:
        accurate: whether the VLM's box is, by the sample's index.
        success: `successes`.
        seed: of the bootstrap.
    """
    gap = gap_of(accurate, success["baseline"])
    closed = {}
    for method in TUNED:
        edited, baseline, named = _known(success[method], success["baseline"], accurate)
        gain = proportion_difference(PairedTable.of(edited, baseline))
        sure = gap.low > 0 and gain.low > 0
        share = _share(edited, baseline, named, seed) if sure else None
        closed[method] = Closed(gain, share)
    return closed


def gap_numbers(gap: Interval, closed: Mapping[str, Closed]) -> pd.DataFrame:
    """The gap, gains and shares as `measure`s."""
    paper = reported("localization_gap")
    numbers = [measure("gap", "gap", gap, "fraction", paper) | {"fmt": ".1%"}]
    for method, (gain, share) in closed.items():
        name = f"gap_closed.{method}"
        numbers.append(measure(f"{name}.gain", label(method), gain, "fraction") | {"fmt": "+.1%"})
        if share is not None:
            shown = measure(f"{name}.share", label(method), share, "fraction") | {"fmt": ".1%"}
            numbers.append(shown)
    return pd.DataFrame(numbers)


def gap_table(closed: Mapping[str, Closed]) -> pd.DataFrame:
    """`gap_closed` as a page shows it."""
    rows = {
        label(method): {
            "gained on the baseline": with_interval(gain, "+.1%"),
            "part of the gap": "–" if share is None else with_interval(share, ".1%"),
        }
        for method, (gain, share) in closed.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def _first_rule(
    rows: pd.DataFrame, rules: Iterable[tuple[str, pd.Series]]
) -> tuple[pd.DataFrame, str]:
    """The rows that fit the first rule that any row fits, and its words; the last fits all."""
    words, fits = next((words, fits) for words, fits in rules if fits.any())
    return rows[fits], words


def _known(*columns: pd.Series) -> list[np.ndarray]:
    """Bool columns on the samples on which all of them are known, in one order."""
    whole = pd.concat(columns, axis=1).dropna()
    return [whole.iloc[:, place].to_numpy(bool) for place in range(len(columns))]


def _share(edited: np.ndarray, baseline: np.ndarray, accurate: np.ndarray, seed: int) -> Interval:
    """Gain over gap with its BCa interval, the samples drawn together."""

    def ratio(e: np.ndarray, b: np.ndarray, a: np.ndarray, axis: int = -1) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (e.mean(axis) - b.mean(axis)) / (a.mean(axis) - b.mean(axis))

    data = edited.astype(float), baseline.astype(float), accurate.astype(float)
    low, high = bootstrap(
        data, ratio, paired=True, vectorized=True, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Interval(float(ratio(*data)), float(low), float(high), len(edited))
