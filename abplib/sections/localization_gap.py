"""The localization gap: one instruction put to the VLM and to the editor that it conditions.

Chapter 1, section 4.1, Figures 1 and 2. A row is a sample: what the VLM answered and, beside it,
what a judge says of the edit.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch

from abplib.core.errors import AbpError
from abplib.core.stats import Interval, PairedTable, proportion_difference, wilson
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.judging.base import FAILURES, NO_EDIT, WRONG_OBJECT
from abplib.judging.verdicts import VERDICTS, succeeded
from abplib.paper import reported
from abplib.sections import localization
from abplib.sections.claims import Measure
from abplib.vlm.encoder import ConditionEncoder

SUCCESS = "success"
EDIT_OUTCOMES = (SUCCESS, *FAILURES)
"""What can become of an edit."""

HALVES = {"accurate": "VLM: accurate box", "success": "editor: successful edit"}
"""The two answers on each sample, by their column, and how figures call them."""


def same_vlm(encoder: ConditionEncoder, editor: QwenImageEditor) -> bool:
    """Whether the VLM that is asked and the one that conditions the editor have equal weights."""
    asked = encoder.model.state_dict()
    conditioning = editor.pipeline.text_encoder.state_dict()
    return asked.keys() == conditioning.keys() and all(
        torch.equal(weight, conditioning[name]) for name, weight in asked.items()
    )


def beside(answers: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Both halves in one row a sample, without the samples of whose edit nothing is decided.

    Columns: those of `localization.ask`, those of `edits.VERDICTS`, and edit_outcome, one of
    `EDIT_OUTCOMES`.

    Args:
        answers: rows of `localization.ask`.
        verdicts: rows of `edits.judged`, of one method.

    Raises:
        AbpError: the two are not about the same samples, one row each, or as `edits.succeeded`.
    """
    samples = ["index", "sample_id"]
    about = [half[samples].reset_index(drop=True) for half in (answers, verdicts)]
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


def counted(rows: pd.DataFrame) -> PairedTable:
    """The 2 x 2 table of section 4.1: accurate boxes first, successful edits second."""
    return PairedTable.of(rows["accurate"].to_numpy(), rows["success"].to_numpy())


def count_table(table: PairedTable) -> pd.DataFrame:
    """`counted` as a page shows it, with its sums; indexed by what became of the VLM's box."""
    frame = pd.DataFrame(
        {
            "edit succeeds": [table.both, table.only_second],
            "edit fails": [table.only_first, table.neither],
        },
        index=pd.Index(["accurate", "not accurate"], name="VLM's box"),
    )
    frame.loc["all"] = frame.sum()
    return frame.assign(all=frame.sum(axis=1))


def gap_measures(rows: pd.DataFrame) -> list[Measure]:
    """The editor's success, the edits that changed nothing, and the gap, beside the paper's.

    The gap is in points, hundredths of all samples, with Newcombe's interval for paired rates.
    """

    def rate(column: pd.Series) -> Interval:
        return wilson(int(column.sum()), len(rows))

    value, low, high, n = proportion_difference(counted(rows))
    points = Interval(100 * value, 100 * low, 100 * high, n)
    success, gap = reported("edit_accuracy"), 100 * reported("localization_gap")
    return [
        Measure("edit_success", "successful edits", rate(rows["success"]), "fraction", success),
        Measure("no_edit_rate", NO_EDIT, rate(rows["edit_outcome"] == NO_EDIT), "fraction"),
        Measure("gap_points", "localization gap", points, "points", gap),
    ]


def overall(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Both rates, the paper's line above this run's, as `plots.gap.both` reads them."""
    paper = {"accurate": reported("vlm_box_accuracy"), "success": reported("edit_accuracy")}
    here = proportion_difference(counted(rows)).value
    notes = [f"gap {100 * gap:.1f} points" for gap in (reported("localization_gap"), here)]
    halves = {}
    for column, name in HALVES.items():
        found = wilson(int(rows[column].sum()), len(rows))
        lines = [
            {"label": "paper", "value": paper[column], "low": np.nan, "high": np.nan},
            {"label": "this run", **found._asdict()},
        ]
        halves[name] = pd.DataFrame(lines).assign(note=notes)
    return halves


def by(rows: pd.DataFrame, column: str) -> dict[str, pd.DataFrame]:
    """Both rates in each group of `column`, ordered as `localization.rates` orders the VLM's."""
    found = [localization.rates(rows, half, column).set_index("label") for half in HALVES]
    order = found[0].index
    return {
        name: rates.loc[order].reset_index()
        for name, rates in zip(HALVES.values(), found, strict=True)
    }


def edit_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """The part of the edits with each outcome, as `plots.localization.rates` reads."""
    counts = rows["edit_outcome"].value_counts()
    found = []
    for kind in EDIT_OUTCOMES:
        rate = wilson(int(counts.get(kind, 0)), len(rows))
        note = f"{counts.get(kind, 0)} of {rate.n}"
        found.append({"label": kind, **rate._asdict(), "note": note})
    return pd.DataFrame(found)


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


def _first_rule(
    rows: pd.DataFrame, rules: Iterable[tuple[str, pd.Series]]
) -> tuple[pd.DataFrame, str]:
    """The rows that fit the first rule that any row fits, and its words; the last fits all."""
    words, fits = next((words, fits) for words, fits in rules if fits.any())
    return rows[fits], words
