"""Where the gap comes from: transformers trained on other conditions and instructions, chapter 5.

Beyond the paper. What is compared was made by `recipes.miniature.condition_comparison`: a row a
training and sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

from abplib.core import store
from abplib.core.stats import PairedTable, holm, mcnemar, proportion_difference
from abplib.experiment import Experiment
from abplib.sections import shipped
from abplib.sections.estimates import estimates, table
from abplib.sections.shipped import Shipped

FILE = "conditions.csv"
"""Of the comparison, beside the VLM's weights."""

LABELS = {
    "final": "Final states",
    "middle": "One middle layer",
    "pooled": "Middle layers pooled",
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

ALPHA = 0.05
"""Level at which a difference is called sure."""


class Trained(Shipped):
    """The comparison; of each training `run` tells layers, parameters, minutes, held-out loss."""

    @property
    def amounts(self) -> dict[str, str]:
        """How much the training instructions named by place, by key, in words."""
        return {k: f"{share:.0%} by place" for k, share in self.run["plan"]["by_place"].items()}

    def names(self, frame: pd.DataFrame) -> pd.Series:
        """What tables call the training that each row of a frame is of."""
        return frame["condition"].map(LABELS) + ", " + frame["by_place"].map(self.amounts)


def find(experiment: Experiment) -> tuple[Trained | None, str]:
    """The comparison around the experiment's VLM, if there is one, and a sentence on it."""
    command = "python -m recipes train-conditions"
    made, told = shipped.find(experiment, FILE, command)
    if made is None:
        return None, told
    told = _told(made.run)
    if made.run.get("transformer", "") != transformer_of(Path(experiment.editor_source)):
        told += (
            f" They go on from another transformer than this editor's: `{command}` makes them anew."
        )
    return Trained(made.rows, made.run), told


def transformer_of(editor: Path) -> str | None:
    """Eight hex digits that identify an editor's transformer; None if its weights are not there."""
    weights = editor / "transformer" / SAFETENSORS_WEIGHTS_NAME
    return store.digest_files(weights)[:8] if weights.is_file() else None


def rates(trained: Trained, seed: int) -> pd.DataFrame:
    """`estimates` of each training's `RATES`, for `intervals` and to be recorded.

    Beside name, label (the condition's) and panel (how much was named by place): condition,
    by_place, measure, rate (the measure's words).
    """
    keys = ["condition", "by_place", "measure"]
    own = {key: rows for key, rows in trained.rows.groupby(keys[:2])}
    columns = {
        (condition, amount, measure): own[condition, amount][measure].astype(
            bool if measure in TESTED else float
        )
        for amount in trained.amounts
        for condition in LABELS
        for measure in RATES
    }
    means = estimates(columns.items(), seed).rename_axis(keys).reset_index()
    return means.assign(
        name="conditions." + means[keys].agg(".".join, axis=1),
        label=means["condition"].map(LABELS),
        panel=means["by_place"].map(trained.amounts),
        rate=means["measure"].map(RATES),
        unit="fraction",
    )


def against_plain(trained: Trained) -> pd.DataFrame:
    """What another condition, and more instructions by place, change on the same samples.

    Each training against the plain one, final states and the first amount, in what is `TESTED`. As
    `estimates`, of the difference (how much more often, Newcombe's interval), by label and rate; p
    is of McNemar's exact test, Holm-adjusted for all comparisons.
    """
    named = trained.rows.assign(label=trained.names(trained.rows))
    order = pd.DataFrame(
        [(c, a) for a in trained.amounts for c in LABELS], columns=["condition", "by_place"]
    )
    plain, *others = trained.names(order)
    compared = []
    for measure in TESTED:
        wide = named.pivot(index="sample_id", columns="label", values=measure).astype(bool)
        for label in others:
            both = PairedTable.of(wide[label].to_numpy(), wide[plain].to_numpy())
            apart = proportion_difference(both)._asdict()
            compared.append({"label": label, "rate": RATES[measure], **apart, "p": mcnemar(both)})
    frame = pd.DataFrame(compared)
    return frame.assign(p=holm(frame["p"].to_numpy()))


def found(against: pd.DataFrame) -> str:
    """How many differences of `against_plain` are sure, in a sentence."""
    sure = against[against["p"] < ALPHA]
    named = ", ".join(f"{row.label} ({row.rate} {row.value:+.1%})" for row in sure.itertuples())
    return (
        f"Of {len(against)} differences to the plain one, {len(sure) or 'none'} "
        f"{'is' if len(sure) < 2 else 'are'} sure at a level of {ALPHA:g} after Holm's adjustment"
        f"{f': {named}' if named else ''}."
    )


def rate_table(trained: Trained, found: pd.DataFrame) -> pd.DataFrame:
    """What each training read and what became of its edits, as a page shows it."""
    runs = pd.DataFrame(trained.run["runs"])
    about = runs.set_index(trained.names(runs))
    leakage = trained.rows.groupby(trained.names(trained.rows))["leakage"].mean()
    shown = table(found.assign(label=trained.names(found)), "label", "rate", ".1%")
    shown.insert(0, "layers", about["layers"].map(lambda layers: ", ".join(map(str, layers))))
    shown["leakage score"] = leakage.map("{:.2f}".format)
    shown["held-out loss"] = about["held_out_loss"].map("{:.4f}".format)
    return shown.rename_axis("trained on")


def _told(run: Mapping[str, Any]) -> str:
    """What was run, in a sentence."""
    plan, runs = run["plan"], run["runs"]
    training, shape = plan["dit"], plan["shape"]
    minutes = [f"{pick(each['minutes'] for each in runs):.0f}" for pick in (min, max)]
    return (
        f"Each has {shape['layers']} blocks of width {shape['heads'] * shape['head_dim']} "
        f"({runs[0]['parameters']:,} parameters) and learned from "
        f"{training['schedule']['steps']} more batches of {training['batch']} pairs of "
        f"{training['scenes']} scenes, in "
        f"{' to '.join(dict.fromkeys(minutes))} minutes ({run['device']}); each then edited the "
        f"same {plan['samples']} samples in {plan['n_steps']} steps at a guidance of "
        f"{plan['guidance']:g}."
    )
