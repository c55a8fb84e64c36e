"""Same-class twins of the real models, from a configuration: tokenizer, processor, Qwen2.5-VL.

Everything is saved and loaded with the libraries' own `save_pretrained` / `from_pretrained`, so
whatever runs on a twin runs on the real model by changing a path.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from abplib import paths, prompts, results
from abplib.mini import answers

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
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


def build_tokenizer(texts: Iterable[str], shape: VLMShape) -> Qwen2Tokenizer:
    """A byte-level BPE with Qwen's pre-tokenizer; whole pixel numbers are single tokens.

    The words of the system prompts merge first, so that the prefix that the editing pipeline
    drops has Qwen's own 64 tokens.
    """
    raw = Tokenizer(BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    roles = ["system\n", "\n", "user\n", "assistant\n"]
    templates = [prompts.EDIT_SYSTEM, prompts.GROUNDING_SYSTEM, prompts.DESCRIBE_SYSTEM]
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary,
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator([*(roles + templates) * 2000, *texts], trainer)
    model = json.loads(raw.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
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


def number_tokens(tokenizer: Qwen2Tokenizer, shape: VLMShape) -> list[int]:
    """Token ids of the pixel numbers 0, 1, ..., `side`; they need not be consecutive."""
    ids: list[int] = tokenizer.convert_tokens_to_ids([str(i) for i in range(shape.side + 1)])
    return ids


def build_processor(tokenizer: Qwen2Tokenizer, shape: VLMShape) -> Qwen2VLProcessor:
    """Qwen's processor with a small patch."""
    sizes = {
        "patch_size": shape.patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": (4 * shape.patch) ** 2,
        "max_pixels": 4 * shape.side**2,
    }
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def build_vlm(
    tokenizer: Qwen2Tokenizer, shape: VLMShape, seed: int
) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL with random weights, in eval mode."""
    head_dim = shape.width // shape.heads
    quarter = head_dim // 8
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in [
            ("image", "<|image_pad|>"),
            ("video", "<|video_pad|>"),
            ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
        ]
    }
    config = Qwen2_5_VLConfig(
        text_config={
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
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config={
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
        },
        tie_word_embeddings=True,
        **ids,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.do_sample = False
    return model


def save(model: PreTrainedModel, processor: Qwen2VLProcessor, folder: Path) -> Path:
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
    made_by = results.digest_files(__file__, answers.__file__)
    folder = paths.results() / "twins" / f"smoke_vlm-{made_by}"
    with results.alone(folder):
        if not (folder / "config.json").exists():
            tokenizer = build_tokenizer(answers.corpus(60, SMOKE.side), SMOKE)
            save(build_vlm(tokenizer, SMOKE, seed=0), build_processor(tokenizer, SMOKE), folder)
    return folder
