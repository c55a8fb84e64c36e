"""The proxy: a Q-Former that reads a box from the hidden states of a VLM (sections 3 and 4.2, B.1).

N learned queries pass through six blocks. In each, they attend to one another, then to the VLM's
states, then go through an MLP; a head turns the refined queries into a box (Figure 3a). The states
are projected to keys and values only, and no query ever comes from them.

The paper fixes the six blocks, the roles of keys, values and queries, the loss and its warm-up. It
leaves the following open; this is what is taken here:

- number of queries, width and number of heads: `ProxyConfig`, set by the profile;
- order in a block: self-attention, cross-attention, MLP (GELU, four times the width), each before
  a LayerNorm and added to its input, as in a pre-norm transformer;
- input: each state goes through a parameter-free fp32 RMS norm, since the scale of the residual
  stream grows by orders of magnitude over the layers; to it are appended sinusoids of the token's
  index in the sequence and a one-hot code of its layer, the first layer's being all zero (so each
  block learns its own layer embedding for its keys and for its values, and a head can route by
  layer or by place);
- one softmax over all (layer, token) pairs of the subset together, not one for each layer;
- head: all refined queries, concatenated, through one hidden layer; the four outputs are squashed
  into the box's width and height and its place in the room they leave, so each answer is a
  proper box inside the image;
- L1 loss: summed over the four coordinates.

Projecting M states to the keys and values of six blocks is most of a Q-Former's cost. Since
q . (W_k x) = (W_k^T q) . x and sum a (W_v x) = W_v (sum a x), the queries of all heads are
projected instead where they are fewer than the states, and no key or value is ever stored. The
function is the same.

Several proxies run as one: where all weights of a module carry a first axis P (`bank`), so do its
queries, and the states carry an axis C, each entry of which P / C of the proxies read.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from abplib.core import store
from abplib.core.boxes import giou
from abplib.core.errors import AbpError
from abplib.proxies.settings import ProxyConfig

_PERIODS = 32
"""Sinusoid periods of the position code: sine and cosine of each, 64 features."""
_LONGEST = 10_000.0
"""Longest period of the position code, in tokens; the shortest is 2 pi / 3."""


class Linear(nn.Linear):
    """[*P, ..., in] -> [*P, ..., out]."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return super().forward(x)
        product = torch.baddbmm(self.bias[:, None], x.flatten(1, -2), self.weight.mT)
        return product.view(*x.shape[:-1], -1)


