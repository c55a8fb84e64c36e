"""The LoRA on a diffusion transformer: attached, and saved in diffusers' format."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import QwenImageEditPipeline, QwenImageTransformer2DModel
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from abplib.core import store
from abplib.editing.qwen_pipeline import LORA_FILE


def add_lora(dit: QwenImageTransformer2DModel, rank: int, seed: int, *, trained: bool) -> None:
    """Attach a new LoRA as in appendix B.2: rank = alpha, Gaussian, on the attention projections.

    `trained` gives both factors random values, as if it had been; a new one changes nothing yet.
    """
    torch.manual_seed(seed)
    dit.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            init_lora_weights=False if trained else "gaussian",
            target_modules=["to_q", "to_k", "to_v", "to_out.0"],
        )
    )


def save_lora(dit: QwenImageTransformer2DModel, folder: Path) -> None:
    """Write the attached LoRA in diffusers' format, whole or not at all."""
    with store.replacing(folder / LORA_FILE) as scratch:
        QwenImageEditPipeline.save_lora_weights(
            scratch.parent,
            weight_name=scratch.name,
            transformer_lora_layers=get_peft_model_state_dict(dit),
            **_collate_lora_metadata({"transformer": dit}),
        )
