"""Twins of the systems that the paper's profile alone names, made as `abplib.editing.twins` are."""

from __future__ import annotations

from pathlib import Path

import transformers as hf
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLWan,
    BriaFiboEditPipeline,
    BriaFiboTransformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

from abplib.editing.twins import CHANNELS, DIT, FLUX_VAE, WIDTH, made, smoke_editor
from abplib.prompts import EDIT_TEMPLATE
from abplib.vlm import twins as vlm_twins

TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
_MISTRAL_TURN = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}[SYSTEM_PROMPT]{% else %}[INST]{% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}[IMG]{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}"
    "{% if m['role'] == 'system' %}[/SYSTEM_PROMPT]{% else %}[/INST]{% endif %}{% endfor %}"
)


def smoke_2509() -> Path:
    """Qwen-Image-Edit-2509: the parts of `smoke_editor` under the other pipeline."""
    parts = QwenImageEditPipeline.from_pretrained(smoke_editor()).components
    return made("2509", lambda: QwenImageEditPlusPipeline(**parts))


def smoke_flux2() -> Path:
    """FLUX.2: a VLM of 40 blocks, as deep as the real one, of which three are read."""
    return made("flux2", _flux2)


def smoke_fibo() -> Path:
    """FIBO-Edit: an LLM of six blocks, of whose hidden states the last three are read."""
    return made("fibo", _fibo)


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
            **TEXT, **ids, "model_type": "mistral", "tie_word_embeddings": False,
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
        vae=AutoencoderKLFlux2(**FLUX_VAE),
        text_encoder=hf.Mistral3ForConditionalGeneration(config),
        tokenizer=processor,
        transformer=Flux2Transformer2DModel(
            **DIT, in_channels=4 * CHANNELS, joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4),
        ),
    )  # fmt: skip


def _fibo() -> DiffusionPipeline:
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=vlm_twins.byte_level_bpe([EDIT_TEMPLATE], 600), eos_token="<|im_end|>",
        pad_token="<|im_end|>", model_max_length=4096,
    )  # fmt: skip
    config = hf.SmolLM3Config(
        **TEXT, num_hidden_layers=6, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        vocab_size=128_001,  # the pipeline's token for an empty prompt is the last
    )  # fmt: skip
    return BriaFiboEditPipeline(
        transformer=BriaFiboTransformer2DModel(
            **DIT, in_channels=16, joint_attention_dim=2 * WIDTH, text_encoder_dim=WIDTH,
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
