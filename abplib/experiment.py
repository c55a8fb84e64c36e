"""What every chapter needs of a run: its models, and numbers recorded with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from abplib.chapter import Chapter
from abplib.core import processes
from abplib.core.stats import Interval
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.profiles import Profile
from abplib.vlm.encoder import ConditionEncoder


@dataclass(frozen=True)
class Measure:
    """A number with what a table and `values.json` say of it."""

    name: str
    label: str
    found: Interval
    unit: str
    paper: float | None = None


def load_encoder(profile: Profile) -> ConditionEncoder:
    """The profile's VLM, on the GPUs where there are, and beside them where they are too small."""
    return ConditionEncoder.from_pretrained(
        profile.vlm_source,
        image_area=profile.image_area,
        dtype=profile.dtype,
        device=processes.device(),
        revision=profile.revision,
    )


def load_editor(profile: Profile) -> QwenImageEditor:
    """The profile's editor with its LoRA, if it has one, on a GPU where there is one."""
    editor = QwenImageEditor.from_pretrained(
        profile.editor_source,
        image_area=profile.image_area,
        n_steps=profile.n_steps,
        guidance=profile.guidance,
        dtype=getattr(torch, profile.dtype),
        device="cuda" if torch.cuda.is_available() else "cpu",
        revision=profile.editor_revision,
    )
    return replace(editor, lora=profile.lora_folder) if profile.lora else editor


def record(chapter: Chapter, name: str, found: Interval, unit: str, **shown: Any) -> None:
    """Give the chapter a value with its interval, where there is one (one sample has none)."""
    if np.isfinite(found.low):
        shown |= {"low": found.low, "high": found.high}
    chapter.value(name, found.value, n=found.n, unit=unit, **shown)


def beside_paper(measures: Sequence[Measure]) -> pd.DataFrame:
    """The table of a chapter: paper beside this run, indexed by measure."""
    rows = [
        {"paper": m.paper, "this run": m.found.value, "low": m.found.low, "high": m.found.high,
         "n": m.found.n, "unit": m.unit}
        for m in measures
    ]  # fmt: skip
    frame = pd.DataFrame(rows, index=pd.Index([m.label for m in measures], name="measure"))
    return frame.astype({"paper": float})
