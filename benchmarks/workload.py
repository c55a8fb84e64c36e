"""The work of a sweep, to be measured: batches, the VLM's pass over them, proxies that learn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from abplib.core import paths
from abplib.core.parallel import side_by_side
from abplib.profiles import Profile
from abplib.proxies.bank import Bank
from abplib.proxies.configurations import Configuration, configurations
from abplib.proxies.settings import SweepSettings
from abplib.samples.base import Sample
from abplib.samples.scenes.sets import general
from abplib.sections.cost import Lengths, lengths_of
from abplib.vlm.encoder import ConditionEncoder, Encoding, Prepared
from abplib.vlm.twins import VLMShape, build_processor
from benchmarks.measuring import spent

T = TypeVar("T")
Encoded = tuple[Encoding, Tensor]
"""A micro-batch behind the VLM, and its boxes [B, 4]."""

MINIATURE = "data/mini/vlm"


class Whole(ConditionEncoder):
    """An encoder whose every pass takes the system prompt, too."""

    def __init__(self, encoder: ConditionEncoder) -> None:
        vars(self).update(vars(encoder))

    def _behind_the_system_prompt(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return dict(inputs)


@dataclass(frozen=True, eq=False)
class Workload:
    """Batches of the miniature's training samples and a VLM; proxies with a profile's settings.

    What is in the pictures does not matter to the cost, so a VLM of any shape is shown these.
    """

    encoder: ConditionEncoder
    settings: SweepSettings
    n_batches: int

    @classmethod
    def of(cls, encoder: ConditionEncoder, profile: Profile, n_batches: int) -> Workload:
        """Both terms of the loss are there from the first batch on, as in most of a sweep."""
        return cls(encoder, profile.sweep.model_copy(update={"l1_steps": 0}), n_batches)

    @property
    def device(self) -> torch.device:
        """Where VLM and proxies are."""
        return self.encoder.model.device

    @property
    def chosen(self) -> tuple[Configuration, ...]:
        """All configurations of Figure 4."""
        return configurations(self.encoder)

    def bank(self, chosen: Sequence[Configuration] | None = None) -> Bank:
        """New proxies on the chosen configurations, or on all."""
        return Bank(chosen or self.chosen, self.encoder.width, self.settings, device=self.device)

    @property
    def parts(self) -> list[range]:
        """The samples of each micro-batch."""
        size, n = self.settings.micro_batch, self.n_batches * self.settings.batch_size
        return [range(start, start + size) for start in range(0, n, size)]

    def passes(self, bank: Bank | None = None) -> Iterator[Encoded]:
        """All micro-batches through the VLM as in a sweep; keeps what a bank reads, or no state."""
        kept = {"layers": bank.layers, "final": bank.final} if bank else {}
        for some, encoding in self.encoder.passes(general(), self.parts, **kept):
            yield encoding, self.boxes(some)

    def boxes(self, samples: Sequence[Sample]) -> Tensor:
        """What proxies learn of samples, [B, 4]."""
        return torch.tensor([sample.box for sample in samples], device=self.device)

    def bare(self) -> None:
        """The VLM's pass alone, no state kept."""
        deque(self.passes(), maxlen=0)

    def sweep(self, bank: Bank) -> None:
        """The pass over all batches, with proxies that learn from each."""
        passes = self.passes(bank)
        for _ in range(self.n_batches):
            update(bank, islice(passes, self.settings.batch_size // self.settings.micro_batch))

    def stages(self, bank: Bank) -> dict[str, float]:
        """Seconds that each stage of a sweep takes for a batch, one after another; means over all.

        As many samples are under way at once as in a sweep.
        """
        seconds = {"preparation": 0.0, "pass": 0.0, "proxies": 0.0, "optimiser": 0.0}

        def timed(stage: str, work: Callable[..., T], *given: Any) -> T:
            made, took = spent(lambda: work(*given))
            seconds[stage] += took["seconds"] / self.n_batches
            return made

        def read(rows: range) -> list[tuple[list[Sample], Prepared]]:
            some = [[general()[row] for row in part] for part in self.encoder.pieces(rows)]
            return [(samples, self.encoder.read(samples)) for samples in some]

        def encode(prepared: Sequence[Prepared]) -> Encoding:
            def alone(part: Prepared) -> Encoding:
                return self.encoder.encode(part, layers=bank.layers, final=bank.final)

            return Encoding.joined(list(side_by_side(alone, prepared, self.device)))

        learned = 0
        for rows in self.parts:
            drawn, prepared = zip(*timed("preparation", read, rows), strict=True)
            encoding = timed("pass", encode, prepared)
            boxes = self.boxes([sample for some in drawn for sample in some])
            timed("proxies", bank.learn, encoding, boxes)
            learned += len(boxes)
            if learned % self.settings.batch_size == 0:
                timed("optimiser", bank.step)
        return seconds

    def lengths(self) -> list[Lengths]:
        """Tokens of a sample of each micro-batch of the first batch, padding counted."""
        batch = self.parts[: self.settings.batch_size // self.settings.micro_batch]
        reads = [self.encoder.read([general()[row] for row in rows]) for rows in batch]
        return [lengths_of(read, self.encoder.encode(read))[0] for read in reads]


def update(bank: Bank, batch: Iterable[Encoded]) -> None:
    """A step of a bank on the micro-batches of a batch."""
    for encoding, boxes in batch:
        bank.learn(encoding, boxes)
    bank.step()


def random_encoder(
    shape: Mapping[str, Any],
    *,
    image_area: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> ConditionEncoder:
    """A Qwen2.5-VL of a configuration's shape with random weights and the miniature's tokenizer.

    Real weights would take the same time. `image_area` is in pixels.
    """
    small = Qwen2_5_VLConfig.from_pretrained(paths.root() / MINIATURE)
    tokenizer = AutoProcessor.from_pretrained(paths.root() / MINIATURE).tokenizer
    text = {**shape["text_config"], "bos_token_id": None, "eos_token_id": None}
    eighth = text["hidden_size"] // text["num_attention_heads"] // 8
    sections = [eighth, 3 * eighth // 2, 3 * eighth // 2]  # of time, row and column, as in Qwen's
    text["rope_parameters"] = {
        "rope_type": "default", "rope_theta": 1e6, "mrope_section": sections
    }  # fmt: skip
    names = ("image", "video", "vision_start", "vision_end")
    ids = {f"{name}_token_id": getattr(small, f"{name}_token_id") for name in names}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=shape["vision_config"], **ids)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    shown = VLMShape(patch=config.vision_config.patch_size, side=round(image_area**0.5))
    return ConditionEncoder(
        model.eval().requires_grad_(False),
        build_processor(tokenizer, shown),
        image_area=image_area,
        fingerprint="random",
    )
