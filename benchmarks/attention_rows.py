"""What attention rows cost: a pass that reads them at one layer beside plain SDPA and eager maps.

    python benchmarks/attention_rows.py

A Qwen2.5-VL text decoder with random weights runs on one thread at three sequence lengths. The
three ways take turns in random order, so whatever else the computer does falls on all of them
alike, and time is that of the process on the CPU. Memory is the largest resident set of a process
that runs one pass, interpreter and weights included. Writes benchmarks/results/attention_rows.json.
"""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from abplib.attention import reading_rows
from abplib.results import write_json

LENGTHS = (375, 750, 1500)
N_ROWS = 20
"""Prompt tokens whose attention is read: the last ones of the sequence."""
LAYER = 2
REPEATS = 15
TEXT = {
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
RESULT = Path(__file__).parent / "results" / "attention_rows.json"

Way = Callable[[torch.Tensor], None]


def ways() -> dict[str, Way]:
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
        assert reader.found[LAYER].shape == (1, N_ROWS, ids.shape[1])

    def eager(ids: torch.Tensor) -> None:
        model.set_attn_implementation({"text_config": "eager"})
        maps = decoder(ids, use_cache=False, output_attentions=True).attentions
        assert len(maps) == TEXT["num_hidden_layers"]
        model.set_attn_implementation({"text_config": "sdpa"})

    return {"sdpa": sdpa, "rows": rows, "eager": eager}


def cpu_seconds(way: Way, ids: torch.Tensor) -> float:
    """CPU time of one pass."""
    before = time.process_time()
    way(ids)
    return time.process_time() - before


def peak_mib(way: Way, ids: torch.Tensor) -> float:
    """Largest resident set of a fork of this process that runs one pass, in MiB."""
    child = os.fork()
    if child == 0:
        way(ids)
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    assert status == 0
    return usage.ru_maxrss / 1024


def summary(values: list[float], base: list[float]) -> dict[str, Any]:
    """Median and quartiles, and the same of the ratio to plain SDPA's value in the same turn."""

    def quartiles(numbers: np.ndarray) -> dict[str, float]:
        low, median, high = np.quantile(numbers, [0.25, 0.5, 0.75]).round(4).tolist()
        return {"median": median, "low": low, "high": high}

    return {**quartiles(np.array(values)), "ratio": quartiles(np.array(values) / np.array(base))}


def processor() -> str:
    """What the system calls its processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    random.seed(0)
    passes = ways()
    inputs = {length: torch.randint(TEXT["vocab_size"], (1, length)) for length in LENGTHS}
    turns = [(name, length) for length in LENGTHS for name in passes]
    idle = peak_mib(lambda _ids: None, inputs[LENGTHS[0]])
    seconds: dict[tuple[str, int], list[float]] = {turn: [] for turn in turns}
    mib: dict[tuple[str, int], list[float]] = {turn: [] for turn in turns}
    for _ in range(3):  # before this process has run a pass and kept memory of it
        for name, length in turns:
            mib[name, length].append(peak_mib(passes[name], inputs[length]))
    for turn in range(REPEATS + 1):
        random.shuffle(turns)  # none always comes after the same other
        for name, length in turns:
            spent = cpu_seconds(passes[name], inputs[length])
            if turn:  # the first warms up
                seconds[name, length].append(spent)
    found = {
        name: {
            length: {
                "cpu_seconds": summary(seconds[name, length], seconds["sdpa", length]),
                "peak_mib": summary(mib[name, length], mib["sdpa", length]),
            }
            for length in LENGTHS
        }
        for name in passes
    }
    for name, length in sorted(turns):
        print(f"{name:6} {length:5} {found[name][length]}")
    machine = {
        "processor": processor(),
        "threads": 1,
        "mib_without_a_pass": round(idle, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    settings = {"text": TEXT, "rows": N_ROWS, "layer": LAYER, "repeats": REPEATS,
                "dtype": "float32"}  # fmt: skip
    write_json(RESULT, {"machine": machine, "settings": settings, "passes": found})


if __name__ == "__main__":
    main()
