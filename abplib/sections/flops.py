"""Floating-point operations of a sweep: the VLM's pass over a sample, a proxy that learns from it.

Counted are matrix products, each multiplication with its addition as two operations; norms,
activations and positions are left out. That is how torch's own counter counts, and a test holds
both against each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, Qwen2_5_VLConfig

from abplib.core.errors import AbpError
from abplib.proxies.bank import Bank
from abplib.proxies.configurations import Configuration, configurations
from abplib.proxies.qformer import ProxyConfig, position_code
from abplib.proxies.settings import SweepSettings
from abplib.samples.base import SampleSet
from abplib.vlm.encoder import ConditionEncoder, Encoding, Prepared


@dataclass(frozen=True)
class Lengths:
    """Tokens of one sample."""

    grid: tuple[int, int]
    """Rows and columns of its image tokens."""
    sequence: int
    """All that the VLM reads, system prompt included."""
    kept: int
    """Without the system prompt: what proxies read."""
    prompt: int
    """The user's instruction."""


def lengths_of(prepared: Prepared, encoding: Encoding) -> list[Lengths]:
    """Those of each sample of a batch, padding counted: that is multiplied too."""
    sequence, kept = prepared.inputs["input_ids"].shape[1], encoding.mask.shape[1]
    prompt = int(encoding.prompt_tokens.sum(1).max())
    return [Lengths(grid, sequence, kept, prompt) for grid in encoding.grids]


def vlm_pass(config: PreTrainedConfig, lengths: Lengths) -> float:
    """Of one sample through vision tower and decoder, without the output head.

    Raises:
        AbpError: the model is no Qwen2.5-VL, whose shape is counted here.
    """
    if not isinstance(config, Qwen2_5_VLConfig):
        raise AbpError(f"Operations are counted for Qwen2.5-VL, not for {config.model_type}.")
    text = config.text_config
    width, n = text.hidden_size, lengths.sequence
    kv_width = width // text.num_attention_heads * text.num_key_value_heads
    weights = 2 * width * (width + kv_width) + 3 * width * text.intermediate_size
    block = 2.0 * weights * n + 4.0 * width * n**2
    return text.num_hidden_layers * block + _vision(config, lengths.grid)


def proxy_learning(shape: ProxyConfig, n_states: int) -> float:
    """Of one proxy's forward and backward pass over a sample of which it reads `n_states` states.

    A product costs three: forward, and for the gradients of both its factors. The states have no
    gradient, so reading them costs two.
    """
    n, width = shape.n_queries, shape.width
    n_features = shape.state_width + position_code(1).shape[1] + shape.n_layers - 1
    weights = shape.n_blocks * n * (14 * width**2 + 2 * width * n_features)
    weights += n * width**2 + 4 * width
    reading = shape.n_blocks * 2 * n * shape.n_heads * n_states * n_features
    among_queries = shape.n_blocks * 2 * n**2 * width
    return 2.0 * (3 * (weights + among_queries) + 2 * reading)


def learning(
    chosen: Sequence[Configuration], state_width: int, settings: SweepSettings, lengths: Lengths
) -> float:
    """The same of a proxy on each configuration, together."""
    return sum(
        proxy_learning(
            settings.proxy_config(state_width, len(configuration.layers)),
            len(configuration.layers)
            * (lengths.kept if configuration.tokens == "all" else lengths.prompt),
        )
        for configuration in chosen
    )


def counted(
    encoder: ConditionEncoder, samples: SampleSet, n: int, settings: SweepSettings
) -> pd.DataFrame:
    """Operations of a sample in a sweep, as torch counts them while it runs and as counted here.

    Means over the first `n` samples. Indexed by stage: VLM pass, proxies; columns: torch, flops
    (NaN where the VLM is no Qwen2.5-VL).
    """
    chosen = configurations(encoder)
    bank = Bank(chosen, encoder.width, settings, device=encoder.model.device)
    known = isinstance(encoder.model.config, Qwen2_5_VLConfig)
    found = {stage: {"torch": 0.0, "flops": 0.0} for stage in ("VLM pass", "proxies")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # torch counts in this thread alone
    try:
        for start in range(0, n, settings.micro_batch):
            batch = [samples[index] for index in range(start, min(start + settings.micro_batch, n))]
            prepared = encoder.prepare([s.image for s in batch], [s.instruction for s in batch])
            with FlopCounterMode(display=False) as passed:
                encoding = encoder.encode(prepared, layers=bank.layers, final=bank.final)
            boxes = torch.tensor([sample.box for sample in batch], device=encoding.mask.device)
            with FlopCounterMode(display=False) as learnt:
                bank.learn(encoding, boxes)
            found["VLM pass"]["torch"] += passed.get_total_flops() / n
            found["proxies"]["torch"] += learnt.get_total_flops() / n
            for lengths in lengths_of(prepared, encoding):
                vlm = vlm_pass(encoder.model.config, lengths) if known else math.nan
                proxies = learning(chosen, encoder.width, settings, lengths)
                found["VLM pass"]["flops"] += vlm / n
                found["proxies"]["flops"] += proxies / n
    finally:
        torch.set_num_threads(threads)
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("stage")


def _vision(config: Qwen2_5_VLConfig, grid: tuple[int, int]) -> float:
    """Patches embedded, blocks that attend in windows or to the whole image, patches merged."""
    vision = config.vision_config
    width, merge = vision.hidden_size, vision.spatial_merge_size
    n_tokens = grid[0] * grid[1]
    n_patches = n_tokens * merge**2
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    weights = 4 * width**2 + 3 * width * vision.intermediate_size
    merged = width * merge**2
    window = vision.window_size // vision.patch_size // merge
    pairs = merge**4 * _squares(grid[0], window) * _squares(grid[1], window)
    n_full = len(set(vision.fullatt_block_indexes) & set(range(vision.depth)))
    attended = n_full * n_patches**2 + (vision.depth - n_full) * pairs
    return (
        2.0 * n_patches * (pixels * width + vision.depth * weights)
        + 4.0 * width * attended
        + 2.0 * n_tokens * merged * (merged + vision.out_hidden_size)
    )


def _squares(side: int, window: int) -> int:
    """Sum of the squares of the windows' sides that cut one side of the grid, in tokens."""
    return side // window * window**2 + (side % window) ** 2
