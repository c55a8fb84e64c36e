"""Where a VLM's states hold the place of an edit: the errors of the sweep's proxies.

Chapter 2, sections 4.2 and 4.3, Figure 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from abplib.core import boxes
from abplib.core.stats import Interval
from abplib.experiment import Experiment
from abplib.paper import numbers
from abplib.proxies.baselines import TEXT_ONLY
from abplib.proxies.configurations import UNTRAINED
from abplib.proxies.labels import Labels
from abplib.proxies.settings import SweepSettings
from abplib.samples.base import SampleSet
from abplib.sections.claims import HOLDS, REVERSED, UNDECIDED, ClaimCheck, against, agreed
from abplib.sections.estimates import estimate, estimates

GROUPS: Mapping[str, str] = {
    "final": "final states",
    "outer": "early and late layers",
    "middle": "middle layers",
    "middle_prompt": "prompt tokens of the middle layers",
    "between": "layers of neither group",
    "prompt": "prompt tokens of one layer",
    "control": "no trained decoder",
}
"""Groups of configurations, the first four Figure 4's, and how figures call them."""

UNREAD = "no states read"
"""How figures call the group of the baselines."""

_DEPTH = 28
_OUTER = (range(14), range(25, 27))
"""The paper's early and late layers; its middle ones are the encoder's own to tell."""


def label_of(configuration: str) -> str:
    """How figures and tables call a configuration or a baseline of the sweep."""
    words = {
        "centre_prior": "centre prior", TEXT_ONLY: "spatial term alone", "input": "decoder's input",
    }  # fmt: skip
    known = words.get(configuration, configuration.replace("_", " "))
    if (layer := configuration.removeprefix("prompt_")) != configuration:
        known = f"prompt tokens, {'final' if layer == 'final' else f'layer {layer}'}"
    return known.replace(UNTRAINED, "untrained, layer ")


