"""How far raters agree beyond chance: Cohen's kappa for two, Fleiss' for any number.

1 is perfect agreement, 0 what chance gives. Where all answers are the same, chance alone gives
perfect agreement and kappa has no value: it is NaN.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from abplib.core.errors import AbpError


def cohen_kappa(
    first: Sequence[Any] | np.ndarray,
    second: Sequence[Any] | np.ndarray,
    categories: Iterable[Hashable],
    *,
    quadratic: bool = False,
) -> float:
    """Cohen's (1960) kappa of two raters' answers to the same questions, in [-1, 1].

    Args:
        first: one answer a question.
        second: the other rater's, in the same order.
        categories: all possible answers, in their order where they have one.
        quadratic: weigh a disagreement by the square of its distance in that order (Cohen 1968).

    Raises:
        AbpError: there is no question, an answer is missing, or one is not in `categories`.
    """
    place = {category: number for number, category in enumerate(categories)}
    if len(first) != len(second) or not len(first):
        raise AbpError(
            f"{len(first)} and {len(second)} answers are not in pairs; give both of each question."
        )
    if unknown := {a for a in (*first, *second) if a not in place}:
        raise AbpError(f"{unknown.pop()!r} is none of the answers {', '.join(map(str, place))}.")
    observed = np.zeros((len(place), len(place)))
    for a, b in zip(first, second, strict=True):
        observed[place[a], place[b]] += 1 / len(first)
    chance = np.outer(observed.sum(1), observed.sum(0))
    distance = np.abs(np.subtract.outer(np.arange(len(place)), np.arange(len(place))))
    weights = distance**2.0 if quadratic else (distance > 0).astype(float)
    expected = float((weights * chance).sum())
    return 1 - float((weights * observed).sum()) / expected if expected else float("nan")


def fleiss_kappa(counts: Sequence[Sequence[int]] | np.ndarray) -> float:
    """Fleiss' (1971) kappa of `counts` [questions, categories], how many raters gave which answer.

    Raises:
        AbpError: there is no question, or the questions differ in their number of raters, or have
            fewer than two.
    """
    table = np.asarray(counts, dtype=float)
    raters = table.sum(axis=1) if table.ndim == 2 and len(table) else np.zeros(1)
    if raters.min() < 2 or raters.min() != raters.max():
        raise AbpError("Fleiss' kappa takes questions that the same number of raters, 2 or more, "
                       "answered; leave out the others.")  # fmt: skip
    n = raters[0]
    observed = float((((table**2).sum(axis=1) - n) / (n * (n - 1))).mean())
    expected = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")
