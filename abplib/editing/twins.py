"""The miniature Qwen-Image-Edit, part by part: the real pipeline's classes from a small shape."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
)

from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.editing.lora import adapter
from abplib.vlm import twins as vlm_twins
from abplib.vlm.loading import load_vlm


@dataclass(frozen=True)
class EditorShape:
    """Size of a miniature Qwen-Image-Edit. As in the real one, a token covers 16 x 16 pixels."""

    side: int = 128
    """Side of the (square) picture, in pixels."""
    channels: int = 16
    """Channels of a latent."""
    vae_width: int = 16
    vae_mult: tuple[int, ...] = (1, 2, 4, 4)
    vae_blocks: int = 1
    layers: int = 6
    heads: int = 4
    head_dim: int = 32
    rope: tuple[int, int, int] = (4, 14, 14)
    """Rotary dimensions of frame, row and column; they add up to `head_dim`."""


def build_vae(shape: EditorShape, seed: int) -> AutoencoderKLQwenImage:
    """A VAE with random weights, eight pixels a latent, in eval mode."""
    torch.manual_seed(seed)
    return AutoencoderKLQwenImage(
        base_dim=shape.vae_width,
        z_dim=shape.channels,
        dim_mult=list(shape.vae_mult),
        num_res_blocks=shape.vae_blocks,
        attn_scales=[],
        temperal_downsample=[False] * (len(shape.vae_mult) - 1),
        latents_mean=[0.0] * shape.channels,
        latents_std=[1.0] * shape.channels,
    ).eval()


def build_dit(shape: EditorShape, condition_width: int, seed: int) -> QwenImageTransformer2DModel:
    """A diffusion transformer with random weights that reads states of `condition_width`."""
    torch.manual_seed(seed)
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * shape.channels,
        out_channels=shape.channels,
        num_layers=shape.layers,
        attention_head_dim=shape.head_dim,
        num_attention_heads=shape.heads,
        joint_attention_dim=condition_width,
        axes_dims_rope=shape.rope,
    ).eval()


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Qwen-Image-Edit's scheduler with its configuration."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        time_shift_type="exponential",
    )


def assemble(
    vlm_folder: str | Path, vae: AutoencoderKLQwenImage, dit: QwenImageTransformer2DModel
) -> QwenImageEditPipeline:
    """The pipeline of these parts around the VLM saved in a folder.

    Raises:
        AbpError: the VLM cannot be loaded, or `dit` reads states of another width.
    """
    vlm, processor = load_vlm(vlm_folder)
    width = vlm.config.text_config.hidden_size
    if dit.config.joint_attention_dim != width:
        raise AbpError(
            f"The diffusion transformer reads states of width {dit.config.joint_attention_dim} "
            f"where {vlm_folder} gives {width}; build it with condition_width={width}."
        )
    return QwenImageEditPipeline(
        scheduler=build_scheduler(),
        vae=vae,
        text_encoder=vlm,
        tokenizer=processor.tokenizer,
        processor=processor,
        transformer=dit,
    )


def save_editor(pipeline: QwenImageEditPipeline, folder: Path) -> Path:
    """Write a pipeline as `from_pretrained` reads it; whole or not at all.

    Raises:
        AbpError: a LoRA is loaded, under which the transformer's weights have other names.
    """
    if getattr(pipeline.transformer, "peft_config", None):
        raise AbpError(
            "The pipeline has a LoRA loaded, with which it cannot be saved: call its "
            "unload_lora_weights() first, and save the LoRA on its own."
        )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


SMOKE = EditorShape(
    side=vlm_twins.SMOKE.side, channels=4, vae_width=8, vae_mult=(1, 1, 2, 2), layers=2, heads=2,
    head_dim=16, rope=(4, 6, 6),
)  # fmt: skip


def smoke_editor() -> Path:
    """Folder of a tiny Qwen-Image-Edit and its LoRA, of random weights, made when absent."""
    made_by = store.digest_files(__file__, adapter.__file__, vlm_twins.__file__)
    folder = paths.results() / "twins" / f"smoke_editor-{made_by}"
    with store.alone(folder):
        if not (folder / "model_index.json").exists():
            vae, dit = build_vae(SMOKE, seed=1), build_dit(SMOKE, vlm_twins.SMOKE.width, seed=2)
            whole = save_editor(
                assemble(vlm_twins.smoke_vlm(), vae, dit), folder.with_suffix(".making")
            )
            adapter.add_lora(dit, rank=4, seed=3, trained=True)
            adapter.save_lora(dit, whole / "lora")
            whole.rename(folder)
    return folder
