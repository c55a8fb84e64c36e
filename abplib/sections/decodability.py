"""Where a VLM's states hold the place of an edit: the sweep's errors, and verdicts on claims.

Chapter 2, sections 4.2 and 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from abplib import paper as reported
from abplib.core import boxes
from abplib.core.stats import Interval, bootstrap_mean
from abplib.profiles import Profile
from abplib.proxies.baselines import TEXT_ONLY
from abplib.proxies.configurations import Configuration
from abplib.proxies.labels import Labels
from abplib.proxies.settings import SweepSettings
from abplib.samples.base import SampleSet
from abplib.vlm.encoder import ConditionEncoder

HOLDS, REVERSED, UNDECIDED = "holds", "does not hold", "undecided"


def name_of(configuration: str) -> str:
    """How figures and tables call a configuration or a baseline of the sweep."""
    if configuration.startswith("layer_"):
        return f"layer {configuration.removeprefix('layer_')}"
    words = {"centre_prior": "centre prior", TEXT_ONLY: "spatial term alone"}
    return words.get(configuration, configuration.replace("_", " "))


def groups_of(chosen: Sequence[Configuration], middle: Sequence[int]) -> dict[str, str]:
    """Each configuration's colour group of Figure 4: outer, middle, final or middle_prompt."""
    groups = {}
    for configuration in chosen:
        name = configuration.name
        if name in ("final", "middle_prompt"):
            groups[name] = name
        else:
            groups[name] = "middle" if configuration.layers[0] in middle else "outer"
    return groups


def label_agreement(usable: pd.DataFrame, samples: SampleSet, n: int = 512) -> pd.DataFrame:
    """The VLM's training boxes against the exact ones: iou and center_error of the first `n`.

    Without the samples whose exact box is not known.
    """
    checked = usable.head(n)
    said = torch.tensor(checked[["x1", "y1", "x2", "y2"]].to_numpy(np.float32))
    exact = torch.tensor([samples[int(index)].box for index in checked["index"]])
    found = {"iou": boxes.iou(said, exact), "center_error": boxes.center_distance(said, exact)}
    return pd.DataFrame({name: column.numpy() for name, column in found.items()}).dropna()


