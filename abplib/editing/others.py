"""The editors beside Qwen-Image-Edit and their keys in profiles and tables."""

from __future__ import annotations

from abplib.editing.fibo_edit import FiboEditor
from abplib.editing.flux2 import Flux2Editor
from abplib.editing.flux_kontext import FluxKontextEditor
from abplib.editing.qwen_image_edit_2509 import QwenImageEditor2509
from abplib.editing.stock import StockEditor

OTHERS: dict[str, type[StockEditor | QwenImageEditor2509]] = {
    "qwen_image_edit_2509": QwenImageEditor2509,
    "fibo_edit": FiboEditor,
    "flux2_dev": Flux2Editor,
    "flux_kontext": FluxKontextEditor,
}
"""By the names of Table 1's data, where the paper has them."""
