"""Loading the VLM and giving it images: what the encoder and the grounder share."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils.logging import disable_progress_bar

from abplib.core import hub
from abplib.core.errors import AbpError
from abplib.core.images import ImageLike, load_image

_HASHED = ("config.json", "*.safetensors", "*.bin", "tokenizer*.json", "*processor_config.json")
_MOST_OBLONG = 100
"""Qwen's processor refuses 200, which rounded sides reach sooner."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_instructions(instructions: Sequence[str], processor: ProcessorMixin) -> None:
    """Refuse an empty instruction and one that holds chat markers, before any work."""
    tokenizer = processor.tokenizer
    added = [token for token in tokenizer.get_added_vocab() if token.startswith("<|")]
    markers = sorted({*added, *tokenizer.all_special_tokens})
    for number, instruction in enumerate(instructions):
        if not isinstance(instruction, str) or not instruction.strip():
            raise AbpError(f"Instruction {number} is empty; say in words what to edit.")
        if marker := next((marker for marker in markers if marker in instruction), None):
            raise AbpError(
                f"Instruction {number} holds the chat marker {marker}, which would end the user's "
                "turn; remove it."
            )


def check_length(longest: int, model: PreTrainedModel) -> int:
    """How many tokens the model could still take after `longest`; AbpError if it cannot."""
    room = model.config.text_config.max_position_embeddings - longest
    if room < 0:
        raise AbpError(
            f"Image and instruction make {longest} tokens where the model takes at most "
            f"{room + longest}; shorten the instruction or lower the image area."
        )
    return room


def fit_image(image: ImageLike, area: int, processor: ProcessorMixin) -> Image.Image:
    """The image resized to about `area` pixels at its own aspect, as Qwen-Image-Edit does.

    The pipeline rounds the sides to multiples of 32, the power of two nearest to the 28 pixels
    of one of the VLM's image tokens; models with finer tokens round to theirs.
    """
    vision = processor.image_processor
    return resize(image, area, vision.patch_size * vision.merge_size)


def resize(image: ImageLike, area: int, side: int) -> Image.Image:
    """The same for image tokens of `side` pixels. AbpError for what is too oblong for Qwen."""
    upright = load_image(image)
    short, long = sorted(upright.size)
    if long >= _MOST_OBLONG * short:
        raise AbpError(
            f"An image of {upright.width} x {upright.height} pixels is too oblong; crop it to "
            f"sides of less than {_MOST_OBLONG} to 1."
        )
    multiple = 2 ** round(math.log2(side))
    ratio = upright.width / upright.height
    width = math.sqrt(area * ratio)
    sides = (max(1, round(side / multiple)) * multiple for side in (width, width / ratio))
    return upright.resize(tuple(sides), Image.Resampling.LANCZOS)


def tokenize(
    images: Sequence[Image.Image],
    texts: Sequence[str],
    processor: ProcessorMixin,
    padding_side: str,
    **options: Any,
) -> BatchFeature:
    """The model's inputs for one image a text, `mm_token_type_ids` among them.

    transformers >= 5 builds Qwen's 3-D rotary positions only where the model is given those, and
    says nothing where it is not.
    """
    return processor(
        text=list(texts),
        images=[[image] for image in images],
        padding=True,
        padding_side=padding_side,
        add_special_tokens=False,
        return_tensors="pt",
        **options,
    )


class Answer(NamedTuple):
    """What a VLM wrote about one image."""

    text: str
    """Without special tokens and outer blanks."""
    seen: tuple[int, int]
    """Width and height in pixels of the image as the model saw it."""
    whole: bool = True
    """Whether the model ended it, and not the limit of tokens."""


def chats(
    images: Sequence[ImageLike],
    texts: Sequence[str],
    model: PreTrainedModel,
    processor: ProcessorMixin,
    image_area: int,
) -> BatchFeature:
    """Whole chats as `generate_text` takes them, the place of its image marked in each.

    Raises AbpError where one is longer than the model can take.
    """
    fitted = [fit_image(image, image_area, processor) for image in images]
    inputs = tokenize(fitted, texts, processor, padding_side="left")
    check_length(inputs["input_ids"].shape[1] + 1, model)
    return inputs


