"""Tables that a long command made of a VLM once, kept beside its weights with what was run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from abplib.core import store
from abplib.core.errors import AbpError
from abplib.experiment import Experiment
from abplib.samples.base import SampleSet
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.loading import fingerprint


@dataclass(frozen=True, eq=False)
class Shipped:
    """Such a table."""

    rows: pd.DataFrame
    run: Mapping[str, Any]
    """What was run: plan, device and minutes, and on which VLM and samples."""


def beside_vlm(experiment: Experiment, file: str) -> Path:
    """Where such a table goes.

    Raises:
        AbpError: the VLM is not in a folder of its own.
    """
    folder = Path(experiment.vlm_source)
    if not folder.is_dir():
        raise AbpError(
            f"{file} goes beside the VLM's weights, and {folder} is a hub id: give a profile whose "
            "vlm is a folder."
        )
    return folder / file


def ship(
    path: Path, rows: pd.DataFrame, encoder: ConditionEncoder, samples: SampleSet, **run: Any
) -> Path:
    """Write a table as CSV and, in a JSON file of the same name, what was run; returns `path`."""
    store.write_text(path, rows.to_csv(index=False))
    about = {"vlm": encoder.fingerprint, "samples": samples.fingerprint}
    store.write_json(path.with_suffix(".json"), {**about, "torch": torch.__version__, **run})
    return path


def find(experiment: Experiment, file: str, command: str) -> tuple[Shipped | None, str]:
    """The table that `command` made, if it is of the experiment's VLM and samples; else why not.

    Raises:
        AbpError: a file cannot be read.
    """
    path = Path(experiment.vlm_source) / file
    if not path.is_file():
        return None, f"`{command}` has not been run for this VLM, so nothing is shown."
    run = store.read_json(path.with_suffix(".json"))
    vlm = fingerprint(experiment.vlm_source, experiment.profile.revision)
    if (run["vlm"], run["samples"]) != (vlm, experiment.evaluation.fingerprint):
        return None, (
            f"{file} was made of another VLM or on other samples, so it is not shown; `{command}` "
            "makes it anew."
        )
    try:
        return Shipped(pd.read_csv(path), run), ""
    except ValueError as error:
        raise AbpError(
            f"{path} is not a readable table: restore it, or delete it and run {command}."
        ) from error
