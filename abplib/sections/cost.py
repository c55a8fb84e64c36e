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
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, Qwen2_5_VLConfig, Qwen2_5_VLModel

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


@dataclass(frozen=True)
class _Ratio:
    """One comparison of a benchmark."""

    name: str
    result: str
    place: tuple[str, ...]
    """Keys that lead to it in the result's file."""
    label: str
    of: Literal["time", "peak memory"]
    target: float | None = None
    at_least: bool = False
    """Whether the target is a lower bound, not an upper one."""

    def met(self, ratio: float) -> bool | None:
        """Whether a ratio is as good as the target; None without one."""
        if self.target is None:
            return None
        return ratio >= self.target if self.at_least else ratio <= self.target


def _decoder(name: str, way: str, label: str) -> tuple[_Ratio, _Ratio]:
    """Time and memory of a way of `benchmarks.hooks` at the larger decoder."""
    over = f"{label} / nothing kept"
    place = ("ways", "decoder", way)
    return (
        _Ratio(f"{name}.time", "hooks", (*place, "seconds"), over, "time"),
        _Ratio(f"{name}.memory", "hooks", (*place, "peak_mib"), over, "peak memory"),
    )


_LONGEST = "longest"
"""The largest of numbers that are keys."""
_ROWS = ("passes", "rows", _LONGEST)
_EAGER = ("passes", "eager", _LONGEST)
_RATIOS = (
    _Ratio("one_pass", "one_pass", ("ways", "one_run_each", "seconds"),
           "one run per configuration / one pass for all", "time", 5.0, True),
    _Ratio("bank", "bank", ("ways", "plain_loop", "seconds"),
           "a loop over proxies / one bank", "time", 1.3, True),
    _Ratio("bank.each", "bank", ("ways", "banks_of_one", "seconds"),
           "a bank per proxy / one bank", "time"),
    _Ratio("bank.projecting", "bank", ("ways", "projecting_states", "seconds"),
           "a loop that projects states / one bank", "time"),
    _Ratio("sweep.time", "sweep_cost", ("ways", "sweep", "seconds"),
           "sweep / bare VLM pass", "time"),
    _Ratio("sweep.memory", "sweep_cost", ("ways", "sweep", "peak_mib"),
           "sweep / bare VLM pass", "peak memory", 1.5),
    *_decoder("hook", "hooks_one_layer", "one layer by a hook"),
    *_decoder("hooks", "hooks_all_layers", "all layers by hooks"),
    *_decoder("option", "output_hidden_states", "output_hidden_states"),
    _Ratio("rows.time", "attention_rows", (*_ROWS, "cpu_seconds"),
           "attention rows / plain SDPA", "time", 1.05),
    _Ratio("rows.memory", "attention_rows", (*_ROWS, "peak_mib"),
           "attention rows / plain SDPA", "peak memory", 1.05),
    _Ratio("maps.time", "attention_rows", (*_EAGER, "cpu_seconds"),
           "eager maps / plain SDPA", "time"),
    _Ratio("maps.memory", "attention_rows", (*_EAGER, "peak_mib"),
           "eager maps / plain SDPA", "peak memory"),
    _Ratio("evaluation", "evaluation", ("ways", "naive_calls", "seconds"),
           "stock calls / edits in batches", "time"),
)  # fmt: skip


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
    found: Result = store.read_json(path)
    return found


def shipped(*sources: str) -> dict[str, Result]:
    """Those of the results in files of the checkout that are there, by name."""
    there = [source for source in sources if (paths.root() / source).is_file()]
    return {Path(source).stem: measured(source) for source in there}


def gpu_sentence(found: Mapping[str, Result]) -> str:
    """What the results of a GPU say of the sweep over the bare pass, or that none is shipped."""
    if not found:
        return (
            "No result of a GPU is shipped: benchmarks/sweep_cost.py measures the same at the "
            "7B model's shape on one, and none was at hand."
        )
    sentences = []
    for result in found.values():
        ratio, settings = result["ways"]["sweep"]["seconds"]["ratio"], result["settings"]
        sentences.append(
            f"On {result['machine']['gpu']}, with {settings['lengths']['kept']} tokens a sample, a "
            f"sweep took {ratio['median']:.2f} times the bare pass ({ratio['low']:.2f} to "
            f"{ratio['high']:.2f})."
        )
    return " ".join(sentences)


def ratios(found: Mapping[str, Result]) -> pd.DataFrame:
    """Every ratio with its target, from the results of all benchmarks by name; indexed by name.

    Columns: compared (what over what), of (time or peak memory), ratio (the median), low and high
    (quartiles), n (of how many), target (with its sign), bound (the number), met (bool; None
    without a target).

    Raises:
        AbpError: a result is of another shape, as a former benchmark left it.
    """
    rows = []
    for wanted in _RATIOS:
        place = _place(found, wanted)
        bound, ratio = wanted.target, place["ratio"]["median"]
        sign = "≥" if wanted.at_least else "≤"
        rows.append(
            {
                "compared": wanted.label,
                "of": wanted.of,
                **{quartile: place["ratio"][quartile] for quartile in ("low", "high")},
                "ratio": ratio,
                "n": place["n"],
                "target": "" if bound is None else f"{sign} {bound:g}",
                "bound": bound,
                "met": wanted.met(ratio),
            }
        )
    names = pd.Index([wanted.name for wanted in _RATIOS], name="name")
    return pd.DataFrame(rows, index=names).astype({"bound": float, "met": object})


