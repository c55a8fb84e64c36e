"""Proxies that learn from the same passes: stacked, and side by side on CPU cores.

The weights of P proxies that read equally many layers and the same tokens lie along a first axis,
[P, out, in], and each product in a Q-Former is one batched product for all P. A GPU takes all
configurations of a shape, which starts few and large kernels, a seed at a time, for its memory. On
a CPU the seeds of one configuration are a stack, as they read the same states and the activations
of more leave a core's cache, or those of a few on prompt tokens; as many stacks learn at once as
there are cores. All weights of a proxy are one row of memory, so clipping and Adam are a few
operations.

A proxy in a bank is the proxy trained alone: its initial weights come from its seed and its name,
its gradient is clipped by its own norm, and Adam treats each weight by itself. Batched products
round otherwise than single ones; beyond that the two are equal.

Each configuration has `n_seeds` proxies, of seeds 0, 1, ... of the run: the initial weights of seed
s are those of the run's seed + s. All learn from the same batches in the same order, so what
differs between them is the start alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from abplib.core.errors import AbpError
from abplib.core.parallel import side_by_side
from abplib.proxies.configurations import Configuration, states_of
from abplib.proxies.qformer import Proxy, box_loss
from abplib.proxies.settings import ProxyConfig, SweepSettings
from abplib.vlm.encoder import Encoding

_PROMPTS = 4
"""Configurations of prompt tokens, which are few, that a CPU's core stacks."""
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of a weight."""


class Bank:
    """Proxies for some configurations and seeds, which learn from the same encodings.

    A batch may come in parts: `learn` from each, then `step` once.
    """

    def __init__(
        self,
        chosen: Sequence[Configuration],
        state_width: int,
        settings: SweepSettings,
        seed: int = 0,
        device: torch.device | str = "cpu",
        kind: type[Proxy] = Proxy,
    ) -> None:
        self.configurations = {configuration.name: configuration for configuration in chosen}
        if not chosen or len(self.configurations) < len(chosen):
            raise AbpError("A bank needs at least one configuration, each with its own name.")
        self.layers, self.final = states_of(chosen)
        """What to ask the encoder for."""
        self.settings = settings
        self.n_steps = 0
        """Updates made so far."""
        self.device = torch.device(device)
        self.keys = list(product(self.configurations, range(settings.n_seeds)))
        """Name of the configuration and seed of each proxy, in the order of `losses`."""
        alike: dict[tuple[int, str], list[Configuration]] = {}
        for read in chosen:
            alike.setdefault((len(read.layers), read.tokens), []).append(read)
        seeds = range(settings.n_seeds)
        stacked = [(group, [own]) for group in alike.values() for own in seeds]
        if self.device.type == "cpu":
            stacked = [
                (group[start : start + size], [*seeds])
                for (_, tokens), group in alike.items()
                for size in [_PROMPTS if tokens == "prompt" else 1]
                for start in range(0, len(group), size)
            ]
        self._stacks = [
            _Stack(group, state_width, settings, [seed + own for own in some], device, kind)
            for group, some in stacked
        ]
        keys = [(read.name, own) for group, some in stacked for read in group for own in some]
        self._order = [keys.index(key) for key in self.keys]
        self.losses = torch.zeros(len(self.keys), device=self.device)
        """Each proxy's loss over the parts of a batch learned from so far, [proxies]."""

    @property
    def proxies(self) -> dict[tuple[str, int], Proxy]:
        """A copy of each proxy as it is now, by configuration and seed."""
        copies = [proxy for stack in self._stacks for proxy in stack.proxies()]
        return {key: copies[at] for key, at in zip(self.keys, self._order, strict=True)}

    @property
    def gradients(self) -> list[Tensor]:
        """What `learn` has added up, in a fixed order; zero where nothing was learned."""
        return [stack.gradient for stack in self._stacks]

    def learn(self, encoding: Encoding, boxes: Tensor) -> None:
        """Add the losses on boxes [B, 4] and their gradients, as a share of a batch."""
        giou = 0.0 if self.n_steps < self.settings.l1_steps else self.settings.lambda_giou
        share = len(boxes) / self.settings.batch_size

        def learn(stack: _Stack) -> Tensor:
            return stack.learn(encoding, boxes, giou, share)

        with _tf32():
            losses = list(side_by_side(learn, self._stacks, self.device))
        self.losses += torch.cat(losses)[self._order]

    def step(self) -> list[float]:
        """Update each proxy by what it learned from a batch, clipped by its own norm; its losses.

        Raises:
            AbpError: a loss is not finite; no weight has changed then.
        """
        losses: list[float] = self.losses.tolist()
        for (name, _), loss in zip(self.keys, losses, strict=True):
            if not math.isfinite(loss):
                raise AbpError(
                    f"The loss of proxy {name} is {loss} at batch {self.n_steps}: lower lr, or "
                    "give the VLM a wider dtype."
                )
        rate = self.settings.rate(self.n_steps)
        list(side_by_side(lambda stack: stack.step(rate), self._stacks, self.device))
        self.n_steps += 1
        self.losses.zero_()
        return losses

    @torch.no_grad()
    def predict(self, encoding: Encoding) -> dict[str, Tensor]:
        """Each configuration's boxes for a batch, {name: [seeds, B, 4]}."""
        boxes = torch.cat([stack.boxes(encoding) for stack in self._stacks])[self._order]
        by_name = boxes.unflatten(0, (len(self.configurations), -1))
        return dict(zip(self.configurations, by_name, strict=True))

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs to go on exactly: weights and Adam's moments, by name."""
        return {
            f"{place}/{key}": tensor
            for place, stack in enumerate(self._stacks)
            for key, tensor in stack.state().items()
        }

    def restore(self, tensors: Mapping[str, Tensor], n_steps: int) -> None:
        """Take the state that an equal bank had after `n_steps` updates."""
        for place, stack in enumerate(self._stacks):
            start = f"{place}/"
            own = {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
            stack.restore(own)
        self.n_steps = n_steps


@contextmanager
def _tf32() -> Iterator[None]:
    """Let a GPU multiply in TF32: eight times as fast, and proxies learn alike (a test)."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class _Stack:
    """P proxies of one shape, all weights of each in a row; those of a configuration follow each
    other, a seed each. For one thread at a time."""

    def __init__(
        self,
        chosen: Sequence[Configuration],
        state_width: int,
        settings: SweepSettings,
        seeds: Sequence[int],
        device: torch.device | str,
        kind: type[Proxy],
    ) -> None:
        self.chosen, self.clip, self.kind = chosen, settings.clip, kind
        self.config = settings.proxy_config(state_width, len(chosen[0].layers))
        alone = [_new(kind, self.config, seed, read.name) for read in chosen for seed in seeds]
        self._shapes = {key: weight.shape for key, weight in alone[0].named_parameters()}
        rows = torch.stack([parameters_to_vector(proxy.parameters()) for proxy in alone])
        self.rows = rows.detach().to(device).requires_grad_()  # [P, weights of a proxy]
        self._skeleton = alone[0].to("meta")
        self._optimizer = torch.optim.Adam([self.rows], lr=settings.lr, fused=True)

    @property
    def gradient(self) -> Tensor:
        """What was learned since the last step, in the shape of `rows`."""
        if self.rows.grad is None:
            self.rows.grad = torch.zeros_like(self.rows)
        return self.rows.grad

    def weights(self) -> dict[str, Tensor]:
        """The rows taken apart: each weight by its name in a proxy, the P along its first axis."""
        parts = self.rows.split([shape.numel() for shape in self._shapes.values()], dim=1)
        return {
            key: part.unflatten(1, shape)
            for (key, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def boxes(self, encoding: Encoding) -> Tensor:
        """Boxes of each proxy, [P, B, 4]."""
        selected = [configuration.select(encoding) for configuration in self.chosen]
        states, mask = torch.stack([states for states, _ in selected]), selected[0][1]
        boxes: Tensor = functional_call(self._skeleton, self.weights(), (states, mask))
        return boxes

    def learn(self, encoding: Encoding, boxes: Tensor, giou: float, share: float) -> Tensor:
        """Mean loss of each proxy times `share`, [P], GIoU weighing `giou`; adds its gradients."""
        predicted = self.boxes(encoding)
        losses = share * torch.stack([box_loss(alone, boxes, giou) for alone in predicted])
        losses.sum().backward()
        return losses.detach()

    def step(self, rate: float) -> None:
        """Adam's, each proxy's gradient being scaled to a norm of at most `clip`."""
        norms = self.gradient.norm(dim=1, keepdim=True)
        self.gradient.mul_((self.clip / (norms + 1e-6)).clamp(max=1.0))
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Weights and Adam's moments, by name."""
        return {"rows": self.rows.detach(), **self._optimizer.state[self.rows]}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""
        self.rows.copy_(tensors["rows"])
        moments = {moment: tensors[moment].to(self.rows.device) for moment in _MOMENTS}
        self._optimizer.state[self.rows] = moments

    def proxies(self) -> Iterator[Proxy]:
        """Copies of the proxies."""
        for row in range(len(self.rows)):
            proxy = self.kind(self.config)
            proxy.load_state_dict({key: weight[row] for key, weight in self.weights().items()})
            yield proxy


def _new(kind: type[Proxy], config: ProxyConfig, seed: int, name: str) -> Proxy:
    """A proxy whose initial weights depend on the seed and on its name alone."""
    word = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(word[:8], "big") >> 1)
        return kind(config)
