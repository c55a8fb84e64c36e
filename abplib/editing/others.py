"""The editors beside Qwen-Image-Edit: their keys in profiles and tables, and how one is loaded."""

from __future__ import annotations

import torch

from abplib.editing.fibo_edit import FiboEditor
from abplib.editing.flux2 import Flux2Editor
from abplib.editing.flux_kontext import FluxKontextEditor
from abplib.editing.qwen_image_edit_2509 import QwenImageEditor2509
from abplib.editing.stock import StockEditor
from abplib.profiles import OtherEditorName, Profile

OTHERS: dict[str, type[StockEditor | QwenImageEditor2509]] = {
    "qwen_image_edit_2509": QwenImageEditor2509,
    "fibo_edit": FiboEditor,
    "flux2_dev": Flux2Editor,
    "flux_kontext": FluxKontextEditor,
}
"""By the names of Table 1's data, where the paper has them."""


def load_other(profile: Profile, name: OtherEditorName) -> StockEditor | QwenImageEditor2509:
    """The editor that the profile names so, on a GPU where there is one.

    Raises AbpError where the profile has none, or it cannot be loaded.
    """
    source, about = profile.other_source(name), profile.other_editors[name]
    return OTHERS[name].from_pretrained(
        source,
        image_area=profile.image_area,
        n_steps=about.n_steps,
        guidance=about.guidance,
        dtype=getattr(torch, profile.dtype),
        device="cuda" if torch.cuda.is_available() else "cpu",
        revision=about.revision,
    )
