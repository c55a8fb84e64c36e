"""The conditions that the comparison trains on, all read in one pass of the frozen VLM.

- `final`: the last block's normed states, Qwen-Image-Edit's own condition.
- `middle`: one layer, the middle one of the middle layers (section 4.3).
- `pooled`: the mean over all middle layers.
- `stacked`: three layers side by side in width, as FLUX.2 does. It takes the states after 10, 20
  and 30 of 40 blocks; here they are those after a quarter, a half and three quarters of the blocks.

States that the VLM does not norm itself are layer-normalised without parameters, as Norm-AVG does,
so that the late layers, whose states are longer, do not outweigh the early ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from abplib.core import store
from abplib.editing.conditions import Condition
from abplib.samples.scenes.render import render
from abplib.vlm.encoder import NOTHING, ConditionEncoder, Layer
from recipes.miniature.editor_data import EDITS, Pairs, Wording, scene_edits

CONDITIONS = ("final", "middle", "pooled", "stacked")

_PART = 16
"""Scenes of one file: what a killed run loses at most."""


def layers_read(encoder: ConditionEncoder) -> dict[str, tuple[Layer, ...]]:
    """The layers behind each of `CONDITIONS`, for a VLM of this depth."""
    depth, middle = encoder.n_layers, encoder.middle_layers
    return {
        "final": ("final",),
        "middle": (middle[len(middle) // 2],),
        "pooled": middle,
        "stacked": tuple(depth * quarters // 4 - 1 for quarters in (1, 2, 3)),
    }


def read_conditions(
    encoder: ConditionEncoder, images: Sequence[Image.Image], instructions: Sequence[str]
) -> dict[str, Condition]:
    """Each of `CONDITIONS` for B images and instructions: [B, T, d], `stacked` [B, T, 3 d]."""
    wanted = layers_read(encoder)
    blocks = sorted({l for layers in wanted.values() for l in layers if l != "final"})
    encoding = encoder.encode(images, instructions, layers=blocks, final=True)
    normed = {
        l: states.float() if l == "final" else F.layer_norm(states.float(), (encoder.width,))
        for l, states in encoding.states.items()
    }
    return {
        name: Condition(_joined(name, [normed[l] for l in layers]), encoding.mask)
        for name, layers in wanted.items()
    }


def encode_conditions(
    folder: Path, n_scenes: int, wording: Wording, encoder: ConditionEncoder
) -> None:
    """Encode the first scenes of `editor_data` and their edits, but for what is there already.

    Files that are there are trusted, so `folder` is named after the VLM. Whole files are made.
    """
    missing = [start for start in range(0, n_scenes, _PART) if not _file(folder, start).exists()]
    for start in tqdm(missing, desc="conditions", mininterval=10):
        arrays: dict[str, Any] = _encode(range(start, start + _PART), wording, encoder)
        with store.replacing(_file(folder, start)) as scratch, scratch.open("wb") as file:
            np.savez(file, **arrays)


def conditioned(pairs: Pairs, folder: Path, name: str) -> Pairs:
    """The same pairs with the condition called `name`, of the files of `encode_conditions`."""
    n, longest = len(pairs.sources), int(pairs.lengths.max())
    states, nothing = [], []
    for start in range(0, n, _PART):
        with np.load(_file(folder, start)) as file:
            read = file[name][: EDITS * (n - start), :longest]
            states.append(np.pad(read, ((0, 0), (0, longest - read.shape[1]), (0, 0))))
            nothing.append(file[f"{name}, nothing"][: n - start])
    return replace(pairs, conditions=np.concatenate(states), nothing=np.concatenate(nothing))


def _joined(name: str, layers: list[Tensor]) -> Tensor:
    return torch.stack(layers).mean(0) if name == "pooled" else torch.cat(layers, -1)


def _encode(indices: range, wording: Wording, encoder: ConditionEncoder) -> dict[str, np.ndarray]:
    side = round(encoder.image_area**0.5)
    shown, asked = [], []
    for index in indices:
        scene, edits = scene_edits(index, wording, side)
        shown.append(render(scene).resize((side, side), Image.Resampling.LANCZOS))
        asked += [edit.instruction for edit in edits]
    owners = [picture for picture in shown for _ in range(EDITS)]
    found = read_conditions(encoder, owners, asked)
    nothing = read_conditions(encoder, shown, [NOTHING] * len(shown))
    return {name: _half(condition) for name, condition in found.items()} | {
        f"{name}, nothing": _half(condition) for name, condition in nothing.items()
    }


def _half(condition: Condition) -> np.ndarray:
    half: np.ndarray = condition.states.half().cpu().numpy()
    return half


def _file(folder: Path, start: int) -> Path:
    return folder / f"{start:06d}.npz"
