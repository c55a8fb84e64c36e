"""What the LoRA learns from, encoded once: sources with their boxes drawn on, targets, conditions.

VLM and VAE are frozen, and the largest transformers leave no room for them: they encode every pair
to a file of its own, and are gone before the transformer comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from abplib.core import parallel, store
from abplib.core.errors import AbpError
from abplib.core.store import stored
from abplib.editing import faults, qwen_pipeline
from abplib.editing.loading import Source
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.samples.base import EditedSamples, Sample, take


@dataclass(frozen=True)
class BoxedPairs:
    """Encoded pairs, a file each."""

    files: Sequence[Path]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """Standardised latents `source` and `target` [N, 4 * channels], packed; `grid`, the rows
        and columns of the N tokens; `states` [T, d], the final-layer condition.
        """
        return load_file(self.files[row])


def boxed_pairs(
    source: Source,
    image_area: int,
    samples: EditedSamples,
    vlm_sees_box: bool,
    device: torch.device,
    base: Path | None = None,
) -> BoxedPairs:
    """The samples as the LoRA learns from them, encoded where they are not yet.

    Those that cannot be used (no box, a target that cannot be read, what the editor refuses) are
    left out, and listed on the standard error. AbpError where none can.
    """
    place = _encoded(source, image_area, samples, vlm_sees_box, device, base=base)
    files = faults.made(_files(place, samples), f"training pairs of {samples.name}")
    return BoxedPairs([file for file in files if file is not None])


@stored("lora_pairs", free=["device"], lock=None)
def _encoded(
    place: Path,
    source: Source,
    image_area: int,
    samples: EditedSamples,
    vlm_sees_box: bool,
    device: torch.device,
    base: Path | None,
) -> None:
    """Each process encodes its share."""
    waiting = faults.waiting(parallel.share().take(_files(place, samples)))
    if waiting:
        eyes = replace(source, without=("transformer",), device=device)
        editor = QwenImageEditor(
            eyes, image_area, n_steps=2, guidance=1.0, vlm_sees_box=vlm_sees_box
        )
        editor.load()
        for file in tqdm(waiting, desc="encoding", mininterval=10, disable=not parallel.is_first()):
            row = int(file.stem)
            taken = take(samples, row, partial(_check, editor, samples, row))
            if taken.sample is None:
                faults.give_up(file, taken)
                continue
            with store.replacing(file) as scratch:
                save_file(_pair(editor, taken.sample, samples.edited(row)), scratch)
        eyes.let_go()
    parallel.wait()


def batched(pairs: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Pairs as batches [B, ...], one for each size of picture; states are padded, see `mask`."""
    grids = sorted({tuple(pair["grid"].tolist()) for pair in pairs})
    batches = []
    for grid in grids:
        alike = [pair for pair in pairs if tuple(pair["grid"].tolist()) == grid]
        batch = {key: torch.stack([p[key] for p in alike]) for key in alike[0] if key != "states"}
        batch["states"] = pad_sequence([pair["states"] for pair in alike], batch_first=True)
        lengths = torch.tensor([len(pair["states"]) for pair in alike])
        batch["mask"] = torch.arange(batch["states"].shape[1]) < lengths[:, None]
        batches.append(batch)
    return batches


def _files(place: Path, samples: EditedSamples) -> list[Path]:
    return [place / f"{row:06d}.safetensors" for row in range(len(samples))]


def _check(editor: QwenImageEditor, samples: EditedSamples, row: int, sample: Sample) -> None:
    if not np.isfinite(sample.box).all():
        raise AbpError("It has no box: give it one.")
    editor.check(sample)
    samples.edited(row)


@torch.inference_mode()
def _pair(editor: QwenImageEditor, sample: Sample, target: Image.Image) -> dict[str, Tensor]:
    shown = editor.picture(sample.image, sample.box)
    wanted = target.resize(shown.size, Image.Resampling.LANCZOS)
    seen = shown if editor.vlm_sees_box else editor.picture(sample.image, None)
    states = editor.encoder(seen.size).encode([seen], [sample.instruction], final=True).states
    source, target_latents = (
        qwen_pipeline.source_latents(editor.pipeline, [p])[0] for p in (shown, wanted)
    )
    side = 2 * editor.pipeline.vae_scale_factor
    return {
        "source": source.cpu().contiguous(),
        "target": target_latents.cpu().contiguous(),
        "grid": torch.tensor([shown.height // side, shown.width // side]),
        "states": states["final"][0].cpu().contiguous(),
    }
