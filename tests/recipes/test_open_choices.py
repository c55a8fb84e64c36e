"""The paper's open choices made otherwise, at the smallest size."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from abplib.core.errors import AbpError
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.proxies.qformer import Proxy
from abplib.proxies.settings import ProxyConfig
from abplib.sections import sensitivity
from abplib.vlm.twins import smoke_vlm
from recipes.sensitivity import CHOICES, LayerByLayer, LayerNormed, Unplaced, vary

CONFIG = ProxyConfig(width=8, n_queries=2, n_heads=2, n_blocks=2, state_width=16, n_layers=3)


def like(kind: type[Proxy]) -> Proxy:
    """A variant with the weights of a plain proxy."""
    torch.manual_seed(0)
    return kind(CONFIG).eval()


def test_variants_do_what_their_names_say() -> None:
    torch.manual_seed(1)
    states, mask = torch.randn(2, 3, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    plain = like(Proxy)
    by_layer = torch.stack([w.sum((-1, -3)) for w in like(LayerByLayer).attention(states, mask)])
    assert torch.allclose(by_layer, torch.full_like(by_layer, 2 / 3))  # two queries
    assert plain.attention(states, mask)[0].sum((-1, -3)).std() > 1e-3
    order = torch.tensor([4, 2, 0, 1, 3])
    moved, unplaced = states[:, :, order], like(Unplaced)
    assert torch.allclose(unplaced(moved, mask), unplaced(states, mask), atol=1e-6)
    assert not torch.allclose(plain(moved, mask), plain(states, mask), atol=1e-6)
    normed = like(LayerNormed)
    assert torch.allclose(normed(states + 3, mask), normed(states, mask), atol=1e-4)
    assert not torch.allclose(plain(states + 3, mask), plain(states, mask), atol=1e-4)


def test_each_choice_is_decided_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "results"))
    vlm = shutil.copytree(smoke_vlm(), tmp_path / "vlm")
    experiment = Experiment(Profile.load("smoke", vlm=str(vlm)))
    assert vary(experiment, 2, CHOICES) == vlm / sensitivity.FILE
    found, told = sensitivity.find(experiment)
    assert found is not None and "of one seed on" in told
    assert len(sensitivity.verdict_table(found)) == len(CHOICES)
    assert sensitivity.changes(found).keys() == set(sensitivity.KEYS)
    trained = list((tmp_path / "results" / "sweep").glob("*/proxies"))
    assert len(trained) == len(CHOICES) - 1  # labels under smoke are exact anyway


def test_a_vlm_without_a_folder_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Experiment, "encoder", None)
    experiment = Experiment(Profile.load("smoke", vlm="Qwen/Qwen2.5-VL-7B-Instruct"))
    with pytest.raises(
        AbpError, match=r"Qwen2\.5-VL-7B-Instruct is a hub id: give a profile whose"
    ):
        vary(experiment, 2, CHOICES)
