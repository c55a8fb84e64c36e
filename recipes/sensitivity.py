"""What hangs on the choices that the paper leaves open: `python -m recipes sensitivity`.

One choice at a time is made otherwise. Figure 4's proxies are trained again, all at one budget, and
chapter 2's claims are decided by its own rule.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from abplib.experiment import Experiment
from abplib.proxies.baselines import by_term
from abplib.proxies.configurations import configurations
from abplib.proxies.labels import exact_labels
from abplib.proxies.qformer import CrossAttention, Proxy
from abplib.proxies.settings import ProxyConfig, SweepSettings
from abplib.proxies.sweep import SweepInputs, sweep
from abplib.sections.decodability import check_claims, groups_of
from abplib.sections.sensitivity import FILE
from abplib.sections.shipped import beside_vlm, ship
from abplib.vlm.encoder import ConditionEncoder, Encoding


class LayerNormed(Proxy):
    """A proxy whose states lose their mean, too."""

    def scale(self, states: Tensor) -> Tensor:
        return F.layer_norm(states, states.shape[-1:])


class Unplaced(Proxy):
    """A proxy that is not told where in the sequence a token stands."""

    def places(self, n_tokens: int) -> Tensor:
        return torch.zeros_like(super().places(n_tokens))


class OneByOne(CrossAttention):
    """Attention with a softmax for each layer, all layers weighing alike."""

    def __init__(self, config: ProxyConfig, n_features: int) -> None:
        super().__init__(config, n_features)
        self.n_layers = config.n_layers

    def weigh(self, scores: Tensor) -> Tensor:
        return scores.unflatten(-1, (self.n_layers, -1)).softmax(-1).flatten(-2) / self.n_layers


class LayerByLayer(Proxy):
    """A proxy that cannot choose between layers."""

    cross_attention = OneByOne


class Remembering(ConditionEncoder):
    """An encoder that passes each batch once: sweeps that differ in their proxies share the passes.

    All states stay in memory, 5 GB for 10,000 of the miniature's samples.
    """

    def __init__(self, encoder: ConditionEncoder) -> None:
        vars(self).update(vars(encoder))
        self._encodings: dict[str, Encoding] = {}

    def encode(self, batch: Any, *given: Any, **asked: Any) -> Encoding:
        """As the encoder does, the first time that it is asked."""
        told = hashlib.sha256(repr(asked).encode())
        for name in sorted(batch.inputs):
            told.update(batch.inputs[name].numpy().tobytes())
        key = told.hexdigest()
        if key not in self._encodings:
            self._encodings[key] = super().encode(batch, *given, **asked)
        return self._encodings[key]


@dataclass(frozen=True)
class Choice:
    """One choice of the paper's open ones, made otherwise."""

    key: str
    """What is chosen, as the assumptions page has it."""
    taken: str
    """What was taken instead."""
    scaled: Mapping[str, float] = field(default_factory=dict)
    """What the profile's settings are multiplied by."""
    kind: type[Proxy] = Proxy
    exact: bool = False
    """Whether labels are exact boxes."""
    seed: int = 0
    mean: bool = False
    """Whether the L1 loss is the mean of a box's coordinates."""

    @property
    def own_batches(self) -> bool:
        """Whether its sweep reads other batches than the rest."""
        return bool(self.seed) or "micro_batch" in self.scaled

    def settings(self, base: SweepSettings) -> SweepSettings:
        """The profile's settings with this choice."""
        changed: dict[str, float] = {
            name: max(1, int(factor * getattr(base, name))) for name, factor in self.scaled.items()
        }
        if self.mean:  # a quarter of the sum; Adam does not see the scale of a whole loss
            l1 = (1 - base.lambda_giou) / 4
            changed["lambda_giou"] = base.lambda_giou / (base.lambda_giou + l1)
        return base.model_copy(update=changed)


CHOICES = (
    Choice("as_taken", "as in this book"),
    Choice("seed", "another seed", seed=1),
    Choice("n_queries", "half of the queries", {"n_queries": 0.5}),
    Choice("n_queries", "twice the queries", {"n_queries": 2}),
    Choice("width", "half of the width", {"width": 0.5}),
    Choice("width", "twice the width", {"width": 2}),
    Choice("scale", "states layer-normalised", kind=LayerNormed),
    Choice("place", "no code of a token's place", kind=Unplaced),
    Choice("softmax", "one softmax for each layer", kind=LayerByLayer),
    Choice("l1", "L1 as the mean of coordinates", mean=True),
    Choice("l1_steps", "half of the steps on L1 alone", {"l1_steps": 0.5}),
    Choice("labels", "exact boxes as labels", exact=True),
    Choice("micro_batch", "a quarter of the micro-batch", {"micro_batch": 0.25}),
)


def vary(experiment: Experiment, n_batches: int, choices: Sequence[Choice]) -> Path:
    """Train with each choice, or go on; write what is decided of each claim beside the VLM.

    Returns: the table `FILE`, a row a choice and claim: key, taken, claim (its key), verdict,
    measured.

    Raises:
        AbpError: the VLM is of a hub and has no folder here, or as `sweep` does.
    """
    table = beside_vlm(experiment, FILE)
    base = experiment.profile.sweep.model_copy(update={"n_batches": n_batches, "n_seeds": 1})
    plain, evaluation, n = experiment.encoder, experiment.evaluation, experiment.n
    encoder = Remembering(plain)
    chosen = configurations(encoder)
    groups = groups_of([c.name for c in chosen], encoder.n_layers, encoder.middle_layers)
    n_labels = n_batches * base.batch_size
    labels = experiment.labels(n_labels)
    told = by_term(experiment.tuning, evaluation, n).drop(columns="known")
    started, rows = time.monotonic(), []
    for choice in choices:
        taught = exact_labels(encoder, experiment.training, n_labels) if choice.exact else labels
        inputs = SweepInputs(
            plain if choice.own_batches else encoder, experiment.training, taught, evaluation,
            chosen, choice.settings(base), choice.seed, choice.kind,
        )  # fmt: skip
        swept = sweep(inputs, n)
        samples = pd.concat([swept.samples, told], ignore_index=True)
        for check in check_claims(samples, swept.curves, groups, experiment.seed):
            decided = (check.key, check.verdict, check.measured)
            rows.append((choice.key, choice.taken, *decided))
    columns = ["key", "taken", "claim", "verdict", "measured"]
    minutes = round((time.monotonic() - started) / 60, 1)
    return ship(
        table, pd.DataFrame(rows, columns=columns), encoder, evaluation,
        n=n, minutes=minutes, sweep=base.model_dump(),
    )  # fmt: skip
