"""Qwen-Image's VAE on single pictures, without the work that only films need.

The VAE's convolutions are three-dimensional and causal in time. Of a single frame the kernel's
last time tap sees the frame and the others see zeros, so the two-dimensional convolution with
that tap alone gives the same numbers (a test) at a fraction of the cost.
"""

from __future__ import annotations

from types import MethodType

from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from torch import Tensor
from torch.nn import functional as F


def for_stills(vae: AutoencoderKLQwenImage) -> AutoencoderKLQwenImage:
    """Let this VAE skip the time taps that see nothing; it then takes single frames only."""
    for module in vae.modules():
        if isinstance(module, QwenImageCausalConv3d):
            module.forward = MethodType(_still, module)
    return vae


def _still(conv: QwenImageCausalConv3d, frame: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """[B, C, 1, H, W] -> [B, C', 1, H', W']."""
    if frame.shape[2] != 1 or cache_x is not None:
        raise ValueError("a VAE made for stills takes one frame at a time")
    left, right, top, bottom, _, _ = conv._padding
    padded = F.pad(frame[:, :, 0], (left, right, top, bottom))
    return F.conv2d(padded, conv.weight[:, :, -1], conv.bias, conv.stride[1:])[:, :, None]
