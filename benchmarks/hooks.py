"""States by hooks beside `output_hidden_states=True`: time and peak memory over a bare pass.

    python -m benchmarks.hooks

Hooks keep the states that are asked for, without the dropped system prompt: here of one middle
layer, as a trained proxy reads them, or of all, as a sweep does. The option keeps all, whole. Run
on the miniature VLM and on a larger decoder with random weights, on one thread. Writes
benchmarks/results/hooks.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import BatchFeature

from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.samples.scenes.sets import general
from abplib.vlm.encoder import ConditionEncoder
from benchmarks.measuring import Way, compared, machine, peak_mib, take_turns, write
from benchmarks.workload import random_encoder

DECODER = {
    "text_config": {
        "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 1000,
    },
    "vision_config": {
        "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2,
        "out_hidden_size": 512,
    },
}  # fmt: skip


def measure(
    profile: str = "mini",
    decoder: Mapping[str, Any] = DECODER,
    *,
    repeats: int = 5,
    n_samples: int = 16,
    n_larger: int = 2,
    image_area: int = 512 * 512,
) -> dict[str, Any]:
    """`n_larger` samples of `image_area` pixels go through the decoder, `n_samples` the VLM."""
    torch.set_num_threads(1)
    models = {
        "miniature": (Experiment(Profile.load(profile)).encoder, n_samples),
        "decoder": (random_encoder(decoder, image_area=image_area), n_larger),
    }
    found, tokens = {}, {}
    for name, (encoder, n) in models.items():
        ways = _ways(encoder, n)
        mib = {way: {"peak_mib": [peak_mib(go) for _ in range(2)]} for way, go in ways.items()}
        taken = take_turns(ways, repeats)
        times, memory = compared(taken, "bare"), compared(mib, "bare")
        found[name] = {way: times[way] | memory[way] for way in ways}
        tokens[name] = {"samples": n, "kept": _kept(encoder, n)}
    settings = {"profile": profile, "decoder": decoder, "passes": tokens, "repeats": repeats}
    return {"machine": machine(), "settings": settings, "ways": found}


def _ways(encoder: ConditionEncoder, n_samples: int) -> dict[str, Way]:
    """The passes over the first samples of the miniature's training set."""
    prepared = _prepared(encoder, n_samples)
    layers, middle = range(encoder.n_layers), encoder.middle_layers[0]

    @torch.inference_mode()
    def option() -> None:
        inputs = BatchFeature(prepared.inputs).to(encoder.model.device, encoder.model.dtype)
        output = encoder.model.model(**inputs, use_cache=False, output_hidden_states=True)
        assert len(output.hidden_states) == encoder.n_layers + 1

    return {
        "bare": lambda: encoder.encode(prepared),
        "hooks_one_layer": lambda: encoder.encode(prepared, layers=[middle]),
        "hooks_all_layers": lambda: encoder.encode(prepared, layers=layers, final=True),
        "output_hidden_states": option,
    }


def _prepared(encoder: ConditionEncoder, n_samples: int) -> Any:
    batch = [general()[index] for index in range(n_samples)]
    return encoder.prepare([s.image for s in batch], [s.instruction for s in batch])


def _kept(encoder: ConditionEncoder, n_samples: int) -> int:
    """Tokens of the longest sample that hooks keep."""
    return encoder.encode(_prepared(encoder, n_samples)).mask.shape[1]


if __name__ == "__main__":
    write("hooks", measure())
