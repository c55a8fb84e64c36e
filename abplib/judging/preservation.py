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

import hashlib
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
from abplib.core.boxes import Box
from abplib.core.errors import AbpError

COLUMNS = ("lpips", "lpips_zero_fill", "lpips_spatial", "l2", "ssim")

WEIGHTS = "data/lpips/alexnet_features.safetensors"
"""The ImageNet AlexNet under LPIPS; its source and licence stand beside it."""

_SMALLEST = 31  # pixels a side that AlexNet needs
_BATCH = 16  # pairs at a time


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
        digest = hashlib.sha256(str(self._side).encode())
        for name, tensor in self._net.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def rows(
        self,
        sources: Sequence[Image.Image],
        edits: Sequence[Image.Image],
        boxes: Sequence[Box],
    ) -> pd.DataFrame:
        """One row for each source, its edit and the exact box (fractions of the source).

        Columns: lpips (composite), lpips_zero_fill, lpips_spatial; l2, the mean squared difference
        of pixels in [0, 1] outside; ssim, the mean structural similarity outside, of the composite
        (1 where nothing changed). All are NaN where the box leaves nothing outside. A source that
        neighbouring pairs share, as the same object, costs its passes once.

        Raises:
            AbpError: the lists differ in length, an edit has another size than its source, an
                image is too narrow for LPIPS, or a box is none.
        """
        if not len(sources) == len(edits) == len(boxes):
            raise AbpError(
                f"There are {len(sources)} sources, {len(edits)} edits and {len(boxes)} boxes; "
                "give one of each for every pair."
            )
        of_size: dict[tuple[int, int], list[int]] = {}
        for index, (source, edit, box) in enumerate(zip(sources, edits, boxes, strict=True)):
            self._check(index, source, edit, box)
            of_size.setdefault(source.size, []).append(index)
        measured = np.empty((len(sources), len(COLUMNS)))
        for same in of_size.values():
            for start in range(0, len(same), _BATCH):
                chunk = same[start : start + _BATCH]
                measured[chunk] = self._measure(
                    [sources[i] for i in chunk],
                    [edits[i] for i in chunk],
                    [boxes[i] for i in chunk],
                )
        return pd.DataFrame(measured, columns=list(COLUMNS))

    def _check(self, index: int, source: Image.Image, edit: Image.Image, box: Box) -> None:
        width, height = source.size
        if edit.size != source.size:
            raise AbpError(
                f"Pair {index}: the edit has {edit.width} x {edit.height} pixels and its source "
                f"{width} x {height}; resize the edit to its source first."
            )
        if min(self._working_size(height, width)) < _SMALLEST:
            raise AbpError(
                f"Pair {index}: {width} x {height} pixels leave less than the {_SMALLEST} a side "
                "that LPIPS needs; give larger or less narrow images."
            )
        x1, y1, x2, y2 = box
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
            raise AbpError(
                f"Pair {index}: {tuple(box)} is no box; give ordered corners as fractions of the "
                "image."
            )

    @torch.inference_mode()
    def _measure(
        self, sources: list[Image.Image], edits: list[Image.Image], boxes: list[Box]
    ) -> np.ndarray:
        """[B, columns] for pairs of one size."""
        keys = list(zip(map(id, sources), boxes, strict=True))
        distinct = list(dict.fromkeys(keys))
        of_pair = [distinct.index(key) for key in keys]
        shown = [keys.index(key) for key in distinct]  # the first pair of each source and box

        source = _pixels([sources[i] for i in shown])
        outside = torch.stack([_outside(boxes[i], *source.shape[2:]) for i in shown])
        small_source, small_filled = self._resized(source), self._resized(source * outside)
        source_seen = [layer[of_pair] for layer in self._features(small_source)]
        filled_seen = [layer[of_pair] for layer in self._features(small_filled)]

        source, outside, edit = source[of_pair], outside[of_pair], _pixels(edits)
        composite = torch.where(outside, edit, source)
        small = self._resized(composite)
        size = small.shape[2:]
        small_outside = torch.stack([_outside(box, *size) for box in boxes])

        def mean_outside(maps: Tensor) -> Tensor:
            return (maps * small_outside).sum((1, 2, 3)) / small_outside.sum((1, 2, 3))

        area = outside.float().mean((1, 2, 3))
        composed = self._distances(source_seen, self._features(small))
        filled = self._distances(filled_seen, self._features(self._resized(edit * outside)))
        spatial = self._distances(source_seen, self._features(self._resized(edit)))
        columns = {
            "lpips": _mean(composed) / area,
            "lpips_zero_fill": _mean(filled).where(area > 0, torch.nan),
            "lpips_spatial": mean_outside(_upsampled(spatial, size)),
            "l2": (composite - source).square().mean((1, 2, 3)) / area,
            "ssim": mean_outside(_ssim_map(small_source[of_pair], small)),
        }
        return torch.stack([columns[name] for name in COLUMNS], dim=1).double().numpy()

    def _working_size(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, self._side / max(height, width)) if self._side else 1.0
        return round(height * scale), round(width * scale)

    def _resized(self, images: Tensor) -> Tensor:
        size = self._working_size(*images.shape[2:])
        if size == images.shape[2:]:
            return images
        return F.interpolate(images, size, mode="bilinear", antialias=True)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Pixels [B, 3, H, W] in [0, 1] -> features of each layer [B, c, h, w], of unit length."""
        layers = self._net.net(self._net.scaling_layer(2 * images - 1))
        return [lpips.normalize_tensor(layer) for layer in layers]

    def _distances(self, a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        """LPIPS's weighted squared differences, a map [B, 1, h, w] a layer."""
        return [head((x - y).square()) for head, x, y in zip(self._net.lins, a, b, strict=True)]


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
    x1, y1, x2, y2 = box
    xs, ys = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    inside = ((ys >= y1) & (ys <= y2))[:, None] & ((xs >= x1) & (xs <= x2))
    return ~inside[None]


def _mean(distances: list[Tensor]) -> Tensor:
    """LPIPS of whole images [B] from its layers' maps."""
    return torch.stack([layer.mean((1, 2, 3)) for layer in distances]).sum(0)


def _upsampled(distances: list[Tensor], size: torch.Size) -> Tensor:
    """The layers' maps added up at `size`, [B, 1, H, W]."""
    maps = [F.interpolate(layer, size, mode="bilinear") for layer in distances]
    return torch.stack(maps).sum(0)


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of the luma of [B, 3, H, W] -> [B, 1, H, W].

    Gaussian windows of 11 pixels, sigma 1.5, mirrored at the border.
    """
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x, y = ((image * luma).sum(1, keepdim=True) for image in (a, b))
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
