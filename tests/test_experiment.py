"""A profile made real: what is put together, found again, shipped, and told when it is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toybook
import yaml
from conftest import Listed
from safetensors.torch import load_file

from abplib.core.errors import AbpError
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.proxies.qformer import Proxy
from abplib.proxies.selection import GuidingProxy
from abplib.proxies.settings import ProxyConfig
from abplib.samples.scenes.sets import tuning
from abplib.vlm.encoder import ConditionEncoder

SMOKE = Profile.load("smoke")
SCENES = tuning()
FEW = Listed(replace(SCENES[index], box=(0.2, 0.2, 0.4, 0.4)) for index in range(3))


def of(profile: Profile, **parts: Any) -> Experiment:
    """An experiment some of whose parts are there already."""
    made = Experiment(profile)
    vars(made).update(parts)
    return made


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return toybook.make(tmp_path, monkeypatch)


def test_ones_own_profile_brings_its_samples_and_its_model(toy: Path) -> None:
    made = Experiment(Profile.load(str(toy)))
    assert len(made.training) == 3
    assert made.training is Experiment(made.profile).training  # one set, made once
    assert made.vlm_source == str(toy.parent / "model")


def test_fingerprints_follow_contents(toy: Path) -> None:
    profile = Profile.load(str(toy), editor="model")

    def told(**changes: object) -> str:
        return Experiment(profile.model_copy(update=changes)).model_fingerprint

    before = told()
    assert told() == before
    (toy.parent / "model" / "config.json").write_text("{ }")
    assert told() != before
    hub = "Qwen/Qwen2.5-VL-7B-Instruct"
    assert told(vlm=hub) != told(vlm=hub, revision="a")


@pytest.mark.parametrize("field", ["proxy", "lora"])
def test_a_retrained_part_makes_the_models_others(toy: Path, field: str) -> None:
    made = Experiment(Profile.load(str(toy), editor="model", **{field: "part"}))
    before = made.model_fingerprint
    assert before == Experiment(Profile.load(str(toy), editor="model")).model_fingerprint
    place = made.lora_place if field == "lora" else toy.parent / "part"
    place.mkdir()
    (place / "weights").write_text("a")
    trained = made.model_fingerprint
    (place / "weights").write_text("b")
    assert len({before, trained, made.model_fingerprint}) == 3


@pytest.mark.parametrize("field", ["eval_set", "train_set", "tuning_set"])
def test_the_fingerprint_of_the_data_follows_every_set(toy: Path, field: str) -> None:
    (toy.parent / "otherworld.py").write_text(
        "from toyworld import Toys\n\n\nclass Others(Toys):\n    fingerprint = 'other'\n\n\n"
        "def others():\n    return Others()\n"
    )
    other = Profile.load(str(toy), **{field: "otherworld:others"})
    assert Experiment(other).data_fingerprint != Experiment(Profile.load(str(toy))).data_fingerprint


def test_the_lora_learns_from_its_own_set_or_else_from_the_tuning_set() -> None:
    assert SMOKE.lora_set is None and len(Experiment(SMOKE).lora_samples) == len(SCENES) == 200
    assert len(Experiment(Profile.load("mini")).lora_samples) == 400


@pytest.mark.parametrize("vlm", ["data/mini/absent", "./absent", "/absent", "a/b/c", "absent"])
def test_a_missing_model_folder_is_named(toy: Path, vlm: str) -> None:
    with pytest.raises(AbpError, match=r"VLM folder .* is missing: restore it"):
        _ = Experiment(Profile.load(str(toy), vlm=vlm)).vlm_source
    hub_id = Experiment(Profile.load(str(toy), vlm="Qwen/Qwen2.5-VL-7B-Instruct"))
    assert hub_id.vlm_source.startswith("Qwen/")  # left to from_pretrained


@pytest.mark.parametrize("reference", ["absent_module:toys", "toyworld:absent", "toyworld:Path"])
def test_a_sample_set_must_be_one(toy: Path, reference: str) -> None:
    fields = {**yaml.safe_load(toy.read_text()), "eval_set": reference}
    with pytest.raises(AbpError, match=reference):
        _ = Experiment(Profile(**fields)).evaluation


def test_the_proxy_of_other_layers_is_trained_once_and_read(
    encoder: ConditionEncoder, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = Profile.load("smoke", n_eval=3, sweep={"n_batches": 2, "batch_size": 2})
    found = of(profile, encoder=encoder).attention([1, 3])
    assert found.layers == (1, 3)
    assert found.weights.shape[:5] == (2, 3, 12, 2, 2)  # two seeds
    assert found.weights.sum((-2, -1)) == pytest.approx(1, abs=1e-5)
    assert set(found.tokens["span"]) == {"prompt"}
    monkeypatch.setattr("abplib.proxies.sweep._Run", None)  # of any number of samples, from disk
    more = of(profile.model_copy(update={"n_eval": 4}), encoder=encoder).attention([1, 3])
    assert more.weights[:, :3, ..., : found.weights.shape[-1]] == pytest.approx(
        found.weights, abs=1e-5
    )


@pytest.fixture
def shipping(encoder: ConditionEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """A profile that ships a proxy, on the first middle layer; another one is a sweep away."""
    config = ProxyConfig(state_width=encoder.width, width=8, n_queries=2, n_heads=2, n_blocks=1)
    for layer in range(encoder.n_layers):
        torch.manual_seed(layer)
        proxy = Proxy(config).half().float()
        proxy.save(tmp_path / "proxies" / f"layer_{layer}" / "0", encoder.fingerprint)
        if layer == encoder.middle_layers[0]:
            GuidingProxy(proxy, layer, 0.25).save(tmp_path / "shipped", encoder)
    monkeypatch.setattr(Experiment, "sweep", lambda _: SimpleNamespace(folder=tmp_path))
    return SMOKE.model_copy(update={"proxy": str(tmp_path / "shipped")})


def test_the_shipped_proxy_is_taken_as_it_was_saved(
    encoder: ConditionEncoder, shipping: Profile, tmp_path: Path
) -> None:
    found = of(shipping, encoder=encoder).guide()
    assert (found.layer, found.iou) == (encoder.middle_layers[0], 0.25)
    assert "is the shipped one" in found.note
    saved = Proxy.load(tmp_path / "proxies" / f"layer_{found.layer}" / "0", encoder.fingerprint)
    for name, weight in saved.state_dict().items():
        assert torch.equal(found.proxy.state_dict()[name], weight)


def test_a_shipped_proxy_of_another_vlm_or_none_is_said_and_not_taken(
    encoder: ConditionEncoder, shipping: Profile, tmp_path: Path
) -> None:
    def guide(**changes: object) -> GuidingProxy:
        return of(shipping.model_copy(update=changes), encoder=encoder, tuning=FEW).guide()

    config = tmp_path / "shipped" / "config.json"
    config.write_text(config.read_text().replace(encoder.fingerprint, "another"))
    swept = "The proxy was trained in this run's sweep, as seed 0"
    assert guide().note.startswith(swept) and "another VLM" in guide().note
    assert guide().iou != 0.25
    assert guide(proxy="absent").note == f"{swept} (absent is not there)."
    assert guide(proxy=None).note == f"{swept}."


def test_the_guide_that_the_sweep_gives_can_be_shipped(
    encoder: ConditionEncoder, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "proxy"
    made = of(SMOKE.model_copy(update={"proxy": str(folder)}), encoder=encoder, tuning=FEW)
    trained = made.guide()
    trained.save(folder, encoder)
    monkeypatch.setattr(Experiment, "sweep", None)  # no more of it
    shipped = made.guide()
    assert (shipped.layer, shipped.iou) == (trained.layer, trained.iou)
    assert "is the shipped one" in shipped.note
    assert shipped.boxes(encoder, SCENES, 2) == trained.boxes(encoder, SCENES, 2)
    assert {w.dtype for w in load_file(folder / "model.safetensors").values()} == {torch.float16}
