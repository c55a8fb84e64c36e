"""Twins of VLMs: the same classes with random weights, made from configurations without a download.

A `VLMShape` makes a small Qwen2.5-VL of any size: the specimen before its training, and the twin of
profile `smoke`. `TWINS` has a tiny one of every family: three decoder blocks of width 32, image
tokens of 16 pixels. All are saved and loaded by the libraries' own `save_pretrained` and
`from_pretrained`, so what runs on a twin runs on the real model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from abplib.core import paths, store
from abplib.core.parallel import made
from abplib.prompts import DESCRIBE_SYSTEM, EDIT_SYSTEM, GROUNDING_SYSTEM
from abplib.samples.scenes.sets import general

Twin = tuple[hf.PreTrainedModel, hf.ProcessorMixin]

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_CHATML = "<|im_start|>{}\n", "<|im_end|>\n"
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_CONTENT = (
    "{{% if m['content'] is string %}}{{{{ m['content'] }}}}{{% else %}}"
    "{{% for c in m['content'] %}}{{% if c['type'] == 'image' %}}{}{{% else %}}"
    "{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    + _CONTENT.format(_QWEN_IMAGE)
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class VLMShape:
    """Size of a miniature Qwen2.5-VL. A merged token covers `2 * patch` pixels of the picture."""

    layers: int = 10
    width: int = 128
    heads: int = 4
    kv_heads: int = 4
    mlp: int = 384
    patch: int = 8
    vision_layers: int = 4
    vision_width: int = 96
    vision_heads: int = 3
    vision_mlp: int = 288
    side: int = 128
    """Side of the (square) picture that the model is trained on, in pixels."""
    vocabulary: int = 820


def byte_level_bpe(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE with Qwen's pre-tokenizer, trained on some texts."""
    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return raw


def sample_texts(n: int = 200) -> list[str]:
    """Instructions and answers of the mini world's general set, for the tokenizers of twins."""
    edits = [general().scene_edit(index)[1] for index in range(n)]
    return [text for edit in edits for text in (edit.instruction, edit.answer)]


def build_tokenizer(texts: Iterable[str], shape: VLMShape) -> hf.Qwen2Tokenizer:
    """A byte-level BPE with Qwen's pre-tokenizer; whole pixel numbers are single tokens.

    The words of the system prompts merge first, so that the prefix that the editing pipeline
    drops has Qwen's own 64 tokens.
    """
    roles = ["system\n", "\n", "user\n", "assistant\n"]
    templates = [EDIT_SYSTEM, GROUNDING_SYSTEM, DESCRIBE_SYSTEM]
    raw = byte_level_bpe([*(roles + templates) * 2000, *texts], shape.vocabulary)
    raw.normalizer = normalizers.NFC()
    model = json.loads(raw.to_str())["model"]
    tokenizer = hf.Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(m) for m in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=list(SPECIALS[1:]),
        model_max_length=2048,
    )
    tokenizer.add_tokens([*map(str, range(shape.side + 1)), "bbox_2d"])
    return tokenizer


def number_tokens(tokenizer: hf.Qwen2Tokenizer, shape: VLMShape) -> list[int]:
    """Token ids of the pixel numbers 0, 1, ..., `side`; they need not be consecutive."""
    ids: list[int] = tokenizer.convert_tokens_to_ids([str(i) for i in range(shape.side + 1)])
    return ids


def build_processor(tokenizer: hf.Qwen2Tokenizer, shape: VLMShape) -> hf.Qwen2VLProcessor:
    """Qwen's processor with a small patch."""
    sizes = {"patch_size": shape.patch, "merge_size": 2, "temporal_patch_size": 2}
    sizes |= {"min_pixels": (4 * shape.patch) ** 2, "max_pixels": 4 * shape.side**2}
    return hf.Qwen2VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def build_vlm(
    tokenizer: hf.Qwen2Tokenizer, shape: VLMShape, seed: int
) -> hf.Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL with random weights, in eval mode."""
    quarter = shape.width // shape.heads // 8
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [quarter, 3 * quarter // 2, 3 * quarter // 2],
        },
        "bos_token_id": None,
        "tie_word_embeddings": True,
        **ids,
    }
    vision = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_width,
        "intermediate_size": shape.vision_mlp,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.width,
        "patch_size": shape.patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": shape.side,
        "fullatt_block_indexes": list(range(shape.vision_layers)),
    }
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    for name in ("vision_start", "vision_end", "image_pad", "video_pad"):
        token = tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        setattr(config, f"{name.removesuffix('_pad')}_token_id", token)
    torch.manual_seed(seed)
    model = hf.Qwen2_5_VLForConditionalGeneration(config).eval()
    model.generation_config.update(**ids, do_sample=False)
    return model


def save(model: hf.PreTrainedModel, processor: hf.ProcessorMixin, folder: Path) -> Path:
    """Write model, tokenizer and processor as `from_pretrained` reads them; whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


SMOKE = VLMShape(
    layers=4, width=64, heads=2, kv_heads=2, mlp=128, vision_layers=2, vision_width=32,
    vision_heads=2, vision_mlp=64, side=64,
)  # fmt: skip


def smoke_vlm() -> Path:
    """Folder of a tiny Qwen2.5-VL with random weights, made when absent (profile `smoke`)."""

    def make() -> Twin:
        tokenizer = build_tokenizer(sample_texts(), SMOKE)
        return build_vlm(tokenizer, SMOKE, seed=0), build_processor(tokenizer, SMOKE)

    return _kept("smoke_vlm", make)


def qwen3_vl_folder() -> Path:
    """Folder of the tiny Qwen3-VL of `TWINS`, made when absent (chapter 6)."""
    return _kept("qwen3_vl", qwen3_vl)


def _kept(name: str, make: Callable[[], Twin]) -> Path:
    folder = paths.results() / f"twins/{name}-{store.digest_files(__file__)}"
    return made(folder, lambda: save(*make(), folder))


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


def qwen3_vl() -> Twin:
    """Qwen3-VL: interleaved 3-D positions, and DeepStack into the first block."""
    vision = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return _qwen("Qwen3VL", _QWEN | vision, mrope_interleaved=True)


def _qwen(family: str, vision: dict[str, Any], **rope: Any) -> Twin:
    sizes = {"patch_size": 8, "temporal_patch_size": 2, "min_pixels": 32**2, "max_pixels": 256**2}
    videos = getattr(hf, f"{family}VideoProcessor", hf.Qwen2VLVideoProcessor)
    processor = getattr(hf, f"{family}Processor")(
        image_processor=hf.Qwen2VLImageProcessor(**sizes),
        tokenizer=_tokenizer(*SPECIALS[1:3], *SPECIALS[9:11], *SPECIALS[12:]),
        video_processor=videos(**sizes),
        chat_template=_template(_CHATML[0], "", _CHATML[1], _QWEN_IMAGE),
    )
    positions = {"rope_type": "default", "mrope_section": [2, 1, 1], **rope}
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