def groups_of(names: Sequence[str], n_layers: int, middle: Sequence[int]) -> dict[str, str]:
    """Each configuration's key in `GROUPS`, the layers' scaled from the paper's 28 to `n_layers`.

    As in Figure 4, the layer before the middle ones and the raw last one, which `final` stands
    for, are of neither group.
    """

    def group(name: str) -> str:
        if name.startswith("prompt_"):
            return "prompt"
        if not name.startswith("layer_"):
            return name if name in GROUPS else "control"
        layer = int(name.removeprefix("layer_"))
        outer = any(layer * _DEPTH // n_layers in part for part in _OUTER)
        return "middle" if layer in middle else "outer" if outer else "between"

    return {name: group(name) for name in names}


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
    """`estimates` of the centre error of each configuration and baseline, over seeds and samples.

    In image sides. Indexed by configuration, in the order of `samples`, rows of `Sweep.samples`;
    beside label and unit, group (as figures call them), iou and acc50 (means).
    """
    indexed = samples.set_index(["seed", "sample_id"])
    parts = indexed.groupby("configuration", sort=False)
    errors = estimates(parts["center_error"], seed).rename_axis("configuration")
    group = errors.index.map(groups).map(GROUPS).fillna(UNREAD)
    errors = errors.assign(label=errors.index.map(label_of), group=group, unit="image sides")
    return errors.join(parts[["iou", "acc50"]].mean())


def curve_rows(curves: pd.DataFrame, groups: Mapping[str, str]) -> pd.DataFrame:
    """`Sweep.curves` over the seeds, with label and group as figures call them.

    A row for each configuration, in the order of `groups`, and step: center_error, the seeds' mean,
    and their low and high. Without the prompt tokens of single layers, which Figure 4 has not.
    """
    groups = {name: group for name, group in groups.items() if group != "prompt"}
    over = curves.groupby(["configuration", "step"])["center_error"].agg(["mean", "min", "max"])
    rows = over.reindex(list(groups), level="configuration").reset_index()
    rows = rows.rename(columns={"mean": "center_error", "min": "low", "max": "high"})
    names = rows["configuration"]
    return rows.assign(label=names.map(label_of), group=names.map(groups).map(GROUPS))


def difference(
    samples: pd.DataFrame, left: Sequence[str], right: Sequence[str], seed: int
) -> Interval:
    """Mean centre error of `left` less that of `right`, paired by seed and sample: an `estimate`.

    Each side is averaged over its configurations seed by seed and sample by sample, so nothing is
    picked by result. What reads no states has one seed, which stands beside all of the others'.
    """
    table = samples.pivot(
        index=["seed", "sample_id"], columns="configuration", values="center_error"
    )
    table = table.fillna(table.groupby("sample_id").transform("first"))
    return estimate(table[list(left)].mean(axis=1) - table[list(right)].mean(axis=1), seed)


def batches_to(curves: pd.DataFrame, error: float) -> pd.Series:
    """The first evaluated step at which each configuration's curve is at `error` or below.

    Infinity where it never is.
    """
    reached = curves["step"].where(curves["center_error"] <= error, np.inf)
    return reached.groupby(curves["configuration"]).min()


def check_claims(
    samples: pd.DataFrame, curves: pd.DataFrame, groups: Mapping[str, str], seed: int
) -> list[ClaimCheck]:
    """What of sections 4.1 and 4.3 holds on this model, by paired intervals and by curves.

    `samples` and `curves` are those of the sweep and of `by_term`, against which the last
    ones are checked; the claims are about the paper's groups of layers.

    Errors at the end of training are compared by `difference`, over all seeds and samples. Speed is
    the first evaluation at which a curve is as low as that of `final` ends, seed by seed; curves
    carry no interval, so what happens between the same two evaluations is undecided.
    """
    members: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name, group in groups.items():
        members[group].append(name)
    middle, prompt, final = members["middle"], ["middle_prompt"], ["final"]

    def lower(key: str, claim: str, where: str, left: list[str], right: list[str]) -> ClaimCheck:
        rival = label_of(right[0]) if len(right) == 1 else GROUPS[groups[right[0]]]
        apart = {rival: difference(samples, left, right, seed)}
        return against(key, claim, where, apart, above=False)

    steps = []
    for _, own in curves.groupby("seed"):
        goal = own.loc[own["configuration"] == "final", "center_error"].iloc[-1]
        steps.append(batches_to(own, goal))
    typical = [float(step[middle].quantile(0.5, "higher")) for step in steps]
    rivals = [float(step[[*middle, *members["outer"], "final"]].min()) for step in steps]
    checks = [
        lower("one_pass", "The place is in a single pass: middle layers beat the centre prior",
              "4.1, 4.3", middle, ["centre_prior"]),
        lower("middle_final", "Middle layers end lower than the final states", "4.3", middle,
              final),
        lower("middle_outer", "Middle layers end lower than early and late ones", "Figure 4",
              middle, members["outer"]),
        _sooner("middle_faster", "Middle layers converge faster than the final states", typical,
                [step["final"] for step in steps]),
        _sooner("prompt_fastest", "Prompt tokens of the middle layers converge fastest of all",
                [step["middle_prompt"] for step in steps], rivals),
        lower("prompt_final", "Prompt tokens of the middle layers end lower than the final states",
              "Figure 4", prompt, final),
        lower("prompt_text_only",
              "Prompt tokens of the middle layers end lower than the spatial term alone",
              "a check", prompt, [TEXT_ONLY]),
    ]  # fmt: skip
    if control := members["control"]:
        claim = "Middle layers end lower than what the eyes alone give"
        apart = {label_of(name): difference(samples, middle, [name], seed) for name in control}
        checks.append(against("decoder", claim, "a check", apart, above=False))
    return checks


def _sooner(key: str, claim: str, steps: list[float], others: list[float]) -> ClaimCheck:
    """Of the batches at which each seed gets there, and others do."""
    decided = agreed(
        HOLDS if step < other else REVERSED if step > other else UNDECIDED
        for step, other in zip(steps, others, strict=True)
    )
    own, other = (
        ", ".join(f"{s:.0f}" if np.isfinite(s) else "never" for s in seeds)
        for seeds in (steps, others)
    )
    return ClaimCheck(key, claim, "Figure 4", f"batch {own} against {other}", decided)


def setting_rows(experiment: Experiment, n_labels: int, epochs: float) -> pd.DataFrame:
    """What the run took, paper beside this run; indexed by the name of the setting.

    Columns: setting (words), paper (NaN where the paper leaves it open), this run, and fmt.
    """
    encoder, settings = experiment.encoder, experiment.profile.sweep
    taken: dict[str, tuple[str, float]] = {
        "n_layers": ("Decoder blocks of the VLM", encoder.n_layers),
        "state_width": ("Width of its states", encoder.width),
        "image_area": ("Pixels of the image it sees", experiment.profile.image_area),
        "first_middle_layer": ("First middle layer", encoder.middle_layers[0]),
        "last_middle_layer": ("Last middle layer", encoder.middle_layers[-1]),
        "n_train": ("Samples seen", settings.n_batches * settings.batch_size),
        "n_labels": ("Training samples that the VLM labelled", n_labels),
        "epochs": ("Passes over the usable labels", epochs),
    }
    for name, field in SweepSettings.model_fields.items():
        said, _, _ = str(field.description).partition(";")
        taken[name] = said.rstrip("."), getattr(settings, name)
    known = numbers()
    frame = pd.DataFrame(taken.values(), pd.Index(taken, name="name"), ["setting", "this run"])
    frame.insert(1, "paper", frame.index.map(lambda name: known.get(name, np.nan)))
    pairs = frame[["paper", "this run"]].to_numpy(float)
    return frame.assign(fmt=[format_of(*pair) for pair in pairs])


def format_of(*values: float) -> str:
    """How settings are written: whole numbers whole, others with three digits."""
    whole = all(float(number).is_integer() for number in values if np.isfinite(number))
    return ",.0f" if whole else ".3g"


def written(number: float) -> str:
    """A setting as a page writes it; a dash where it is left open."""
    return "–" if np.isnan(number) else format(number, format_of(number))


def label_table(labels: Labels) -> pd.DataFrame:
    """How many training samples were labelled and why others were not; indexed by outcome."""
    words = {"no_box": "no box", "too_small": "box too small", "too_large": "box too large",
             "refused": "could not be asked"}  # fmt: skip
    counts = pd.Series({"usable": len(labels.usable), **labels.unusable}, name="samples")
    frame = counts.rename(words).rename_axis("answer").to_frame()
    return frame.assign(part=frame["samples"] / len(labels.frame))


def configuration_table(errors: pd.DataFrame) -> pd.DataFrame:
    """`final_errors` as a page shows it, the lowest error first."""
    words = {"value": "centre error", "iou": "mean IoU", "acc50": "IoU ≥ 0.5"}
    spread = errors["seeds"].explode().astype(float).groupby(level=0).std()
    errors = errors.assign(**{"SD of seeds": spread})
    table = errors.sort_values("value", kind="stable").set_index("label").rename(columns=words)
    table = table.rename_axis("configuration")
    return table[["centre error", "low", "high", "SD of seeds", "mean IoU", "IoU ≥ 0.5"]]
