"""Tiny twins of VLM families: their own classes with random weights, made without a download.

Each has three decoder blocks of width 32, and image tokens of 16 pixels; the squares are of 64.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from abplib.core import paths, store
from abplib.prompts import EDIT_SYSTEM

Twin = tuple[hf.PreTrainedModel, hf.ProcessorMixin]

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
}
_VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 64,
}
_PIXELS = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 32**2}
_CHATML = "<|im_start|>{}\n", "<|im_end|>\n"


def qwen2_vl() -> Twin:
    """Qwen2-VL: 3-D positions, pictures at their own aspect."""
    processor = _qwen_processor(hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor)
    vision = {"embed_dim": 24, "hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    text = _TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
    return _twin(hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLConfig, processor, text, vision)


def qwen2_5_vl() -> Twin:
    """Qwen2.5-VL: the same, window attention in its tower."""
    processor = _qwen_processor(hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor)
    vision = {
        "hidden_size": 24, "intermediate_size": 48, "depth": 2, "num_heads": 2, "patch_size": 8,
        "out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    text = _TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
    return _twin(
        hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLConfig, processor, text, vision
    )


def qwen3_vl() -> Twin:
    """Qwen3-VL: interleaved 3-D positions, and DeepStack into the first block."""
    processor = _qwen_processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor)
    vision = {
        "hidden_size": 24, "intermediate_size": 48, "depth": 2, "num_heads": 2, "patch_size": 8,
        "out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = _TEXT | {"rope_parameters": rope}
    return _twin(hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLConfig, processor, text, vision)


def qwen3_vl_folder() -> Path:
    """The same as a folder that `from_pretrained` reads, made when absent."""
    return save(qwen3_vl, paths.results() / "twins" / f"qwen3_vl-{store.digest_files(__file__)}")


def save(make: Callable[[], Twin], folder: Path) -> Path:
    """Write a twin to a folder, whole or not at all, where it is not there."""
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        for part in make():
            part.save_pretrained(partial)
        partial.rename(folder)
    return folder


def llava_onevision() -> Twin:
    """LLaVA-OneVision: the whole picture and a closer view of it."""
    tokenizer = _tokenizer(
        "<|im_start|>", "<|im_end|>", image_token="<image>", video_token="<video>"
    )
    pinpoints = [[64, 64], [64, 128], [128, 64]]
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(
            size={"height": 64, "width": 64}, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size={"height": 64, "width": 64}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_template("<|im_start|>{} ", "\n", "<|im_end|>", "<image>\n"),
    )
    vision = _VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}
    return _twin(
        hf.LlavaOnevisionForConditionalGeneration,
        hf.LlavaOnevisionConfig,
        processor,
        _TEXT | {"model_type": "qwen2"},
        vision | {"patch_size": 16},
        image_grid_pinpoints=pinpoints,
    )


def internvl() -> Twin:
    """InternVL: one tile of a square."""
    tokenizer = _tokenizer(
        "<|im_start|>",
        "<|im_end|>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    size = {"height": 64, "width": 64}
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=size),
        image_seq_length=16,
        chat_template=_template(*_CHATML[:1], "", _CHATML[1], "<IMG_CONTEXT>\n"),
    )
    vision = _VISION | {"image_size": [64, 64], "patch_size": [8, 8]}
    return _twin(
        hf.InternVLForConditionalGeneration,
        hf.InternVLConfig,
        processor,
        _TEXT | {"model_type": "qwen2"},
        vision,
        image_seq_length=16,
    )


def mistral3() -> Twin:
    """Mistral 3 with Pixtral's tower: pictures at their own aspect, a break after each row."""
    names = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[IMG_BREAK]", "[IMG_END]")
    tokenizer = _tokenizer("<s>", *names, image_token="[IMG]")
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(
            patch_size={"height": 8, "width": 8}, size={"longest_edge": 256}
        ),
        tokenizer=tokenizer,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=(
            "<s>{% for m in messages %}{% if m['role'] == 'system' %}[SYSTEM_PROMPT]"
            + _CONTENT.format("")
            + "[/SYSTEM_PROMPT]{% else %}[INST]"
            + _CONTENT.format("[IMG]")
            + "[/INST]{% endif %}{% endfor %}"
        ),
    )
    return _twin(
        hf.Mistral3ForConditionalGeneration,
        hf.Mistral3Config,
        processor,
        _TEXT | {"model_type": "mistral"},
        _VISION | {"model_type": "pixtral", "head_dim": 12, "image_size": 256},
    )


