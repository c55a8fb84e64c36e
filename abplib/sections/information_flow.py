"""Where the instruction looks: attention of its tokens to the image, as maps (section 4.5).

alpha^(l)_{i,j}, the attention of text token i to image token j in block l, mean over the block's
heads, is laid out on the image's grid of tokens. *Raw* maps show sinks too: image tokens that get
attention whatever is asked. *Relative* maps are raw ones divided by a baseline, the mean map of the
prompt tokens of a generic instruction on the same image in the same block.

The paper looks at prompt tokens. The few template tokens that close the user's turn are read along
with them: the last of them is where an answer would begin, and a proxy of all tokens may find them
dominant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from abplib.core import store
from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.core.images import ImageLike
from abplib.prompts import DESCRIBE_INSTRUCTION
from abplib.samples.base import SampleSet
from abplib.vlm import attention
from abplib.vlm.encoder import ConditionEncoder, Encoding

GENERIC = DESCRIBE_INSTRUCTION
"""The instruction behind the baseline."""

NEAR = 15 / 448
"""How far from the box a near hit may lie, in sides of the image: 15 of 448 pixels."""

SCORES = ("hit", "hit_near", "energy", "auroc")
"""Of a map against a box; see `map_scores`."""

Kind = Literal["raw", "relative"]
"""Of maps; see the module's docstring."""

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
    return _maps(encoder, images, encoder.encode(images, instructions, attention=layers), layers)


