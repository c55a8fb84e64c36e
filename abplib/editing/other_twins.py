"""Tiny random-weight twins of the editors beside Qwen-Image-Edit: the pipelines' own classes.

Each function returns a folder that `from_pretrained` reads, made when absent. All keep what the
real pipelines fix: how many pixels a token covers, how many tokens are read, which layers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLWan,
    BriaFiboEditPipeline,
    BriaFiboTransformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from abplib.core import paths, store
from abplib.editing import twins
from abplib.editing.twins import smoke_editor
from abplib.vlm import twins as vlm_twins

WIDTH = 32
"""Of hidden states."""

_CHANNELS = 4
_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_FLUX_SHIFT = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
_MISTRAL_TURN = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}[SYSTEM_PROMPT]{% else %}[INST]{% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}[IMG]{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}"
    "{% if m['role'] == 'system' %}[/SYSTEM_PROMPT]{% else %}[/INST]{% endif %}{% endfor %}"
)


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


def _made(name: str, build: Callable[[], DiffusionPipeline]) -> Path:
    made_by = store.digest_files(__file__, twins.__file__, vlm_twins.__file__)
    folder = paths.results() / "twins" / f"smoke_{name}-{made_by}"
    if not folder.exists():
        partial = folder.with_suffix(".making")
        shutil.rmtree(partial, ignore_errors=True)
        torch.manual_seed(0)
        pipeline = build()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.eval()
        pipeline.save_pretrained(partial)
        partial.rename(folder)
    return folder


def _kontext() -> DiffusionPipeline:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], model_max_length=77
    )
    written = [chr(code) for code in range(33, 127)]
    t5 = T5TokenizerFast(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
        + [(letter, -4.0) for letter in written],
        extra_ids=0,
        model_max_length=512,
    )
    clip_model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=WIDTH,
            bos_token_id=clip.bos_token_id,
            eos_token_id=clip.eos_token_id,
            pad_token_id=clip.pad_token_id,
        )
    )
    t5_model = T5EncoderModel(
        T5Config(
            vocab_size=len(t5),
            d_model=WIDTH,
            d_kv=8,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    vae = AutoencoderKL(
        **_flux_vae(),
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    dit = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * _CHANNELS,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**_FLUX_SHIFT),
        vae=vae,
        text_encoder=clip_model,
        tokenizer=clip,
        text_encoder_2=t5_model,
        tokenizer_2=t5,
        transformer=dit,
    )


def _flux2() -> DiffusionPipeline:
    markers = ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"]
    markers += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_bpe([SYSTEM_MESSAGE, *vlm_twins.sample_texts()]),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=1024,
        extra_special_tokens=markers,
    )
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 64}, patch_size=8),
        tokenizer=tokenizer,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=_MISTRAL_TURN,
    )
    config = Mistral3Config(
        text_config={
            **_TEXT,
            "model_type": "mistral",
            "tie_word_embeddings": False,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 40,
            "head_dim": 8,
            "max_position_embeddings": 1024,
            "sliding_window": None,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "head_dim": 8,
            "image_size": 64,
            "patch_size": 8,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    dit = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4 * _CHANNELS,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=AutoencoderKLFlux2(**_flux_vae()),
        text_encoder=Mistral3ForConditionalGeneration(config),
        tokenizer=processor,
        transformer=dit,
    )


def _fibo() -> DiffusionPipeline:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_bpe(['{"edit_instruction": "', *vlm_twins.sample_texts()]),
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        model_max_length=4096,
    )
    model = SmolLM3ForCausalLM(
        SmolLM3Config(
            **_TEXT,
            vocab_size=128_001,  # the pipeline's token for an empty prompt is the last
            num_hidden_layers=6,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    vae = AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=16,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
    )
    dit = BriaFiboTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        text_encoder_dim=WIDTH,
        axes_dims_rope=[4, 6, 6],
    )
    return BriaFiboEditPipeline(
        transformer=dit,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=model,
        tokenizer=tokenizer,
    )


def _flux_vae() -> dict[str, object]:
    """Eight pixels a latent."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [8, 8, 16, 16],
        "layers_per_block": 1,
        "latent_channels": _CHANNELS,
        "norm_num_groups": 4,
    }


def _bpe(texts: list[str]) -> Tokenizer:
    """A byte-level BPE of some texts."""
    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(texts * 3, trainer)
    return raw
