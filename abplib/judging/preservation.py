"""What an edit leaves as it was: distances between source and edit outside the exact box.

Table 1's LPIPS and L2 (section 4.6, appendix C.1), both taken on the *composite*: the source's
pixels are pasted into the edit's box, and the distance of the two images is divided by the part of
the image that lies outside. How the paper takes LPIPS "exclusively outside" a box is open.
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

COLUMNS = ("lpips", "l2")

WEIGHTS = "data/lpips/alexnet_features.safetensors"
"""The ImageNet AlexNet under LPIPS; its source and licence stand beside it."""

_SMALLEST = 31  # pixels a side that AlexNet needs


class Preservation:
    """Measures how well edits preserve what lies outside the box that was to be edited.

    A pixel lies in a box where its centre does. L2 is taken on the images as they are, LPIPS at a
    working resolution. Images are masked first and resized then, so that nothing inside the box can
    reach what is measured outside.
    """

    def __init__(self, *, side: int | None = 256) -> None:
        """`side`: pixels of the longer side at LPIPS; smaller images stay as they are.

        None leaves all as they are, as the literature does.

        Raises:
            AbpError: AlexNet's weights are missing.
        """
        if side is not None and side < _SMALLEST:
            raise AbpError(f"LPIPS needs {_SMALLEST} pixels a side, not {side}: give more.")
        size = "the images' own size" if side is None else f"{side} px"
        self.name_of_lpips = f"LPIPS at {size}"
        """What figures and tables call the LPIPS column: the size decides the numbers."""
        self._side = side
        self._net = _load()

    @property
    def fingerprint(self) -> str:
        """Hash of the network's weights and the working resolution."""
        return digest([self._side, identify(self._net.state_dict())[0]])

    @torch.inference_mode()
    def rows(self, source: Image.Image, edits: Sequence[Image.Image], box: Box) -> pd.DataFrame:
        """One row for each of one or more edits of a source, whose exact box is `box`.

        Columns: lpips; l2, the mean squared difference of pixels in [0, 1]. Both are NaN where the
        box leaves nothing outside.

        Raises:
            AbpError: an edit has another size than its source, or they are too narrow for LPIPS.
        """
        self._check(source, edits)
        original, edit = _pixels([source]), _pixels(edits)
        outside = ~torch.from_numpy(pixels_inside(box, *original.shape[2:]))
        composite = torch.where(outside, edit, original)
        area = outside.float().mean()
        distances = self._lpips(self._resized(original), self._resized(composite)) / area
        columns = {
            "lpips": distances.where(area > 0, torch.nan),
            "l2": (composite - original).square().mean((1, 2, 3)) / area,
        }
        return pd.DataFrame({name: column.double().numpy() for name, column in columns.items()})

    def _check(self, source: Image.Image, edits: Sequence[Image.Image]) -> None:
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

    def _working_size(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, self._side / max(height, width)) if self._side else 1.0
        return round(height * scale), round(width * scale)

    def _resized(self, images: Tensor) -> Tensor:
        size = self._working_size(*images.shape[2:])
        if size == images.shape[2:]:
            return images
        return F.interpolate(images, size, mode="bilinear", antialias=True)

    def _lpips(self, original: Tensor, others: Tensor) -> Tensor:
        """LPIPS [B] of pixels in [0, 1]; the original is passed through the network once."""
        layers = [self._net.net(self._net.scaling_layer(2 * x - 1)) for x in (original, others)]
        distances = [
            head((lpips.normalize_tensor(a) - lpips.normalize_tensor(b)).square()).mean((1, 2, 3))
            for head, a, b in zip(self._net.lins, *layers, strict=True)
        ]
        return torch.stack(distances).sum(0)


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
