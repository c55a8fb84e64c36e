"""Operations counted on the meta device against one by hand, and against those that run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

from abplib.core.errors import AbpError
from abplib.profiles import Profile
from abplib.proxies.bank import Bank
from abplib.proxies.configurations import configurations
from abplib.samples.scenes.sets import general
from abplib.sections.cost import Lengths, learning_flops, lengths_of, vlm_flops
from abplib.vlm.encoder import ConditionEncoder
from benchmarks.workload import random_encoder

WINDOWED = {
    "text_config": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
    },
    "vision_config": {
        "depth": 2, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2,
        "out_hidden_size": 64, "fullatt_block_indexes": [1],
    },
}  # fmt: skip
"""Grouped keys; one vision block in windows of 4 x 4 tokens, one over the whole image."""


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_a_pass_counted_by_hand() -> None:
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6,
                                "mrope_section": [1, 0, 0]},
        },
        vision_config={
            "depth": 1, "hidden_size": 4, "intermediate_size": 5, "num_heads": 1,
            "out_hidden_size": 4, "patch_size": 2, "fullatt_block_indexes": [0],
        },
    )  # fmt: skip
    # a block on 2 of 3 tokens: q and out 4x4, k and v 4x2, MLP three 4x6; scores, mixture 2x3x4
    block = 2 * 2 * (2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 6) + 2 * 2 * 2 * 3 * 4
    # 4 patches of 3 colours x 2 frames x 2 x 2 pixels; four of 4x4 and three of 4x5; 4 x 4 pairs;
    # one token of 4 patches through 16x16 and 16x4
    vision = 2 * 4 * (24 * 4 + 4 * 4 * 4 + 3 * 4 * 5) + 2 * 2 * 4 * 4 * 4
    merger = 2 * (16 * 16 + 16 * 4)
    found = vlm_flops(config, Lengths(grid=(1, 1), sequence=3, kept=2, prompt=1))
    assert found == 2 * block + vision + merger


@pytest.mark.parametrize("shape", [None, WINDOWED], ids=["smoke", "windows"])
def test_a_pass_is_what_torch_counts(
    encoder: ConditionEncoder, shape: dict[str, dict[str, int]] | None
) -> None:
    if shape is not None:
        encoder = random_encoder(shape, image_area=168 * 168)
    samples = [general()[index] for index in range(2)]
    prepared = encoder.prepare([s.image for s in samples], [s.instruction for s in samples])
    encoding = encoder.encode(prepared)  # after it, the system prompt needs no pass
    found = counted(lambda: encoder.encode(prepared, layers=[0], final=True))
    lengths = lengths_of(prepared, encoding)
    assert lengths[0] == lengths[1]
    assert found == 2 * vlm_flops(encoder.model.config, lengths[0])
    assert encoding.grids[0] == ((4, 4) if shape is None else (6, 6))


def test_a_bank_runs_what_is_counted(encoder: ConditionEncoder) -> None:
    settings, chosen = Profile.load("smoke").sweep, configurations(encoder)
    bank = Bank(chosen, encoder.width, settings, device=torch.device("cpu"))
    sample = general()[0]
    prepared = encoder.prepare([sample.image], [sample.instruction])
    encoding = encoder.encode(prepared, layers=bank.layers, final=bank.final)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # torch counts in this thread alone
    try:
        found = counted(lambda: bank.learn(encoding, torch.tensor([sample.box])))
    finally:
        torch.set_num_threads(threads)
    (lengths,) = lengths_of(prepared, encoding)
    assert found == learning_flops(chosen, encoder.width, settings, lengths) > 1e6


def test_other_models_are_not_counted() -> None:
    with pytest.raises(AbpError, match="not for qwen3_vl"):
        vlm_flops(Qwen3VLConfig(), Lengths((1, 1), 3, 2, 1))