def idefics3() -> Twin:
    """Idefics3, the family of the first SmolVLM: a square that is not cut into tiles."""
    tokenizer = _tokenizer(
        "<|im_start|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"
    )
    processor = hf.Idefics3Processor(
        image_processor=hf.Idefics3ImageProcessor(
            size={"longest_edge": 128}, max_image_size={"longest_edge": 64}
        ),
        tokenizer=tokenizer,
        image_seq_len=16,
        chat_template="<|im_start|>"
        + _template("{}:", "", "<end_of_utterance>\n", "<image>", roles=("System", "User")),
    )
    return _twin(
        hf.Idefics3ForConditionalGeneration,
        hf.Idefics3Config,
        processor,
        _TEXT | {"model_type": "llama"},
        _VISION,
        scale_factor=2,
    )


def gemma3() -> Twin:
    """Gemma 3: image tokens see one another, and all blocks but the last a window."""
    tokenizer = _tokenizer(
        "<bos>",
        "<start_of_turn>",
        "<end_of_turn>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size={"height": 64, "width": 64}),
        tokenizer=tokenizer,
        image_seq_length=16,
        chat_template=(
            "<bos><start_of_turn>user\n{% for m in messages %}"
            + _CONTENT.format("<start_of_image>")
            + "{{ '\n\n' if m['role'] == 'system' }}{% endfor %}<end_of_turn>\n"
            "{{ '<start_of_turn>model\n' }}"
        ),
    )
    model, processor = _twin(
        hf.Gemma3ForConditionalGeneration,
        hf.Gemma3Config,
        processor,
        _TEXT | {"sliding_window": 24, "sliding_window_pattern": 3, "query_pre_attn_scalar": 8},
        _VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        mm_tokens_per_image=16,
    )
    torch.nn.init.eye_(model.model.multi_modal_projector.mm_input_projection_weight)  # or zero
    return model, processor


TWINS: dict[str, Callable[[], Twin]] = {
    make.__name__: make
    for make in (
        qwen2_5_vl, qwen2_vl, qwen3_vl, llava_onevision, internvl, mistral3, idefics3, gemma3,
    )
}  # fmt: skip
"""By `config.model_type`."""

_CONTENT = (
    "{{% if m['content'] is string %}}{{{{ m['content'] }}}}{{% else %}}"
    "{{% for c in m['content'] %}}{{% if c['type'] == 'image' %}}{}{{% else %}}"
    "{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
)


def _template(
    opening: str, before: str, closing: str, image: str, roles: tuple[str, str] = ("system", "user")
) -> str:
    """A chat template of turns that open with a role's name; `before` leads the system's text."""
    turns = [
        f"{{% if m['role'] == '{role}' %}}{opening.format(name)}{lead}{_CONTENT.format(image)}"
        f"{closing}{{% endif %}}"
        for role, name, lead in zip(("system", "user"), roles, (before, ""), strict=True)
    ]
    answer = opening.format("Assistant" if roles[1].istitle() else "assistant")
    return "{% for m in messages %}" + "".join(turns) + "{% endfor %}{{ '" + answer + "' }}"


def _tokenizer(*specials: str, **named: str) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE that knows the system prompt's words; named tokens become attributes."""
    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = [EDIT_SYSTEM, "system\n", "user\n", "assistant\n", "\n\n", "\n\n\n\n"]
    raw.train_from_iterator(words * 20, trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=list(specials),
        **named,
    )


def _qwen_processor(kind: type[Any], videos: type[Any]) -> hf.ProcessorMixin:
    tokenizer = _tokenizer(
        "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
        "<|video_pad|>",
    )  # fmt: skip
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return kind(
        image_processor=hf.Qwen2VLImageProcessor(**_PIXELS, max_pixels=256**2),
        tokenizer=tokenizer,
        video_processor=videos(**_PIXELS, max_pixels=256**2),
        chat_template=_template(_CHATML[0], "", _CHATML[1], image),
    )


def _twin(
    kind: type[Any],
    configuration: type[Any],
    processor: hf.ProcessorMixin,
    text: dict[str, Any],
    vision: dict[str, Any],
    **others: Any,
) -> Twin:
    """The model of these sizes, seeded, and the processor; token ids are the tokenizer's."""
    tokenizer = processor.tokenizer
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {**text, **ids, "bos_token_id": None, "vocab_size": len(tokenizer)}
    config = configuration(text_config=text, vision_config=vision, **others)
    for name in dir(processor):
        if name.endswith("_token_id") and hasattr(config, name):
            setattr(config, name, getattr(processor, name))
    if hasattr(tokenizer, "image_token_id"):
        config.image_token_id = tokenizer.image_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).eval(), processor
