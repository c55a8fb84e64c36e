"""All proxies in one bank, beside loops over them.

    python -m benchmarks.bank

One training step on one batch of the miniature's states: forward, backward, clipping, Adam. The
plain loop is what one writes first: a `Proxy` and a `torch.optim.Adam` for each configuration, and
the batch whole. One more projects all states to keys and values, as a textbook's attention does.
All have the same threads: one bank for its proxies side by side, the others within each operation.
Writes benchmarks/results/bank.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.proxies.qformer import Block, CrossAttention, Proxy, box_loss
from benchmarks.measuring import compared, machine, take_turns, write
from benchmarks.workload import Workload, update


class ProjectingStates(CrossAttention):
    """The same function of the same weights, but each state becomes a key and a value."""

    def forward(self, x: Tensor, features: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        query = self.query(self.norm(x)).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        key = torch.einsum("bsf,hef->bhse", features, self.key)
        value = torch.einsum("bsf,hef->bhse", features, self.value)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[:, None])
        return self.out(mixed.transpose(1, 2).flatten(2)), mixed.new_empty(0)


def measure(profile: str = "mini", *, threads: int = 2, repeats: int = 15) -> dict[str, Any]:
    torch.set_num_threads(threads)
    chosen = Profile.load(profile, sweep={"n_seeds": 1})  # as the plain ways train
    work = Workload.of(Experiment(chosen).encoder, chosen, n_batches=1)
    together, alone = work.bank(), [work.bank([one]) for one in work.chosen]
    parts = list(work.passes(together))
    whole = work.settings.model_copy(update={"micro_batch": work.settings.batch_size})
    encoding, boxes = next(replace(work, settings=whole).passes(together))

    def banks_of_one() -> None:
        for bank in alone:
            update(bank, parts)

    def loop(proxies: list[Proxy]) -> Callable[[], None]:
        optimizers = [torch.optim.Adam(p.parameters(), lr=work.settings.lr) for p in proxies]

        def step() -> None:
            for one, proxy, optimizer in zip(work.chosen, proxies, optimizers, strict=True):
                predicted = proxy(*one.select(encoding))
                box_loss(predicted, boxes, work.settings.lambda_giou).backward()
                torch.nn.utils.clip_grad_norm_(proxy.parameters(), work.settings.clip)
                optimizer.step()
                optimizer.zero_grad()

        return step

    ways = {
        "bank": lambda: update(together, parts),
        "banks_of_one": banks_of_one,
        "plain_loop": loop([_proxy(work, len(one.layers)) for one in work.chosen]),
        "projecting_states": loop([projecting(_proxy(work, len(c.layers))) for c in work.chosen]),
    }
    taken = take_turns(ways, repeats)
    settings = {"profile": profile, "configurations": len(alone), "repeats": repeats,
                "batch_size": whole.batch_size, "micro_batch": len(parts[0][1])}  # fmt: skip
    return {"machine": machine(), "settings": settings, "ways": compared(taken, "bank")}


def projecting(proxy: Proxy) -> Proxy:
    """The same proxy, whose blocks project the states."""
    for block in proxy.blocks:
        assert isinstance(block, Block)
        own = block.cross_attention
        block.cross_attention = ProjectingStates(proxy.config, own.key.shape[-1])
        block.cross_attention.load_state_dict(own.state_dict())
    return proxy


def _proxy(work: Workload, n_layers: int) -> Proxy:
    return Proxy(work.settings.proxy_config(work.encoder.width, n_layers)).to(work.device)


if __name__ == "__main__":
    write("bank", measure())
