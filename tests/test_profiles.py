from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CASES
from pydantic import ValidationError

from abplib import profiles
from abplib.core.errors import AbpError
from abplib.profiles import CHAPTERS, Profile, known_profiles, parse


def test_every_shipped_profile_loads_under_its_own_name() -> None:
    assert {"mini", "smoke"} <= set(known_profiles())
    for name in known_profiles():
        profile = Profile.load(name)
        assert profile.name == name
        assert profile.sweep.n_curve_eval <= profile.n_eval
    assert "random weights" in Profile.load("smoke").note and Profile.load("mini").note == ""


def test_overrides_replace_fields_and_the_profile_stays_frozen() -> None:
    profile = Profile.load("smoke", n_eval=5, sweep={"n_batches": 7})
    assert (profile.n_eval, profile.sweep.n_batches, profile.sweep.batch_size) == (5, 7, 4)
    with pytest.raises(ValidationError):
        profile.n_eval = 8


@pytest.mark.parametrize("name", ["smok", "", "../profiles/mini", "absent.yaml"])
def test_unknown_profiles_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(AbpError, match=r"Unknown profile .*choose from mini, .*smoke"):
        Profile.load(name)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("n_eval", 0, "n_eval = 0 is refused, it should be greater"),
        ("n_eval", 2.0, "n_eval = 2.0 is refused, it should be a valid integer"),
        ("sweep", {"lr": "fast"}, "sweep.lr = 'fast' is refused, it should be a valid number"),
        ("sweep", {"n_heads": 3}, "sweep.n_heads = 3 is refused, a proxy of width 16 cannot have"),
        ("sweep", {"batches": 3}, "sweep.batches is not a known name"),
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


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00", "n_eval: 1\nn_eval: 2", "sweep: 3"])
def test_a_broken_profile_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(AbpError) as caught:
        Profile.load(str(path))
    assert "own.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chapter", sorted(CHAPTERS.keys() - {"06_adapting"}))  # has its own model
def test_nothing_given_is_the_profile_itself(chapter: str) -> None:
    assert parse(chapter, {}).resolve() == Profile.load("mini")


def test_what_is_given_replaces_the_profiles_own() -> None:
    given = {"profile": "smoke", "n_samples": 5, "n_batches": 40, "lr": 1, "vlm": "org/model"}
    profile = parse("02_proxies", given).resolve()
    assert (profile.n_eval, profile.vlm) == (5, "org/model")
    assert (profile.sweep.n_batches, profile.sweep.lr, profile.sweep.batch_size) == (40, 1.0, 4)


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
        ({"lr": "1e"}, "lr = '1e' is refused, it should be a valid number"),
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


def test_another_chapter_has_other_parameters_and_there_are_no_other_chapters() -> None:
    with pytest.raises(AbpError, match="01_localization_gap has no parameter 'n_batches'"):
        parse("01_localization_gap", {"n_batches": 4})
    with pytest.raises(AbpError, match="'02_proxy': choose from 00_specimen, "):
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


def test_yaml_takes_numbers_as_people_write_them(tmp_path: Path) -> None:
    """`1e-4` is text to YAML; papermill's `-y` reads it alike."""
    path = tmp_path / "Own Profile.YAML"
    text = (Path(profiles.__file__).parent / "profiles" / "smoke.yaml").read_text()
    text = text.replace("  lr: 1.0e-3", "  lr: 1e-4").replace("guidance: 3.0", "guidance: 3")
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())  # as Windows does
    profile = Profile.load(str(path))
    assert (profile.sweep.lr, profile.guidance) == (1e-4, 3.0)
    assert parse("02_proxies", {"lr": "2E-5"}).resolve().sweep.lr == 2e-5


@pytest.mark.parametrize("case", ["14-yaml-1e-4/lr.yaml", "15-yaml-windows/bomcrlf.yaml"])
def test_profiles_of_another_layout_are_refused_for_their_names(case: str) -> None:
    """Field cases 14 and 15: neither the number nor the BOM and the line ends are a fault."""
    with pytest.raises(AbpError) as refusal:
        Profile.load(str(CASES / case))
    (sentence,) = str(refusal.value).splitlines()
    assert "lr is not a known name" in sentence and "number" not in sentence


def test_the_number_of_case_14_is_taken() -> None:
    lr = yaml.safe_load((CASES / "14-yaml-1e-4/lr.yaml").read_text())["lr"]
    assert parse("02_proxies", {"lr": lr}).resolve().sweep.lr == 1e-4
