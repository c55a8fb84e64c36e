"""Where text tokens look: their attention to the image as maps, and how well maps point at a box.

alpha^(l)_{i,j}, the attention of text token i to image token j in block l, mean over the block's
heads (section 4.5). *Raw* maps show sinks too: image tokens that get attention whatever is asked.
*Relative* maps are raw ones divided by a baseline, the mean map of the prompt tokens of a generic
instruction on the same image in the same block.

The paper looks at prompt tokens. The few template tokens that close the user's turn are read along
with them: the last of them is where an answer would begin, and a proxy of all tokens may find them
dominant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abplib.core.boxes import Box, pixels_inside
from abplib.core.images import ImageLike
from abplib.prompts import DESCRIBE_INSTRUCTION
from abplib.vlm.encoder import ConditionEncoder, Encoding

GENERIC = DESCRIBE_INSTRUCTION
"""The instruction behind the baseline."""

NEAR = 15 / 448
"""How far from the box a near hit may lie, in sides of the image: 15 of 448 pixels."""

_PRIOR_WIDTH = 0.25
"""Standard deviation of the centre prior, in sides of the image."""


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Maps of one sample on its grid of image tokens, in some blocks."""

    raw: Tensor
    """fp32 [layers, R, rows, columns]: alpha^(l) of its prompt tokens and, after them, the closing
    template's."""
    baseline: Tensor
    """fp32 [layers, rows, columns]: mean over the prompt tokens of `GENERIC`."""
    tokens: Tensor
    """Long [R]: their indices in the kept sequence."""
    n_prompt: int
    """How many of them are prompt tokens."""

    @property
    def relative(self) -> Tensor:
        """`raw` divided by `baseline`."""
        return self.raw / self.baseline.clamp(min=torch.finfo(torch.float32).tiny)[:, None]


def attention_maps(
    encoder: ConditionEncoder,
    images: Sequence[ImageLike],
    instructions: Sequence[str],
    layers: Sequence[int],
) -> list[AttentionMaps]:
    """Maps of each sample in `layers`, from two passes: its own instruction and `GENERIC`.

    Raises AbpError as `ConditionEncoder.encode` does.
    """
    return maps_of(encoder, images, encoder.encode(images, instructions, attention=layers), layers)


def maps_of(
    encoder: ConditionEncoder, images: Sequence[ImageLike], own: Encoding, layers: Sequence[int]
) -> list[AttentionMaps]:
    """Maps from the pass `own` and a second one with `GENERIC`."""
    generic = encoder.encode(images, [GENERIC] * len(images), attention=layers)
    return [
        AttentionMaps(rows, baseline[:, :n_generic].mean(1), tokens, n_prompt)
        for (rows, tokens, n_prompt), (baseline, _, n_generic) in zip(
            _image_rows(own, layers), _image_rows(generic, layers), strict=True
        )
    ]


def _image_rows(encoding: Encoding, layers: Sequence[int]) -> list[tuple[Tensor, Tensor, int]]:
    """Each sample's alpha over its image, [layers, R, rows, columns], `tokens` and `n_prompt`."""
    alpha = torch.stack([encoding.attention[layer] for layer in layers], dim=1).cpu()
    rows = []
    for row, grid in enumerate(encoding.grids):
        prompt, image, real = (
            span[row].cpu()
            for span in (encoding.prompt_tokens, encoding.image_tokens, encoding.mask)
        )
        tokens = (real & (prompt.cumsum(0) > 0)).nonzero()[:, 0]
        maps = alpha[row, :, : len(tokens), image].unflatten(-1, grid)
        rows.append((maps, tokens, int(prompt.sum())))
    return rows


def map_scores(maps: Tensor, box: Box) -> dict[str, Tensor]:
    """How well maps [..., rows, columns] point at a box (fractions of the image): each [...].

    - `hit`: whether the centre of the map's largest cell lies in the box (of several equally large
      cells, the part of them); `hit_near`: the same with the box grown by `NEAR` on every side;
    - `energy`: the part of the map that lies in the box, cells cut by its edge counting in part;
    - `auroc`: that a point in the box has a larger value than one outside, equal values counting
      half; nan for a box that is the whole image.

    A constant map scores what chance does.
    """
    n_rows, n_columns = maps.shape[-2:]
    inside = part_inside((n_rows, n_columns), box).flatten()
    flat = maps.flatten(-2).double()
    peak = flat == flat.amax(-1, keepdim=True)
    x1, y1, x2, y2 = box
    grown = (x1 - NEAR, y1 - NEAR, x2 + NEAR, y2 + NEAR)
    centres = (
        torch.from_numpy(pixels_inside(b, n_rows, n_columns)).flatten() for b in (box, grown)
    )
    hit, near = ((peak * centre).sum(-1) / peak.sum(-1) for centre in centres)
    energy = (flat * inside).sum(-1) / flat.sum(-1)
    return {"hit": hit, "hit_near": near, "energy": energy, "auroc": auroc(flat, inside)}


def part_inside(grid: tuple[int, int], box: Box) -> Tensor:
    """What part of each cell of a grid lies in a box, fp64 [rows, columns]."""

    def overlap(n: int, low: float, high: float) -> Tensor:
        edges = (torch.arange(n + 1, dtype=torch.float64) / n).clamp(low, high)
        return edges.diff() * n

    return torch.outer(overlap(grid[0], box[1], box[3]), overlap(grid[1], box[0], box[2]))


def auroc(values: Tensor, inside: Tensor) -> Tensor:
    """Area under the ROC curve of values [..., C], each cell being `inside` [C] in part: [...]."""
    outside = 1 - inside
    ordered, order = values.sort(-1)
    below = torch.cat([torch.zeros_like(ordered[..., :1]), outside[order].cumsum(-1)], -1)
    ranks = [torch.searchsorted(ordered, values, side=side) for side in ("left", "right")]
    less, at_most = (below.gather(-1, rank) for rank in ranks)
    return (inside * (less + at_most) / 2).sum(-1) / (inside.sum() * outside.sum())


def centre_prior(grid: tuple[int, int]) -> Tensor:
    """A map [rows, columns] that knows nothing but that targets lie near the middle: a Gaussian."""
    rows, columns = ((torch.arange(n) + 0.5) / n - 0.5 for n in grid)
    distance = rows[:, None] ** 2 + columns**2
    return (-distance / (2 * _PRIOR_WIDTH**2)).exp()
