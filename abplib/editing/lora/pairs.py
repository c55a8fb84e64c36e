"""What the LoRA learns from, encoded once: sources with their boxes drawn on, targets, conditions.

VLM and VAE are frozen, and the largest transformers leave no room for them: they encode every pair
to a file of its own, and are gone before the transformer comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from abplib.editing import qwen_pipeline
from abplib.editing.controls import EditedSamples
from abplib.editing.qwen_image_edit import QwenImageEditor


@dataclass(frozen=True)
class BoxedPairs:
    """Encoded pairs, a file each."""

    folder: Path

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """Standardised latents `source` and `target` [N, 4 * channels], packed; `grid`, the rows
        and columns of the N tokens; `states` [T, d], the final-layer condition.
        """
        return load_file(_file(self.folder, row))


def encode_pairs(
    editor: QwenImageEditor, samples: EditedSamples, base: Path, device: torch.device
) -> BoxedPairs:
    """Encode the pairs that are not yet in a folder of `base`, each process its share.

    Raises:
        AbpError: a sample has no box, or as the editor does for its image and instruction.
    """
    place = store.folder(
        "lora_pairs", base=base, editor=editor.fingerprint, samples=samples.fingerprint
    )
    rows = parallel.share().take(range(len(samples)))
    waiting = [row for row in rows if not _file(place, row).exists()]
    if waiting:
        eyes = replace(editor.source, without=("transformer",), device=device)
        seeing = replace(editor, source=eyes)
        for row in tqdm(waiting, desc="encoding", mininterval=10, disable=not parallel.is_first()):
            with store.replacing(_file(place, row)) as scratch:
                save_file(_encoded(seeing, samples, row), scratch)
        eyes.let_go()
    parallel.wait()
    return BoxedPairs(place)


def batched(pairs: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Pairs as batches [B, ...], one for each size of picture; states are padded, see `mask`."""
    grids = sorted({tuple(pair["grid"].tolist()) for pair in pairs})
    found = []
    for grid in grids:
        alike = [pair for pair in pairs if tuple(pair["grid"].tolist()) == grid]
        batch = {key: torch.stack([p[key] for p in alike]) for key in alike[0] if key != "states"}
        batch["states"] = pad_sequence([pair["states"] for pair in alike], batch_first=True)
        lengths = torch.tensor([len(pair["states"]) for pair in alike])
        batch["mask"] = torch.arange(batch["states"].shape[1]) < lengths[:, None]
        found.append(batch)
    return found


@torch.inference_mode()
def _encoded(editor: QwenImageEditor, samples: EditedSamples, row: int) -> dict[str, Tensor]:
    sample = samples[row]
    if not np.isfinite(sample.box).all():
        raise AbpError(f"Sample {sample.id} of {samples.name} has no box: give it one.")
    shown = editor.picture(sample.image, sample.box)
    wanted = samples.edited(row).resize(shown.size, Image.Resampling.LANCZOS)
    states = editor.encoder(shown.size).encode([shown], [sample.instruction], final=True).states
    source, target = (
        qwen_pipeline.source_latents(editor.pipeline, [p])[0] for p in (shown, wanted)
    )
    side = 2 * editor.pipeline.vae_scale_factor
    return {
        "source": source.cpu().contiguous(),
        "target": target.cpu().contiguous(),
        "grid": torch.tensor([shown.height // side, shown.width // side]),
        "states": states["final"][0].cpu().contiguous(),
    }


def _file(folder: Path, row: int) -> Path:
    return folder / f"{row:06d}.safetensors"
