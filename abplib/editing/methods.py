"""The rows of Table 1: methods that edit with the profile's editor, controls, other systems."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Kind = Literal["final", "norm_avg", "full_description"]
"""What the editor is conditioned on; see `abplib.editing.conditions`."""
Guide = Literal["proxy", "exact", "vlm"]
"""Whose box is drawn on the source."""


@dataclass(frozen=True)
class Method:
    """One row of Table 1: what conditions the editor, and whether it is trained and shown a box."""

    label: str
    condition: Kind = "final"
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


@dataclass(frozen=True)
class System:
    """A system beside Qwen-Image-Edit."""

    label: str
    editor: str
    """Its editor's class, as `module:class`."""
    note: str = ""
    """What must be said of its row of the table: a sentence without its full stop."""


OTHERS: dict[str, System] = {
    "qwen_image_edit_2509": System(
        "Qwen-Image-Edit-2509", "abplib.editing.qwen_image_edit_2509:QwenImageEditor2509"
    ),
    "fibo_edit": System(
        "FIBO-Edit",
        "abplib.editing.stock:FiboEditor",
        "FIBO-Edit was trained on whole descriptions as JSON, which Bria has a VLM write; here it "
        "is given the instruction alone, as `edit_instruction`, so its row is of a model out of "
        "its format",
    ),
    "flux2_dev": System("FLUX.2 dev", "abplib.editing.stock:Flux2Editor"),
    "flux_kontext": System("FLUX.1 Kontext", "abplib.editing.stock:FluxKontextEditor"),
}
"""By the names of Table 1's data, where the paper has them."""


def label(name: str) -> str:
    """What tables and figures call a method or another system."""
    return (METHODS | OTHERS)[name].label


def others_run(names: Collection[str]) -> str:
    """Which other systems a run has, and what must be said of them; the end of a sentence."""
    if not names:
        return "none is run here"
    notes = [OTHERS[name].note for name in names if OTHERS[name].note]
    return ". ".join([f"this run has {', '.join(map(label, names))}", *notes])
