"""What a sweep costs over the bare VLM pass on the same samples, and where its time goes.

Beside it, what a sweep of one seed costs whose passes take the system prompt each time: as it was
before the seeds.

    python -m benchmarks.sweep_cost

The miniature VLM and the proxies of the profile `mini`, on two threads; writes
benchmarks/results/sweep_cost.json. On a GPU, at the geometry of a model of the hub with random
weights (no download), here about 290 and 1,440 tokens a sample:

    at_scale="--profile paper --vlm Qwen/Qwen2.5-VL-7B-Instruct --device cuda"
    python -m benchmarks.sweep_cost $at_scale --image-area 200704 --to sweep_cost_7b_290
    python -m benchmarks.sweep_cost $at_scale --image-area 1048576 --to sweep_cost_7b_1440
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import click
import torch

from abplib.experiment import Experiment
from abplib.paper import facts
from abplib.profiles import Profile
from abplib.sections import cost
from benchmarks.measuring import (
    Way,
    compared,
    machine,
    peak_mib,
    quartiles,
    summary,
    take_turns,
    write,
)
from benchmarks.workload import Whole, Workload, random_encoder

_PRODUCTS = 4
"""Matrix products of one turn."""


def measure(
    profile: str = "mini",
    shape: Mapping[str, Any] | None = None,
    *,
    image_area: int | None = None,
    device: str = "cpu",
    threads: int = 2,
    repeats: int = 5,
    n_batches: int = 2,
) -> dict[str, Any]:
    """`shape` is a configuration for random weights in place of the profile's VLM."""
    torch.set_num_threads(1)
    own = {} if image_area is None else {"image_area": image_area}
    chosen = Profile.load(profile, **own)
    dtype = getattr(torch, chosen.dtype)
    if shape is None:
        encoder = Experiment(chosen).encoder
    else:
        encoder = random_encoder(shape, image_area=chosen.image_area, dtype=dtype, device=device)
    work = Workload.of(encoder, chosen, n_batches)
    idle = peak_mib(lambda: None, device)
    mib = {
        "bare": {"peak_mib": [peak_mib(work.bare, device) for _ in range(2)]},
        "sweep": {
            "peak_mib": [peak_mib(lambda: work.sweep(work.bank()), device) for _ in range(2)]
        },
    }
    torch.set_num_threads(threads)
    bank, stages = work.bank(), list[dict[str, float]]()
    one = work.settings.model_copy(update={"n_seeds": 1})
    former = replace(work, encoder=Whole(encoder), settings=one)
    alone = former.bank()
    multiply, products = _products(device, dtype)
    taken = take_turns(
        {
            "bare": work.bare,
            "sweep": lambda: work.sweep(bank),
            "one_seed": lambda: former.sweep(alone),
            "stages": lambda: stages.append(work.stages(bank)),
            "products": multiply,
        },
        repeats,
    )
    rates = [products / seconds for seconds in taken.pop("products")["seconds"]]
    del taken["stages"]
    lengths, settings = work.lengths(), work.settings
    alike = Counter(lengths)
    vlm = sum(n * cost.vlm_flops(encoder.model.config, part) for part, n in alike.items())
    proxies = sum(
        n * cost.learning_flops(work.chosen, encoder.width, settings, part)
        for part, n in alike.items()
    )
    each = settings.micro_batch
    times, memory = compared(taken, "bare"), compared(mib, "bare")
    over_one = summary(taken["sweep"]["seconds"], taken["one_seed"]["seconds"])
    return {
        "machine": {**machine(device), "mib_without_a_pass": round(idle, 1)},
        "settings": {
            "profile": profile, "random_weights": shape is not None, "dtype": chosen.dtype,
            "image_area": chosen.image_area, "lengths": asdict(max(lengths, key=lambda p: p.kept)),
            "batch_size": settings.batch_size, "micro_batch": each,
            "n_batches": n_batches, "configurations": len(work.chosen), "repeats": repeats,
        },
        "ways": {name: times[name] | memory.get(name, {}) for name in times},
        "over_one_seed": over_one,
        "stages": {n: quartiles([turn[n] for turn in stages[1:]]) for n in stages[0]},
        "operations": {"pass": each * vlm, "proxies": each * proxies},
        "matmul_rate": quartiles(rates),
    }  # fmt: skip


def _products(device: str, dtype: torch.dtype) -> tuple[Way, float]:
    """Products of large square matrices, which tell the machine's rate, and their operations."""
    side = 1024 if device == "cpu" else 8192
    factor = torch.randn(side, side, device=device, dtype=dtype)

    def multiply() -> None:
        for _ in range(_PRODUCTS):
            torch.mm(factor, factor)

    return multiply, _PRODUCTS * 2.0 * side**3


@click.command()
@click.option("--profile", default="mini", show_default=True, help="Of proxies, VLM, batches.")
@click.option("--vlm", help="Hub id of a model in data/paper/models.yaml: its shape, no weights.")
@click.option("--image-area", type=click.IntRange(1), help="Pixels, in place of the profile's.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--repeats", default=5, show_default=True, help="Turns.")
@click.option("--to", "name", default="sweep_cost", show_default=True, help="Name of the result.")
def main(
    profile: str, vlm: str | None, image_area: int | None, device: str, repeats: int, name: str
) -> None:
    """Measure and write the result."""
    shape = facts()["models"][vlm]["parts"]["vlm"]["config"] if vlm else None
    write(name, measure(profile, shape, image_area=image_area, device=device, repeats=repeats))


if __name__ == "__main__":
    main()
