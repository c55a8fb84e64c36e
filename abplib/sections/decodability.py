"""Where a VLM's states hold the place of an edit: the errors of the sweep's proxies.

Chapter 2, sections 4.2 and 4.3, Figure 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from abplib.core import boxes
from abplib.core.stats import Interval, bootstrap_mean
from abplib.paper import numbers
from abplib.profiles import Profile
from abplib.proxies.baselines import TEXT_ONLY
from abplib.proxies.configurations import Configuration
from abplib.proxies.labels import Labels
from abplib.proxies.settings import SweepSettings
from abplib.samples.base import SampleSet
from abplib.sections.claims import HOLDS, REVERSED, UNDECIDED, ClaimCheck, against
from abplib.vlm.encoder import ConditionEncoder

GROUPS: Mapping[str, str] = {
    "final": "final states",
    "outer": "early and late layers",
    "middle": "middle layers",
    "middle_prompt": "prompt tokens of the middle layers",
}
"""Figure 4's groups of configurations, and how figures call them."""

UNREAD = "no states read"
"""How figures call the group of the baselines."""


def label_of(configuration: str) -> str:
    """How figures and tables call a configuration or a baseline of the sweep."""
    words = {"centre_prior": "centre prior", TEXT_ONLY: "spatial term alone"}
    if configuration.startswith("layer_"):
        return f"layer {configuration.removeprefix('layer_')}"
    return words.get(configuration, configuration.replace("_", " "))


def groups_of(chosen: Sequence[Configuration], middle: Sequence[int]) -> dict[str, str]:
    """Each configuration's key in `GROUPS`."""
    return {
        c.name: c.name if c.name in GROUPS else "middle" if c.layers[0] in middle else "outer"
        for c in chosen
    }


def label_agreement(usable: pd.DataFrame, samples: SampleSet, n: int = 512) -> pd.DataFrame:
    """The VLM's training boxes against the exact ones: iou and center_error of the first `n`.

    Without the samples whose exact box is not known.
    """
    checked = usable.head(n)
    said = torch.tensor(checked[boxes.CORNERS].to_numpy(np.float32))
    exact = torch.tensor([samples[int(index)].box for index in checked["index"]])
    scores = {"iou": boxes.iou(said, exact), "center_error": boxes.center_distance(said, exact)}
    return pd.DataFrame({name: column.numpy() for name, column in scores.items()}).dropna()


