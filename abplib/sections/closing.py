"""How much of the localization gap the recovered box closes (section 4.6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from abplib.core.stats import Interval, PairedTable, proportion_difference, with_interval
from abplib.editing.methods import METHODS
from abplib.judging.verdicts import succeeded
from abplib.sections.editing_validation import DIFFERENCES, TUNED


def successes(rows: pd.DataFrame) -> pd.DataFrame:
    """Whether each edit of `edits.judged` succeeds: index (of the sample) by method; NA if open."""
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


def gap_closed(accurate: pd.Series, success: pd.DataFrame, seed: int) -> dict[str, Closed]:
    """How much of the localization gap the methods under the LoRA close.

    A share is given where the whole intervals of gap and gain lie above zero: there is no part of a
    gap that may not be there, and none is closed by a loss.

    Args:
        accurate: whether the VLM's box is, by the sample's index.
        success: `successes`.
        seed: of the bootstrap.
    """
    known = gap_of(accurate, success["baseline"]).low > 0
    closed = {}
    for method in TUNED:
        edited, baseline, named = _known(success[method], success["baseline"], accurate)
        gain = proportion_difference(PairedTable.of(edited, baseline))
        sure = known and gain.low > 0
        share = _share(edited, baseline, named, seed) if sure else None
        closed[method] = Closed(gain, share)
    return closed


def gap_table(closed: Mapping[str, Closed]) -> pd.DataFrame:
    """`gap_closed` as a page shows it."""
    rows = {
        METHODS[method].label: {
            "gained on the baseline": with_interval(found.gain, DIFFERENCES["edit_success"]),
            "part of the gap": "–" if found.share is None else with_interval(found.share, ".1%"),
        }
        for method, found in closed.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def closed_words(found: Closed) -> str:
    """Which part of the gap that is, as the end of a sentence about the method."""
    if found.share is not None:
        return f"closes {with_interval(found.share, '.1%')} of it"
    if found.gain.high < 0:
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
