"""Means with their intervals, as frames: chapters record them, tables show them, figures draw them.

Their columns are value, low, high (NaN where no interval is known), n and seeds (what each seed of
the proxies gives, empty where there is one), and of what describes them name (in `values.json`),
label, unit, paper (what it reports) and fmt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype

from abplib.core.stats import (
    Interval,
    bootstrap_mean,
    bootstrap_nested,
    holm,
    p_words,
    paired_difference,
    sign_flip_test,
    wilson,
    with_interval,
)


def estimate(values: pd.Series, seed: int = 0) -> Interval:
    """Mean of what is known of a column, with its 95 % interval.

    Over seeds and samples together (`bootstrap_nested`) where the column is indexed by seed and
    sample and there are several seeds. Else over samples: Wilson's where the column is Boolean, so
    that the mean is a rate, or the bootstrap's (BCa).
    """
    known = values.dropna().infer_objects()
    if "seed" in known.index.names:
        by_seed = known.astype(float).unstack("seed").dropna().to_numpy().T  # [seed, sample]
        if len(by_seed) > 1:
            return bootstrap_nested(by_seed, seed=seed)
    if is_bool_dtype(known):
        return wilson(int(known.sum()), len(known))
    return bootstrap_mean(known.to_numpy(float), seed=seed)


def estimates(columns: Iterable[tuple[Any, pd.Series]], seed: int = 0) -> pd.DataFrame:
    """`estimate` of each column, indexed by its key; grouped columns are such pairs."""
    rows = {key: estimate(values, seed)._asdict() for key, values in columns}
    return pd.DataFrame.from_dict(rows, orient="index")


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Columns that hold a number for each seed: their mean (value) and seeds, a row a column."""
    seeds = {name: tuple(column) for name, column in table.items()}
    return table.mean().rename_axis("name").to_frame("value").assign(seeds=pd.Series(seeds))


def measure(
    name: str, label: str, found: Interval, unit: str, paper: float | None = None
) -> dict[str, object]:
    """One row of such a frame."""
    return {"name": name, "label": label, **found._asdict(), "unit": unit, "paper": paper}


def paired_differences(
    pairs: Mapping[Any, tuple[np.ndarray, np.ndarray]], seed: int
) -> pd.DataFrame:
    """How far the first of two columns lies above the second, paired by sample, by their key.

    p is of the two-sided sign-flip test, adjusted by Holm for all pairs.
    """
    apart = {key: paired_difference(*pair, seed=seed)._asdict() for key, pair in pairs.items()}
    p = [sign_flip_test(*pair, seed=seed) for pair in pairs.values()]
    return pd.DataFrame.from_dict(apart, orient="index").assign(p=holm(p))


def written(frame: pd.DataFrame, fmt: str | pd.Series = ".3f") -> pd.Series:
    """Value and interval of each row as a page shows them, with the p-value where there is one."""
    formats = pd.Series(fmt, index=frame.index)
    numbers = frame[["value", "low", "high", "n"]].itertuples(index=False)
    cells = [with_interval(Interval(*row), f) for row, f in zip(numbers, formats, strict=True)]
    tests = [f", p {p_words(p)}" for p in frame["p"]] if "p" in frame else [""] * len(cells)
    return pd.Series([a + b for a, b in zip(cells, tests, strict=True)], frame.index, dtype=object)


def table(
    frame: pd.DataFrame, rows: str, columns: str, fmt: str | pd.Series = ".3f"
) -> pd.DataFrame:
    """`written` as a table: a row and a column for each entry of two columns, in their order."""
    cells = frame.assign(cell=written(frame, fmt)).set_index([rows, columns])["cell"]
    return cells.unstack(sort=False).rename_axis(columns=None)


def beside_paper(numbers: pd.DataFrame) -> pd.DataFrame:
    """A frame as a page shows it: paper beside this run, indexed by measure."""
    named = numbers.rename(columns={"label": "measure", "value": "this run"})
    columns = ["paper", "this run", "low", "high", "n", "unit"]
    return named.set_index("measure")[columns].astype({"paper": float})