def final_errors(samples: pd.DataFrame, groups: Mapping[str, str], seed: int) -> pd.DataFrame:
    """Mean centre error of each configuration and baseline, with its bootstrap interval.

    Indexed by configuration, in the order of `samples`, whose columns are those of `Sweep.samples`:
    label, group (as figures call them), value, low, high, n, unit, iou and acc50 (means).
    """
    rows = {}
    for name, part in samples.groupby("configuration", sort=False):
        key = str(name)
        error = bootstrap_mean(part["center_error"].to_numpy(), seed=seed)
        group = GROUPS[groups[key]] if key in groups else UNREAD
        rows[key] = {"label": label_of(key), "group": group, **error._asdict()}
        rows[key] |= {
            "unit": "image sides",
            "iou": part["iou"].mean(),
            "acc50": part["acc50"].mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("configuration")


def curve_rows(curves: pd.DataFrame, groups: Mapping[str, str]) -> pd.DataFrame:
    """`Sweep.curves` with label and group as figures call them, in the order of `groups`."""
    place = {name: i for i, name in enumerate(groups)}
    rows = curves[curves["configuration"].isin(place)]
    rows = rows.sort_values("step").sort_values(
        "configuration", key=lambda c: c.map(place), kind="stable"
    )
    return rows.assign(
        label=rows["configuration"].map(label_of),
        group=rows["configuration"].map(groups).map(GROUPS),
    )


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


def check_claims(
    samples: pd.DataFrame, curves: pd.DataFrame, groups: Mapping[str, str], seed: int
) -> list[ClaimCheck]:
    """What of sections 4.1 and 4.3 holds on this model, by paired intervals and by curves.

    `samples` is `Sweep.samples` with the rows of `by_term`, against which the last one checks the
    prompt tokens.

    Errors at the end of training are compared by `difference`, over all samples. Speed is the
    first evaluation at which a curve is as low as that of `final` ends; curves carry no interval,
    so what happens between the same two evaluations is undecided.
    """
    middle = [name for name, group in groups.items() if group == "middle"]
    outer = [name for name, group in groups.items() if group == "outer"]

    def lower(key: str, claim: str, where: str, left: list[str], right: list[str]) -> ClaimCheck:
        rival = label_of(right[0]) if len(right) == 1 else GROUPS["outer"]
        apart = {rival: difference(samples, left, right, seed)}
        return against(key, claim, where, apart, above=False)

    goal = float(curves[curves["configuration"] == "final"]["center_error"].iloc[-1])
    steps = batches_to(curves, goal)
    typical = float(np.quantile([steps[name] for name in middle], 0.5, method="higher"))
    rivals = min(step for name, step in steps.items() if name != "middle_prompt")
    return [
        lower("one_pass", "The place is in a single pass: middle layers beat the centre prior",
              "4.1, 4.3", middle, ["centre_prior"]),
        lower("middle_final", "Middle layers end lower than the final states", "4.3", middle,
              ["final"]),
        lower("middle_outer", "Middle layers end lower than early and late ones", "Figure 4",
              middle, outer),
        _sooner("middle_faster", "Middle layers converge faster than the final states", typical,
                steps["final"]),
        _sooner("prompt_fastest", "Prompt tokens of the middle layers converge fastest of all",
                steps["middle_prompt"], rivals),
        lower("prompt_final", "Prompt tokens of the middle layers end lower than the final states",
              "Figure 4", ["middle_prompt"], ["final"]),
        lower("prompt_text_only",
              "Prompt tokens of the middle layers end lower than the spatial term alone",
              "a check", ["middle_prompt"], [TEXT_ONLY]),
    ]  # fmt: skip


def _sooner(key: str, claim: str, step: float, other: float) -> ClaimCheck:
    decided = HOLDS if step < other else REVERSED if step > other else UNDECIDED
    words = [f"{s:.0f}" if np.isfinite(s) else "never" for s in (step, other)]
    return ClaimCheck(key, claim, "Figure 4", f"batch {words[0]} against {words[1]}", decided)


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
    known = numbers()
    paper = [known.get(name, np.nan) for name in taken]
    frame = pd.DataFrame(taken.values(), columns=["setting", "this run"])
    frame.insert(1, "paper", np.array(paper, dtype=float))
    return frame.set_index(pd.Index(taken, name="name"))


def format_of(*numbers: float) -> str:
    """How settings are written: whole numbers whole, others with three digits."""
    whole = all(float(number).is_integer() for number in numbers if np.isfinite(number))
    return ",.0f" if whole else ".3g"


def written(number: float) -> str:
    """A setting as a page writes it; a dash where it is left open."""
    return "–" if np.isnan(number) else format(number, format_of(number))


def label_table(labels: Labels) -> pd.DataFrame:
    """How many training samples were labelled and why others were not; indexed by outcome."""
    words = {
        "no_box": "no box",
        "too_small": "box too small",
        "too_large": "box too large",
        "refused": "could not be asked",
    }
    counts = {"usable": len(labels.usable)}
    counts |= {words.get(reason, reason): n for reason, n in labels.unusable.items()}
    frame = pd.DataFrame({"samples": counts}).rename_axis("answer")
    return frame.assign(part=frame["samples"] / len(labels.frame))


def configuration_table(errors: pd.DataFrame) -> pd.DataFrame:
    """`final_errors` as a page shows it, the lowest error first."""
    words = {"value": "centre error", "iou": "mean IoU", "acc50": "IoU ≥ 0.5"}
    table = errors.set_index("label").rename(columns=words).rename_axis("configuration")
    table = table.sort_values("centre error", kind="stable")
    return table[["centre error", "low", "high", "mean IoU", "IoU ≥ 0.5"]]
