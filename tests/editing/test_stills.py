from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from abplib.editing.qwen_pipeline import for_stills


@pytest.fixture(params=[False, True], ids=["pictures", "films"])
def vae(request: pytest.FixtureRequest) -> AutoencoderKLQwenImage:
    """Random weights; the real VAE also has layers that halve the time."""
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[False, request.param],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return vae.eval()


@torch.no_grad()
def test_single_pictures_are_coded_as_by_the_stock_vae(vae: AutoencoderKLQwenImage) -> None:
    quick = for_stills(copy.deepcopy(vae))
    pictures = torch.rand(2, 3, 1, 32, 48, generator=torch.manual_seed(1)) * 2 - 1
    latents = vae.encode(pictures).latent_dist.mode()
    assert latents.std() > 1e-2
    torch.testing.assert_close(
        quick.encode(pictures).latent_dist.mode(), latents, rtol=0, atol=1e-5
    )
    latents = torch.randn(latents.shape, generator=torch.manual_seed(2))
    torch.testing.assert_close(
        quick.decode(latents).sample, vae.decode(latents).sample, rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_pictures_coded_side_by_side_do_not_mix(
    vae: AutoencoderKLQwenImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads that begin to decode at one moment: each has what it has alone."""
    quick = for_stills(vae)
    batches = torch.randn(2, 1, 4, 1, 8, 12, generator=torch.manual_seed(3))
    alone = [quick.decode(latents).sample for latents in batches]
    both, prepare = Barrier(2), quick.post_quant_conv.forward

    def prepared(latents: torch.Tensor) -> torch.Tensor:
        both.wait(timeout=60)
        return prepare(latents)

    monkeypatch.setattr(quick.post_quant_conv, "forward", prepared)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(torch.no_grad()(lambda z: quick.decode(z).sample), batches))
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


@torch.no_grad()
def test_films_are_refused(vae: AutoencoderKLQwenImage) -> None:
    quick = for_stills(vae)
    with pytest.raises(ValueError, match="one frame at a time"):
        quick.encode(torch.zeros(1, 3, 5, 32, 32))
    with pytest.raises(ValueError, match="one frame at a time"):
        quick.decode(torch.zeros(1, 4, 2, 8, 8))
