"""What `benchmarks/` found, where a sweep's time goes, what the paper's scale takes; chapter 7.

Operations are those of matrix products, each multiplication with its addition as two, as torch's
`FlopCounterMode` counts them: on the meta device, where nothing is computed and nothing stored.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedConfig, Qwen2_5_VLConfig, Qwen2_5_VLModel

from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.paper import facts, reported
from abplib.profiles import Profile
from abplib.proxies.configurations import Configuration
from abplib.proxies.qformer import Proxy, box_loss
from abplib.proxies.settings import ProxyConfig, SweepSettings
from abplib.vlm.encoder import Encoding, Prepared

Result = dict[str, Any]
"""What a benchmark wrote."""

AREAS = (448 * 448, 1024 * 1024)
"""Pixels of a sample at the paper's scale: about 290 tokens, and Qwen-Image-Edit's own about 1,440;
the paper does not say which it took."""

STAGES = {
    "preparation": "image preparation",
    "pass": "VLM pass",
    "proxies": "proxies, forward and backward",
    "optimiser": "optimiser",
}
"""What tables and figures call the stages of `benchmarks.sweep_cost`."""

UTILISATION = 0.4
"""Assumed part of a GPU's peak that passes reach."""

_VLM = "Qwen/Qwen2.5-VL-7B-Instruct"


def measured(source: str) -> Result:
    """The result in a file of the checkout, `benchmarks/results/<name>.json`.

    Raises:
        AbpError: it is not there.
    """
    path = paths.root() / source
    if not path.is_file():
        raise AbpError(
            f"There is no {source}: run `python -m benchmarks.{path.stem}` in the checkout, or "
            "restore the file."
        )
    return dict(store.read_json(path))


def _quartiles(taken: Mapping[str, Any]) -> dict[str, float]:
    ratio = taken["ratio"]
    return {"ratio": ratio["median"], "low": ratio["low"], "high": ratio["high"]}


def ratios(source: str, results: Mapping[str, Result]) -> pd.DataFrame:
    """What a table in the checkout compares, from the results of all benchmarks by name.

    The table's columns: name (the index); result, and place, the keys that lead to the number
    there; compared, what over what; of, time or peak memory; target, with its sign. Added: ratio
    (the median), low and high (quartiles), n (of how many), bound (the target's number), met (bool;
    None without a target).

    Raises:
        AbpError: a result is of another shape, as a former benchmark left it.
    """
    frame = pd.read_csv(paths.root() / source, index_col="name", keep_default_na=False)
    numbers = [_ratio(results[row["result"]], row) for _, row in frame.iterrows()]
    frame = frame.join(pd.DataFrame(numbers, frame.index))
    frame["bound"] = pd.to_numeric(frame["target"].str[2:])
    good = np.where(frame["target"].str[:1] == "≤", frame["ratio"] <= frame["bound"],
                    frame["ratio"] >= frame["bound"])  # fmt: skip
    return frame.assign(met=pd.Series(good, frame.index, object).where(frame["target"] != "", None))


def _ratio(result: Result, row: pd.Series) -> dict[str, float]:
    place: Any = result
    try:
        for key in row["place"].split("."):
            place = place[max(place, key=int) if key == "longest" else key]
        return {**_quartiles(place), "n": place["n"]}
    except (KeyError, ValueError) as error:
        raise AbpError(
            f"The result of {row['result']} has no {error}: run `python -m "
            f"benchmarks.{row['result']}` again."
        ) from error


def breakdown(result: Result) -> pd.DataFrame:
    """Where the time of one batch of a sweep goes, from a result of `benchmarks.sweep_cost`.

    Indexed by stage. Columns: seconds (median, one stage after another), share of them, operations,
    rate in operations a second, of_machine (that over the rate of large matrix products); NaN where
    a stage multiplies no matrices.
    """
    medians = {name: float(result["stages"][name]["median"]) for name in STAGES}
    stages = pd.DataFrame({"seconds": medians})
    stages["share"] = stages["seconds"] / stages["seconds"].sum()
    stages["operations"] = [result["operations"].get(name, math.nan) for name in STAGES]
    stages["rate"] = stages["operations"] / stages["seconds"]
    stages["of_machine"] = stages["rate"] / float(result["matmul_rate"]["median"])
    return stages.rename(index=STAGES).rename_axis("stage")


def sweep_hours(result: Result, n_samples: float) -> float:
    """Hours of a sweep over `n_samples` at the pace of a result of `benchmarks.sweep_cost`."""
    settings = result["settings"]
    n_measured = settings["n_batches"] * settings["batch_size"]
    return n_samples / n_measured * result["ways"]["sweep"]["seconds"]["median"] / 3600


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


def vlm_flops(config: PreTrainedConfig, lengths: Lengths) -> int:
    """Operations of one sample's pass through vision tower and decoder, without the output head.

    The system prompt, which all samples share, passes once and is not counted.

    Blocks of a kind cost alike, so one is counted of each: of the decoder, and of the tower's that
    attend to the whole image and that attend in windows.

    Raises:
        AbpError: the model is no Qwen2.5-VL.
    """
    if not isinstance(config, Qwen2_5_VLConfig):
        raise AbpError(f"Operations are counted for Qwen2.5-VL, not for {config.model_type}.")
    depth = config.vision_config.depth
    n_full = len(set(config.vision_config.fullatt_block_indexes) & set(range(depth)))
    rest = _pass_flops(config, lengths)
    decoder = config.text_config.num_hidden_layers * (_pass_flops(config, lengths, 1) - rest)
    full = n_full * (_pass_flops(config, lengths, 0, 1) - rest)
    windowed = (depth - n_full) * (_pass_flops(config, lengths, 0, 0, 1) - rest)
    return rest + decoder + full + windowed