def final_errors(samples: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean centre error of each configuration and baseline, with its bootstrap interval.

    `samples` has the columns of `Sweep.samples`. Indexed by configuration, in its order: value,
    low, high, n, iou and acc50 (means).
    """
    rows = {}
    for name, group in samples.groupby("configuration", sort=False):
        error = bootstrap_mean(group["center_error"].to_numpy(), seed=seed)
        means = {score: float(group[score].mean()) for score in ("iou", "acc50")}
        rows[str(name)] = {**error._asdict(), **means}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("configuration")


def difference(
    samples: pd.DataFrame, left: Sequence[str], right: Sequence[str], seed: int
) -> Interval:
    """Mean centre error of `left` less that of `right`, paired by sample, with its interval.

    Each side is averaged over its configurations sample by sample, so nothing is picked by result.
    """
    table = samples.pivot(index="sample_id", columns="configuration", values="center_error")
    paired = table[list(left)].mean(axis=1) - table[list(right)].mean(axis=1)
    return bootstrap_mean(paired.to_numpy(), seed=seed)


def batches_to(curves: pd.DataFrame, error: float) -> dict[str, float]:
    """The first evaluated step at which each configuration's curve is at `error` or below.

    Infinity where it never is.
    """
    reached = curves[curves["center_error"] <= error].groupby("configuration")["step"].min()
    names = curves["configuration"].unique()
    return {str(name): float(reached.get(name, np.inf)) for name in names}


@dataclass(frozen=True)
class Verdict:
    """A claim of the paper beside what this run says of it."""

    key: str
    claim: str
    where: str
    """In the paper."""
    measured: str
    verdict: str
    """`HOLDS`, `REVERSED` or `UNDECIDED`."""
    found: Interval | None = None
    """The paired difference that it was decided by; None where curves decided."""


def verdict_of(difference: Interval) -> str:
    """Of the claim that a difference is below zero; undecided where its interval holds zero."""
    if difference.high < 0:
        return HOLDS
    return REVERSED if difference.low > 0 else UNDECIDED


def verdicts(
    samples: pd.DataFrame, curves: pd.DataFrame, groups: Mapping[str, str], seed: int
) -> list[Verdict]:
    """What of sections 4.1 and 4.3 holds on this model, by paired intervals and by curves.

    `samples` is `Sweep.samples` with the rows of `by_term`, against which the last one checks the
    prompt tokens.

    Errors at the end of training are compared by `difference`, over all samples. Speed is the
    first evaluation at which a curve is as low as that of `final` ends; curves carry no interval,
    so what happens between the same two evaluations is undecided.
    """
    middle = [name for name, group in groups.items() if group == "middle"]
    outer = [name for name, group in groups.items() if group == "outer"]

    def lower(key: str, claim: str, where: str, left: list[str], right: list[str]) -> Verdict:
        found = difference(samples, left, right, seed)
        measured = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        return Verdict(key, claim, where, measured, verdict_of(found), found)

    goal = float(curves[curves["configuration"] == "final"]["center_error"].iloc[-1])
    steps = batches_to(curves, goal)
    typical = float(np.quantile([steps[name] for name in middle], 0.5, method="higher"))
    rivals = min(step for name, step in steps.items() if name != "middle_prompt")
    return [
        lower(
            "one_pass", "The place is in a single pass: middle layers beat the centre prior",
            "4.1, 4.3", middle, ["centre_prior"],
        ),
        lower(
            "middle_final", "Middle layers end lower than the final states",
            "4.3", middle, ["final"],
        ),
        lower(
            "middle_outer", "Middle layers end lower than early and late ones",
            "Figure 4", middle, outer,
        ),
        _sooner(
            "middle_faster", "Middle layers converge faster than the final states",
            typical, steps["final"],
        ),
        _sooner(
            "prompt_fastest", "Prompt tokens of the middle layers converge fastest of all",
            steps["middle_prompt"], rivals,
        ),
        lower(
            "prompt_final", "Prompt tokens of the middle layers end lower than the final states",
            "Figure 4", ["middle_prompt"], ["final"],
        ),
        lower(
            "prompt_text_only",
            "Prompt tokens of the middle layers end lower than the spatial term alone",
            "a check", ["middle_prompt"], [TEXT_ONLY],
        ),
    ]  # fmt: skip


def _sooner(key: str, claim: str, step: float, other: float) -> Verdict:
    decided = HOLDS if step < other else REVERSED if step > other else UNDECIDED
    words = [f"{s:.0f}" if np.isfinite(s) else "never" for s in (step, other)]
    return Verdict(key, claim, "Figure 4", f"batch {words[0]} against {words[1]}", decided)


def setting_rows(
    profile: Profile,
    settings: SweepSettings,
    encoder: ConditionEncoder,
    n_labels: int,
    epochs: float,
) -> pd.DataFrame:
    """What the run took, paper beside this run; indexed by the name of the setting.

    Columns: setting (words), paper (NaN where the paper leaves it open), this run.
    """
    taken: dict[str, tuple[str, float]] = {
        "n_layers": ("decoder blocks of the VLM", encoder.n_layers),
        "state_width": ("width of its states", encoder.width),
        "image_area": ("pixels of the image it sees", profile.image_area),
        "first_middle_layer": ("first middle layer", encoder.middle_layers[0]),
        "last_middle_layer": ("last middle layer", encoder.middle_layers[-1]),
        "n_queries": ("learned queries of a proxy", settings.n_queries),
        "width": ("width of a proxy", settings.width),
        "n_heads": ("attention heads of each block", settings.n_heads),
        "n_blocks": ("blocks of a proxy", settings.n_blocks),
        "n_batches": ("batches", settings.n_batches),
        "batch_size": ("samples a batch", settings.batch_size),
        "n_train": ("samples seen", settings.n_batches * settings.batch_size),
        "n_labels": ("training samples that the VLM labelled", n_labels),
        "epochs": ("passes over the usable labels", epochs),
        "lr": ("learning rate", settings.lr),
        "l1_steps": ("first steps, with L1 alone", settings.l1_steps),
        "lambda_giou": ("weight of GIoU", settings.lambda_giou),
        "clip": ("largest gradient norm of a proxy", settings.clip),
        "eval_every": ("batches between two evaluations", settings.eval_every),
        "n_curve_eval": ("samples behind a point of a curve", settings.n_curve_eval),
    }
    known = reported.numbers()
    paper = [known.get(name, np.nan) for name in taken]
    frame = pd.DataFrame(taken.values(), columns=["setting", "this run"])
    frame.insert(1, "paper", np.array(paper, dtype=float))
    return frame.set_index(pd.Index(taken, name="name"))


def format_of(*numbers: float) -> str:
    """How settings are written: whole numbers whole, others with three digits."""
    whole = all(float(number).is_integer() for number in numbers if np.isfinite(number))
    return ",.0f" if whole else ".3g"


def label_table(labels: Labels) -> pd.DataFrame:
    """How many training samples were labelled and why others were not; indexed by outcome."""
    words = {"no_box": "no box", "too_small": "box too small", "too_large": "box too large"}
    counts = {"usable": len(labels.usable)}
    counts |= {words[reason]: n for reason, n in labels.unusable.items()}
    frame = pd.DataFrame({"samples": counts}).rename_axis("answer")
    return frame.assign(part=frame["samples"] / len(labels.frame))


def configuration_table(errors: pd.DataFrame) -> pd.DataFrame:
    """`final_errors` as a page shows it, the lowest error first."""
    words = {"value": "centre error", "iou": "mean IoU", "acc50": "IoU ≥ 0.5"}
    table = errors.rename(index=name_of, columns=words).sort_values("centre error", kind="stable")
    return table[["centre error", "low", "high", "mean IoU", "IoU ≥ 0.5"]]


def claims_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Claim, verdict, what was measured, where the paper makes the claim."""
    rows = [
        {"claim": v.claim, "verdict": v.verdict, "this run": v.measured, "paper": v.where}
        for v in verdicts
    ]
    return pd.DataFrame(rows).set_index("claim")
