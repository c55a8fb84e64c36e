"""Training batches of the miniature VLM, made from seeds: pictures, dense targets, packed lessons.

A lesson's turns share one picture and one system prompt, so that prefix is computed once: the
turns are packed behind it, each seeing the prefix and itself alone, at the positions it would
have on its own. A packed turn therefore gets the states it would get unpacked (a test).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLProcessor

from abplib.samples.scenes.edits import object_boxes, pixels
from abplib.samples.scenes.objects import COLOURS, KINDS
from abplib.samples.scenes.render import SIDE, masks, render
from abplib.samples.scenes.scene import Scene
from abplib.vlm.twins import VLMShape, number_tokens
from recipes.miniature.answers import Lesson, Turn, lesson, marked, training_scene

_COVER = 0.06
MAX_PHRASES = 12
_ASKED = 0.1
"""Weight of the loss on a question's tokens; an answer's have 1."""
_CORNERS = (4.0, 2.0, 2.0, 2.0)
"""Weights of a box's numbers: the first one already takes knowing which object is meant."""
_KEEP = 20_000


@dataclass(frozen=True)
class Sight:
    """What each merged token of a picture should know: int64 [cells], -1 where undefined.

    `box` is float32 [cells, 4]: the sides' distances from the cell's centre, in cells.
    Nothing here takes a comparison of objects: that is left to the decoder.
    """

    kind: np.ndarray
    colour: np.ndarray
    box: np.ndarray


def sight(scene: Scene, shape: VLMShape) -> Sight:
    """Dense targets of a scene: each cell tells of the object that covers most of it."""
    grid = shape.side // (2 * shape.patch)
    cover = masks(scene).reshape(-1, grid, SIDE // grid, grid, SIDE // grid).mean((2, 4))
    cover = cover.reshape(len(cover), -1)
    owner = np.where(cover.max(0) >= _COVER, cover.argmax(0), -1)
    kinds = np.array([list(KINDS).index(t.kind) for t in scene.things])
    colours = np.array([list(COLOURS).index(t.colour) for t in scene.things])
    row, column = np.divmod(np.arange(grid * grid), grid)
    centre = np.stack([column, row, column, row], 1) + 0.5
    boxes = np.array(object_boxes(scene))[owner] * grid - centre
    empty = owner < 0
    return Sight(
        np.where(empty, len(KINDS), kinds[owner]),
        np.where(empty, -1, colours[owner]),
        boxes.astype(np.float32),
    )


@dataclass(frozen=True)
class Packed:
    """Token ids, their segment (0 = shared prefix, 1.. = turns, -1 = padding), loss weights."""

    ids: np.ndarray
    segments: np.ndarray
    weights: np.ndarray
    blind: np.ndarray
    """Bool: tokens that do not attend to the picture."""
    positions: np.ndarray
    rows: np.ndarray
    """int64 [MAX_PHRASES]: last tokens of phrases that name an object; 0 where there are fewer."""
    cells: np.ndarray
    """Bool [MAX_PHRASES, cells]: the image tokens that a phrase is about; none where unused."""


class Packer:
    """Turns lessons into token sequences of one length; turns that do not fit are left out."""

    def __init__(self, processor: Qwen2VLProcessor, shape: VLMShape, length: int) -> None:
        self.tokenizer, self.length = processor.tokenizer, length
        self.grid = shape.side // (2 * shape.patch)
        self._prefixes: dict[str, list[int]] = {}
        self.side = shape.side
        self._numbers = set(number_tokens(self.tokenizer, shape))
        self._image = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self._end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def __call__(self, taught: Lesson) -> Packed:
        prefix = self._prefix(taught.system)
        ids, segments, weights = list(prefix), [0] * len(prefix), [0.0] * len(prefix)
        blind = [False] * len(prefix)
        base = self._prefix_positions(prefix)
        start = int(base.max()) + 1
        positions = [base]
        rows, cells = [], []
        for number, turn in enumerate(taught.turns, 1):
            head, *rest = map(self._encode, self._parts(turn))
            turn_ids = sum(rest, head)
            n = len(turn_ids)
            if len(ids) + n > self.length:
                break
            if turn.phrase:
                rows.append(len(ids) + len(head) - 1)
                cells.append(self._covered(pixels(turn.box, self.side)))
            sighted = len(head) if not turn.answer else turn_ids.index(self._end)
            ids += turn_ids
            segments += [number] * n
            weights += self._weights(turn, head, *rest)
            blind += [turn.blind and i >= sighted for i in range(n)]
            positions.append(np.tile(np.arange(start, start + n), (3, 1)))
        room = self.length - len(ids)
        kept = np.zeros((MAX_PHRASES, self.grid**2), bool)
        kept[: len(cells)] = np.array(cells).reshape(-1, self.grid**2)
        return Packed(
            np.pad(np.array(ids), (0, room)),
            np.pad(np.array(segments), (0, room), constant_values=-1),
            np.pad(np.array(weights, np.float32), (0, room)),
            np.pad(np.array(blind), (0, room)),
            np.pad(np.concatenate(positions, 1), ((0, 0), (0, room))),
            np.pad(np.array(rows, int), (0, MAX_PHRASES - len(rows))),
            kept,
        )

    def _parts(self, turn: Turn) -> tuple[str, str, str]:
        """A turn cut behind its phrase, and once more where its answer (or its box) begins, or,
        in grounded text, ends."""
        named = turn.phrase or turn.question
        cut = turn.question.index(named) + len(named)
        head, tail = turn.question[:cut], turn.question[cut:]
        if not turn.answer:
            return head, marked(turn.box, self.side), f"{tail}<|im_end|>"
        return head, f"{tail}<|im_end|>\n<|im_start|>assistant\n", f"{turn.answer}<|im_end|>"

    def _weights(self, turn: Turn, *parts: list[int]) -> list[float]:
        """Loss weights of a turn's tokens."""
        said = 2 if turn.answer else 1
        weights = [[1.0 if i == said else _ASKED] * len(part) for i, part in enumerate(parts)]
        for at in self._boxes(parts[said]):
            weights[said][at : at + 7 : 2] = _CORNERS
        weights[0][0] = 0.0
        return list(itertools.chain(*weights))

    def _boxes(self, said: Sequence[int]) -> Iterator[int]:
        """Where in an answer's tokens a box's four numbers begin."""
        number = [token in self._numbers for token in said]
        at = 0
        while at + 6 < len(said):
            if all(number[at : at + 7 : 2]):
                yield at
                at += 6
            at += 1

    def _covered(self, box: Sequence[int]) -> np.ndarray:
        """Cells that a box in pixels holds a good part of: bool [cells]."""
        size = self.side / self.grid
        edge = np.arange(self.grid) * size
        wide, high = (
            np.clip(np.minimum(edge + size, box[i + 2]) - np.maximum(edge, box[i]), 0, None)
            for i in (0, 1)
        )
        area = high[:, None] * wide[None]
        return (area >= 0.5 * area.max()).ravel()

    def _prefix(self, system: str) -> list[int]:
        if system not in self._prefixes:
            head = self._encode(
                f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            )
            tail = self._encode("<|vision_end|>")
            self._prefixes[system] = head + [self._image] * self.grid**2 + tail
        return self._prefixes[system]

    def _prefix_positions(self, prefix: Sequence[int]) -> np.ndarray:
        """Qwen's 3-D positions (time, row, column): int64 [3, len(prefix)]."""
        first = prefix.index(self._image)
        row, column = np.divmod(np.arange(self.grid**2), self.grid)
        image = first + np.stack([np.zeros_like(row), row, column])
        text = np.tile(np.arange(first), (3, 1))
        return np.concatenate([text, image, np.full((3, 1), first + self.grid)], 1)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text).ids


