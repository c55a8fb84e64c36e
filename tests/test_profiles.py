from __future__ import annotations

from pathlib import Path

import pytest
import toybook
import yaml
from pydantic import ValidationError

from abplib.core.errors import AbpError
from abplib.profiles import Profile, known_profiles


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return toybook.make(tmp_path, monkeypatch)


def test_every_shipped_profile_loads_under_its_own_name() -> None:
    assert {"mini", "smoke"} <= set(known_profiles())
    for name in known_profiles():
        profile = Profile.load(name)
        assert profile.name == name
        assert profile.width % profile.n_heads == 0
        assert profile.n_curve_eval <= profile.n_eval


def test_random_weights_are_announced() -> None:
    assert "random weights" in Profile.load("smoke").note
    assert Profile.load("mini").note == ""


def test_mini_trains_on_the_samples_it_promises() -> None:
    mini = Profile.load("mini")
    assert mini.n_batches * mini.batch_size >= 20_000
    assert mini.n_eval == 200


def test_overrides_replace_fields_and_the_profile_stays_frozen() -> None:
    profile = Profile.load("smoke", n_batches=7)
    assert (profile.n_batches, profile.batch_size) == (7, Profile.load("smoke").batch_size)
    with pytest.raises(ValidationError):
        profile.n_batches = 8


@pytest.mark.parametrize("name", ["smok", "", "../profiles/mini", "absent.yaml"])
def test_unknown_profiles_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(AbpError, match=r"Unknown profile .*choose from mini, .*smoke"):
        Profile.load(name)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("n_eval", 0, "n_eval = 0 is refused, it should be greater"),
        ("n_eval", 2.0, "n_eval = 2.0 is refused, it should be a valid integer"),
        ("lr", "1e-4", "lr = '1e-4' is refused, it should be a valid number"),
        ("dtype", "int8", "dtype = 'int8' is refused"),
        ("eval_set", "sets.evaluation", "eval_set = 'sets.evaluation' is refused"),
        ("n_evals", 5, "n_evals is not a known name"),
    ],
)
def test_ill_typed_fields_are_refused_by_name(field: str, value: object, said: str) -> None:
    with pytest.raises(AbpError) as caught:
        Profile.load("smoke", **{field: value})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00"])
def test_a_broken_profile_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(AbpError) as caught:
        Profile.load(str(path))
    assert "own.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ones_own_profile_brings_its_samples_and_its_model(toy: Path) -> None:
    profile = Profile.load(str(toy))
    assert len(profile.evaluation) == 3
    assert profile.evaluation is profile.training  # one set, made once
    assert profile.vlm_source == str(toy.parent / "model")


def test_fingerprints_follow_contents(toy: Path) -> None:
    profile = Profile.load(str(toy))
    before = profile.model_fingerprint
    assert profile.model_fingerprint == before
    (toy.parent / "model" / "config.json").write_text("{ }")
    assert profile.model_fingerprint != before
    ships = profile.model_copy(update={"proxy": "proxy"})
    assert ships.model_fingerprint == profile.model_fingerprint  # nothing there yet
    (toy.parent / "proxy").mkdir()
    (toy.parent / "proxy" / "choice.json").write_text("{}")
    assert ships.model_fingerprint != profile.model_fingerprint
    hub = profile.model_copy(update={"vlm": "Qwen/Qwen2.5-VL-7B-Instruct"})
    assert hub.model_fingerprint != hub.model_copy(update={"revision": "a"}).model_fingerprint


@pytest.mark.parametrize("field", ["eval_set", "train_set", "tuning_set"])
def test_the_fingerprint_of_the_data_follows_every_set(toy: Path, field: str) -> None:
    (toy.parent / "otherworld.py").write_text(
        "from toyworld import Toys\n\n\nclass Others(Toys):\n    fingerprint = 'other'\n\n\n"
        "def others():\n    return Others()\n"
    )
    profile = Profile.load(str(toy))
    other = Profile.load(str(toy), **{field: "otherworld:others"})
    assert other.data_fingerprint != profile.data_fingerprint


@pytest.mark.parametrize("vlm", ["data/mini/absent", "./absent", "/absent", "a/b/c", "absent"])
def test_a_missing_model_folder_is_named(toy: Path, vlm: str) -> None:
    with pytest.raises(AbpError, match=r"VLM folder .* is missing: restore it"):
        _ = Profile.load(str(toy), vlm=vlm).vlm_source


def test_a_hub_id_is_left_to_from_pretrained(toy: Path) -> None:
    assert Profile.load(str(toy), vlm="Qwen/Qwen2.5-VL-7B-Instruct").vlm_source.startswith("Qwen/")


@pytest.mark.parametrize("reference", ["absent_module:toys", "toyworld:absent", "toyworld:Path"])
def test_a_sample_set_must_be_one(toy: Path, reference: str) -> None:
    fields = {**yaml.safe_load(toy.read_text()), "eval_set": reference}
    with pytest.raises(AbpError, match=reference):
        _ = Profile(**fields).evaluation
