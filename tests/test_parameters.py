from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from abplib.core.errors import AbpError
from abplib.parameters import CHAPTERS, parse
from abplib.profiles import Profile


@pytest.mark.parametrize("chapter", CHAPTERS.keys() - {"06_adapting"})  # has its own model
def test_nothing_given_is_the_profile_itself(chapter: str) -> None:
    assert parse(chapter, {}).resolve() == Profile.load("mini")


def test_what_is_given_replaces_the_profiles_own() -> None:
    given = {"profile": "smoke", "n_samples": 5, "n_batches": 40, "lr": 1, "vlm": "org/model"}
    profile = parse("02_proxies", given).resolve()
    assert (profile.n_eval, profile.n_batches, profile.lr, profile.vlm) == (5, 40, 1.0, "org/model")
    assert profile.batch_size == Profile.load("smoke").batch_size


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"n_batchs": 40}, "no parameter 'n_batchs': did you mean n_batches?"),
        ({"zzz": 1}, "no parameter 'zzz': choose from profile, vlm,"),
        ({"n_batches": "many"}, "n_batches = 'many' is refused, it should be a valid integer"),
        ({"n_batches": 0}, "n_batches = 0 is refused, it should be greater than or equal to 1"),
        ({"n_batches": 1.0}, "n_batches = 1.0 is refused, it should be a valid integer"),
        ({"n_batches": True}, "n_batches = True is refused, it should be a valid integer"),
        ({"n_samples": -1}, "n_samples = -1 is refused"),
        ({"seed": None}, "seed = None is refused"),
        ({"seed": 2**32}, "seed = 4294967296 is refused"),
        ({"lr": "1e-4"}, "lr = '1e-4' is refused, it should be a valid number"),
        ({"lr": float("nan")}, "lr = nan is refused"),
        ({"vlm": ""}, "vlm = '' is refused"),
        ({"profile": "smok"}, "Unknown profile 'smok': choose from mini, "),
        ({"profile": 3}, "profile = 3 is refused, it should be a valid string"),
    ],
)
def test_refused_by_name_in_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(AbpError) as caught:
        parse("02_proxies", given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parameter_of_one_chapter_is_not_one_of_another() -> None:
    with pytest.raises(AbpError, match="01_localization_gap has no parameter 'n_batches'"):
        parse("01_localization_gap", {"n_batches": 4})


def test_unknown_chapters_are_refused_with_the_known_ones() -> None:
    with pytest.raises(AbpError, match="'02_proxy': choose from 01_localization_gap, 02_proxies"):
        parse("02_proxy", {})


def test_another_model_brings_no_revision_of_the_old_one(tmp_path: Path) -> None:
    pinned = Profile.load("smoke", revision="a", editor_revision="b")
    path = tmp_path / "pinned.yaml"
    path.write_text(yaml.safe_dump(pinned.model_dump()))
    given = {"profile": str(path), "editor": "some/editor"}
    resolved = parse("01_localization_gap", given).resolve()
    assert (resolved.revision, resolved.editor_revision) == ("a", None)
    resolved = parse("01_localization_gap", {"profile": str(path), "vlm": "some/vlm"}).resolve()
    assert (resolved.revision, resolved.editor_revision) == (None, "b")