def picture(scene: Scene, shape: VLMShape) -> np.ndarray:
    """The scene as the model sees it: uint8 [side, side, 3]."""
    size = (shape.side, shape.side)
    return np.array(render(scene).resize(size, Image.Resampling.LANCZOS))


def patches(pictures: Tensor, processor: Qwen2VLProcessor, shape: VLMShape) -> Tensor:
    """`Qwen2VLImageProcessor`'s pixel values for a uint8 batch [B, side, side, 3], at once."""
    of = processor.image_processor
    mean, std = torch.tensor(of.image_mean), torch.tensor(of.image_std)
    pixels = (pictures.float() / 255 - mean.to(pictures.device)) / std.to(pictures.device)
    b, half, p = len(pictures), shape.side // (2 * shape.patch), shape.patch
    cut = pixels.view(b, half, 2, p, half, 2, p, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return cut.unsqueeze(6).expand(*cut.shape[:6], 2, p, p).reshape(b * 4 * half**2, -1)


class Classroom(torch.utils.data.IterableDataset[dict[str, np.ndarray]]):
    """Endless training items, one a seed: pictures with dense targets, and lessons if they have a
    `length`. Item i is made from `seed + i % pool`, after those that an earlier run has used.
    """

    def __init__(
        self,
        processor: Qwen2VLProcessor,
        shape: VLMShape,
        *,
        seed: int,
        skip: int,
        pool: int,
        length: int | None,
        blind: float = 0.0,
    ) -> None:
        self.shape, self.seed, self.skip, self.pool, self.blind = shape, seed, skip, pool, blind
        self.packer = Packer(processor, shape, length) if length else None
        self._kept: dict[int, dict[str, np.ndarray]] = {}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for i in itertools.count(self.skip):
            seed = self.seed + i % self.pool
            item = self._kept.get(seed) or self._make(seed)
            if self.pool <= _KEEP:
                self._kept[seed] = item
            yield item

    def _make(self, seed: int) -> dict[str, np.ndarray]:
        scene = training_scene(seed)
        item = {"picture": picture(scene, self.shape)}
        item |= vars(sight(scene, self.shape))
        if self.packer:
            item |= vars(self.packer(lesson(scene, self.shape.side, 8, self.blind)))
        return item
