"""The count of operations against one by hand, and against torch's own counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

from abplib.core.errors import AbpError
from abplib.profiles import Profile
from abplib.proxies.configurations import Configuration
from abplib.proxies.qformer import Proxy, box_loss
from abplib.proxies.settings import ProxyConfig, SweepSettings
from abplib.samples.scenes.sets import general
from abplib.sections import flops
from abplib.sections.flops import Lengths, learning, proxy_learning, vlm_pass
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
        },
        vision_config={
            "depth": 1, "hidden_size": 4, "intermediate_size": 5, "num_heads": 1,
            "out_hidden_size": 4, "patch_size": 2, "fullatt_block_indexes": [0],
        },
    )  # fmt: skip
    # a block on 3 tokens: q and out 4x4, k and v 4x2, the MLP's three 4x6; scores and mixture 3x3x4
    block = 2 * 3 * (2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 6) + 2 * 2 * 3 * 3 * 4
    # 4 patches of 3 colours x 2 frames x 2 x 2 pixels; four of 4x4 and three of 4x5; 4 x 4 pairs;
    # one token of 4 patches through 16x16 and 16x4
    vision = 2 * 4 * (24 * 4 + 4 * 4 * 4 + 3 * 4 * 5) + 2 * 2 * 4 * 4 * 4
    merger = 2 * (16 * 16 + 16 * 4)
    found = vlm_pass(config, Lengths(grid=(1, 1), sequence=3, kept=2, prompt=1))
    assert found == 2 * block + vision + merger


@pytest.mark.parametrize("shape", [None, WINDOWED], ids=["smoke", "windows"])
def test_a_pass_is_what_torch_counts(
    encoder: ConditionEncoder, shape: dict[str, dict[str, int]] | None
) -> None:
    if shape is not None:
        encoder = random_encoder(shape, image_area=168 * 168)
    samples = [general()[index] for index in range(2)]
    prepared = encoder.prepare([s.image for s in samples], [s.instruction for s in samples])
    encoding = None

    def go() -> None:
        nonlocal encoding
        encoding = encoder.encode(prepared, layers=[0], final=True)

    found = counted(go)
    n_tokens = prepared.inputs["input_ids"].shape[1]
    lengths = Lengths(encoding.grids[0], n_tokens, encoding.mask.shape[1], 1)
    assert found == 2 * vlm_pass(encoder.model.config, lengths)
    assert encoding.grids[0] == ((4, 4) if shape is None else (6, 6))


def test_learning_is_what_torch_counts() -> None:
    config = ProxyConfig(state_width=64, n_layers=3, width=16, n_queries=2, n_heads=2, n_blocks=2)
    proxy, states = Proxy(config), torch.randn(5, 3, 7, 64)
    mask, boxes = torch.ones(5, 7, dtype=torch.bool), torch.rand(5, 4)
    found = counted(lambda: box_loss(proxy(states, mask), boxes, 0.4).backward())
    assert found == 5 * proxy_learning(config, 3 * 7)


def test_a_bank_reads_all_kept_tokens_or_those_of_the_prompt() -> None:
    settings = SweepSettings(
        n_batches=1, batch_size=1, lr=1e-3, width=16, n_queries=2, n_heads=2, eval_every=1,
        n_curve_eval=1,
    )  # fmt: skip
    chosen = [Configuration("a", (0,)), Configuration("b", (0, 1), "prompt")]
    lengths = Lengths(grid=(2, 2), sequence=20, kept=9, prompt=3)
    one, two = settings.proxy_config(64, 1), settings.proxy_config(64, 2)
    expected = proxy_learning(one, 9) + proxy_learning(two, 2 * 3)
    assert learning(chosen, 64, settings, lengths) == expected


def test_a_sweep_is_counted_whatever_the_threads(encoder: ConditionEncoder) -> None:
    settings = Profile.load("smoke").sweep
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = flops.counted(encoder, general(), 3, settings)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert found["torch"].to_numpy() == pytest.approx(found["flops"].to_numpy(), rel=1e-12)
    assert (found["flops"] > 1e6).all()


def test_other_models_are_not_counted() -> None:
    with pytest.raises(AbpError, match="not for qwen3_vl"):
        vlm_pass(Qwen3VLConfig(), Lengths((1, 1), 3, 2, 1))
