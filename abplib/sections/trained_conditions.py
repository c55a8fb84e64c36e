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
from abplib.core.stats import PairedTable, holm, mcnemar, proportion_difference
from abplib.experiment import Experiment
from abplib.sections.estimates import estimates, table
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
        name = experiment.profile.name
        return None, f"The profile {name} comes with no such comparison; none is shown."
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
    """`estimates` of each condition's `RATES`, for `intervals` and to be recorded.

    Beside name and label (the condition's): condition, measure, rate (the measure's words).
    """
    columns = {
        (name, measure): own[measure].astype(bool if measure in TESTED else float)
        for name, own in ((name, rows[rows["condition"] == name]) for name in LABELS)
        for measure in RATES
    }
    means = estimates(columns.items(), seed).rename_axis(["condition", "measure"]).reset_index()
    return means.assign(
        name="conditions." + means["condition"] + "." + means["measure"],
        label=means["condition"].map(LABELS),
        rate=means["measure"].map(RATES),
        unit="fraction",
    )


def against_final(rows: pd.DataFrame) -> pd.DataFrame:
    """Each other condition against `final` on the same samples, in what is `TESTED`.

    As `estimates`, of the difference (how much more often, Newcombe's interval), by label and rate;
    p is of McNemar's exact test, Holm-adjusted for all comparisons.
    """
    compared = []
    for measure in TESTED:
        wide = rows.pivot(index="sample_id", columns="condition", values=measure).astype(bool)
        for name, label in LABELS.items():
            if name != "final":
                both = PairedTable.of(wide[name].to_numpy(), wide["final"].to_numpy())
                about = {"condition": name, "label": label, "rate": RATES[measure]}
                apart = proportion_difference(both)._asdict()
                compared.append({**about, **apart, "p": mcnemar(both)})
    frame = pd.DataFrame(compared)
    return frame.assign(p=holm(frame["p"].to_numpy()))


def rate_table(trained: Trained, found: pd.DataFrame) -> pd.DataFrame:
    """What each condition reads and what became of its edits, as a page shows it."""
    about = pd.DataFrame.from_dict(trained.run["conditions"], orient="index")
    leakage = trained.rows.groupby("condition")["leakage"].mean()
    shown = table(found, "condition", "rate", ".1%")
    shown.insert(0, "layers", about["layers"].map(lambda layers: ", ".join(map(str, layers))))
    shown["leakage score"] = leakage.map("{:.2f}".format)
    shown["held-out loss"] = about["held_out_loss"].map("{:.4f}".format)
    return shown.rename(index=LABELS).rename_axis("trained on")


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
