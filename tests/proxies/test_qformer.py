"""The Q-Former: its attention, its masks, its loss, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from abplib.core.boxes import center_distance, giou
from abplib.core.errors import AbpError
from abplib.proxies.qformer import CrossAttention, Proxy, box_loss, position_code
from abplib.proxies.settings import ProxyConfig

CONFIG = ProxyConfig(state_width=24, n_layers=3, width=16, n_queries=5, n_heads=2, n_blocks=6)


@pytest.fixture
def proxy() -> Proxy:
    torch.manual_seed(0)
    return Proxy(CONFIG)


@pytest.fixture
def states() -> Tensor:
    """[B, L, T, d] over several orders of magnitude, as the residual stream is."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([1.0, 30.0, 1000.0])[:, None, None]
    return scale * torch.randn(2, 3, 7, 24, generator=generator)


MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])


def test_attention_sums_to_one_over_layers_and_tokens_together(
    proxy: Proxy, states: Tensor
) -> None:
    weights = proxy.attention(states, MASK)
    assert [tuple(w.shape) for w in weights] == [(2, 2, 5, 3, 7)] * 6
    for block in weights:
        torch.testing.assert_close(block.sum((-2, -1)), torch.ones(2, 2, 5))
        assert (block[1, ..., 4:] == 0).all()
        layer_mass = block.sum(-1)
        assert (layer_mass - 1 / 3).abs().max() > 1e-3  # no softmax of each layer's own


@pytest.mark.parametrize("n", [9, 12])  # fewer and more than the ten queries of two heads
def test_cross_attention_is_textbook_attention_over_projected_states(n: int) -> None:
    torch.manual_seed(0)
    layer = CrossAttention(CONFIG, n_features=11)
    x, features = torch.randn(2, 5, 16), torch.randn(2, n, 11)
    allowed = torch.rand(2, 1, n) > 0.3
    bias = torch.zeros(2, 1, n).masked_fill(~allowed, -math.inf)
    mixed, weights = layer(x, features, bias)

    query = layer.query(layer.norm(x)).unflatten(-1, (2, 8)).transpose(1, 2)
    key = torch.einsum("bsf,hef->bhse", features, layer.key)
    value = torch.einsum("bsf,hef->bhse", features, layer.value)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed[:, None])
    torch.testing.assert_close(mixed, layer.out(expected.transpose(1, 2).flatten(2)))
    scores = (query @ key.mT / math.sqrt(8) + bias[:, None]).softmax(-1)
    torch.testing.assert_close(weights.view(2, 2, 5, n), scores)


def test_boxes_lie_in_the_image_and_ignore_padding_and_scale(proxy: Proxy, states: Tensor) -> None:
    boxes = proxy(states, MASK)
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    torch.testing.assert_close(boxes[1:], proxy(states[1:, :, :4], MASK[1:, :4]))
    changed = states.clone()
    changed[1, :, 4:] = 1e6
    torch.testing.assert_close(boxes, proxy(changed, MASK))
    torch.testing.assert_close(boxes, proxy(7 * states, MASK), rtol=1e-4, atol=1e-5)


def test_layers_and_places_are_told_apart(proxy: Proxy, states: Tensor) -> None:
    boxes = proxy(states, MASK)
    assert not torch.allclose(boxes, proxy(states.flip(1), MASK))
    assert not torch.allclose(boxes[0], proxy(states.flip(2), MASK)[0])
    code = position_code(1500)
    distances = torch.cdist(code, code) + 99 * torch.eye(1500)
    assert distances.min() > 0.1


def test_queries_do_not_come_from_states(proxy: Proxy, states: Tensor) -> None:
    """With no value let through, the box depends on the learned queries alone."""
    for module in proxy.modules():
        if isinstance(module, CrossAttention):
            torch.nn.init.zeros_(module.value)
    boxes = proxy(states, MASK)
    torch.testing.assert_close(boxes[0], boxes[1])
    assert len(proxy.queries.unique(dim=0)) == CONFIG.n_queries


def test_loss_is_the_papers() -> None:
    predicted = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.0, 0.2, 0.3, 0.9]])
    target = torch.tensor([[0.2, 0.1, 0.6, 0.4], [0.5, 0.2, 0.9, 0.8]])
    l1 = (predicted - target).abs().sum() / 2
    torch.testing.assert_close(box_loss(predicted, target, 0.0), l1)
    expected = 0.6 * l1 + 0.4 * (1 - giou(predicted, target).mean())
    torch.testing.assert_close(box_loss(predicted, target, 0.4), expected)
    assert box_loss(target, target, 0.4).abs() < 1e-6


def test_saved_and_loaded_for_its_own_encoder_only(
    proxy: Proxy, states: Tensor, tmp_path: Path
) -> None:
    proxy.save(tmp_path, "abc")
    loaded = Proxy.load(tmp_path, "abc")
    assert torch.equal(loaded(states, MASK), proxy(states, MASK))
    with pytest.raises(AbpError, match="trained on encoder abc, not on xyz"):
        Proxy.load(tmp_path, "xyz")
    (tmp_path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(AbpError, match="missing or damaged"):
        Proxy.load(tmp_path, "abc")


def test_learns_to_find_the_token_that_tells_the_box() -> None:
    """One random token of 12 is marked and holds the box linearly; the rest is noise."""
    generator = torch.Generator().manual_seed(0)
    writer, marker = torch.randn(4, 32, generator=generator), torch.randn(32, generator=generator)

    def batch(n: int) -> tuple[Tensor, Tensor]:
        size = 0.1 + 0.3 * torch.rand(n, 2, generator=generator)
        corner = torch.rand(n, 2, generator=generator) * (1 - size)
        boxes = torch.cat([corner, corner + size], -1)
        states = torch.randn(n, 12, 32, generator=generator)
        told = torch.randint(12, (n,), generator=generator)
        states[torch.arange(n), told] = 2 * marker + (2 * boxes - 1) @ writer
        return states[:, None], boxes

    torch.manual_seed(0)
    proxy = Proxy(ProxyConfig(state_width=32, width=32, n_queries=4, n_blocks=6))
    optimizer = torch.optim.Adam(proxy.parameters(), lr=2e-3, fused=True)
    mask = torch.ones(256, 12, dtype=torch.bool)
    for step in range(120):
        states, boxes = batch(32)
        box_loss(proxy(states, mask[:32]), boxes, 0.4 if step >= 40 else 0.0).backward()
        torch.nn.utils.clip_grad_norm_(proxy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    states, boxes = batch(256)
    with torch.no_grad():
        error = center_distance(proxy(states, mask), boxes).mean()
    assert error < 0.1  # the image's centre is 0.28 away on average
