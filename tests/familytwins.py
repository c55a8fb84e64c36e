"""Twins of VLM families, random weights: three blocks of width 32, image tokens of 16 pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

from abplib.prompts import EDIT_SYSTEM
from abplib.vlm.twins import SPECIALS, Twin, byte_level_bpe, qwen3_vl

_CHATML = "<|im_start|>{}\n", "<|im_end|>\n"
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_CONTENT = (
    "{{% if m['content'] is string %}}{{{{ m['content'] }}}}{{% else %}}"
    "{{% for c in m['content'] %}}{{% if c['type'] == 'image' %}}{}{{% else %}}"
    "{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
)
_TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024,
}  # fmt: skip
_VISION = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "patch_size": 8, "image_size": 64,
}  # fmt: skip
_SIGLIP = _VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}
_QWEN = {
    "hidden_size": 24, "intermediate_size": 48, "depth": 2, "num_heads": 2, "patch_size": 8,
    "out_hidden_size": 32,
}  # fmt: skip
_SQUARE = {"height": 64, "width": 64}


def qwen2_vl() -> Twin:
    """Qwen2-VL: 3-D positions, pictures at their own aspect."""
    vision = {"embed_dim": 24, "hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    return _qwen("Qwen2VL", vision)


def qwen2_5_vl() -> Twin:
    """Qwen2.5-VL: the same, window attention in its tower."""
    return _qwen("Qwen2_5_VL", _QWEN | {"window_size": 32, "fullatt_block_indexes": [1]})


def _qwen(family: str, vision: dict[str, Any]) -> Twin:
    sizes = {"patch_size": 8, "temporal_patch_size": 2, "min_pixels": 32**2, "max_pixels": 256**2}
    videos = getattr(hf, f"{family}VideoProcessor", hf.Qwen2VLVideoProcessor)
    processor = getattr(hf, f"{family}Processor")(
        image_processor=hf.Qwen2VLImageProcessor(**sizes),
        tokenizer=_tokenizer(*SPECIALS[1:3], *SPECIALS[9:11], *SPECIALS[12:]),
        video_processor=videos(**sizes),
        chat_template=_template(_CHATML[0], "", _CHATML[1], _QWEN_IMAGE),
    )
    positions = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    return _twin(family, processor, {"rope_parameters": positions}, vision)


def llava_onevision() -> Twin:
    """LLaVA-OneVision: the whole picture and a closer view of it."""
    pinpoints = {"image_grid_pinpoints": [[64, 64], [64, 128], [128, 64]]}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=_SQUARE, **pinpoints),
        tokenizer=_tokenizer(*SPECIALS[1:3], image_token="<image>", video_token="<video>"),
        video_processor=hf.LlavaOnevisionVideoProcessor(size=_SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_template("<|im_start|>{} ", "\n", "<|im_end|>", "<image>\n"),
    )
    vision = _SIGLIP | {"patch_size": 16}
    return _twin("LlavaOnevision", processor, {"model_type": "qwen2"}, vision, **pinpoints)


def internvl() -> Twin:
    """InternVL: one tile of a square."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=_SQUARE),
        tokenizer=_tokenizer(*SPECIALS[1:3], context_image_token="<IMG_CONTEXT>", **names),
        video_processor=hf.InternVLVideoProcessor(size=_SQUARE),
        image_seq_length=16,
        chat_template=_template(_CHATML[0], "", _CHATML[1], "<IMG_CONTEXT>\n"),
    )
    vision = _VISION | {"image_size": [64, 64], "patch_size": [8, 8]}
    return _twin("InternVL", processor, {"model_type": "qwen2"}, vision, image_seq_length=16)


def mistral3() -> Twin:
    """Mistral 3 with Pixtral's tower: pictures at their own aspect, a break after each row."""
    names = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[IMG_BREAK]", "[IMG_END]")
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(
            patch_size={"height": 8, "width": 8}, size={"longest_edge": 256}
        ),
        tokenizer=_tokenizer("<s>", *names, image_token="[IMG]"),
        patch_size=8,
        spatial_merge_size=2,
        chat_template="<s>{% for m in messages %}{% if m['role'] == 'system' %}[SYSTEM_PROMPT]"
        + _CONTENT.format("")
        + "[/SYSTEM_PROMPT]{% else %}[INST]"
        + _CONTENT.format("[IMG]")
        + "[/INST]{% endif %}{% endfor %}",
    )
    vision = _VISION | {"model_type": "pixtral", "head_dim": 12, "image_size": 256}
    return _twin("Mistral3", processor, {"model_type": "mistral"}, vision)


def idefics3() -> Twin:
    """Idefics3, the family of the first SmolVLM: a square that is not cut into tiles."""
    names = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    processor = hf.Idefics3Processor(
        image_processor=hf.Idefics3ImageProcessor(
            size={"longest_edge": 128}, max_image_size={"longest_edge": 64}
        ),
        tokenizer=_tokenizer("<|im_start|>", *names),
        image_seq_len=16,
        chat_template="<|im_start|>"
        + _template("{}:", "", "<end_of_utterance>\n", "<image>", roles=("System", "User")),
    )
    return _twin("Idefics3", processor, {"model_type": "llama"}, _VISION, scale_factor=2)


def gemma3() -> Twin:
    """Gemma 3: image tokens see one another, and all blocks but the last a window."""
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    names["image_token"] = "<image_soft_token>"
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size=_SQUARE),
        tokenizer=_tokenizer("<bos>", "<start_of_turn>", "<end_of_turn>", **names),
        image_seq_length=16,
        chat_template="<bos><start_of_turn>user\n{% for m in messages %}"
        + _CONTENT.format("<start_of_image>")
        + "{{ '\n\n' if m['role'] == 'system' }}{% endfor %}<end_of_turn>\n"
        "{{ '<start_of_turn>model\n' }}",
    )
    text = {"sliding_window": 24, "sliding_window_pattern": 3, "query_pre_attn_scalar": 8}
    model, processor = _twin("Gemma3", processor, text, _SIGLIP, mm_tokens_per_image=16)
    torch.nn.init.eye_(model.model.multi_modal_projector.mm_input_projection_weight)  # or zero
    return model, processor


TWINS: dict[str, Callable[[], Twin]] = {
    make.__name__: make
    for make in (
        qwen2_5_vl, qwen2_vl, qwen3_vl, llava_onevision, internvl, mistral3, idefics3, gemma3,
    )
}  # fmt: skip
"""By `config.model_type`."""


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
    words = [EDIT_SYSTEM, "system\n", "user\n", "assistant\n", "\n\n", "\n\n\n\n"]
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(words * 20, 700),
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=list(specials),
        **named,
    )


def _twin(
    family: str,
    processor: hf.ProcessorMixin,
    text: dict[str, Any],
    vision: dict[str, Any],
    **others: Any,
) -> Twin:
    """The model of these sizes, seeded, and the processor; token ids are the tokenizer's."""
    tokenizer = processor.tokenizer
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {**_TEXT, **text, **ids, "bos_token_id": None, "vocab_size": len(tokenizer)}
    config = getattr(hf, f"{family}Config")(text_config=text, vision_config=vision, **others)
    for name in dir(processor):
        if name.endswith("_token_id") and hasattr(config, name):
            setattr(config, name, getattr(processor, name))
    if hasattr(tokenizer, "image_token_id"):
        config.image_token_id = tokenizer.image_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(hf, f"{family}ForConditionalGeneration")(config).eval(), processor
