"""Transformers trained on other conditions of the VLM, compared; beyond the paper, chapter 5.

What is compared was made by `train-conditions`: a table with a row a condition and sample (see
`recipes.miniature.condition_comparison`), and a JSON file of what was run. Profiles name the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
from abplib.sections.claims import measure as numbered
from abplib.vlm.loading import fingerprint

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
    vlm = fingerprint(experiment.vlm_source, experiment.profile.revision)
    if (run["vlm"], run["samples"]) != (vlm, experiment.evaluation.fingerprint):
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


def rates(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Each condition's `RATES`, for `intervals` and to be recorded.

    Columns: name, condition, measure, label (the condition's), rate (the measure's words), value,
    low, high, n (Wilson's intervals, for other objects the bootstrap's), unit.
    """
    found = []
    for name, label in LABELS.items():
        own = rows[rows["condition"] == name]
        for measure, words in RATES.items():
            values = own[measure].to_numpy()
            if measure in TESTED:
                rate = wilson(int(values.sum()), len(values))
            else:
                rate = bootstrap_mean(values, seed=seed)
            found.append(
                {
                    **numbered(f"conditions.{name}.{measure}", label, rate, "fraction"),
                    **{"condition": name, "measure": measure, "rate": words},
                }
            )
    return pd.DataFrame(found)


def against_final(rows: pd.DataFrame) -> pd.DataFrame:
    """Each other condition against `final` on the same samples, in what is `TESTED`.

    Columns: condition, measure, difference (how much more often, Newcombe's interval), and p of
    McNemar's exact test, Holm-adjusted for all comparisons.
    """
    compared = []
    for measure in TESTED:
        wide = rows.pivot(index="sample_id", columns="condition", values=measure).astype(bool)
        for name in LABELS:
            if name != "final":
                table = PairedTable.of(wide[name].to_numpy(), wide["final"].to_numpy())
                difference = proportion_difference(table)
                compared.append((name, measure, difference, mcnemar(table)))
    frame = pd.DataFrame(compared, columns=["condition", "measure", "difference", "p"])
    return frame.assign(p=holm(frame["p"].to_numpy()))


def rate_table(trained: Trained, found: pd.DataFrame) -> pd.DataFrame:
    """What each condition reads and what became of its edits, as a page shows it."""
    leakage = trained.rows.groupby("condition")["leakage"].mean()
    rows = {}
    for name, own in found.groupby("condition", sort=False):
        about = trained.run["conditions"][name]
        ends = own[["value", "low", "high", "n"]].to_numpy(float).tolist()
        shown = [with_interval(Interval(v, low, high, int(n)), ".1%") for v, low, high, n in ends]
        rows[LABELS[str(name)]] = {
            "layers": ", ".join(map(str, about["layers"])),
            **dict(zip(own["rate"], shown, strict=True)),
            "leakage score": f"{leakage[name]:.2f}",
            "held-out loss": f"{about['held_out_loss']:.4f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("trained on")


def against_table(compared: pd.DataFrame) -> pd.DataFrame:
    """`against_final` as a page shows it."""
    cells = [
        f"{with_interval(difference, '+.1%')}, p {p_words(p)}"
        for difference, p in zip(compared["difference"], compared["p"], strict=True)
    ]
    wide = compared.assign(cell=cells).pivot(index="condition", columns="measure", values="cell")
    wide = wide.loc[[name for name in LABELS if name != "final"], list(TESTED)]
    return wide.rename(index=LABELS, columns=RATES).rename_axis(
        index="less final states", columns=None
    )


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
