"""What an edit leaves as it was: distances between source and edit outside the exact box.

Table 1's LPIPS and L2 (section 4.6, appendix C.1). How LPIPS is taken "exclusively outside" a box
is open in the paper, and the ways to do it differ:

- *composite*, primary here: the source's pixels are pasted into the edit's box, and the distance of
  the two whole images is divided by the part of the image that lies outside;
- *zero fill*: the box is blackened in both images; a large box makes the distance small;
- *spatial*: the map of distances, averaged outside; what happens inside leaks into it through the
  receptive fields, so it is not zero where nothing outside changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import lpips
import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from abplib.core import paths
from abplib.core.boxes import Box, pixels_inside
from abplib.core.errors import AbpError
from abplib.core.store import digest, identify

COLUMNS = ("lpips", "lpips_zero_fill", "lpips_spatial", "l2", "ssim")

WEIGHTS = "data/lpips/alexnet_features.safetensors"
"""The ImageNet AlexNet under LPIPS; its source and licence stand beside it."""

_SMALLEST = 31  # pixels a side that AlexNet needs


class Preservation:
    """Measures how well edits preserve what lies outside the box that was to be edited.

    A pixel lies in a box where its centre does. L2 is taken on the images as they are, LPIPS and
    SSIM at a working resolution. Images are masked first and resized then, so that nothing inside
    the box can reach what is measured outside, except in `lpips_spatial`.
    """

    def __init__(self, *, side: int | None = 256) -> None:
        """`side`: pixels of the longer side at LPIPS and SSIM; smaller images stay as they are.

        None leaves all as they are, as the literature does.

        Raises:
            AbpError: AlexNet's weights are missing.
        """
        if side is not None and side < _SMALLEST:
            raise AbpError(f"LPIPS needs {_SMALLEST} pixels a side, not {side}: give more.")
        size = "the images' own size" if side is None else f"{side} px"
        self.name_of_lpips = f"LPIPS at {size}"
        """What figures and tables call the LPIPS columns: the size decides the numbers."""
        self._side = side
        self._net = _load()

    @property
    def fingerprint(self) -> str:
        """Hash of the network's weights and the working resolution."""
        return digest([self._side, identify(self._net.state_dict())[0]])

    @torch.inference_mode()
    def rows(self, source: Image.Image, edits: Sequence[Image.Image], box: Box) -> pd.DataFrame:
        """One row for each of one or more edits of a source, whose exact box is `box`.

        Columns: lpips (composite), lpips_zero_fill, lpips_spatial; l2, the mean squared difference
        of pixels in [0, 1] outside; ssim, the mean structural similarity outside, of the composite
        (1 where nothing changed). All are NaN where the box leaves nothing outside.

        Raises:
            AbpError: an edit has another size than its source, they are too narrow for LPIPS, or
                the box is none.
        """
        self._check(source, edits, box)
        original, edit = _pixels([source]), _pixels(edits)
        outside = _outside(box, *original.shape[2:])
        composite = torch.where(outside, edit, original)
        small_original, small = self._resized(original), self._resized(composite)
        small_outside = _outside(box, *small.shape[2:])

        def mean_outside(maps: Tensor) -> Tensor:
            return (maps * small_outside).sum((1, 2, 3)) / small_outside.sum()

        area = outside.float().mean()
        composed = self._distances(small_original, small)
        filled = self._distances(self._resized(original * outside), self._resized(edit * outside))
        spatial = self._distances(small_original, self._resized(edit))
        columns = {
            "lpips": (_mean(composed) / area).where(area > 0, torch.nan),
            "lpips_zero_fill": _mean(filled).where(area > 0, torch.nan),
            "lpips_spatial": mean_outside(_upsampled(spatial, small.shape[2:])),
            "l2": (composite - original).square().mean((1, 2, 3)) / area,
            "ssim": mean_outside(_ssim_map(small_original, small)),
        }
        return pd.DataFrame({name: column.double().numpy() for name, column in columns.items()})

    def _check(self, source: Image.Image, edits: Sequence[Image.Image], box: Box) -> None:
        width, height = source.size
        for edit in edits:
            if edit.size != source.size:
                raise AbpError(
                    f"The edit has {edit.width} x {edit.height} pixels and its source {width} x "
                    f"{height}; resize the edit to its source first."
                )
        if min(self._working_size(height, width)) < _SMALLEST:
            raise AbpError(
                f"{width} x {height} pixels leave less than the {_SMALLEST} a side that LPIPS "
                "needs; give larger or less narrow images."
            )
        x1, y1, x2, y2 = box
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
            raise AbpError(f"{tuple(box)} is no box; give ordered corners as fractions.")

    def _working_size(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, self._side / max(height, width)) if self._side else 1.0
        return round(height * scale), round(width * scale)

    def _resized(self, images: Tensor) -> Tensor:
        size = self._working_size(*images.shape[2:])
        if size == images.shape[2:]:
            return images
        return F.interpolate(images, size, mode="bilinear", antialias=True)

    def _distances(self, original: Tensor, others: Tensor) -> list[Tensor]:
        """LPIPS's weighted squared differences, a map [B, 1, h, w] a layer, of pixels in [0, 1]."""
        maps = []
        layers = [self._net.net(self._net.scaling_layer(2 * x - 1)) for x in (original, others)]
        for head, first, second in zip(self._net.lins, *layers, strict=True):
            difference = lpips.normalize_tensor(first) - lpips.normalize_tensor(second)
            maps.append(head(difference.square()))
        return maps


