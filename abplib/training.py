"""Proxies trained side by side: which states each reads, how each learns (sections 4.3 and B.1)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from abplib.encoder import ConditionEncoder, Encoding, Layer
from abplib.errors import AbpError
from abplib.proxy import Proxy, ProxyConfig, box_loss

_FINAL_RATE = 0.3
"""What the learning rate ends at, as a part of its base value (B.1)."""


@dataclass(frozen=True)
class Configuration:
    """Which of the VLM's states a proxy reads."""

    name: str
    """How figures and tables call it."""
    layers: tuple[Layer, ...]
    """Decoder blocks, or "final"; read together."""
    tokens: Literal["all", "prompt"] = "all"
    """The whole kept sequence, or only the tokens of the user's instruction."""

    def select(self, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """The states [B, L, T, d] and the mask Bool[B, T] that the proxy takes.

        Prompt tokens are moved together, so T is the longest instruction's length and a token's
        index is its place in the instruction.
        """
        states = torch.stack([encoding.states[layer] for layer in self.layers], dim=1)
        if self.tokens == "all":
            return states, encoding.mask
        chosen = encoding.prompt_tokens
        longest = int(chosen.sum(1).max())
        order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
        index = order[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
        return states.gather(2, index), chosen.gather(1, order)


def configurations(encoder: ConditionEncoder) -> tuple[Configuration, ...]:
    """Those of Figure 4: each layer, the final states, and the middle layers' prompt tokens."""
    return (
        *(Configuration(f"layer_{l}", (l,)) for l in range(encoder.n_layers)),
        Configuration("final", ("final",)),
        Configuration("middle_prompt", encoder.middle_layers, "prompt"),
    )


@dataclass(frozen=True)
class SweepSettings:
    """How a bank of proxies is trained and evaluated."""

    n_batches: int
    """Batches that each proxy learns from (paper: 2000)."""
    batch_size: int
    """Samples a batch (paper: 64)."""
    lr: float
    """Base learning rate of Adam (paper: 1e-4)."""
    width: int
    """Width of a proxy's queries."""
    n_queries: int
    """Queries of a proxy, N."""
    n_heads: int
    """Attention heads of each block."""
    eval_every: int
    """Batches between two points of an evaluation curve."""
    n_curve_eval: int
    """Samples behind each point of a curve, from the start of the evaluation set."""
    n_blocks: int = 6
    """Blocks of a proxy (paper: 6)."""
    lambda_giou: float = 0.4
    """Weight of GIoU; that of L1 is the rest (paper: 0.4)."""
    l1_steps: int = 100
    """First steps, on L1 alone and at the base learning rate (paper: 100)."""
    clip: float = 1.0
    """Largest norm of one proxy's gradient."""
    checkpoint_every: int = 50
    """Batches between two checkpoints: what a killed run loses at most."""
    seed: int = 0
    """Of the proxies' initial weights, the order of the samples and the chance baseline."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("l1_steps", "seed", "lambda_giou"):
                if value < 0:
                    raise AbpError(f"{name} is {value}: it must not be negative.")
            elif value <= 0:
                raise AbpError(f"{name} is {value}: it must be more than 0.")
        if self.lambda_giou > 1:
            raise AbpError(f"lambda_giou is {self.lambda_giou}: it must be at most 1.")
        self.proxy_config(state_width=1, n_layers=1)

    def proxy_config(self, state_width: int, n_layers: int) -> ProxyConfig:
        """The shape of a proxy that reads `n_layers` layers of `state_width` together."""
        return ProxyConfig(
            state_width, n_layers, self.width, self.n_queries, self.n_heads, self.n_blocks
        )

    def rate(self, step: int) -> float:
        """Learning rate of 0-based `step`: the base, after `l1_steps` a cosine to 30 % of it."""
        progress = max(0, step - self.l1_steps) / max(1, self.n_batches - self.l1_steps)
        cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return self.lr * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)


class Bank:
    """Proxies that learn from the same batches, each on its own: no number of one touches another.

    A proxy in a bank is the proxy trained alone: its initial weights come from the seed and its
    name, its gradient is clipped by its own norm, and its Adam is its own.
    """

    def __init__(
        self,
        chosen: Sequence[Configuration],
        state_width: int,
        settings: SweepSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.configurations = {configuration.name: configuration for configuration in chosen}
        if not chosen or len(self.configurations) < len(chosen):
            raise AbpError("A bank needs at least one configuration, each with its own name.")
        self.settings = settings
        self.n_steps = 0
        """Updates made so far."""
        self.proxies: dict[str, Proxy] = {}
        for name, configuration in self.configurations.items():
            shape = settings.proxy_config(state_width, len(configuration.layers))
            self.proxies[name] = _new(shape, settings.seed, name).to(device)
        self._optimizers = {
            name: torch.optim.Adam(proxy.parameters(), lr=settings.lr, fused=True)
            for name, proxy in self.proxies.items()
        }

    @property
    def layers(self) -> list[int]:
        """Decoder blocks that some proxy reads: what to ask the encoder for."""
        read = {layer for c in self.configurations.values() for layer in c.layers}
        return sorted(layer for layer in read if layer != "final")

    @property
    def final(self) -> bool:
        """Whether some proxy reads the final states."""
        return any("final" in c.layers for c in self.configurations.values())

    def losses(self, encoding: Encoding, boxes: Tensor) -> Tensor:
        """Each proxy's loss on a batch, [proxies], in order; the gradients are left for `step`.

        Boxes are [B, 4]. Forward and backward pass go proxy by proxy, so the activations of only
        one are in memory.

        Raises:
            AbpError: a loss is not finite.
        """
        weight = 0.0 if self.n_steps < self.settings.l1_steps else self.settings.lambda_giou
        losses = []
        for name, proxy in self.proxies.items():
            states, mask = self.configurations[name].select(encoding)
            loss = box_loss(proxy(states, mask), boxes, weight)
            loss.backward()
            losses.append(loss.detach())
        found = torch.stack(losses)
        if not found.isfinite().all():
            name = list(self.proxies)[int(found.isfinite().int().argmin())]
            raise AbpError(
                f"The loss of proxy {name} is {found[~found.isfinite()][0].item()} at batch "
                f"{self.n_steps}: lower lr, or give the VLM a wider dtype."
            )
        return found

    def step(self) -> None:
        """Clip each proxy's gradient, update it and clear the gradient."""
        for name, optimizer in self._optimizers.items():
            parameters = list(self.proxies[name].parameters())
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip)
            for group in optimizer.param_groups:
                group["lr"] = self.settings.rate(self.n_steps)
            optimizer.step()
            optimizer.zero_grad()
        self.n_steps += 1

    @torch.no_grad()
    def predict(self, encoding: Encoding) -> dict[str, Tensor]:
        """Each proxy's boxes for a batch, {name: [B, 4]}."""
        return {
            name: proxy(*self.configurations[name].select(encoding))
            for name, proxy in self.proxies.items()
        }

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs to go on exactly: weights and Adam's moments, by name."""
        tensors = {}
        for name, proxy in self.proxies.items():
            for key, parameter in proxy.named_parameters():
                tensors[f"{name}/{key}"] = parameter.detach()
                for moment, value in self._optimizers[name].state[parameter].items():
                    tensors[f"{name}/{key}/{moment}"] = value
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], n_steps: int) -> None:
        """Take the state that an equal bank had after `n_steps` updates."""
        for name, proxy in self.proxies.items():
            for key, parameter in proxy.named_parameters():
                parameter.copy_(tensors[f"{name}/{key}"])
                self._optimizers[name].state[parameter] = {
                    moment: tensors[f"{name}/{key}/{moment}"].to(parameter.device)
                    for moment in ("step", "exp_avg", "exp_avg_sq")
                }
        self.n_steps = n_steps


def _new(config: ProxyConfig, seed: int, name: str) -> Proxy:
    """A proxy whose initial weights depend on the seed and on its name alone."""
    word = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(word[:8], "big") >> 1)
        return Proxy(config)