@torch.inference_mode()
def generate_text(
    inputs: BatchFeature,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
) -> list[Answer]:
    """How the model goes on after each of some `chats`, greedily, in one batch.

    A checkpoint's own `repetition_penalty` is not taken: greedy is the likeliest token.
    """
    n_prompt = inputs["input_ids"].shape[1]
    room = check_length(n_prompt + 1, model) + 1
    tokenizer = processor.tokenizer
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    generated = model.generate(
        **inputs.to(model.device),
        max_new_tokens=min(max_new_tokens, room),
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=repetition_penalty,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    said = generated[:, n_prompt:]
    ended = torch.isin(said, torch.tensor(ends, device=said.device)).any(1).tolist()
    written = tokenizer.batch_decode(said, skip_special_tokens=True)
    patch, grids = processor.image_processor.patch_size, inputs["image_grid_thw"].tolist()
    grids = grids[:: len(grids) // len(written)]  # of the first image of each chat
    return [
        Answer(text.strip(), (columns * patch, rows * patch), whole)
        for text, (_, rows, columns), whole in zip(written, grids, ended, strict=True)
    ]


def load_vlm(
    vlm: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    processor_of: str | Path | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model, frozen and in eval mode, and its processor, from a folder or a hub id.

    `device="auto"` spreads the model by free memory: over the GPUs, then the CPU. A model without
    a processor is given that of another, `processor_of`.

    Raises AbpError where files are missing or corrupt, or the weights are not exactly the
    model's: transformers would fill the gaps with random numbers.
    """
    _check_source(vlm)
    if not sys.stderr.isatty():
        disable_progress_bar()  # of the weights' loading
    local = not Path(vlm).is_dir() and hub.only_here(str(vlm), revision)
    at = _commit(vlm, revision)
    with hub.loading("VLM", processor_of or vlm):
        processor = AutoProcessor.from_pretrained(
            processor_of or vlm,
            revision=_commit(processor_of) if processor_of else at,
            local_files_only=local,
        )
    with hub.loading("VLM", vlm):
        model, report = AutoModelForImageTextToText.from_pretrained(
            vlm,
            revision=at,
            local_files_only=local,
            dtype=dtype,
            device_map=device,
            output_loading_info=True,
        )
    if wrong := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise AbpError(
            f"The weights of {vlm} lack or misshape {len(wrong)} of the model's tensors "
            f"({wrong[0]} first); fetch or make the model again."
        )
    if not isinstance(processor, ProcessorMixin):
        raise AbpError(f"{vlm} comes without a processor of images; fetch or make it again.")
    if len(processor.tokenizer) <= model.config.image_token_id:
        raise AbpError(f"{vlm} comes without its own tokenizer; fetch or make the model again.")
    if processor.tokenizer.pad_token_id is None:
        raise AbpError(f"The tokenizer of {vlm} has no padding token; give it the model's own.")
    return model.eval().requires_grad_(False), processor


def _commit(vlm: str | Path, revision: str | None = None) -> str | None:
    """Of a hub id; a folder has none."""
    return None if Path(vlm).is_dir() else hub.commit(str(vlm), revision)


def fingerprint(vlm: str | Path, revision: str | None = None) -> str:
    """Hash of what decides a loaded model's states: weights, configuration, tokenizer, processor.

    A folder is hashed by content, a hub model by its commit.
    """
    digest = hashlib.sha256()
    if at := _commit(vlm, revision):
        digest.update(f"{vlm}@{at}".encode())
        return digest.hexdigest()
    paths = {path for pattern in _HASHED for path in Path(vlm).glob(pattern) if path.is_file()}
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check_source(vlm: str | Path) -> None:
    if Path(vlm).is_dir():
        if not (Path(vlm) / "config.json").is_file():
            raise AbpError(f"The folder {vlm} holds no config.json; give a saved VLM's folder.")
    elif isinstance(vlm, Path) or not _HUB_ID.fullmatch(vlm):
        raise AbpError(f"There is no VLM at {vlm}; give a saved VLM's folder or a hub id.")
