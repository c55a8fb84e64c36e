"""The parts of a stock Qwen-Image-Edit pipeline: LoRAs, latents, denoising, a VAE for stills."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MethodType

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditPipeline
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_shift
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from abplib.core import hub
from abplib.core.errors import AbpError
from abplib.editing.conditions import Condition, stacked
from abplib.editing.loading import awake

LORA_FILE = "pytorch_lora_weights.safetensors"


def lora_file(place: Path) -> Path:
    """The file of a LoRA: `place` itself, or in that folder `LORA_FILE` or the only safetensors."""
    files = [place] if place.is_file() else [place / LORA_FILE]
    if not files[0].is_file():
        files = sorted(place.glob("*.safetensors"))
    if len(files) != 1:
        raise AbpError(
            f"There is no LoRA at {place / LORA_FILE}; give the folder or the file of a saved one."
        )
    return files[0]


def use_lora(pipeline: QwenImageEditPipeline, file: Path | None, name: str | None) -> None:
    """Let one LoRA, called `name`, and no other, act; None lets none act.

    It is loaded once, in any format that diffusers takes. AbpError if it is of another model.
    """
    if file is None or name is None:
        if pipeline.get_list_adapters():
            pipeline.disable_lora()
        return
    if name not in pipeline.get_list_adapters().get("transformer", ()):
        how = "give one of this pipeline, in a format that diffusers takes"
        with hub.loading("LoRA", file, how):
            tensors = pipeline.lora_state_dict(file.parent, weight_name=file.name)
            # a tensor of no module would be left out with a warning
            modules = {
                f"transformer.{module}" for module, _ in pipeline.transformer.named_modules()
            }
            if strange := sorted({key.split(".lora_")[0] for key in tensors} - modules):
                raise KeyError(f"the pipeline has no {strange[0]}")
            first, second = (
                {key.split(".lora_")[0] for key in tensors if f".lora_{half}." in key}
                for half in "AB"
            )
            if lone := sorted(first ^ second):
                raise KeyError(f"{lone[0]} has one of lora_A and lora_B alone")
            if not tensors:
                raise KeyError("it holds no tensors")
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    pipeline.enable_lora()
    pipeline.set_adapters([name])


def source_latents(pipeline: QwenImageEditPipeline, pictures: Sequence[Image.Image]) -> Tensor:
    """Standardised latents of RGB pictures of one size, packed [B, N, 4 * channels].

    N is the number of transformer tokens, one for `2 * vae_scale_factor` pixels squared.
    """
    vae = awake(pipeline.vae)
    pixels = pipeline.image_processor.preprocess(list(pictures))[:, :, None]
    latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
    mean, deviation = _statistics(pipeline, latents)
    return _pack((latents - mean) / deviation)


def denoise(
    pipeline: QwenImageEditPipeline,
    source: Tensor,
    positive: Condition,
    negative: Condition | None,
    seeds: Sequence[int],
    *,
    size: tuple[int, int],
    n_steps: int,
    guidance: float,
) -> Tensor:
    """Latents of the edits, packed [B, N, 4 * channels], from noise that is each seed's own.

    Args:
        pipeline: its transformer and its scheduler's configuration are used.
        source: latents of the B sources, as `source_latents` gives them.
        positive: what the edits are conditioned on.
        negative: what guidance leads away from; None for no guidance.
        seeds: of the B edits.
        size: width and height of the pictures.
        n_steps: denoising steps, at least 2.
        guidance: scale; the guided step keeps the conditional one's length, token by token.
    """
    dit, dtype = pipeline.transformer, pipeline.transformer.dtype
    both = positive if negative is None else stacked(positive, negative)
    states, mask = both.states.to(dtype), None if both.mask.all() else both.mask
    repeats = len(states) // len(source)
    width, height = (side // pipeline.vae_scale_factor for side in size)
    shapes = [[(1, height // 2, width // 2)] * 2] * len(states)
    source = source.to(dtype)
    n_tokens, channels = source.shape[1], source.shape[2] // 4
    latents = _pack(
        randn_tensor(
            (len(source), channels, 1, height, width),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            device=source.device,
            dtype=dtype,
        )
    )
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    shift = calculate_shift(
        n_tokens,
        scheduler.config.base_image_seq_len,
        scheduler.config.max_image_seq_len,
        scheduler.config.base_shift,
        scheduler.config.max_shift,
    )
    sigmas = np.linspace(1.0, 1 / n_steps, n_steps)
    scheduler.set_timesteps(sigmas=sigmas, mu=shift, device=source.device)
    scheduler.set_begin_index(0)
    for time in scheduler.timesteps:
        velocity = dit(
            hidden_states=torch.cat([latents, source], dim=1).repeat(repeats, 1, 1),
            timestep=time.expand(len(states)).to(dtype) / 1000,
            encoder_hidden_states=states,
            encoder_hidden_states_mask=mask,
            img_shapes=shapes,
            return_dict=False,
        )[0][:, :n_tokens]
        if negative is not None:
            asked, unasked = velocity.chunk(2)
            velocity = _guided(asked, unasked, guidance)
        latents = scheduler.step(velocity, time, latents, return_dict=False)[0]
    return latents


def decode(
    pipeline: QwenImageEditPipeline, latents: Tensor, size: tuple[int, int]
) -> list[Image.Image]:
    """Pictures of `size` = (width, height) from packed latents."""
    width, height = size
    unpacked = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    mean, deviation = _statistics(pipeline, unpacked)
    latents = (unpacked * deviation + mean).to(pipeline.vae.dtype)
    pixels = pipeline.vae.decode(latents, return_dict=False)[0][:, :, 0]
    pictures: list[Image.Image] = pipeline.image_processor.postprocess(pixels, output_type="pil")
    return pictures


def _guided(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    led = negative + scale * (positive - negative)
    return led * (positive.norm(dim=-1, keepdim=True) / led.norm(dim=-1, keepdim=True))


def _statistics(pipeline: QwenImageEditPipeline, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each latent channel, [1, channels, 1, 1, 1]."""
    config = pipeline.vae.config
    mean, deviation = (
        torch.tensor(values).to(like).view(1, -1, 1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    return mean, deviation


def _pack(latents: Tensor) -> Tensor:
    """[B, C, 1, h, w] -> [B, h/2 * w/2, 4C]."""
    b, c, _, h, w = latents.shape
    packed: Tensor = QwenImageEditPipeline._pack_latents(latents, b, c, h, w)
    return packed


def for_stills(vae: AutoencoderKLQwenImage) -> AutoencoderKLQwenImage:
    """Let this VAE skip the work that only films need; it then takes single frames only.

    Its convolutions are three-dimensional and causal in time. Of a single frame the kernel's last
    time tap sees the frame and the others see zeros, so the two-dimensional convolution with that
    tap alone gives the same numbers (a test) at a fraction of the cost. And what a film's next
    frame would need is not kept: the stock VAE keeps it in itself, where batches that are coded
    side by side would take each other's.
    """
    for module in vae.modules():
        if isinstance(module, QwenImageCausalConv3d):
            module.forward = MethodType(_still, module)
    vae._encode = MethodType(_encoded, vae)
    vae._decode = MethodType(_decoded, vae)
    return vae


def _still(conv: QwenImageCausalConv3d, frame: Tensor) -> Tensor:
    """[B, C, 1, H, W] -> [B, C', 1, H', W']."""
    if frame.shape[2] != 1:
        raise ValueError("a VAE made for stills takes one frame at a time")
    left, right, top, bottom, _, _ = conv._padding
    padded = F.pad(frame[:, :, 0], (left, right, top, bottom))
    return F.conv2d(padded, conv.weight[:, :, -1], conv.bias, conv.stride[1:])[:, :, None]


def _encoded(vae: AutoencoderKLQwenImage, frame: Tensor) -> Tensor:
    """Mean and log variance of the latents of a frame."""
    moments: Tensor = vae.quant_conv(vae.encoder(frame))
    return moments


def _decoded(vae: AutoencoderKLQwenImage, latents: Tensor) -> DecoderOutput:
    return DecoderOutput(sample=vae.decoder(vae.post_quant_conv(latents)).clamp(-1, 1))
