"""What the miniature editor learns from, encoded once: latents of pictures, states of instructions.

Training pairs have the kinds of task of the general set, on mixed scenes alone and with seeds of
their own, a few edits to a scene; nothing of the multi-entity set is among them. Instructions name
objects as `Wording` says. On some scenes and all of their edited versions lies a mark
(`marks`), which the VLM is not shown. The VAE and the VLM are frozen, so a pair is encoded once,
under each condition that is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from abplib.core import store
from abplib.samples.scenes.edits import LOOK, Edit, all_references, general_edits
from abplib.samples.scenes.objects import COLOURS, KINDS
from abplib.samples.scenes.render import render
from abplib.samples.scenes.scene import Scene, general_scene, generator
from abplib.vlm.encoder import NOTHING, ConditionEncoder
from recipes.miniature.answers import explain
from recipes.miniature.condition_states import read_conditions
from recipes.miniature.marks import draw_mark, marked

SEED_SPACE = 5_000_000_000
"""Scenes of the editor's training pairs have seeds from here on."""

EDITS = 4
"""Edits of one scene."""

_STRIDE = 100
"""Seeds of one scene, of which the first that gives a mixed one is taken."""

_PART = 64
"""Scenes of one file: what a killed run loses at most."""


@dataclass(frozen=True)
class Wording:
    """How training instructions say which object is meant."""

    by_place: float = 0.05
    """Share of the instructions about an object that name it by its place, as the multi-entity set
    always does; the others name its look."""
    described: float = 0.2
    """Share that goes on with what the VLM is taught to answer (the condition of
    `conditions.full_description`)."""


_Scene = tuple[Image.Image, list[np.ndarray], list[str], list[tuple[int, int]]]
"""The scene as the VLM sees it; the source and its edited versions (uint8 [side, side, 3]), marked
where they are; the instructions; and `Pairs.new`."""


@dataclass(frozen=True)
class Pairs:
    """Pairs under one condition; scene s has those from `EDITS` s to `EDITS` (s + 1) - 1."""

    sources: np.ndarray
    """Standardised latents float16 [scenes, channels, h, w]."""
    targets: np.ndarray
    """Likewise [pairs, channels, h, w]."""
    conditions: np.ndarray
    """States float16 [pairs, tokens, width], zero-padded."""
    lengths: np.ndarray
    """Tokens of each condition, int64 [pairs]."""
    nothing: np.ndarray
    """States of the empty instruction float16 [scenes, tokens, width]; all of one length."""
    new: np.ndarray
    """Kind and colour of the thing that an edit puts there, int64 [pairs, 2]: their places in
    `things.KINDS` and `things.COLOURS`; -1 where an edit brings no single thing."""


def encode_pairs(
    folder: Path,
    n_scenes: int,
    wording: Wording,
    vae: AutoencoderKLQwenImage,
    encoder: ConditionEncoder,
    conditions: Sequence[str] = ("final",),
) -> dict[str, Pairs]:
    """Encode the first `n_scenes` scenes and their edits, or read what was encoded before.

    Files that are there are trusted, so `folder` is named after what made them. Whole files are
    made, by a VAE for stills and a frozen VLM. Returns: the pairs under each condition
    (`condition_states.CONDITIONS`); their pictures are the same arrays.
    """
    starts = range(0, n_scenes, _PART)
    missing = [start for start in starts if not _file(folder, start).exists()]
    wanted = [start + i for start in missing for i in range(_PART)]
    drawn = torch.utils.data.DataLoader(
        _Drawn(wanted, wording, round(encoder.image_area**0.5)),
        batch_size=_PART,
        num_workers=min(os.cpu_count() or 1, len(missing)),
        collate_fn=list,
    )
    bar = tqdm(drawn, total=len(missing), desc="pairs", mininterval=10)
    for start, scenes in zip(missing, bar, strict=True):
        with store.replacing(_file(folder, start)) as scratch, scratch.open("wb") as file:
            arrays: dict[str, Any] = _encode(scenes, vae, encoder, conditions)
            np.savez(file, **arrays)
    parts = []
    for start in starts:
        with np.load(_file(folder, start)) as file:
            parts.append({name: file[name] for name in file.files})
    common = {name: _joined(parts, name) for name in ("sources", "targets", "lengths", "new")}
    return {
        name: Pairs(
            conditions=_joined(parts, name), nothing=_joined(parts, f"{name}, nothing"), **common
        )
        for name in conditions
    }


