"""The methods of Table 1 that edit with the profile's editor, and what each of them is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Guide = Literal["proxy", "exact", "vlm"]
"""Whose box is drawn on the source."""


@dataclass(frozen=True)
class Method:
    """One row of Table 1: what conditions the editor, and whether it is trained and shown a box."""

    label: str
    condition: str = "final"
    lora: bool = False
    """Whether it edits under the LoRA that reads boxes."""
    guide: Guide | None = None


METHODS: dict[str, Method] = {
    "baseline": Method("Qwen-Image-Edit"),
    "full_description": Method("Full description", "full_description"),
    "norm_avg": Method("Norm-AVG", "norm_avg"),
    "ours": Method("Ours", lora=True, guide="proxy"),
    "lora_no_box": Method("LoRA, no box", lora=True),
    "vlm_box": Method("VLM's box", lora=True, guide="vlm"),
    "gt_box": Method("Exact box", lora=True, guide="exact"),
    "identity": Method("No edit"),
    "paste": Method("Exact edit pasted"),
}
"""What is compared: section 4.6's variants, then bounds and controls beyond the paper."""

CONTROLS = ("identity", "paste")
"""Methods in which no model edits: the source as it is, the exact edit pasted into the box."""
