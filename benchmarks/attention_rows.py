"""What attention rows cost: a pass that reads them at one layer beside plain SDPA and eager maps.

    python -m benchmarks.attention_rows

A Qwen2.5-VL text decoder with random weights runs on one thread at three sequence lengths. The
three ways take turns. Writes benchmarks/results/attention_rows.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from abplib.vlm.attention import reading_rows
from benchmarks.measuring import machine, peak_mib, summary, take_turns, write

LENGTHS = (375, 750, 1500)
N_ROWS = 20
"""Prompt tokens whose attention is read: the last ones of the sequence."""
LAYER = 2
REPEATS = 7
TEXT: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
}
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2,
          "out_hidden_size": 768}  # fmt: skip


def passes() -> dict[str, Callable[[torch.Tensor], None]]:
    """The three passes over token ids [1, S], by name."""
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION)
    ).eval()
    decoder = model.model.language_model

    def sdpa(ids: torch.Tensor) -> None:
        decoder(ids, use_cache=False)

    def rows(ids: torch.Tensor) -> None:
        asked = torch.arange(ids.shape[1] - N_ROWS, ids.shape[1])[None]
        with reading_rows(model, [LAYER], asked) as reader:
            decoder(ids, use_cache=False, row_reader=reader)
        assert reader.attention[LAYER].shape == (1, N_ROWS, ids.shape[1])

    def eager(ids: torch.Tensor) -> None:
        model.set_attn_implementation({"text_config": "eager"})
        maps = decoder(ids, use_cache=False, output_attentions=True).attentions
        assert len(maps) == TEXT["num_hidden_layers"]
        model.set_attn_implementation({"text_config": "sdpa"})

    return {"sdpa": sdpa, "rows": rows, "eager": eager}


@torch.inference_mode()
def measure(lengths: Sequence[int] = LENGTHS, *, repeats: int = REPEATS) -> dict[str, Any]:
    torch.set_num_threads(1)
    ways = passes()
    inputs = {length: torch.randint(TEXT["vocab_size"], (1, length)) for length in lengths}
    turns = {
        (name, n): partial(way, ids) for n, ids in inputs.items() for name, way in ways.items()
    }
    idle = peak_mib(lambda: None)
    mib = {turn: [peak_mib(way) for _ in range(3)] for turn, way in turns.items()}
    taken = take_turns(turns, repeats)
    found: dict[str, dict[int, Any]] = {}
    for (name, length), clocks in taken.items():
        plain = taken["sdpa", length], mib["sdpa", length]
        found.setdefault(name, {})[length] = {
            **{clock: summary(values, plain[0][clock]) for clock, values in clocks.items()},
            "peak_mib": summary(mib[name, length], plain[1]),
        }
    settings = {"text": TEXT, "rows": N_ROWS, "layer": LAYER, "repeats": repeats,
                "dtype": "float32"}  # fmt: skip
    described = {**machine(), "mib_without_a_pass": round(idle, 1)}
    return {"machine": described, "settings": settings, "passes": found}


if __name__ == "__main__":
    write("attention_rows", measure())
