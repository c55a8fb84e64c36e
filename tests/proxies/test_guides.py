"""The proxy that tells an editor where: how it is chosen, shipped and found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from abplib.__main__ import main
from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.profiles import Profile
from abplib.proxies import selection
from abplib.proxies.qformer import Proxy, ProxyConfig
from abplib.samples.base import Sample
from abplib.vlm.encoder import ConditionEncoder

PROFILE = Profile.load("smoke")
SCENES = PROFILE.tuning


class Few:
    """The first samples of a set, with boxes of one's own."""

    name = "few"
    fingerprint = "few"

    def __init__(self, boxes: list[Box]) -> None:
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> Sample:
        source = SCENES[index]
        return Sample(source.id, source.image, source.instruction, self.boxes[index])


@pytest.fixture
def proxies(encoder: ConditionEncoder, tmp_path: Path) -> Path:
    """One untrained proxy for each layer, no two alike."""
    config = ProxyConfig(encoder.width, width=8, n_queries=2, n_heads=2, n_blocks=1)
    for layer in range(encoder.n_layers):
        torch.manual_seed(layer)
        Proxy(config).half().save(tmp_path / f"layer_{layer}", encoder.fingerprint)
    return tmp_path


def boxes_of(
    encoder: ConditionEncoder, proxies: Path, layer: int, n: int, base: str = "results"
) -> list[Box]:
    proxy = Proxy.load(proxies / f"layer_{layer}", encoder.fingerprint)
    guide = selection.Guide(proxy, layer, 0.0, "")
    return guide.boxes(encoder, Few([(0, 0, 1, 1)] * n), n, base=proxies / base)


def test_the_proxy_with_the_most_overlap_on_the_tuning_samples_is_chosen(
    encoder: ConditionEncoder, proxies: Path
) -> None:
    for layer in encoder.middle_layers:
        tuning = Few(boxes_of(encoder, proxies, layer, 3))  # that layer's own answers
        found = selection.choose(encoder, proxies, tuning)
        assert found.layer == layer
        assert found.iou == pytest.approx(1, abs=1e-4)


def test_boxes_are_ordered_fractions_whatever_the_batches(
    encoder: ConditionEncoder, proxies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = encoder.middle_layers[0]
    found = boxes_of(encoder, proxies, layer, 3)
    assert all(0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1 for x1, y1, x2, y2 in found)
    monkeypatch.setattr(selection, "_BATCH", 2)
    again = boxes_of(encoder, proxies, layer, 3, base="again")
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
        selection.choose(encoder, proxies, Few([]))


@pytest.fixture
def shipping(
    encoder: ConditionEncoder, proxies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Profile:
    """A profile that ships a proxy, on the first middle layer; another one is a sweep away."""
    layer = encoder.middle_layers[0]
    proxy = Proxy.load(proxies / f"layer_{layer}", encoder.fingerprint)
    selection.Guide(proxy, layer, 0.25, "").save(tmp_path / "shipped", encoder)

    def swept(*args: Any, **settings: Any) -> Any:
        return type("Swept", (), {"folder": tmp_path / "swept"})

    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "proxies").symlink_to(proxies)
    monkeypatch.setattr(selection, "sweep", swept)
    monkeypatch.setattr(selection, "labels_of", lambda *args: None)
    monkeypatch.setattr(Profile, "tuning", Few([(0.2, 0.2, 0.4, 0.4)] * 2))
    return PROFILE.model_copy(update={"proxy": str(tmp_path / "shipped")})


def test_the_shipped_proxy_is_taken_as_it_was_saved(
    encoder: ConditionEncoder, shipping: Profile, proxies: Path
) -> None:
    found = selection.find_guide(shipping, encoder, seed=0)
    assert (found.layer, found.iou) == (encoder.middle_layers[0], 0.25)
    assert "shipped" in found.note
    wanted = boxes_of(encoder, proxies, found.layer, 2)
    assert found.boxes(encoder, Few([(0, 0, 1, 1)] * 2), 2) == wanted


def test_a_shipped_proxy_of_another_vlm_is_said_and_not_taken(
    encoder: ConditionEncoder, shipping: Profile
) -> None:
    folder = shipping.proxy_folder
    assert folder is not None
    config = folder / "config.json"
    config.write_text(config.read_text().replace(encoder.fingerprint, "another"))
    found = selection.find_guide(shipping, encoder, seed=0)
    assert "trained in this run's sweep" in found.note and "another VLM" in found.note
    assert found.iou != 0.25


def test_a_shipped_proxy_that_is_missing_is_said(
    encoder: ConditionEncoder, shipping: Profile
) -> None:
    absent = shipping.model_copy(update={"proxy": "absent"})
    assert "absent is not there" in selection.find_guide(absent, encoder, seed=0).note
    none = shipping.model_copy(update={"proxy": None})
    assert selection.find_guide(none, encoder, seed=0).note == (
        "The proxy was trained in this run's sweep."
    )


@pytest.fixture
def own_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Smoke, but for a folder to ship a proxy in."""
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "results"))
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**PROFILE.model_dump(), "proxy": str(tmp_path / "proxy")}))
    return path


def test_the_command_ships_the_guide_that_the_sweep_gives(
    own_profile: Path, encoder: ConditionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = Profile.load(str(own_profile))
    monkeypatch.setattr(Profile, "tuning", Few([(0.2, 0.2, 0.4, 0.4)] * 3))
    trained = selection.find_guide(profile, encoder, seed=0)
    done = CliRunner().invoke(main, ["guide", "--profile", str(own_profile)])
    assert done.exit_code == 0, done.output
    assert f"layer {trained.layer}, IoU {trained.iou:.3f}" in done.stdout
    monkeypatch.setattr(selection, "sweep", None)  # no more of it
    shipped = selection.find_guide(profile, encoder, seed=0)
    assert (shipped.layer, shipped.iou) == (trained.layer, trained.iou)
    assert "is the shipped one" in shipped.note
    assert shipped.boxes(encoder, SCENES, 2) == trained.boxes(encoder, SCENES, 2)
    folder = profile.proxy_folder
    assert folder is not None
    assert {w.dtype for w in load_file(folder / "model.safetensors").values()} == {torch.float16}


def test_without_a_folder_to_ship_in_nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "sweep", None)
    done = CliRunner().invoke(main, ["guide", "--profile", "smoke"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Profile 'smoke' ships no proxy: set proxy to a folder" in done.stderr


def test_boxes_are_measured_against_the_exact_ones() -> None:
    samples = Few([(0.2, 0.2, 0.4, 0.4)] * 2)
    rows = selection.box_rows(
        samples, {"exact": [(0.2, 0.2, 0.4, 0.4)] * 2, "vlm": [None, (0.2, 0.2, 0.9, 0.9)]}
    )
    assert list(rows["source"]) == ["exact"] * 2 + ["vlm"] * 2
    assert list(rows["answered"]) == [True, True, False, True]
    assert list(rows["centre_inside"]) == [True, True, False, False]
    assert rows["iou"].tolist() == pytest.approx([1, 1, 0, 0.04 / 0.49])


def test_an_answer_without_a_box_gives_none() -> None:
    corners = {"x1": [0.1, None], "y1": [0.2, None], "x2": [0.3, None], "y2": [0.4, None]}
    rows = pd.DataFrame({**corners, "answered": [True, False]})
    assert selection.answered_boxes(rows) == [(0.1, 0.2, 0.3, 0.4), None]
