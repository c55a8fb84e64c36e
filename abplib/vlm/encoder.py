"""The VLM as a condition encoder: one forward pass -> hidden states, token spans, attention rows.

The pass is Qwen-Image-Edit's (section 3): its template, its resizing, its dropped system prompt;
what another family of VLMs does otherwise is in its adapter (`abplib.vlm.adapters`).
H^(l) is the un-normed output of decoder block l, 0 <= l < L; `"final"` is the last block with the
final norm, which the pipeline conditions on; `"input"` is what the first block is given, image
tokens and token embeddings; `Untrained` is a control.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock, get_ident
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BatchFeature, DynamicCache, PreTrainedModel, ProcessorMixin

from abplib.core.errors import AbpError
from abplib.core.images import ImageLike
from abplib.core.parallel import ahead, streamed
from abplib.core.store import digest
from abplib.samples.base import Sample, SampleSet, check_number
from abplib.vlm import loading as vlms
from abplib.vlm.adapters import Adapter, adapter_of
from abplib.vlm.attention import reading_rows


class Untrained(NamedTuple):
    """A block of a decoder of random weights behind the same eyes and token embeddings."""

    layer: int
    seed: int
    """Of the weights."""


Layer = int | Literal["input", "final"] | Untrained

Rows = Sequence[int] | np.ndarray
"""Which samples of a set."""

_IN_CACHE = 16
"""Samples that pass a CPU together: the activations of 64 leave its cache, which takes half as long
again."""


class _Nothing(str):
    """An instruction known by identity, so that a user's blank one is still refused."""

    __slots__ = ()


NOTHING = _Nothing(" ")
"""The pipeline's negative prompt, a space, which asks for nothing."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A batch on the CPU, ready for the VLM; B samples of at most S tokens, right-padded."""

    inputs: dict[str, Tensor]
    """What the model's `forward` takes: input_ids and attention_mask, Long [B, S], system prompt
    included; pixel_values and what describes them; Qwen's 3-D position_ids, Long [3, B, S]."""
    image_tokens: Tensor
    """Bool [B, S]."""
    grids: list[tuple[int, int]]
    """Rows and columns of each image's tokens."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """States of B samples over at most T kept tokens (the system prompt is dropped)."""

    states: dict[Layer, Tensor]
    """Each [B, T, d], in the model's dtype, zero on padding."""
    mask: Tensor
    """Bool [B, T]: real tokens, first in each row."""
    image_tokens: Tensor
    """Bool [B, T]: tokens of the whole image, row-major over `grids`."""
    prompt_tokens: Tensor
    """Bool [B, T]: the user's instruction."""
    template_tokens: Tensor
    """Bool [B, T]: the rest of `mask`."""
    input_ids: Tensor
    """Long [B, T]."""
    grids: list[tuple[int, int]]
    """Rows and columns of each image's tokens."""
    attention: dict[int, Tensor]
    """alpha^(l) of the tokens after the image: each fp32 [B, R, T], row r being the attention that
    the r-th token from the first prompt token on (prompt, then closing template) pays to every kept
    token, mean over the block's heads. Rows beyond a sample's last token are zero. What a row lacks
    to one went to the dropped system prompt."""

    @classmethod
    def joined(cls, parts: Sequence[Encoding]) -> Encoding:
        """Encodings of the same layers as one, padded to the longest."""
        if len(parts) == 1:
            return parts[0]

        def tensor(name: str) -> Tensor:
            return concatenated([getattr(part, name) for part in parts])

        def tensors(name: str) -> dict[Any, Tensor]:
            found = [getattr(part, name) for part in parts]
            return {layer: concatenated([of[layer] for of in found]) for layer in found[0]}

        return cls(
            states=tensors("states"),
            mask=tensor("mask"),
            image_tokens=tensor("image_tokens"),
            prompt_tokens=tensor("prompt_tokens"),
            template_tokens=tensor("template_tokens"),
            input_ids=tensor("input_ids"),
            grids=[grid for part in parts for grid in part.grids],
            attention=tensors("attention"),
        )