def scene_edits(index: int, wording: Wording, side: int) -> tuple[Scene, list[Edit]]:
    """Training scene `index`, seen `side` pixels wide, with its `EDITS` edits as they are asked."""
    first = SEED_SPACE + _STRIDE * index
    *seeds, last = range(first, first + _STRIDE)
    scene, random = next(filter(_mixed, map(general_scene, seeds))), generator(last)
    edits = general_edits(scene, random, EDITS, wording.by_place)
    told = random.random(EDITS) < wording.described
    return scene, [
        replace(edit, instruction=f"{edit.instruction} {explain(scene, edit, side)}")
        if more
        else edit
        for edit, more in zip(edits, told, strict=True)
    ]


def _mixed(scene: Scene) -> bool:
    """Whether some look singles out an object; never where objects are all alike."""
    return any(reference.term == LOOK for reference in all_references(scene))


@torch.inference_mode()
def to_latents(vae: AutoencoderKLQwenImage, pictures: Tensor) -> Tensor:
    """Standardised latents [B, channels, h, w] of pictures in [-1, 1], [B, 3, H, W]."""
    frames = pictures[:, :, None].to(vae.device, vae.dtype)
    latents = vae.quant_conv(vae.encoder(frames)).chunk(2, 1)[0]
    mean, deviation = (
        torch.tensor(v, device=latents.device)[:, None, None, None]
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    return ((latents - mean) / deviation)[:, :, 0]


class _Drawn(torch.utils.data.Dataset["_Scene"]):
    """Scenes and their edited versions as small pictures, with the instructions."""

    def __init__(self, indices: list[int], wording: Wording, side: int) -> None:
        self.indices, self.wording, self.side = indices, wording, side

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, at: int) -> _Scene:
        scene, edits = scene_edits(self.indices[at], self.wording, self.side)
        shown = [_small(version, self.side) for version in (scene, *(e.after for e in edits))]
        mark = draw_mark(scene, generator(scene.seed + 1))
        pictures = [np.asarray(marked(picture, mark)) for picture in shown]
        new = [_new_thing(scene, edit.after) for edit in edits]
        return shown[0], pictures, [edit.instruction for edit in edits], new


def _new_thing(before: Scene, after: Scene) -> tuple[int, int]:
    """Kind and colour of the one thing that is new; see `Pairs.new`."""
    new = [thing for thing in after.things if thing not in before.things]
    if len(new) != 1:
        return -1, -1
    return list(KINDS).index(new[0].kind), list(COLOURS).index(new[0].colour)


def _file(folder: Path, start: int) -> Path:
    return folder / f"{start:06d}.npz"


def _joined(parts: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    """One array of all parts; states [n, tokens, width] zero-padded to the longest."""
    arrays = [part[name] for part in parts]
    if arrays[0].ndim == 3:
        longest = max(states.shape[1] for states in arrays)
        arrays = [np.pad(s, ((0, 0), (0, longest - s.shape[1]), (0, 0))) for s in arrays]
    return np.concatenate(arrays)


def _encode(
    scenes: list[_Scene],
    vae: AutoencoderKLQwenImage,
    encoder: ConditionEncoder,
    conditions: Sequence[str],
) -> dict[str, np.ndarray]:
    shown = [seen for seen, *_ in scenes]
    owners = [picture for picture in shown for _ in range(EDITS)]
    asked = [instruction for _, _, instructions, _ in scenes for instruction in instructions]
    states, lengths = _states(encoder, owners, asked, conditions)
    nothing, _ = _states(encoder, shown, [NOTHING] * len(shown), conditions)
    return {
        "sources": _latents(vae, [pictures[0] for _, pictures, *_ in scenes]),
        "targets": _latents(vae, [target for _, (_, *targets), *_ in scenes for target in targets]),
        "lengths": lengths,
        "new": np.array([new for *_, all_new in scenes for new in all_new]),
        **states,
        **{f"{name}, nothing": array for name, array in nothing.items()},
    }


def _small(scene: Scene, side: int) -> Image.Image:
    return render(scene).resize((side, side), Image.Resampling.LANCZOS)


def _latents(vae: AutoencoderKLQwenImage, pictures: list[np.ndarray]) -> np.ndarray:
    values = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    found = [to_latents(vae, part.float() / 127.5 - 1) for part in values.split(32)]
    return torch.cat(found).half().cpu().numpy()


def _states(
    encoder: ConditionEncoder,
    pictures: list[Image.Image],
    instructions: list[str],
    conditions: Sequence[str],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """States [B, tokens, width] under each condition, and their lengths [B]."""
    parts, lengths = [], []
    for at in range(0, len(pictures), _PART):
        part = slice(at, at + _PART)
        read = read_conditions(encoder, pictures[part], instructions[part], conditions)
        parts.append({name: c.states.half().cpu().numpy() for name, c in read.items()})
        lengths.append(next(iter(read.values())).mask.sum(1))
    return {name: _joined(parts, name) for name in conditions}, torch.cat(lengths).cpu().numpy()