def _load() -> lpips.LPIPS:
    """The network, frozen; building it leaves the global random numbers as they were."""
    path = paths.root() / WEIGHTS
    if not path.is_file():
        raise AbpError(f"The weights {path} under LPIPS are missing: restore them.")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchvision")  # lpips uses its old arguments
        net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    features = {name.removeprefix("features."): w for name, w in load_file(path).items()}
    for name, weight in net.net.named_parameters():  # "slice2.3.weight" is "features.3.weight"
        weight.data.copy_(features.pop(name.partition(".")[2]))
    assert not features
    return net.requires_grad_(False)


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size -> [B, 3, H, W] in [0, 1]."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


def _outside(box: Box, height: int, width: int) -> Tensor:
    """Bool [1, H, W]: the pixels whose centres lie outside the box."""
    return ~torch.from_numpy(pixels_inside(box, height, width))[None]


def _mean(distances: list[Tensor]) -> Tensor:
    """LPIPS of whole images [B] from its layers' maps."""
    return torch.stack([layer.mean((1, 2, 3)) for layer in distances]).sum(0)


def _upsampled(distances: list[Tensor], size: torch.Size) -> Tensor:
    """The layers' maps added up at `size`, [B, 1, H, W]."""
    maps = [F.interpolate(layer, size, mode="bilinear") for layer in distances]
    return torch.stack(maps).sum(0)


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of the luma, [1 or B, 3, H, W] -> [B, 1, H, W].

    Gaussian windows of 11 pixels, sigma 1.5, mirrored at the border.
    """
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x, y = ((image * luma).sum(1, keepdim=True) for image in (a.expand_as(b), b))
    moments = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    moments = _blurring(a.shape[2]) @ moments @ _blurring(a.shape[3]).T
    mean_x, mean_y, xx, yy, xy = moments.split(1, dim=1)
    squares, product = mean_x**2 + mean_y**2, mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * product + c1) * (2 * (xy - product) + c2)
    return likeness / ((squares + c1) * (xx + yy - squares + c2))


def _blurring(n: int) -> Tensor:
    """The Gaussian window as a matrix [n, n], whose product with a column of pixels blurs it."""
    window = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    mirrored = F.pad(torch.eye(n)[:, None], (5, 5), mode="reflect")
    return F.conv1d(mirrored, (window / window.sum()).view(1, 1, -1))[:, 0].T