def _place(found: Mapping[str, Result], wanted: _Ratio) -> Result:
    """What a result says of one comparison."""
    place: Any = found[wanted.result]
    try:
        for key in wanted.place:
            place = place[max(place, key=int) if key == _LONGEST else key]
        return {"n": place["n"], "ratio": place["ratio"]}
    except (KeyError, ValueError) as error:
        raise AbpError(
            f"The result of {wanted.result} has no {error}: run `python -m "
            f"benchmarks.{wanted.result}` again."
        ) from error


def breakdown(found: Result) -> pd.DataFrame:
    """Where the time of one batch of a sweep goes, from a result of `benchmarks.sweep_cost`.

    Indexed by stage. Columns: seconds (median, one stage after another), share of them, operations,
    rate in operations a second, of_machine (that over the rate of large matrix products); NaN where
    a stage multiplies no matrices.
    """
    medians = {name: float(found["stages"][name]["median"]) for name in STAGES}
    stages = pd.DataFrame({"seconds": medians})
    stages["share"] = stages["seconds"] / stages["seconds"].sum()
    stages["operations"] = [found["operations"].get(name, math.nan) for name in STAGES]
    stages["rate"] = stages["operations"] / stages["seconds"]
    stages["of_machine"] = stages["rate"] / float(found["matmul_rate"]["median"])
    return stages.rename(index=STAGES).rename_axis("stage")


def ratio_table(compared: pd.DataFrame) -> pd.DataFrame:
    """`ratios` for the page."""
    shown = compared.set_index("compared")
    shown["met"] = shown["met"].map({True: "yes", False: "no"}).fillna("")
    return shown[["of", "ratio", "low", "high", "n", "target", "met"]]


def breakdown_table(stages: pd.DataFrame) -> pd.DataFrame:
    """`breakdown` for the page, in billions of operations."""
    billions = stages.assign(operations=stages["operations"] / 1e9, rate=stages["rate"] / 1e9)
    return billions.set_axis(["seconds", "part", "GFLOP", "GFLOP/s", "of matrix products"], axis=1)


def scale_table(found: pd.DataFrame, paper: Mapping[str, float]) -> pd.DataFrame:
    """`at_scale` beside the paper's hours, one row a number."""
    labels = {
        "run": "one run",
        "runs": "one run for each configuration",
        "one_pass": "one pass for all configurations",
    }
    columns = {f"{tokens} tokens": row for tokens, row in found.iterrows()}
    shown = pd.DataFrame({"paper": pd.Series(paper), **columns}).reindex(list(labels))
    return shown.rename(index=labels).rename_axis("hours")


def sweep_hours(found: Result, n_samples: float) -> float:
    """Hours of a sweep over `n_samples` at the pace of a result of `benchmarks.sweep_cost`."""
    settings = found["settings"]
    n_measured = settings["n_batches"] * settings["batch_size"]
    return n_samples / n_measured * found["ways"]["sweep"]["seconds"]["median"] / 3600


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
        read = torch.empty(1, lengths.sequence, text.hidden_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.visual(seen, grid, position_ids=places)
        model.language_model(inputs_embeds=read)
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
    """The same of a proxy on each configuration, together."""
    return sum(
        proxy_flops(
            settings.proxy_config(state_width, len(configuration.layers)),
            lengths.kept if configuration.tokens == "all" else lengths.prompt,
        )
        for configuration in chosen
    )


def gpu_hours(flops: float, utilisation: float = UTILISATION, peak: str = "tflops") -> float:
    """Hours on the paper's GPU at a part of its peak, in bf16 or another ("tflops_fp32")."""
    return flops / (facts()["paper"]["gpu"][peak] * 1e12 * utilisation) / 3600


def at_scale(found: Result) -> pd.DataFrame:
    """What 128,000 samples take at Qwen2.5-VL-7B's shape by the count of operations, for `AREAS`.

    Text is as long as in a result of `benchmarks.sweep_cost`, proxies are the paper profile's, on
    the paper's 30 configurations. Indexed by kept tokens of a sample. Columns: vlm and proxies, in
    operations of one pass over all samples; over_pass, what both take over the first; hours on the
    paper's GPU at an assumed part of its peak: run (one configuration, on average), runs (one for
    each configuration), one_pass (all configurations).
    """
    config = Qwen2_5_VLConfig(**facts()["models"][_VLM]["parts"]["vlm"]["config"])
    settings = Profile.load("paper").sweep
    chosen, n_samples = _of_the_paper(), reported("n_train")
    rows = {}
    for area in AREAS:
        lengths = lengths_at(config, area, found["settings"]["lengths"])
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
