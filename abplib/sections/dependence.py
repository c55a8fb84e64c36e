"""Whether l* depends on the input (section 4.4): how it varies over kinds of instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from abplib.samples.base import SampleSet
from abplib.sections.decomposition import Decomposition, entropy

_SHUFFLES = 999


def kinds(samples: SampleSet, n: int) -> pd.Series:
    """What kind of instruction each of the first `n` samples has, indexed by their ids.

    Its spatial term, else its task, else "any".
    """
    shown = [samples[index] for index in range(n)]
    found = [s.facts.get("spatial_term", s.facts.get("task", "any")) for s in shown]
    return pd.Series([str(kind) for kind in found], index=[s.id for s in shown], name="kind")


def layers_by_kind(decomposition: Decomposition, kinds: pd.Series) -> pd.DataFrame:
    """How often each layer is l*, [kind, layer], all layers; the largest groups first."""
    frame = decomposition.layers.assign(kind=kinds.loc[decomposition.layers["sample_id"]].array)
    counts = pd.crosstab(frame["kind"], frame["layer"])
    counts = counts.reindex(columns=list(decomposition.attention.layers), fill_value=0)
    order = counts.sum(axis=1).sort_values(ascending=False, kind="stable").index
    return counts.loc[order]


@dataclass(frozen=True)
class Dependence:
    """Entropy of l* in bits: how far it varies, and how far the kind of instruction fixes it."""

    overall: float
    """Over all samples."""
    within: float
    """Within a kind, mean over the samples."""
    shuffled: float
    """The same with the kinds dealt to the samples at random, mean over the shuffles."""
    p: float
    """One-sided permutation p-value of `within` being no lower than `shuffled`."""


def entropies(chosen: Sequence[int], kinds: Sequence[str], seed: int) -> Dependence:
    """Whether the layer `chosen` for each sample goes with the sample's kind.

    Small groups make `within` low by chance alone; the shuffled control has groups as small.
    """
    layer = np.unique(chosen, return_inverse=True)[1]
    kind = np.unique(kinds, return_inverse=True)[1]

    def within(dealt: np.ndarray) -> float:
        counts = np.zeros((dealt.max() + 1, layer.max() + 1))
        np.add.at(counts, (dealt, layer), 1)
        sizes = counts.sum(1)
        return float(sum(n * entropy(row / n) for row, n in zip(counts, sizes, strict=True)))

    observed = within(kind) / len(layer)
    random = np.random.default_rng(seed)
    control = np.array([within(random.permutation(kind)) for _ in range(_SHUFFLES)]) / len(layer)
    as_low = int((control <= observed + 1e-12).sum())
    parts = np.bincount(layer) / len(layer)
    return Dependence(
        entropy(parts), observed, float(control.mean()), (1 + as_low) / (1 + _SHUFFLES)
    )


def layer_table(counts: pd.DataFrame) -> pd.DataFrame:
    """`layers_by_kind` as a page shows it: how many samples of each kind have which l*."""
    named = counts.rename(columns=lambda layer: f"layer {layer}")
    return named.assign(all=counts.sum(axis=1)).rename_axis(index="instruction", columns=None)
