"""The proxy that tells an editor where: how it is chosen, shipped and found."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Listed

from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.proxies import selection
from abplib.proxies.qformer import Proxy
from abplib.proxies.settings import ProxyConfig
from abplib.samples.scenes.sets import tuning
from abplib.vlm.encoder import ConditionEncoder

pytestmark = pytest.mark.usefixtures("results")


def few(boxes: list[Box]) -> Listed:
    """The first tuning samples, with boxes of one's own."""
    return Listed(replace(tuning()[index], box=box) for index, box in enumerate(boxes))


@pytest.fixture
def proxies(encoder: ConditionEncoder, tmp_path: Path) -> Path:
    """One untrained proxy for each layer, no two alike, as seed 0."""
    config = ProxyConfig(state_width=encoder.width, width=8, n_queries=2, n_heads=2, n_blocks=1)
    for layer in range(encoder.n_layers):
        torch.manual_seed(layer)
        Proxy(config).half().save(tmp_path / f"layer_{layer}" / "0", encoder.fingerprint)
    return tmp_path


def boxes_of(encoder: ConditionEncoder, proxies: Path, layer: int, n: int) -> list[Box]:
    proxy = Proxy.load(proxies / f"layer_{layer}" / "0", encoder.fingerprint)
    guide = selection.GuidingProxy(proxy, layer, 0.0, "")
    return guide.boxes(encoder, few([(0, 0, 1, 1)] * n), n)


def test_the_proxy_with_the_most_overlap_on_the_tuning_samples_is_chosen(
    encoder: ConditionEncoder, proxies: Path
) -> None:
    for layer in encoder.middle_layers:
        tuning = few(boxes_of(encoder, proxies, layer, 3))  # that layer's own answers
        found = selection.choose(encoder, proxies, tuning)
        assert found.layer == layer
        assert found.iou == pytest.approx(1, abs=1e-4)


def test_boxes_are_ordered_fractions_whatever_the_batches(
    encoder: ConditionEncoder, proxies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = encoder.middle_layers[0]
    found = boxes_of(encoder, proxies, layer, 3)
    assert all(0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1 for x1, y1, x2, y2 in found)
    monkeypatch.setattr(selection, "predict", partial(selection.predict, batch=2))
    monkeypatch.setenv("ABP_RESULTS", str(proxies / "again"))
    again = boxes_of(encoder, proxies, layer, 3)
    assert torch.tensor(again) == pytest.approx(torch.tensor(found), abs=1e-5)


def test_every_shard_of_edits_is_shown_the_same_boxes(
    encoder: ConditionEncoder, proxies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digit, which another machine need not compute alike."""
    layer, other = encoder.middle_layers[0], 0
    found = boxes_of(encoder, proxies, layer, 3)
    monkeypatch.setattr(selection, "predict", None)
    assert boxes_of(encoder, proxies, layer, 3) == found
    with pytest.raises(TypeError):
        boxes_of(encoder, proxies, other, 3)


def test_without_tuning_samples_there_is_no_choice(
    encoder: ConditionEncoder, proxies: Path
) -> None:
    with pytest.raises(AbpError, match="no tuning samples to choose a proxy on"):
        selection.choose(encoder, proxies, few([]))