def _pass_flops(
    config: Qwen2_5_VLConfig, lengths: Lengths, decoder: int = 0, full: int = 0, windowed: int = 0
) -> int:
    """The same with so many blocks of each kind."""
    config = copy.deepcopy(config)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.layer_types = decoder, text.layer_types[:decoder]
    vision.depth, vision.fullatt_block_indexes = full + windowed, list(range(full))
    rows, columns = (side * vision.spatial_merge_size for side in lengths.grid)
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    grid = torch.tensor([[1, rows, columns]])
    with torch.device("meta"):
        model = Qwen2_5_VLModel(config)
        seen, places = torch.empty(rows * columns, pixels), torch.empty(rows * columns, 2).long()
        read = torch.empty(1, lengths.kept, text.hidden_size)
        size = text.hidden_size // text.num_attention_heads
        system = torch.empty(1, text.num_key_value_heads, lengths.sequence - lengths.kept, size)
        cache = DynamicCache(config=text)
        for block in range(decoder):
            cache.update(system, system, block)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.visual(seen, grid, position_ids=places)
        model.language_model(inputs_embeds=read, past_key_values=cache)
    return counter.get_total_flops()


@functools.cache
def proxy_flops(shape: ProxyConfig, n_tokens: int) -> int:
    """Operations of one proxy's forward and backward pass over a sample of so many tokens."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        states = torch.empty(1, shape.n_layers, n_tokens, shape.state_width)
        mask, box = torch.empty(1, n_tokens, dtype=torch.bool), torch.empty(1, 4)
        box_loss(Proxy(shape)(states, mask), box, 0.4).backward()
    return counter.get_total_flops()


def learning_flops(
    chosen: Sequence[Configuration], state_width: int, settings: SweepSettings, lengths: Lengths
) -> int:
    """The same of a proxy on each configuration and seed, together."""
    return settings.n_seeds * sum(
        proxy_flops(
            settings.proxy_config(state_width, len(configuration.layers)),
            lengths.kept if configuration.tokens == "all" else lengths.prompt,
        )
        for configuration in chosen
    )


def gpu_hours(flops: float, peak: str = "tflops") -> float:
    """Hours on the paper's GPU at `UTILISATION` of its peak, in bf16 or another ("tflops_tf32")."""
    return flops / (facts()["paper"]["gpu"][peak] * 1e12 * UTILISATION) / 3600


def at_scale(result: Result) -> pd.DataFrame:
    """What 128,000 samples take at Qwen2.5-VL-7B's shape by the count of operations, for `AREAS`.

    Text is as long as in a result of `benchmarks.sweep_cost`; proxies are the paper profile's, one
    on each of the paper's 30 configurations, as there. Indexed by kept tokens of a sample.
    Columns: vlm and proxies, in operations of one pass over all samples; over_pass, what both take
    over the first; hours on the paper's GPU at an assumed part of its peak: run (one
    configuration, on average), runs (one for each configuration), one_pass (all configurations).
    """
    config = Qwen2_5_VLConfig(**facts()["models"][_VLM]["parts"]["vlm"]["config"])
    settings = Profile.load("paper", sweep={"n_seeds": 1}).sweep
    chosen, n_samples = _of_the_paper(), reported("n_train")
    rows = {}
    for area in AREAS:
        lengths = lengths_at(config, area, result["settings"]["lengths"])
        width = config.text_config.hidden_size
        vlm = n_samples * vlm_flops(config, lengths)
        proxies = n_samples * learning_flops(chosen, width, settings, lengths)
        runs = gpu_hours(len(chosen) * vlm + proxies)
        rows[lengths.kept] = {
            "vlm": vlm,
            "proxies": proxies,
            "over_pass": 1 + proxies / vlm,
            "run": runs / len(chosen),
            "runs": runs,
            "one_pass": gpu_hours(vlm + proxies),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("tokens")


def paper_hours() -> dict[str, float]:
    """Hours that appendix B.3 gives a run (`run`), and all runs together (`runs`)."""
    run = float(facts()["paper"]["proxies"]["hours"])
    return {"run": run, "runs": run * len(_of_the_paper())}


def _of_the_paper() -> list[Configuration]:
    """The configurations of Figure 4 at the paper's depth."""
    first, last = int(reported("first_middle_layer")), int(reported("last_middle_layer"))
    layers = range(int(reported("n_layers")))
    return [
        *(Configuration(f"layer_{layer}", (layer,)) for layer in layers),
        Configuration("final", ("final",)),
        Configuration("middle_prompt", tuple(range(first, last + 1)), "prompt"),
    ]


def lengths_at(config: Qwen2_5_VLConfig, area: int, text: Mapping[str, Any]) -> Lengths:
    """Tokens of a square picture of `area` pixels, with text as in other `Lengths`."""
    vision = config.vision_config
    side = round(math.sqrt(area) / (vision.patch_size * vision.spatial_merge_size))
    more = side**2 - math.prod(text["grid"])
    return Lengths((side, side), text["sequence"] + more, text["kept"] + more, text["prompt"])
