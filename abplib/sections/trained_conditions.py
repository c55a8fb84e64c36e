"""Transformers trained on other conditions of the VLM, compared; beyond the paper, chapter 5.

What is compared was made by `train-conditions`: a table with a row a condition and sample (see
`recipes.miniature.condition_comparison`), and a JSON file of what was run. Profiles name the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from abplib.core import store
from abplib.core.errors import AbpError
from abplib.core.stats import (
    Interval,
    PairedTable,
    bootstrap_mean,
    holm,
    mcnemar,
    p_words,
    proportion_difference,
    wilson,
    with_interval,
)
from abplib.experiment import Experiment

LABELS = {
    "final": "Final states",
    "middle": "One middle layer",
    "pooled": "Middle layers pooled",
    "stacked": "Three layers side by side",
    "final_untold": "Final states, untold",
}
"""What tables and figures call the conditions."""

RATES = {
    "target_altered": "target altered",
    "others_altered": "other objects altered",
    "edit_success": "edit success",
}
"""Measures that are parts of a whole, and their names."""

TESTED = ("target_altered", "edit_success")
"""Measures that are yes or no on a sample."""

Rates = dict[tuple[str, str], Interval]
"""By condition and measure of `RATES`."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A comparison that was made."""

    rows: pd.DataFrame
    run: Mapping[str, Any]
    """What was run: plan, device, and the layers, minutes and held-out loss of each condition."""


def find(experiment: Experiment) -> tuple[Trained | None, str]:
    """The experiment's comparison, if it is there and of these models, and a sentence on it.

    Raises:
        AbpError: a file of the comparison cannot be read.
    """
    path = experiment.comparison_file
    if path is None:
        return (
            None,
            f"The profile {experiment.profile.name} comes with no such comparison; none is shown.",
        )
    if not path.is_file():
        return None, (
            "This comparison has not been made yet, so nothing is shown; the command "
            "train-conditions makes it."
        )
    run = store.read_json(path.with_suffix(".json"))
    if (run["vlm"], run["samples"]) != (
        experiment.encoder.fingerprint,
        experiment.evaluation.fingerprint,
    ):
        return None, (
            f"The comparison in {path.name} was made around another VLM or on other samples, so it "
            "is not shown; the command train-conditions makes it anew."
        )
    try:
        rows = pd.read_csv(path)
    except ValueError as error:
        raise AbpError(
            f"{path} is not a readable table: restore it, or delete it and run train-conditions."
        ) from error
    return Trained(rows, run), _told(run)


def rates(rows: pd.DataFrame, seed: int) -> Rates:
    """Each condition's `RATES` with 95 % intervals: Wilson's, for other objects the bootstrap's."""
    found = {}
    for name in LABELS:
        own = rows[rows["condition"] == name]
        for measure in RATES:
            values = own[measure].to_numpy()
            if measure in TESTED:
                found[name, measure] = wilson(int(values.sum()), len(values))
            else:
                found[name, measure] = bootstrap_mean(values, seed=seed)
    return found


class Against(NamedTuple):
    """A condition against `final` on the same samples."""

    found: Interval
    """How much more often, Newcombe's interval."""
    p: float
    """McNemar's exact test, Holm-adjusted for all comparisons."""


def against_final(rows: pd.DataFrame) -> dict[tuple[str, str], Against]:
    """Each other condition against `final` in what is `TESTED`."""
    asked = [(name, measure) for name in LABELS if name != "final" for measure in TESTED]
    tables = []
    for name, measure in asked:
        wide = rows.pivot(index="sample_id", columns="condition", values=measure)
        tables.append(PairedTable.of(wide[name].to_numpy(bool), wide["final"].to_numpy(bool)))
    adjusted = holm([mcnemar(table) for table in tables])
    return {
        about: Against(proportion_difference(table), float(p))
        for about, table, p in zip(asked, tables, adjusted, strict=True)
    }


def rate_table(trained: Trained, found: Rates) -> pd.DataFrame:
    """What each condition reads and what became of its edits, as a page shows it."""
    leakage = trained.rows.groupby("condition")["leakage"].mean()
    rows = {}
    for name, label in LABELS.items():
        about = trained.run["conditions"][name]
        rows[label] = {
            "layers": ", ".join(map(str, about["layers"])),
            **{heading: with_interval(found[name, m], ".1%") for m, heading in RATES.items()},
            "leakage score": f"{leakage[name]:.2f}",
            "held-out loss": f"{about['held_out_loss']:.4f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("trained on")


def against_table(compared: Mapping[tuple[str, str], Against]) -> pd.DataFrame:
    """`against_final` as a page shows it."""
    rows: dict[str, dict[str, str]] = {}
    for (name, measure), c in compared.items():
        cell = f"{with_interval(c.found, '+.1%')}, p {p_words(c.p)}"
        rows.setdefault(LABELS[name], {})[RATES[measure]] = cell
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("less final states")


def _told(run: Mapping[str, Any]) -> str:
    """What was run, in a sentence."""
    plan, about = run["plan"], run["conditions"].values()
    training, shape = plan["dit"], plan["shape"]
    weights = sorted({entry["parameters"] for entry in about})
    minutes = sorted(entry["minutes"] for entry in about)
    return (
        f"Each has {shape['layers']} blocks of width {shape['heads'] * shape['head_dim']} "
        f"({_span(weights, ',')} parameters) and learned from {training['schedule']['steps']} "
        f"batches of {training['batch']} pairs of {training['scenes']} scenes, in "
        f"{_span(minutes, '.0f')} minutes ({run['device']}); each then edited the same "
        f"{plan['samples']} samples in {plan['n_steps']} steps at a guidance of "
        f"{plan['guidance']:g}."
    )


def _span(values: list[float], fmt: str) -> str:
    low, high = format(values[0], fmt), format(values[-1], fmt)
    return low if low == high else f"{low} to {high}"