def _maps(
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
    found = []
    for row, grid in enumerate(encoding.grids):
        prompt, image, real = (
            span[row].cpu()
            for span in (encoding.prompt_tokens, encoding.image_tokens, encoding.mask)
        )
        tokens = (real & (prompt.cumsum(0) > 0)).nonzero()[:, 0]
        maps = alpha[row, :, : len(tokens), image].unflatten(-1, grid)
        found.append((maps, tokens, int(prompt.sum())))
    return found


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
    inside = torch.outer(_overlap(n_rows, box[1], box[3]), _overlap(n_columns, box[0], box[2]))
    inside = inside.flatten().double()
    flat = maps.flatten(-2).double()
    peak = flat == flat.amax(-1, keepdim=True)
    hits = [
        (peak * _centres_inside(n_rows, n_columns, box, margin)).sum(-1) / peak.sum(-1)
        for margin in (0.0, NEAR)
    ]
    energy = (flat * inside).sum(-1) / flat.sum(-1)
    return dict(zip(SCORES, [*hits, energy, _auroc(flat, inside)], strict=True))


def centre_prior(grid: tuple[int, int]) -> Tensor:
    """A map [rows, columns] that knows nothing but that targets lie near the middle: a Gaussian."""
    rows, columns = ((torch.arange(n) + 0.5) / n - 0.5 for n in grid)
    distance = rows[:, None] ** 2 + columns**2
    return (-distance / (2 * _PRIOR_WIDTH**2)).exp()


@dataclass(frozen=True, eq=False)
class FlowScores:
    """How well the maps of a sample set point at the exact boxes, with the columns `SCORES`."""

    tokens: pd.DataFrame
    """One row for each sample, layer, token and kind of map: sample_id, layer, token (its index in
    the kept sequence), span (prompt or template), kind (raw or relative), image_part (how much of
    the token's attention goes to the image)."""
    controls: pd.DataFrame
    """One row for each sample and map that reads nothing: sample_id, source (chance, a constant
    map, or centre_prior)."""


def score_flow(
    encoder: ConditionEncoder,
    samples: SampleSet,
    n: int,
    layers: Sequence[int],
    *,
    base: Path | None = None,
) -> FlowScores:
    """Score all tokens after the image of the first `n` samples in `layers`; kept on disk.

    No proxy has a part in this: which rows are those of dominant tokens is for `by_source` to say.

    Raises:
        AbpError: `n` is not in 1..len(samples), or there is no such layer.
    """
    if not 1 <= n <= len(samples):
        raise AbpError(
            f"n is {n}, but {samples.name} holds {len(samples)} samples: ask for 1 to "
            f"{len(samples)}."
        )
    place = store.folder(
        "flow",
        base=base,
        vlm=encoder.fingerprint,
        image_area=encoder.image_area,
        dtype=str(encoder.model.dtype),
        samples=samples.fingerprint,
        n=n,
        layers=list(layers),
        generic=GENERIC,
        code=store.digest_files(__file__, attention.__file__),
    )
    with store.alone(place):
        if store.summary_of(place) is None:
            _score(encoder, samples, n, layers, place)
    return FlowScores(
        tokens=store.read_parquet(place / "tokens.parquet")[0],
        controls=store.read_parquet(place / "controls.parquet")[0],
    )


def _score(
    encoder: ConditionEncoder, samples: SampleSet, n: int, layers: Sequence[int], place: Path
) -> None:
    tokens, controls = [], []
    for batch, encoding in encoder.over(samples, n, attention=layers):
        found = _maps(encoder, [sample.image for sample in batch], encoding, layers)
        for sample, maps in zip(batch, found, strict=True):
            index = pd.MultiIndex.from_product(
                [[sample.id], layers, maps.tokens.tolist()], names=["sample_id", "layer", "token"]
            )
            part = maps.raw.sum((-2, -1)).flatten()
            n_template = len(maps.tokens) - maps.n_prompt
            spans = ["prompt"] * maps.n_prompt + ["template"] * n_template
            for kind, values in (("raw", maps.raw), ("relative", maps.relative)):
                scores = {k: v.flatten() for k, v in map_scores(values, sample.box).items()}
                rows = pd.DataFrame({**scores, "image_part": part}, index=index)
                rows = rows.assign(span=spans * len(layers), kind=kind)
                tokens.append(rows.reset_index())
            grid = (maps.raw.shape[-2], maps.raw.shape[-1])
            blind = {"chance": torch.ones(grid), "centre_prior": centre_prior(grid)}
            for source, control in blind.items():
                known = {k: float(v) for k, v in map_scores(control, sample.box).items()}
                controls.append({"sample_id": sample.id, "source": source, **known})
    store.write_parquet(place / "tokens.parquet", pd.concat(tokens, ignore_index=True))
    store.write_parquet(place / "controls.parquet", pd.DataFrame(controls))
    store.mark_done(place, n=n)


def by_source(
    flow: FlowScores,
    shares: pd.DataFrame,
    *,
    n_dominant: int = 1,
    kind: Kind = "raw",
) -> pd.DataFrame:
    """Scores of each sample by where its maps come from: sample_id, source and `SCORES`.

    `shares` is `Decomposition.token_shares`. Sources, each a mean over its maps:

    - `dominant`: of the prompt tokens the `n_dominant` with the largest share, in l*;
    - `random_token`: all prompt tokens in l*, which is what one drawn at random scores on average;
    - `other_layers`: the same dominant tokens in all other layers of `flow`;
    - `last_token`: the sequence's last token in l*, where an answer would begin;
    - `chance` and `centre_prior`: see `FlowScores.controls`.
    """
    prompt = shares[shares["span"] == "prompt"]
    order = prompt.groupby("sample_id")["share"].rank(method="first", ascending=False)
    dominant = prompt.loc[order <= n_dominant, ["sample_id", "token"]].assign(is_dominant=True)
    best = shares[["sample_id", "layer"]].drop_duplicates().rename(columns={"layer": "best"})
    rows = flow.tokens[flow.tokens["kind"] == kind].merge(best, on="sample_id")
    rows = rows.merge(dominant, on=["sample_id", "token"], how="left")
    is_dominant, at_best = rows["is_dominant"].notna(), rows["layer"] == rows["best"]
    is_last = rows["token"] == rows.groupby("sample_id")["token"].transform("max")
    sources = {
        "dominant": rows[at_best & is_dominant],
        "random_token": rows[at_best & (rows["span"] == "prompt")],
        "other_layers": rows[~at_best & is_dominant],
        "last_token": rows[at_best & is_last],
    }
    means = [
        part.groupby("sample_id", sort=False)[list(SCORES)].mean().assign(source=source)
        for source, part in sources.items()
    ]
    found = pd.concat(means).reset_index()
    controls = flow.controls[flow.controls["sample_id"].isin(found["sample_id"])]
    return pd.concat([found, controls], ignore_index=True)[["sample_id", "source", *SCORES]]


def _overlap(n: int, low: float, high: float) -> Tensor:
    """What part of each of n equal cells along [0, 1] lies between low and high, [n]."""
    edges = torch.arange(n + 1, dtype=torch.float64) / n
    return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * n


def _centres_inside(n_rows: int, n_columns: int, box: Box, margin: float) -> Tensor:
    """Whether the centre of each cell lies in the box grown by `margin`, Bool [rows * columns]."""
    ys, xs = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (n_rows, n_columns))
    in_rows = (ys >= box[1] - margin) & (ys <= box[3] + margin)
    in_columns = (xs >= box[0] - margin) & (xs <= box[2] + margin)
    return torch.outer(in_rows, in_columns).flatten()


def _auroc(values: Tensor, inside: Tensor) -> Tensor:
    """Area under the ROC curve of values [..., C], each cell being `inside` [C] in part."""
    outside = 1 - inside
    ordered, order = values.sort(-1)
    below = torch.cat([torch.zeros_like(ordered[..., :1]), outside[order].cumsum(-1)], -1)
    ranks = [torch.searchsorted(ordered, values, side=side) for side in ("left", "right")]
    less, at_most = (below.gather(-1, rank) for rank in ranks)
    return (inside * (less + at_most) / 2).sum(-1) / (inside.sum() * outside.sum())
