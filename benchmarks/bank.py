"""All proxies in one bank, beside a loop over banks of one and a plain loop over modules.

    python -m benchmarks.bank

One training step on one batch of the miniature's states: forward, backward, clipping, Adam. The
plain loop is what one writes first: a `Proxy` and a `torch.optim.Adam` for each configuration, and
the batch whole. All have the same threads: one bank for its proxies side by side, the others within
each operation.
Writes benchmarks/results/bank.json.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from abplib.analysis import load_encoder
from abplib.profiles import Profile
from abplib.proxy import Proxy, box_loss
from benchmarks.measuring import compared, machine, take_turns, write
from benchmarks.workload import Workload, update


def measure(profile: str = "mini", *, threads: int = 2, repeats: int = 8) -> dict[str, Any]:
    torch.set_num_threads(threads)
    chosen = Profile.load(profile)
    work = Workload.of(load_encoder(chosen), chosen, n_batches=1)
    together, alone = work.bank(), [work.bank([one]) for one in work.chosen]
    parts = list(work.passes(together))
    whole = replace(work.settings, micro_batch=work.settings.batch_size)
    encoding, boxes = next(replace(work, settings=whole).passes(together))
    plain = [_plain(work, len(configuration.layers)) for configuration in work.chosen]

    def banks_of_one() -> None:
        for bank in alone:
            update(bank, parts)

    def plain_loop() -> None:
        for configuration, (proxy, optimizer) in zip(work.chosen, plain, strict=True):
            predicted = proxy(*configuration.select(encoding))
            box_loss(predicted, boxes, work.settings.lambda_giou).backward()
            torch.nn.utils.clip_grad_norm_(proxy.parameters(), work.settings.clip)
            optimizer.step()
            optimizer.zero_grad()

    ways = {
        "bank": lambda: update(together, parts),
        "banks_of_one": banks_of_one,
        "plain_loop": plain_loop,
    }
    taken = take_turns(ways, repeats)
    settings = {"profile": profile, "configurations": len(plain), "repeats": repeats,
                "batch_size": whole.batch_size, "micro_batch": len(parts[0][1])}  # fmt: skip
    return {"machine": machine(), "settings": settings, "ways": compared(taken, "bank")}


def _plain(work: Workload, n_layers: int) -> tuple[Proxy, torch.optim.Adam]:
    proxy = Proxy(work.settings.proxy_config(work.encoder.width, n_layers)).to(work.device)
    return proxy, torch.optim.Adam(proxy.parameters(), lr=work.settings.lr)


if __name__ == "__main__":
    write("bank", measure())
