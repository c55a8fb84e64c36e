"""The localization gap: one instruction put to the VLM and to the editor that it conditions.

Chapter 1, section 4.1, Figures 1 and 2; and what the methods of chapter 5 close of it. A row is a
sample: what the VLM answered and, beside it, what a judge says of the edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap

from abplib.core import store
from abplib.core.errors import AbpError
from abplib.core.stats import Interval, PairedTable, proportion_difference
from abplib.core.store import stored
from abplib.editing.loading import Source
from abplib.editing.methods import METHODS, label
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.judging.base import FAILURES, NO_EDIT, WRONG_OBJECT
from abplib.judging.verdicts import VERDICTS, succeeded
from abplib.paper import reported
from abplib.sections.estimates import estimate, estimates, measure, written
from abplib.vlm.encoder import ConditionEncoder

SUCCESS = "success"
EDIT_OUTCOMES = (SUCCESS, *FAILURES)
"""What can become of an edit."""

TUNED = tuple(name for name, method in METHODS.items() if method.lora)
"""Methods under the LoRA: with a box, and without one to tell what the LoRA alone gains."""

PARTS = {"gain": "gained on the baseline", "share": "part of the gap"}
"""What a method closes of the gap, by name in `values.json`, and how tables call it."""

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
    success, unchanged = estimate(rows["success"]), estimate(rows["edit_outcome"] == NO_EDIT)
    paper = reported("edit_accuracy")
    return pd.DataFrame(
        [
            measure("edit_success", "successful edits", success, "fraction", paper),
            measure("no_edit_rate", NO_EDIT, unchanged, "fraction"),
        ]
    )


def both_rates(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Accurate boxes and successful edits in each group of the column `by`, for `intervals`.

    Columns: label, half, value, low, high, n, note; numbers in order, words by the VLM's rate,
    larger groups first.
    """
    groups = list(rows.groupby(by, sort=True))
    if not pd.api.types.is_numeric_dtype(rows[by]):
        groups.sort(key=lambda group: (-group[1]["accurate"].mean(), -len(group[1])))
    columns = [((str(label), half), own[name]) for label, own in groups
               for name, half in HALVES.items()]  # fmt: skip
    rates = estimates(columns).rename_axis(["label", "half"]).reset_index()
    return rates.assign(note="n = " + rates["n"].astype(str))


def beside_the_papers(rows: pd.DataFrame) -> pd.DataFrame:
    """Both rates over all samples in the same form, the paper's above this run's, and the gaps."""
    paper = {"accurate": reported("vlm_box_accuracy"), "success": reported("edit_accuracy")}
    gaps = reported("localization_gap"), proportion_difference(paired(rows)).value
    notes = [f"gap {100 * gap:.1f} points" for gap in gaps]
    rates = []
    for column, half in HALVES.items():
        here = estimate(rows[column])._asdict()
        rates.append({"label": "paper", "half": half, "value": paper[column], "note": notes[0]})
        rates.append({"label": "this run", "half": half, **here, "note": notes[1]})
    return pd.DataFrame(rates)


def shares(outcomes: pd.Series, kinds: Sequence[str]) -> pd.DataFrame:
    """The part that each kind of outcome has, for `intervals`, in the order of `kinds`."""
    rates = estimates((kind, outcomes == kind) for kind in kinds).rename_axis("label")
    return counted(rates).reset_index()


def counted(rates: pd.DataFrame) -> pd.DataFrame:
    """`estimates` of rates, with the counts behind them as notes."""
    counts = (rates["value"] * rates["n"]).round().astype(int)
    return rates.assign(note=counts.astype(str) + " of " + rates["n"].astype(str))


def discrepancy(rows: pd.DataFrame, proxy_iou: bool = False) -> tuple[pd.DataFrame, str]:
    """Figure 1's sample, as the only row, and the words of the rule that chose it.

    Of the samples that fit best it is the first; or, by a column `proxy_iou` of the rows, the one
    whose proxy's box is the median one, so that neither a lucky nor an unlucky box is shown.
    """
    known, failed = rows["accurate"], ~rows["success"]
    rules = {
        "whose box is accurate and whose edit went to another object":
            known & (rows["failure"] == WRONG_OBJECT),
        "whose box is accurate and whose edit failed": known & failed,
        "whose edit failed, since none failed where the box is accurate": failed,
        "of all, since no edit failed": known | ~known,
    }  # fmt: skip
    rule = next(words for words, fits in rules.items() if fits.any())
    fitting = rows[rules[rule]]
    if not proxy_iou:
        return fitting.head(1), f"the first sample {rule}"
    ordered = fitting.sort_values("proxy_iou", kind="stable")
    middle = ordered.iloc[[(len(ordered) - 1) // 2]]
    return middle, f"of the samples {rule}, the one on which the proxy's IoU is the median"


def failures(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Figure 2's samples, and in words what they were chosen among.

    Of each kind of failure that occurs, in the order of `FAILURES`: one on which the VLM's box is
    accurate, where there is any, and of those the one with the highest IoU; ties go to the first
    sample.
    """
    failed = rows[~rows["success"]]
    words = "all samples, since no edit failed" if failed.empty else "all failures"
    among = rows if failed.empty else failed
    best = among.sort_values(["accurate", "iou"], ascending=False, kind="stable")
    return pd.concat([best[best["edit_outcome"] == k].head(1) for k in EDIT_OUTCOMES]), words


def successes(rows: pd.DataFrame) -> pd.DataFrame:
    """Whether each edit succeeds: index (of the sample) by method; NA if open."""
    told = rows.assign(success=succeeded(rows).astype("boolean"))
    return told.pivot(index="index", columns="method", values="success")


def gap_of(accurate: pd.Series, success: pd.Series) -> Interval:
    """How much more often the VLM's box is accurate than the baseline's edit succeeds.

    Both by the sample's index, over the samples on which both are known.
    """
    return proportion_difference(PairedTable.of(*_known(accurate, success)))


def gap_closed(accurate: pd.Series, success: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What the methods under the LoRA gain on the baseline, and which part of the gap that is.

    Rows as of `estimates`, by method and part: the gain (of the samples, Newcombe's interval), then
    its share of the gap (BCa). A share is given where the whole intervals of gap and gain lie
    above zero: there is no part of a gap that may not be there, and none is closed by a loss.

    Args:
        accurate: whether the VLM's box is, by the sample's index.
        success: `successes`.
        seed: of the bootstrap.
    """
    gap, rows = gap_of(accurate, success["baseline"]), []

    def add(method: str, kind: str, found: Interval, fmt: str) -> None:
        row = measure(f"gap_closed.{method}.{kind}", label(method), found, "fraction")
        rows.append({**row, "method": method, "part": PARTS[kind], "fmt": fmt})

    for method in TUNED:
        edited, baseline, named = _known(success[method], success["baseline"], accurate)
        gain = proportion_difference(PairedTable.of(edited, baseline))
        add(method, "gain", gain, "+.1%")
        if gap.low > 0 and gain.low > 0:
            add(method, "share", _share(edited, baseline, named, seed), ".1%")
    return pd.DataFrame(rows)


def closing(closed: pd.DataFrame, method: str) -> str:
    """Which part of the gap a method closes, as the end of a sentence about it."""
    own = closed[closed["method"] == method]
    if len(own) == 2:
        return f"closes {written(own, '.1%').iloc[1]} of it"
    if own["high"].iloc[0] < 0:
        return "closes none of it, for it succeeds less often than the baseline"
    return "closes no part of it that could be told from chance"


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
