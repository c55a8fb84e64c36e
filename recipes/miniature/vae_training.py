"""Training of the miniature VAE: scenes and edited scenes, as sharp as 16 numbers a cell allow."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from abplib.core import store
from abplib.core.trainer import Batch, Fitted, Schedule, fit
from abplib.editing.qwen_pipeline import for_stills
from abplib.editing.twins import EditorShape, build_vae
from abplib.samples.scenes.edits import general_edits
from abplib.samples.scenes.render import masks, render
from abplib.samples.scenes.scene import generator
from recipes.miniature.answers import training_scene
from recipes.miniature.marks import draw_mark, marked

SEED_SPACE = 4_000_000_000
"""Scenes of the editor's training have seeds from here on."""


@dataclass(frozen=True)
class VAETraining:
    """Budget and weights of the VAE's training: first on crops, which are cheap, then whole."""

    crops: Schedule = field(
        default_factory=lambda: Schedule(
            steps=1600, lr=2e-3, muon=r"^taps\.", weight_decay=0.0, average=0.99
        )
    )
    whole: Schedule = field(
        default_factory=lambda: Schedule(
            steps=260, lr=1e-3, muon=r"^taps\.", muon_lr=0.01, weight_decay=0.0, average=0.99
        )
    )
    crop: int = 64
    """Side of a crop in pixels."""
    crops_batch: int = 32
    whole_batch: int = 16
    pictures: int = 6000
    """Different pictures, half of them of edited scenes."""
    things: float = 3.0
    """Additional weight of pixels on things."""
    edges: float = 0.5
    """Weight of the error of differences between neighbouring pixels, which keeps edges sharp."""
    kl: float = 1e-4
    """Weight of the Kullback-Leibler term, mean over latent numbers."""
    compile: bool = True
    """On a CPU; on a GPU it would take longer than the training."""


def train_vae(
    work: Path, plan: VAETraining, shape: EditorShape, device: str
) -> tuple[AutoencoderKLQwenImage, Fitted]:
    """Train, or go on training, a VAE; its configuration gets the latents' mean and deviation."""
    vae = build_vae(shape, plan.crops.seed).to(device).train()
    pictures = _pictures(work / "pictures.npy", plan.pictures, shape.side)
    trained = _Stills(vae)
    reconstruct = torch.compile(trained) if plan.compile and device == "cpu" else trained

    def losses(batch: Batch) -> dict[str, Tensor]:
        picture = batch["picture"][:, :3].float() / 127.5 - 1
        things = batch["picture"][:, 3:].float() / 255
        side = picture.shape[-1] // 8
        noise = torch.randn(len(picture), shape.channels, side, side).to(picture.device)
        again, kl = reconstruct(picture, noise)
        error = again.float() - picture
        weight = 1 + plan.things * things
        down, right = (error.diff(dim=axis).abs().mean() for axis in (-2, -1))
        return {
            "l1": (error.abs() * weight / weight.mean()).mean(),
            "edges": plan.edges * (down + right) / 2,
            "kl": plan.kl * kl,
        }

    def stage(name: str, schedule: Schedule, batch: int, side: int, after: list[Any]) -> Fitted:
        def batches(step: int) -> list[Batch]:
            return [{"picture": _crops(pictures, side, batch, step)}]

        weights = [plan.things, plan.edges, plan.kl, plan.pictures]
        settings = {"plan": [batch, side, weights, after], "shape": asdict(shape)}
        return fit(
            trained, losses, batches, schedule, work, name=name, settings=settings, device=device
        )

    first = stage("vae-crops", plan.crops, plan.crops_batch, plan.crop, [])
    before = [asdict(plan.crops), plan.crops_batch, plan.crop]
    then = stage("vae-whole", plan.whole, plan.whole_batch, shape.side, before)
    trained.write_back()
    for_stills(vae).eval()
    _standardise(vae, torch.from_numpy(pictures[:256, :3].copy()).to(device))
    later = [row | {"step": row["step"] + plan.crops.steps} for row in then.curves]
    return vae, Fitted(first.curves + later, first.seconds + then.seconds, then.where)