class LayerNorm(nn.LayerNorm):
    """[*P, ..., width] -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 1:
            return super().forward(x)
        shape = (len(x), *[1] * (x.dim() - 2), -1)
        normed = F.layer_norm(x, self.normalized_shape, eps=self.eps)
        return torch.addcmul(self.bias.view(shape), normed, self.weight.view(shape))


class SelfAttention(nn.Module):
    """Multi-head attention of the queries to one another: [*P, B, N, width] -> the same."""

    def __init__(self, config: ProxyConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.norm = LayerNorm(config.width)
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(0, -3)  # [P * B, N, 3 * width]
        query, key, value = qkv.unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.mT / math.sqrt(query.shape[-1])  # [P * B, heads, N, N]
        mixed = scores.softmax(-1) @ value  # [P * B, heads, N, e]
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class CrossAttention(nn.Module):
    """Multi-head attention of the queries to the VLM's states.

    `key` and `value` hold W_k and W_v of each head, [heads, e, F] with F the features of a state
    and e = width / heads. They act on whichever are fewer, states or queries; see the module's
    docstring.
    """

    def __init__(self, config: ProxyConfig, n_features: int) -> None:
        super().__init__()
        self.head_width = config.width // config.n_heads
        shape = (config.n_heads, self.head_width, n_features)
        self.norm = LayerNorm(config.width)
        self.query = Linear(config.width, config.width)
        self.key = nn.Parameter(torch.randn(shape) / math.sqrt(n_features))
        self.value = nn.Parameter(torch.randn(shape) / math.sqrt(n_features))
        self.out = Linear(config.width, config.width)

    def forward(self, x: Tensor, features: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [*P, B, N, width], features [*C, B, S, F], bias [B, 1, S] (0 or -inf).

        Returns what to add to the queries, like them, and the weights, [C * B, heads * N, S], a row
        for each head and query of all proxies that read the same features.
        """
        *_, n_samples, n_queries, _ = x.shape
        key, value = self.key.flatten(0, -3), self.value.flatten(0, -3)  # [P * heads, e, F]
        features = features.flatten(0, -3)  # [C * B, S, F]
        n_read, n_states = len(features) // n_samples, features.shape[1]
        by_sample = (len(features), len(key) // n_read, n_queries, -1)

        def to_samples(rows: Tensor) -> Tensor:
            """[P * heads, B * N, k] -> [C * B, P / C * heads, N, k]."""
            apart = rows.view(n_read, -1, n_samples, n_queries, rows.shape[-1])
            return apart.transpose(1, 2).reshape(by_sample)

        def to_heads(rows: Tensor) -> Tensor:
            """The way back."""
            apart = rows.view(n_read, n_samples, -1, n_queries, rows.shape[-1])
            return apart.transpose(1, 2).reshape(len(key), -1, rows.shape[-1])

        def projected(matrix: Tensor) -> Tensor:
            """All states by a head's matrix, [C * B, P / C * heads, S, e]."""
            rows = features.view(n_read, -1, features.shape[-1])
            rows = rows @ matrix.reshape(n_read, -1, features.shape[-1]).mT
            return rows.view(len(features), n_states, -1, self.head_width).transpose(1, 2)

        query = self.query(self.norm(x)).unflatten(-1, (-1, self.head_width))
        query = query.movedim(-2, -4).reshape(len(key), -1, self.head_width)
        bias = bias.repeat(n_read, 1, 1)
        scale = 1 / math.sqrt(self.head_width)
        if n_states <= self.key.shape[-3] * n_queries:
            scores = scale * (to_samples(query) @ projected(key).mT) + bias[:, None]
            weights = self.weigh(scores.flatten(1, 2))
            mixed = to_heads(weights.view(scores.shape) @ projected(value))
        else:
            asked = to_samples(query @ key).flatten(1, 2)
            weights = self.weigh(torch.baddbmm(bias, asked, features.mT, alpha=scale))
            mixed = to_heads(torch.bmm(weights, features).view(by_sample)) @ value.mT
        mixed = mixed.view(*self.key.shape[:-2], n_samples, n_queries, -1).movedim(-4, -2)
        return self.out(mixed.flatten(-2)), weights

    def weigh(self, scores: Tensor) -> Tensor:
        """Attention weights of scores [B, heads * N, S]: one softmax over all layers and tokens."""
        return scores.softmax(-1)


class Block(nn.Module):
    """Self-attention, cross-attention and an MLP, each pre-norm and residual."""

    def __init__(
        self, config: ProxyConfig, n_features: int, attention: type[CrossAttention]
    ) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.cross_attention = attention(config, n_features)
        self.mlp = nn.Sequential(
            LayerNorm(config.width),
            Linear(config.width, 4 * config.width),
            nn.GELU(),
            Linear(4 * config.width, config.width),
        )

    def forward(self, x: Tensor, features: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """As `CrossAttention.forward`, but the first output is the queries after the block."""
        x = x + self.self_attention(x)
        mixed, weights = self.cross_attention(x, features, bias)
        x = x + mixed
        return x + self.mlp(x), weights


class Proxy(nn.Module):
    """Q-Former from VLM states to a box; its parameters and arithmetic are fp32.

    States are [B, L, T, d] in any float dtype, L the layers it reads and T the tokens. The mask,
    Bool[B, T], is true at real tokens; each sample needs at least one. What the paper leaves open
    of how states are read is in `cross_attention`, `scale` and `places`, which subclasses may take
    otherwise.
    """

    cross_attention: type[CrossAttention] = CrossAttention

    def __init__(self, config: ProxyConfig) -> None:
        super().__init__()
        self.config = config
        n_features = config.state_width + 2 * _PERIODS + config.n_layers - 1
        self.queries = nn.Parameter(torch.randn(config.n_queries, config.width))
        self.blocks = nn.ModuleList(
            Block(config, n_features, self.cross_attention) for _ in range(config.n_blocks)
        )
        self.head = nn.Sequential(
            LayerNorm(config.width),
            nn.Flatten(-2),
            Linear(config.n_queries * config.width, config.width),
            nn.GELU(),
            Linear(config.width, 4),
        )

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Boxes [B, 4] as (x1, y1, x2, y2) in [0, 1] of the source image."""
        return self._run(states, mask)[0]

    @torch.no_grad()
    def attention(self, states: Tensor, mask: Tensor) -> list[Tensor]:
        """The weights a_{h,q}^{(l,i)} of section 3, as used by `forward`.

        One tensor for each block m, [B, heads, N, L, T]; head (m, j) is row j of tensor m. Each
        query's weights sum to one over (l, i) together and are zero where the mask is false.
        """
        _, n_layers, n_tokens, _ = states.shape
        shape = (-1, self.config.n_heads, self.config.n_queries, n_layers, n_tokens)
        return [weights.view(shape) for weights in self._run(states, mask)[1]]

    def _run(self, states: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self._features(states)
        allowed = mask.repeat(1, self.config.n_layers)[:, None]  # [B, 1, L * T]
        bias = torch.zeros_like(allowed, dtype=features.dtype).masked_fill(~allowed, -math.inf)
        queries = self.queries[..., None, :, :]  # [*P, 1, N, width]
        x = queries.expand(*queries.shape[:-3], len(mask), -1, -1)
        weights = []
        for block in self.blocks:
            x, block_weights = block(x, features, bias)
            weights.append(block_weights)
        size, place = self.head(x).sigmoid().chunk(2, -1)  # [B, 2] each: (w, h), (x, y)
        corner = place * (1 - size)
        return torch.cat([corner, corner + size], -1), weights

    def _features(self, states: Tensor) -> Tensor:
        """States [*C, B, L, T, d] -> what keys and values are made of, fp32 [*C, B, L * T, F]."""
        *_, n_layers, n_tokens, _ = states.shape
        where = self.places(n_tokens).to(states.device)
        which = torch.eye(n_layers, device=states.device)[:, 1:]
        size = (*states.shape[:-1], -1)
        parts = [self.scale(states.float()), where.expand(size), which[:, None].expand(size)]
        return torch.cat(parts, -1).flatten(-3, -2)

    def scale(self, states: Tensor) -> Tensor:
        """States [..., d], each divided by its root mean square."""
        return F.rms_norm(states, states.shape[-1:])

    def places(self, n_tokens: int) -> Tensor:
        """What is appended to the states of each place in the sequence, [n_tokens, 64]."""
        return position_code(n_tokens)

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write `model.safetensors` and `config.json` to `folder`, atomically each.

        `fingerprint` is that of the encoder whose states the proxy was trained on.
        """
        with store.replacing(folder / "model.safetensors") as scratch:
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, scratch)
        config = {"proxy": self.config.model_dump(), "encoder": fingerprint}
        store.write_json(folder / "config.json", config)

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> Proxy:
        """Read a proxy written by `save`.

        Raises:
            AbpError: it was trained on another encoder, or a file is missing or damaged.
        """
        config = store.read_json(folder / "config.json")
        if config["encoder"] != fingerprint:
            raise AbpError(
                f"The proxy in {folder} was trained on encoder {config['encoder']}, not on "
                f"{fingerprint}: train it again for this model."
            )
        proxy = cls(ProxyConfig(**config["proxy"]))
        try:
            proxy.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise AbpError(
                f"The proxy weights in {folder} are missing or damaged: delete the folder and "
                "train it again."
            ) from error
        return proxy.eval()


def position_code(n_tokens: int) -> Tensor:
    """Sinusoids of a token's index in the sequence, [n_tokens, 64].

    Their amplitude is twice that of the states' features: a proxy learns places sooner so.
    """
    rates = torch.logspace(math.log10(3.0), -math.log10(_LONGEST / math.tau), _PERIODS)
    angles = torch.arange(n_tokens)[:, None] * rates
    return 2 * math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], -1)


def box_loss(predicted: Tensor, target: Tensor, lambda_giou: float) -> Tensor:
    """(1 - lambda) L1 + lambda (1 - GIoU), averaged over boxes [B, 4] (section 4.3, B.1).

    L1 is summed over a box's four coordinates, as in DETR.
    """
    l1 = (predicted - target).abs().sum(-1).mean()
    if lambda_giou == 0:
        return l1
    return (1 - lambda_giou) * l1 + lambda_giou * (1 - giou(predicted, target)).mean()
