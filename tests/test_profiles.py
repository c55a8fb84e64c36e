from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from abplib.core.errors import AbpError
from abplib.profiles import Profile, known_profiles


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
