"""Twins of the editors: the real pipelines' classes from small shapes, with random weights.

Qwen-Image-Edit's parts take a shape, since the miniature is made of them too. All keep what the
real pipelines fix: how many pixels a token covers, how many tokens are read. A `smoke_` function
gives a folder that `from_pretrained` reads, made when absent.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    ModelMixin,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
)
from tokenizers import pre_tokenizers
from torch import nn

from abplib.core import parallel, paths, store
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
    heads: int = 6
    head_dim: int = 32
    rope: tuple[int, int, int] = (4, 14, 14)
    """Rotary dimensions of frame, row and column; they add up to `head_dim`."""


def build_vae(shape: EditorShape, seed: int) -> AutoencoderKLQwenImage:
    """A VAE with random weights, eight pixels a latent, in eval mode."""
    torch.manual_seed(seed)
    return AutoencoderKLQwenImage(
        base_dim=shape.vae_width, z_dim=shape.channels, dim_mult=list(shape.vae_mult),
        num_res_blocks=shape.vae_blocks, attn_scales=[],
        temperal_downsample=[False] * (len(shape.vae_mult) - 1),
        latents_mean=[0.0] * shape.channels, latents_std=[1.0] * shape.channels,
    ).eval()  # fmt: skip


def build_dit(shape: EditorShape, condition_width: int, seed: int) -> QwenImageTransformer2DModel:
    """A diffusion transformer with random weights that reads states of `condition_width`."""
    torch.manual_seed(seed)
    return QwenImageTransformer2DModel(
        patch_size=2, in_channels=4 * shape.channels, out_channels=shape.channels,
        num_layers=shape.layers, attention_head_dim=shape.head_dim, num_attention_heads=shape.heads,
        joint_attention_dim=condition_width, axes_dims_rope=shape.rope,
    ).eval()  # fmt: skip


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Qwen-Image-Edit's scheduler with its configuration."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=True, base_shift=0.5,
        max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192, shift_terminal=0.02,
        time_shift_type="exponential",
    )  # fmt: skip


def assemble(
    vlm_folder: str | Path, vae: AutoencoderKLQwenImage, dit: QwenImageTransformer2DModel
) -> QwenImageEditPipeline:
    """The pipeline of these parts around the VLM saved in a folder, whose width `dit` reads."""
    vlm, processor = load_vlm(vlm_folder)
    return QwenImageEditPipeline(
        scheduler=build_scheduler(), vae=vae, text_encoder=vlm, tokenizer=processor.tokenizer,
        processor=processor, transformer=dit,
    )  # fmt: skip


def save_pipeline(
    pipeline: DiffusionPipeline, folder: Path, more: Callable[[Path], object] = lambda _: None
) -> Path:
    """Write a pipeline as `from_pretrained` reads it, and what `more` adds, whole or not at all.

    Its parts' configurations do not name the folders that they came from.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in pipeline.components.values():
        if isinstance(part, ModelMixin):
            part.register_to_config(_name_or_path="")
    pipeline.save_pretrained(partial)
    more(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


SMOKE = EditorShape(
    side=vlm_twins.SMOKE.side, channels=4, vae_width=8, vae_mult=(1, 1, 2, 2), layers=2, heads=2,
    head_dim=16, rope=(4, 6, 6),
)  # fmt: skip
WIDTH = 32
"""Of hidden states of the twins that follow."""

CHANNELS = 4
DIT = {
    "patch_size": 1, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2,
}  # fmt: skip
FLUX_VAE = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "block_out_channels": [8, 8, 16, 16],
    "layers_per_block": 1, "latent_channels": CHANNELS, "norm_num_groups": 4,
}  # fmt: skip


def smoke_editor() -> Path:
    """A tiny Qwen-Image-Edit and, in its folder, a LoRA."""
    return made("editor", _editor)


def smoke_kontext() -> Path:
    """FLUX.1 Kontext: letters as tokens, two blocks of each text encoder."""
    return made("kontext", _kontext)


def made(name: str, build: Callable[[], DiffusionPipeline]) -> Path:
    """The folder of a twin, made when absent; a Qwen-Image-Edit has a LoRA in its own."""
    made_by = store.digest(
        [
            store.digest_files(__file__, adapter.__file__, build.__code__.co_filename),
            vlm_twins.smoke_vlm().name,
        ]
    )
    folder = paths.results() / "twins" / f"smoke_{name}-{made_by}"

    def make() -> None:
        torch.manual_seed(0)
        pipeline = build()

        def add_lora(partial: Path) -> None:
            adapter.add_lora(pipeline.transformer, rank=4, seed=3, trained=True)
            adapter.save_lora(pipeline.transformer, partial / "lora")

        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.eval()
        if isinstance(pipeline, QwenImageEditPipeline):
            save_pipeline(pipeline, folder, add_lora)
        else:
            save_pipeline(pipeline, folder)

    return parallel.made(folder, make)


def _editor() -> QwenImageEditPipeline:
    dit = build_dit(SMOKE, vlm_twins.SMOKE.width, seed=2)
    return assemble(vlm_twins.smoke_vlm(), build_vae(SMOKE, seed=1), dit)


def _kontext() -> DiffusionPipeline:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    clip = hf.CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], model_max_length=77
    )
    t5 = hf.T5TokenizerFast(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
        + [(chr(code), -4.0) for code in range(33, 127)],
        extra_ids=0, model_max_length=512,
    )  # fmt: skip
    clip_config = hf.CLIPTextConfig(
        vocab_size=len(clip), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, projection_dim=WIDTH, bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id, pad_token_id=clip.pad_token_id,
    )  # fmt: skip
    t5_config = hf.T5Config(
        vocab_size=len(t5), d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15,
            base_image_seq_len=256, max_image_seq_len=4096,
        ),
        vae=AutoencoderKL(
            **FLUX_VAE, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        text_encoder=hf.CLIPTextModel(clip_config),
        tokenizer=clip,
        text_encoder_2=hf.T5EncoderModel(t5_config),
        tokenizer_2=t5,
        transformer=FluxTransformer2DModel(
            **DIT, in_channels=4 * CHANNELS, joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
        ),
    )  # fmt: skip
