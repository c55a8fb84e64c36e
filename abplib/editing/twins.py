"""Twins of the editors: the real pipelines' classes from small shapes, with random weights.

Qwen-Image-Edit's parts take a shape, since the miniature is made of them too. All keep what the
real pipelines fix: how many pixels a token covers, how many tokens are read, which layers. A
`smoke_` function gives a folder that `from_pretrained` reads, made when absent.
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
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    BriaFiboEditPipeline,
    BriaFiboTransformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    ModelMixin,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers import pre_tokenizers
from torch import nn

from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.editing.lora import adapter
from abplib.prompts import EDIT_TEMPLATE
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
        scheduler=build_scheduler(), vae=vae, text_encoder=vlm, tokenizer=processor.tokenizer,
        processor=processor, transformer=dit,
    )  # fmt: skip


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
    return _whole(folder, lambda partial: _save(pipeline, partial))


def _save(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline; its parts' configurations do not name the folders that they came from."""
    for part in pipeline.components.values():
        if isinstance(part, ModelMixin):
            part.register_to_config(_name_or_path="")
    pipeline.save_pretrained(folder)


def _whole(folder: Path, write: Callable[[Path], object]) -> Path:
    """Let a folder be written anew, whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


SMOKE = EditorShape(
    side=vlm_twins.SMOKE.side, channels=4, vae_width=8, vae_mult=(1, 1, 2, 2), layers=2, heads=2,
    head_dim=16, rope=(4, 6, 6),
)  # fmt: skip
WIDTH = 32
"""Of hidden states of the twins that follow."""

_CHANNELS = 4
_TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
_DIT = {
    "patch_size": 1, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2,
}  # fmt: skip
_FLUX_VAE = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "block_out_channels": [8, 8, 16, 16],
    "layers_per_block": 1, "latent_channels": _CHANNELS, "norm_num_groups": 4,
}  # fmt: skip
_MISTRAL_TURN = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}[SYSTEM_PROMPT]{% else %}[INST]{% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}[IMG]{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}"
    "{% if m['role'] == 'system' %}[/SYSTEM_PROMPT]{% else %}[/INST]{% endif %}{% endfor %}"
)


def smoke_editor() -> Path:
    """A tiny Qwen-Image-Edit and, in its folder, a LoRA."""

    def build() -> DiffusionPipeline:
        dit = build_dit(SMOKE, vlm_twins.SMOKE.width, seed=2)
        return assemble(vlm_twins.smoke_vlm(), build_vae(SMOKE, seed=1), dit)

    def add_lora(folder: Path, pipeline: DiffusionPipeline) -> None:
        adapter.add_lora(pipeline.transformer, rank=4, seed=3, trained=True)
        adapter.save_lora(pipeline.transformer, folder / "lora")

    return _made("editor", build, add_lora)


def smoke_2509() -> Path:
    """Qwen-Image-Edit-2509: the parts of `smoke_editor` under the other pipeline."""

    def build() -> DiffusionPipeline:
        return QwenImageEditPlusPipeline(
            **QwenImageEditPipeline.from_pretrained(smoke_editor()).components
        )

    return _made("2509", build)


def smoke_kontext() -> Path:
    """FLUX.1 Kontext: letters as tokens, two blocks of each text encoder."""
    return _made("kontext", _kontext)


def smoke_flux2() -> Path:
    """FLUX.2: a VLM of 40 blocks, as deep as the real one, of which three are read."""
    return _made("flux2", _flux2)


def smoke_fibo() -> Path:
    """FIBO-Edit: an LLM of six blocks, of whose hidden states the last three are read."""
    return _made("fibo", _fibo)


def _made(
    name: str,
    build: Callable[[], DiffusionPipeline],
    more: Callable[[Path, DiffusionPipeline], object] = lambda *_: None,
) -> Path:
    made_by = store.digest(
        [store.digest_files(__file__, adapter.__file__), vlm_twins.smoke_vlm().name]
    )
    folder = paths.results() / "twins" / f"smoke_{name}-{made_by}"

    def write(partial: Path) -> None:
        torch.manual_seed(0)
        pipeline = build()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.eval()
        _save(pipeline, partial)
        more(partial, pipeline)

    with store.alone(folder):
        return folder if folder.exists() else _whole(folder, write)


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
            **_FLUX_VAE, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        text_encoder=hf.CLIPTextModel(clip_config),
        tokenizer=clip,
        text_encoder_2=hf.T5EncoderModel(t5_config),
        tokenizer_2=t5,
        transformer=FluxTransformer2DModel(
            **_DIT, in_channels=4 * _CHANNELS, joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
        ),
    )  # fmt: skip


def _flux2() -> DiffusionPipeline:
    markers = ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"]
    markers += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=vlm_twins.byte_level_bpe([SYSTEM_MESSAGE], 600), padding_side="left",
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=1024, extra_special_tokens=markers,
    )  # fmt: skip
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size=8),
        tokenizer=tokenizer, patch_size=8, spatial_merge_size=2, chat_template=_MISTRAL_TURN,
    )  # fmt: skip
    ids = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    config = hf.Mistral3Config(
        text_config={
            **_TEXT, **ids, "model_type": "mistral", "tie_word_embeddings": False,
            "vocab_size": len(tokenizer), "num_hidden_layers": 40, "head_dim": 8,
            "max_position_embeddings": 1024, "sliding_window": None,
        },
        vision_config={
            "model_type": "pixtral", "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 8, "image_size": 64,
            "patch_size": 8,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2,
        vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip
    return Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=AutoencoderKLFlux2(**_FLUX_VAE),
        text_encoder=hf.Mistral3ForConditionalGeneration(config),
        tokenizer=processor,
        transformer=Flux2Transformer2DModel(
            **_DIT, in_channels=4 * _CHANNELS, joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4),
        ),
    )  # fmt: skip


def _fibo() -> DiffusionPipeline:
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=vlm_twins.byte_level_bpe([EDIT_TEMPLATE], 600), eos_token="<|im_end|>",
        pad_token="<|im_end|>", model_max_length=4096,
    )  # fmt: skip
    config = hf.SmolLM3Config(
        **_TEXT, num_hidden_layers=6, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        vocab_size=128_001,  # the pipeline's token for an empty prompt is the last
    )  # fmt: skip
    return BriaFiboEditPipeline(
        transformer=BriaFiboTransformer2DModel(
            **_DIT, in_channels=16, joint_attention_dim=2 * WIDTH, text_encoder_dim=WIDTH,
            axes_dims_rope=[4, 6, 6],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLWan(
            base_dim=8, decoder_base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1,
            temperal_downsample=[False, True, True], latents_mean=[0.0] * 16,
            latents_std=[1.0] * 16, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
            scale_factor_spatial=16, scale_factor_temporal=4,
        ),
        text_encoder=hf.SmolLM3ForCausalLM(config),
        tokenizer=tokenizer,
    )  # fmt: skip