class ConditionEncoder:
    """Runs a frozen VLM as Qwen-Image-Edit runs Qwen2.5-VL and reads any of its layers."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        image_area: int,
        fingerprint: str,
        adapter: Adapter | None = None,
        repetition_penalty: float = 1.0,
    ) -> None:
        self.model = model
        self.processor = processor
        self.image_area = image_area
        """Pixels that an image is resized to before the processor."""
        self.fingerprint = fingerprint
        """Hash of the weights and of every file that shapes the states."""
        self.adapter = adapter or adapter_of(model)
        """What the model's family does in its own way."""
        self.repetition_penalty = repetition_penalty
        """Of the answers in text; 1 for plain greedy decoding."""
        prefix, self._turn = self.adapter.texts(processor)
        self.n_dropped = len(self._tokens(prefix))
        """Tokens of the system prompt."""
        self._prefix: list[tuple[Tensor, Tensor]] | None = None
        """Its keys and values in each block, [1, groups, n_dropped, e], once a pass needed them."""
        self._controls: dict[int, ConditionEncoder] = {}
        """`untrained` by seed, once a pass needed them."""
        self._making = Lock()
        """Held while a control is made, as threads pass batches side by side."""
        # A tokenizer is not for two threads with other padding: a pass asks it for nothing.
        self._image_end = self._tokens(self.adapter.image_end)
        self._turn_end, *_ = self._tokens(self._turn.partition("{}")[2])
        if self.adapter.n_dropped not in (None, self.n_dropped):
            raise AbpError(
                f"The tokenizer cuts the system prompt into {self.n_dropped} tokens where the "
                f"pipeline drops {self.adapter.n_dropped}; use the model's own tokenizer."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines what the encoder gives."""
        return {
            "vlm": self.fingerprint,
            "image_area": self.image_area,
            "dtype": str(self.model.dtype),
            "adapter": self.adapter,
            "repetition_penalty": self.repetition_penalty,
        }

    @classmethod
    def from_pretrained(
        cls,
        vlm: str | Path,
        *,
        image_area: int,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        **options: Any,
    ) -> ConditionEncoder:
        """From a folder or a hub id; `image_area` is in pixels. Raises AbpError if unusable.

        `device="auto"` puts the blocks where there is memory: the GPUs first, then the CPU;
        `"meta"` loads no weights, for what needs none. `options` are the constructor's.
        """
        model, processor = vlms.load_vlm(vlm, dtype=dtype, device=device, revision=revision)
        told = vlms.fingerprint(vlm, revision)
        return cls(model, processor, image_area=image_area, fingerprint=told, **options)

    def untrained(self, seed: int) -> ConditionEncoder:
        """A control: the same eyes and token embeddings before a decoder of random weights."""
        model, name = self.model, digest(["untrained", self.fingerprint, seed])
        with torch.random.fork_rng(), torch.device(model.device):
            torch.manual_seed(int(name, 16) % 2**63)  # of its own, or it could be the model itself
            twin = type(model)._from_config(copy.deepcopy(model.config), dtype=model.dtype).eval()
        decoder = twin.get_decoder()
        random = {id(w) for part in (decoder.layers, decoder.norm) for w in part.parameters()}
        for fresh, trained in zip(twin.parameters(), model.parameters(), strict=True):
            if id(fresh) not in random:
                fresh.data = trained.data.to(fresh.device)
        return ConditionEncoder(
            twin,
            self.processor,
            image_area=self.image_area,
            fingerprint=name,
            adapter=self.adapter,
        )

    @property
    def n_layers(self) -> int:
        """L, the number of decoder blocks."""
        return len(self._blocks)

    @property
    def width(self) -> int:
        """d, the size of a hidden state."""
        return self.model.config.text_config.hidden_size

    @property
    def middle_layers(self) -> tuple[int, ...]:
        """`middle_layers` of this depth."""
        return middle_layers(self.n_layers)

    @property
    def _blocks(self) -> nn.ModuleList:
        return self.model.get_decoder().layers

    def prepare(self, images: Sequence[ImageLike], instructions: Sequence[str]) -> Prepared:
        """Resize, fill the template and tokenize: all that needs no weights, safe in a thread.

        `NOTHING`, the pipeline's negative prompt, is an instruction too. Raises AbpError for an
        empty or too long instruction, one that holds chat markers, and what is not an image.
        """
        if not instructions or len(images) != len(instructions):
            raise AbpError(
                f"There are {len(images)} images for {len(instructions)} instructions; give one "
                "image for each of one or more instructions."
            )
        asked = [instruction for instruction in instructions if instruction is not NOTHING]
        vlms.check_instructions(asked, self.processor)
        inputs = vlms.tokenize(
            [self.adapter.fit(image, self.image_area, self.processor) for image in images],
            [self._turn.replace("{}", instruction) for instruction in instructions],
            self.processor,
            padding_side="right",
            **self.adapter.options,
        )
        vlms.check_length(inputs["input_ids"].shape[1], self.model)
        image_tokens = self.adapter.image_tokens(inputs["input_ids"], self.model)
        return Prepared(
            inputs=self.adapter.inputs(inputs, self.model),
            image_tokens=image_tokens,
            grids=self.adapter.grids(inputs, image_tokens, self.processor),
        )

    def read(self, samples: Sequence[Sample]) -> Prepared:
        """`prepare` of samples, safe in a thread; what it refuses is named by its id."""
        try:
            return self.prepare([s.image for s in samples], [s.instruction for s in samples])
        except AbpError:
            for sample in samples:
                try:
                    self.prepare([sample.image], [sample.instruction])
                except AbpError as error:
                    raise AbpError(f"Sample {sample.id}: {error}") from error
            raise

    @torch.inference_mode()
    def encode(
        self,
        batch: Prepared | Sequence[ImageLike],
        instructions: Sequence[str] | None = None,
        *,
        layers: Sequence[int | Literal["input"] | Untrained] = (),
        final: bool = False,
        attention: Sequence[int] = (),
    ) -> Encoding:
        """One forward pass over what `prepare` made, or over images with their instructions.

        Keeps the states of `layers`, and of `"final"` if asked, and in the blocks `attention` the
        attention of the tokens after the image; never runs the output head. What the eyes see goes
        through each decoder that is asked for. Raises AbpError for a layer that the model does not
        have, and as `prepare` does.
        """
        self.check_layers([*layers, *attention])
        if not isinstance(batch, Prepared):
            batch = self.prepare(batch, instructions or ())
        inputs = BatchFeature(batch.inputs).to(self.model.device, self.model.dtype)
        kept_ids = inputs["input_ids"][:, self.n_dropped :]
        mask = inputs["attention_mask"][:, self.n_dropped :].bool()
        image_tokens = batch.image_tokens[:, self.n_dropped :].to(mask.device)
        prompt_tokens = self._prompt_tokens(kept_ids, mask)
        places, real = _places(mask & (prompt_tokens.cumsum(1) > 0))
        behind = self._behind_the_system_prompt(inputs)
        start = behind["input_ids"].shape[1] - mask.shape[1]
        rows = reading_rows(self.model, attention, start + places)
        random = [layer for layer in layers if isinstance(layer, Untrained)]
        own = [layer for layer in layers if not isinstance(layer, Untrained)]
        with (
            self._captured(own, mask) as states,
            self._given() as given,
            rows if attention else nullcontext() as reader,
        ):
            output = self.model.model(**behind, use_cache=False, row_reader=reader)
        if final:
            states["final"] = self._keep(output.last_hidden_state, mask)
        for seed in dict.fromkeys(layer.seed for layer in random):
            control = self._control(seed)
            prompt = control._behind_the_system_prompt(inputs).get("past_key_values")
            asked = [layer.layer for layer in random if layer.seed == seed]
            own_prompt = {"past_key_values": prompt, "row_reader": None}
            with control._captured(asked, mask) as found:
                control.model.get_decoder()(**given | own_prompt)
            states |= {Untrained(block, seed): found[block] for block in asked}
        return Encoding(
            states=states,
            mask=mask,
            image_tokens=image_tokens,
            prompt_tokens=prompt_tokens,
            template_tokens=mask & ~image_tokens & ~prompt_tokens,
            input_ids=kept_ids,
            grids=batch.grids,
            attention={
                layer: alpha[..., self.n_dropped :].masked_fill(~real[..., None], 0)
                for layer, alpha in (reader.attention if reader else {}).items()
            },
        )

    def over(
        self,
        samples: SampleSet,
        n: int,
        *,
        batch: int = 50,
        **kept: Any,
    ) -> Iterator[tuple[list[Sample], Encoding]]:
        """The first `n` samples, `batch` at a time, each time with what `encode` says of them.

        `kept` is what it is to keep: its `layers`, `final` and `attention`. Raises AbpError where
        there are not as many samples, and as `encode` does.
        """
        check_number(n, samples)
        starts = range(0, n, batch)
        return self.passes(samples, [range(s, min(s + batch, n)) for s in starts], **kept)

    def passes(
        self, samples: SampleSet, parts: Sequence[Rows], **kept: Any
    ) -> Iterator[tuple[list[Sample], Encoding]]:
        """`over`, of any parts of a set, in order; what comes next is read meanwhile."""
        device = self.model.device
        cut = [self.pieces(part) for part in parts]

        def read(rows: Rows) -> tuple[list[Sample], Prepared]:
            some = [samples[int(row)] for row in rows]
            return some, self.read(some)

        def encode(piece: tuple[list[Sample], Prepared]) -> tuple[list[Sample], Encoding]:
            return piece[0], self.encode(piece[1], **kept)

        rows = [rows for pieces in cut for rows in pieces]
        passed = streamed(encode, ahead(read, rows, device), device)
        for pieces in cut:
            some, encodings = zip(*islice(passed, len(pieces)), strict=True)
            yield [sample for piece in some for sample in piece], Encoding.joined(encodings)

    def pieces(self, part: Rows) -> list[Rows]:
        """What of a part passes together: all of it on a GPU, few samples on a CPU's core."""
        size = _IN_CACHE if self.model.device.type == "cpu" else len(part)
        return [part[start : start + size] for start in range(0, len(part), size)]

    def check_layers(self, layers: Sequence[Layer]) -> None:
        """Refuse a layer that the model does not have."""
        for asked in layers:
            layer = asked.layer if isinstance(asked, Untrained) else asked
            if layer != "input" and layer not in range(self.n_layers):
                raise AbpError(
                    f"There is no layer {layer}; the model has layers 0 to {self.n_layers - 1}."
                )

    def _behind_the_system_prompt(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The kept tokens alone, and what the blocks remember of the system prompt.

        All samples share it, and no token in it sees what comes after, so it passes the decoder
        once. Only where positions are told: other families count them in the sequence.
        """
        if "position_ids" not in inputs or not self.n_dropped:
            return dict(inputs)
        text, n = self.model.config.text_config, self.n_dropped
        told = {name: inputs[name] for name in ("input_ids", "position_ids")}
        if self._prefix is None:
            first = DynamicCache(config=text)
            one = {name: ids[..., :1, :n] for name, ids in told.items()}
            self.model.model(**one, past_key_values=first, use_cache=True)
            self._prefix = [(layer.keys, layer.values) for layer in first.layers]
        cache, size = DynamicCache(config=text), len(inputs["input_ids"])
        for block, (keys, values) in enumerate(self._prefix):
            cache.update(keys.expand(size, -1, -1, -1), values.expand(size, -1, -1, -1), block)
        kept = {name: ids[..., n:] for name, ids in told.items()}
        return {**inputs, **kept, "past_key_values": cache}

    def _control(self, seed: int) -> ConditionEncoder:
        with self._making, torch.inference_mode(False):  # which its weights could not leave
            if seed not in self._controls:
                self._controls[seed] = self.untrained(seed)
        return self._controls[seed]

    @contextmanager
    def _given(self) -> Iterator[dict[str, Any]]:
        """What the decoder is called with while the body runs."""
        found: dict[str, Any] = {}
        here = get_ident()

        def hook(_decoder: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if get_ident() == here:
                found.update(kwargs)

        handle = self.model.get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield found
        finally:
            handle.remove()

    @contextmanager
    def _captured(
        self, layers: Sequence[int | Literal["input"]], mask: Tensor
    ) -> Iterator[dict[Layer, Tensor]]:
        """Collect the kept tokens' outputs of the asked decoder blocks while the body runs."""
        states: dict[Layer, Tensor] = {}
        here = get_ident()

        def storing(layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_block: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
                if get_ident() == here:  # another thread may be passing its own batch
                    states[layer] = self._keep(given[0] if layer == "input" else output, mask)

            return hook

        with ExitStack() as hooks:
            for layer in layers:
                block = self._blocks[0 if layer == "input" else layer]
                handle = block.register_forward_hook(storing(layer))
                hooks.callback(handle.remove)
            yield states

    def _prompt_tokens(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """From behind the last `image_end` to the last token that ends a turn: Bool [B, T]."""
        start = _last((input_ids == self._image_end[0]) & mask) + len(self._image_end)
        index = torch.arange(input_ids.shape[1], device=input_ids.device)
        return (index >= start) & (index < _last((input_ids == self._turn_end) & mask))

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _keep(self, states: Tensor, mask: Tensor) -> Tensor:
        """[B, S or T, d] -> [B, T, d]: the system prompt dropped, padding zeroed."""
        return states[:, -mask.shape[1] :].to(mask.device).masked_fill(~mask[..., None], 0)


def middle_layers(depth: int) -> tuple[int, ...]:
    """Layers 15..24 of 28 (section 4.3), scaled to a depth."""
    return tuple(layer for layer in range(depth) if 15 * depth <= 28 * layer < 25 * depth)


def _places(where: Tensor) -> tuple[Tensor, Tensor]:
    """Bool [B, T] -> indices of each row's True, in order, Long [B, R]; which are so, Bool [B, R].

    R is the largest number of them in a row.
    """
    order = where.int().argsort(dim=1, descending=True, stable=True)[:, : int(where.sum(1).max())]
    return order, where.gather(1, order)


def concatenated(tensors: Sequence[Tensor]) -> Tensor:
    """Along the first dimension, with zeros behind what is shorter than the longest in another."""
    sizes = zip(*(tensor.shape[1:] for tensor in tensors), strict=True)
    joined = tensors[0].new_zeros(sum(map(len, tensors)), *map(max, sizes))
    for part, tensor in zip(joined.split([*map(len, tensors)]), tensors, strict=True):
        part[tuple(map(slice, tensor.shape))] = tensor
    return joined


def _last(where: Tensor) -> Tensor:
    """Index of the last True in each row, Bool [B, T] -> Long [B, 1]."""
    index = torch.arange(where.shape[1], device=where.device)
    return (where * index).amax(dim=1, keepdim=True)
