"""Proxies that learn from the same passes, stacked so that one operation serves all of a shape.

The weights of proxies that read equally many layers and the same tokens lie along a first axis,
[P, out, in], and each product in a Q-Former is one batched product for all P (`torch.vmap`). Others
form a stack of their own, so none is padded to another's size.

A proxy in a bank is the proxy trained alone: its initial weights come from the seed and its name,
its gradient is clipped by its own norm, and Adam treats each weight by itself. Batched products
round otherwise than single ones; beyond that the two are equal.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state

from abplib.encoder import Encoding
from abplib.errors import AbpError
from abplib.proxy import Proxy, ProxyConfig, box_loss
from abplib.training import Configuration, SweepSettings

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of a weight."""


class Learned:
    """What a bank learned from part of a batch; the parts of a batch add up.

    `losses` are those of each proxy, [proxies], in the bank's order; `gradients` are one for each
    stacked weight. Both count for the part's share of the batch.
    """

    def __init__(self, losses: Tensor, gradients: list[Tensor]) -> None:
        self.losses, self.gradients = losses, gradients

    def __iadd__(self, other: Learned) -> Learned:
        self.losses += other.losses
        for mine, theirs in zip(self.gradients, other.gradients, strict=True):
            mine += theirs
        return self


class Bank:
    """Proxies for some configurations, which learn from the same encodings."""

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
        alike: dict[tuple[int, str], list[Configuration]] = {}
        for configuration in chosen:
            shape = len(configuration.layers), configuration.tokens
            alike.setdefault(shape, []).append(configuration)
        self._stacks = [
            _Stack(group, settings.proxy_config(state_width, n_layers), settings.seed, device)
            for (n_layers, _), group in alike.items()
        ]
        names = [name for stack in self._stacks for name in stack.names]
        self._order = [names.index(name) for name in self.configurations]
        self._optimizer = torch.optim.Adam(self._weights(), lr=settings.lr, fused=True)

    @property
    def layers(self) -> list[int]:
        """Decoder blocks that some proxy reads: what to ask the encoder for."""
        read = {layer for c in self.configurations.values() for layer in c.layers}
        return sorted(layer for layer in read if layer != "final")

    @property
    def final(self) -> bool:
        """Whether some proxy reads the final states."""
        return any("final" in c.layers for c in self.configurations.values())

    @property
    def proxies(self) -> dict[str, Proxy]:
        """A copy of each proxy as it is now, by name."""
        found = {name: proxy for stack in self._stacks for name, proxy in stack.proxies()}
        return {name: found[name] for name in self.configurations}

    def nothing(self) -> Learned:
        """What no part of a batch adds to."""
        weights = self._weights()
        losses = weights[0].new_zeros(len(self.configurations))
        return Learned(losses, [torch.zeros_like(weight) for weight in weights])

    def learn(self, encoding: Encoding, boxes: Tensor) -> Learned:
        """Losses on boxes [B, 4] and their gradients, as a share of a batch; changes nothing.

        The parts of a batch may be learned from in several threads or processes.
        """
        giou = 0.0 if self.n_steps < self.settings.l1_steps else self.settings.lambda_giou
        share = len(boxes) / self.settings.batch_size
        found = torch.cat([stack.losses(encoding, boxes, giou) for stack in self._stacks])
        losses = share * found[self._order]
        gradients = torch.autograd.grad(losses.sum(), self._weights())
        # Fused Adam goes through weights and gradients as they lie in memory.
        return Learned(losses.detach(), [gradient.contiguous() for gradient in gradients])

    def step(self, learned: Learned) -> None:
        """Update each proxy with its gradient of a whole batch, clipped by its own norm.

        Raises:
            AbpError: a loss is not finite; no weight has changed then.
        """
        for name, loss in zip(self.configurations, learned.losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise AbpError(
                    f"The loss of proxy {name} is {loss} at batch {self.n_steps}: lower lr, or "
                    "give the VLM a wider dtype."
                )
        gradients = iter(learned.gradients)
        for stack in self._stacks:
            stack.take(list(islice(gradients, len(stack.weights))), self.settings.clip)
        self._optimizer.param_groups[0]["lr"] = self.settings.rate(self.n_steps)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.n_steps += 1

    @torch.no_grad()
    def predict(self, encoding: Encoding) -> dict[str, Tensor]:
        """Each proxy's boxes for a batch, {name: [B, 4]}."""
        boxes = torch.cat([stack.boxes(encoding) for stack in self._stacks])[self._order]
        return dict(zip(self.configurations, boxes, strict=True))

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs to go on exactly: weights and Adam's moments, by name."""
        tensors = {}
        for number, weight in enumerate(self._weights()):
            tensors[f"{number}/weight"] = weight.detach()
            for moment, value in self._optimizer.state[weight].items():
                tensors[f"{number}/{moment}"] = value
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], n_steps: int) -> None:
        """Take the state that an equal bank had after `n_steps` updates."""
        for number, weight in enumerate(self._weights()):
            weight.copy_(tensors[f"{number}/weight"])
            self._optimizer.state[weight] = {
                moment: tensors[f"{number}/{moment}"].to(weight.device) for moment in _MOMENTS
            }
        self.n_steps = n_steps

    def _weights(self) -> list[Tensor]:
        return [weight for stack in self._stacks for weight in stack.weights.values()]


class _Stack:
    """P proxies of one shape: their weights are stacked along a first axis."""

    def __init__(
        self,
        chosen: Sequence[Configuration],
        config: ProxyConfig,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.chosen, self.config = chosen, config
        self.names = [configuration.name for configuration in chosen]
        alone = [_new(config, seed, name) for name in self.names]
        self.weights: dict[str, Tensor] = {
            key: weight.detach().to(device).requires_grad_()
            for key, weight in stack_module_state(alone)[0].items()
        }
        self._skeleton = alone[0].to("meta")

    def boxes(self, encoding: Encoding) -> Tensor:
        """Boxes of each proxy, [P, B, 4]."""
        selected = [configuration.select(encoding) for configuration in self.chosen]
        states, mask = torch.stack([states for states, _ in selected]), selected[0][1]
        skeleton = copy.deepcopy(self._skeleton)  # a call puts weights into it: one a thread

        def boxes_of(weights: dict[str, Tensor], read: Tensor) -> Tensor:
            return functional_call(skeleton, weights, (read, mask))

        found: Tensor = torch.vmap(boxes_of)(self.weights, states)
        return found

    def losses(self, encoding: Encoding, boxes: Tensor, giou: float) -> Tensor:
        """Mean loss of each proxy, [P], GIoU weighing `giou`."""
        found = self.boxes(encoding)
        return torch.stack([box_loss(predicted, boxes, giou) for predicted in found])

    def take(self, gradients: Sequence[Tensor], clip: float) -> None:
        """Leave gradients for the optimiser, each proxy's scaled to a norm of at most `clip`."""
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        scale = (clip / (norms + 1e-6)).clamp(max=1.0)  # [P]
        for weight, gradient in zip(self.weights.values(), gradients, strict=True):
            weight.grad = gradient * scale.view(-1, *[1] * (gradient.ndim - 1))

    def proxies(self) -> Iterator[tuple[str, Proxy]]:
        """Copies of the proxies with their names."""
        for row, name in enumerate(self.names):
            proxy = Proxy(self.config)
            proxy.load_state_dict({key: weight[row] for key, weight in self.weights.items()})
            yield name, proxy


def _new(config: ProxyConfig, seed: int, name: str) -> Proxy:
    """A proxy whose initial weights depend on the seed and on its name alone."""
    word = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(word[:8], "big") >> 1)
        return Proxy(config)
