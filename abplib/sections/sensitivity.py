"""Whether a verdict hangs on a choice that the paper leaves open; chapter 2, and the assumptions.

Beyond the paper. `recipes.sensitivity` trains the proxies with each choice made otherwise.
"""

from __future__ import annotations

import pandas as pd

from abplib.experiment import Experiment
from abplib.sections import shipped
from abplib.sections.claims import REVERSED, UNDECIDED
from abplib.sections.shipped import Shipped

FILE = "sensitivity.csv"
"""Of the verdicts, beside the VLM's weights."""

KEYS = (
    "n_queries", "width", "scale", "place", "softmax", "l1", "l1_steps", "labels", "micro_batch",
    "seed",
)  # fmt: skip
"""The choices that are varied."""

CLAIMS = {
    "one_pass": "in one pass",
    "middle_final": "middle below final",
    "middle_outer": "middle below early and late",
    "middle_faster": "middle sooner than final",
    "prompt_fastest": "prompt soonest",
    "prompt_final": "prompt below final",
    "prompt_text_only": "prompt below term alone",
}
"""Chapter 2's checks, as a narrow table calls them."""

_BASE = "as_taken"
_SHORT = {UNDECIDED: "open", REVERSED: "no"}
"""What a narrow table calls verdicts."""


def find(experiment: Experiment) -> tuple[Shipped | None, str]:
    """The verdicts under each choice, if they are of the experiment's VLM, and words on them."""
    made, told = shipped.find(experiment, FILE, "python -m recipes sensitivity")
    if made is None:
        return None, told
    settings = made.run["sweep"]
    seen = settings["n_batches"] * settings["batch_size"]
    return made, (
        f"Each line is a training of its own, of one seed on {seen:,} samples, evaluated on "
        f"{made.run['n']}; all took {made.run['minutes']:.0f} minutes."
    )


def verdict_table(made: Shipped) -> pd.DataFrame:
    """The verdict on each of `CLAIMS`, a row a choice; an asterisk where the first row differs."""
    verdicts = _verdicts(made).replace(_SHORT)
    marked = verdicts.where(verdicts == verdicts.iloc[0], verdicts + " *")
    table = marked.rename(columns=CLAIMS).droplevel("key").rename_axis("taken")
    return table.rename_axis(columns=None)


def changes(made: Shipped | None) -> dict[str, str]:
    """Which of `CLAIMS` get another verdict where one of `KEYS` is chosen otherwise, in words."""
    if made is None:
        return dict.fromkeys(KEYS, "not varied here")
    verdicts = _verdicts(made)
    differs = (verdicts != verdicts.xs(_BASE).iloc[0]).groupby("key").any()
    words = {key: [CLAIMS[claim] for claim in CLAIMS if differs.loc[key, claim]] for key in KEYS}
    return {key: ", ".join(changed) or "none" for key, changed in words.items()}


def _verdicts(made: Shipped) -> pd.DataFrame:
    """A row a choice, in the order of the table, and a column for each of `CLAIMS`."""
    keys = ["key", "taken"]
    wide = made.rows.pivot(index=keys, columns="claim", values="verdict")[list(CLAIMS)]
    return wide.loc[list(made.rows[keys].drop_duplicates().itertuples(index=False, name=None))]
