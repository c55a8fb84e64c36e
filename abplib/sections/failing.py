"""Where edits fail: in which ways, and with boxes of which quality; chapter 5, Figure 10.

`rows` are those of `edits.judged`, `quality` those of `guides.box_rows`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from abplib.core.stats import wilson
from abplib.editing.methods import CONTROLS, label
from abplib.judging.base import FAILURES
from abplib.judging.verdicts import succeeded
from abplib.sections.closing import successes

SUCCESS, NOT_TOLD = "success", "kind not told"

BANDS = {0.4: "below 0.4", 0.6: "0.4 to 0.6", 0.8: "0.6 to 0.8", np.inf: "0.8 or more"}
"""Bands of IoU by their upper ends, which belong to the next one."""


def kinds(rows: pd.DataFrame) -> pd.DataFrame:
    """How many edits of each method that edits (rows) succeed, or fail in each way (columns).

    Edits that the judge left open are counted in none.
    """
    success = succeeded(rows[~rows["method"].isin(CONTROLS)])
    edited = rows.loc[success.index]
    kind = edited["failure"].fillna(NOT_TOLD).where(~success, SUCCESS)
    counts = pd.crosstab(edited["method"], kind)
    found = [SUCCESS, *FAILURES] + [NOT_TOLD] * (NOT_TOLD in counts)
    counts = counts.reindex(index=edited["method"].unique(), columns=found, fill_value=0)
    return counts.rename(index=label).rename_axis(index="method", columns=None)


def by_overlap(rows: pd.DataFrame, quality: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Success with the proxy's box by its IoU, and of the same LoRA on these samples without one.

    As `plots.gap.both` reads it, from the poorest of `BANDS` on, over the samples on which both
    edits are judged; bands without one are left out.
    """
    overlaps = quality[quality["source"] == "proxy"].set_index("index")["iou"]
    methods = ["ours", "lora_no_box"]
    success = successes(rows)[methods].dropna().astype(bool)
    bands = np.digitize(overlaps.loc[success.index], list(BANDS)[:-1])
    found: dict[str, list[dict[str, object]]] = {label(method): [] for method in methods}
    for band, name in enumerate(BANDS.values()):
        inside = success[bands == band]
        for method in methods if len(inside) else ():
            rate = wilson(int(inside[method].sum()), len(inside))
            line = {"label": name, **rate._asdict(), "note": f"n = {rate.n}"}
            found[label(method)].append(line)
    return {name: pd.DataFrame(lines) for name, lines in found.items()}


def failures_by_box(rows: pd.DataFrame, quality: pd.DataFrame, n: int = 3) -> pd.DataFrame:
    """Figure 10's samples: baseline failures, from the best to the worst box of the proxy.

    Evenly spaced ranks by the IoU of the proxy's box among the samples on which the baseline's edit
    fails (among all where none does). Columns: those of `edits.judged`, and iou.
    """
    edits = rows[rows["method"] == "baseline"]
    overlaps = quality[quality["source"] == "proxy"][["index", "iou"]]
    joined = edits.merge(overlaps, on="index")
    failed = joined["success"].eq(False)  # and not open
    pool = joined[failed] if failed.any() else joined
    ranked = pool.sort_values("iou", ascending=False, kind="stable")
    ranks = np.linspace(0, len(ranked) - 1, min(n, len(ranked))).round().astype(int)
    return ranked.iloc[ranks]