class _Stills(nn.Module):
    """A VAE as single frames train it: the one time tap of each kernel that they see.

    The taps are matrices [out, in x height x width], which Muon can train.
    """

    def __init__(self, vae: AutoencoderKLQwenImage) -> None:
        super().__init__()
        self.vae = vae
        self.convolutions = [m for m in vae.modules() if isinstance(m, QwenImageCausalConv3d)]
        self.taps = nn.ParameterList(
            nn.Parameter(conv.weight[:, :, -1].detach().flatten(1).clone())
            for conv in self.convolutions
        )
        for conv, tap in zip(self.convolutions, self.taps, strict=True):
            conv.weight.requires_grad_(False)
            conv.forward = MethodType(_tapped(tap), conv)

    def forward(self, picture: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, S, S] decoded from noisy latents, and the mean divergence in nats."""
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(picture[:, :, None])).chunk(2, 1)
        log_variance = log_variance.clamp(-30, 10)
        latent = mean + (0.5 * log_variance).exp() * noise[:, :, None]
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).float().mean()
        return self.vae.decoder(self.vae.post_quant_conv(latent))[:, :, 0], kl

    @torch.no_grad()
    def write_back(self) -> None:
        """Put the taps into the kernels; those that single frames never see become zero."""
        for conv, tap in zip(self.convolutions, self.taps, strict=True):
            conv.weight.zero_()[:, :, -1] = tap.view_as(conv.weight[:, :, -1])
            conv.weight.requires_grad_(True)
            del conv.forward


def _tapped(tap: nn.Parameter) -> Any:
    def forward(conv: QwenImageCausalConv3d, frame: Tensor, cache_x: None = None) -> Tensor:
        left, right, top, bottom, _, _ = conv._padding
        kernel = tap.view(conv.out_channels, conv.in_channels, *conv.kernel_size[1:])
        padded = F.pad(frame[:, :, 0], (left, right, top, bottom))
        return F.conv2d(padded, kernel, conv.bias, conv.stride[1:])[:, :, None]

    return forward


@torch.no_grad()
def _standardise(vae: AutoencoderKLQwenImage, pictures: Tensor) -> None:
    """Write the mean and deviation of each latent channel into the configuration."""
    units = (pictures.float() / 127.5 - 1)[:, :, None]
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in units.split(32)])
    flat = latents.transpose(0, 1).flatten(1).float()
    vae.register_to_config(latents_mean=flat.mean(1).tolist(), latents_std=flat.std(1).tolist())


def _pictures(path: Path, n: int, side: int) -> np.ndarray:
    """Training pictures uint8 [n, 4, side, side], memory-mapped: RGB, and what things cover."""
    if not path.exists():
        seeds = range(SEED_SPACE, SEED_SPACE + n)
        with ProcessPoolExecutor() as pool:
            drawn = pool.map(partial(_picture, side=side), seeds, chunksize=32)
            shown = list(tqdm(drawn, total=n, desc="pictures", mininterval=10))
        with store.replacing(path) as scratch, scratch.open("wb") as file:
            np.save(file, np.stack(shown))
    return np.load(path, mmap_mode="r")


def _picture(seed: int, side: int) -> np.ndarray:
    """A training scene, edited if the seed is odd, some marked: uint8 [4, side, side]."""
    scene = training_scene(seed)
    mark = draw_mark(scene, generator(seed + 2))
    if seed % 2:
        scene = general_edits(scene, generator(seed + 1), 1)[0].after
    covered = Image.fromarray(masks(scene).any(0).astype(np.uint8) * 255)
    shown = marked(render(scene).resize((side, side), Image.Resampling.LANCZOS), mark)
    return np.concatenate(
        [
            np.asarray(shown).transpose(2, 0, 1),
            np.asarray(covered.resize((side, side), Image.Resampling.BOX))[None],
        ]
    )


def _crops(pictures: np.ndarray, side: int, n: int, step: int) -> Tensor:
    """`n` random crops of random pictures, half of them mirrored: uint8 [n, 4, side, side]."""
    random = np.random.default_rng([side, step])
    room = pictures.shape[-1] - side + 1
    crops = []
    for row in random.integers(len(pictures), size=n):
        y, x = random.integers(room, size=2)
        crop = pictures[row, :, y : y + side, x : x + side]
        crops.append(crop[..., ::-1] if random.random() < 0.5 else crop)
    return torch.from_numpy(np.stack(crops))
