"""One VLM pass that feeds all proxies, beside one run per configuration, each with its own pass.

    python -m benchmarks.one_pass

The miniature VLM, the configurations of Figure 4 and the proxies of the profile `mini`. Both ways
see the same batches, prepare the next one meanwhile, and run the same code but for what a bank
holds. Writes benchmarks/results/one_pass.json.
"""

from __future__ import annotations

from typing import Any

import torch

from abplib.experiment import Experiment
from abplib.profiles import Profile
from benchmarks.measuring import compared, machine, take_turns, write
from benchmarks.workload import Workload


def measure(
    profile: str = "mini", *, threads: int = 2, repeats: int = 3, n_batches: int = 2
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    chosen = Profile.load(profile)
    work = Workload.of(Experiment(chosen).encoder, chosen, n_batches)
    together, alone = work.bank(), [work.bank([one]) for one in work.chosen]

    def one_run_each() -> None:
        for bank in alone:
            work.sweep(bank)

    ways = {"one_pass": lambda: work.sweep(together), "one_run_each": one_run_each}
    taken = take_turns(ways, repeats)
    settings = {"profile": profile, "configurations": len(work.chosen), "n_batches": n_batches,
                "batch_size": work.settings.batch_size, "repeats": repeats}  # fmt: skip
    return {"machine": machine(), "settings": settings, "ways": compared(taken, "one_pass")}


if __name__ == "__main__":
    write("one_pass", measure())
