"""The tables and the measurement of the chapter on adapting to a new model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from abplib.samples.base import SampleSet
from abplib.sections.estimates import estimates
from abplib.vlm.adapters import ADAPTERS, Adapter
from abplib.vlm.conformance import CHECKS, Finding
from abplib.vlm.encoder import ConditionEncoder


def adapters() -> pd.DataFrame:
    """One row for each known family: what its adapter tells."""
    told = {
        family: {
            "kind": type(adapter).__name__,
            "kept from": repr(adapter.image_start or "the image placeholder").strip("'"),
            "before the instruction": repr(adapter.image_end).strip("'"),
            "for the processor": ", ".join(f"{k}={v}" for k, v in adapter.options.items()),
        }
        for family, adapter in ADAPTERS.items()
    }
    return pd.DataFrame.from_dict(told, orient="index").rename_axis("family")


def with_adapter(encoder: ConditionEncoder, adapter: Adapter) -> ConditionEncoder:
    """The same model under another adapter."""
    return ConditionEncoder(
        encoder.model,
        encoder.processor,
        image_area=encoder.image_area,
        fingerprint=encoder.fingerprint,
        adapter=adapter,
    )


def verdicts(attempts: Mapping[str, Sequence[Finding]]) -> pd.DataFrame:
    """Checks by attempts: passes or fails; a dash where the encoder did not run."""
    columns = {
        name: {f.check: "fails" if f.fault else "passes" for f in findings}
        for name, findings in attempts.items()
    }
    frame = pd.DataFrame(columns, index=["runs", *CHECKS]).rename_axis("check")
    return frame.fillna("–")


def changes(
    encoder: ConditionEncoder, other: ConditionEncoder, samples: SampleSet, n: int
) -> pd.DataFrame:
    """How far the states of the first `n` samples are from those under another adapter.

    One row for each sample and layer (`final` the last): sample_id, layer, change, the norm of the
    difference over all kept tokens as a part of the norm. Both must keep the same tokens.
    """
    layers = range(encoder.n_layers)
    rows = []
    passes = (e.over(samples, n, layers=layers, final=True) for e in (encoder, other))
    for (batch, right), (_, wrong) in zip(*passes, strict=True):
        for layer, states in right.states.items():
            size = torch.linalg.vector_norm(states.float(), dim=(1, 2))
            apart = torch.linalg.vector_norm((wrong.states[layer] - states).float(), dim=(1, 2))
            rows += [
                {"sample_id": sample.id, "layer": str(layer), "change": change}
                for sample, change in zip(batch, (apart / size).tolist(), strict=True)
            ]
    return pd.DataFrame(rows)


def change_by_layer(changed: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`estimates` of `changes` over samples, a row a layer, for `intervals`."""
    layers = changed["layer"].replace(r"^(\d+)$", r"layer_\1", regex=True)
    means = estimates(changed.groupby(layers, sort=False)["change"], seed)
    label = means.index.str.replace("_", " ")
    named = means.assign(name="change." + means.index, label=label, unit="fraction")
    return named.reset_index(drop=True)
