"""Twins of VLMs: the same classes with random weights, made from configurations without a download.

A `VLMShape` makes a small Qwen2.5-VL of any size: the specimen before its training, and the twin of
profile `smoke`. Chapter 6 has a tiny Qwen3-VL. All are saved and loaded by the libraries' own
`save_pretrained` and `from_pretrained`, so what runs on a twin runs on the real model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

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
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's."""


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


def build_processor(
    tokenizer: hf.Qwen2Tokenizer, shape: VLMShape, family: str = "Qwen2VL"
) -> hf.ProcessorMixin:
    """The processor of one of Qwen's families with a small patch."""
    sizes = {"patch_size": shape.patch, "merge_size": 2, "temporal_patch_size": 2}
    sizes |= {"min_pixels": (4 * shape.patch) ** 2, "max_pixels": 4 * shape.side**2}
    return getattr(hf, f"{family}Processor")(
        image_processor=hf.Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=getattr(hf, f"{family}VideoProcessor")(**sizes),
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
    _name_tokens(config, tokenizer)
    torch.manual_seed(seed)
    model = hf.Qwen2_5_VLForConditionalGeneration(config).eval()
    model.generation_config.update(**ids, do_sample=False)
    return model


def _name_tokens(config: hf.PreTrainedConfig, tokenizer: hf.Qwen2Tokenizer) -> None:
    for name in ("vision_start", "vision_end", "image_pad", "video_pad"):
        token = tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        setattr(config, f"{name.removesuffix('_pad')}_token_id", token)


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


def qwen3_vl() -> Twin:
    """A tiny Qwen3-VL: interleaved 3-D positions, and DeepStack into the first block."""
    tokenizer = build_tokenizer([], SMOKE)
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "depth": 2,
        "num_heads": 2,
        "patch_size": SMOKE.patch,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = hf.Qwen3VLConfig(text_config=text, vision_config=vision)
    _name_tokens(config, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.Qwen3VLForConditionalGeneration(config).eval()
    return model, build_processor(tokenizer, SMOKE, "Qwen3VL")


def qwen3_vl_folder() -> Path:
    """Folder of the tiny Qwen3-VL, made when absent (chapter 6)."""
    return _kept("qwen3_vl", qwen3_vl)


def _kept(name: str, make: Callable[[], Twin]) -> Path:
    folder = paths.results() / f"twins/{name}-{store.digest_files(__file__)}"
    return made(folder, lambda: save(*make(), folder))
