"""`abp edit` and `abp train-lora` by ids of the hub: out of a cache, or one sentence."""

from __future__ import annotations

from pathlib import Path

import othertwins
import pytest
import yaml
from click.testing import CliRunner, Result
from diffusers import Flux2Pipeline
from hubcache import lay

from abplib.__main__ import main
from abplib.editing import twins
from abplib.editing.loading import Source
from abplib.profiles import Profile
from abplib.vlm.twins import smoke_vlm

IDS = {"vlm": "Qwen/Qwen2.5-VL-7B-Instruct", "editor": "Qwen/Qwen-Image-Edit"}
OTHERS = {name: about.source for name, about in Profile.load("paper").other_editors.items()}
MADE = {
    IDS["vlm"]: smoke_vlm, IDS["editor"]: twins.smoke_editor,
    OTHERS["qwen_image_edit_2509"]: othertwins.smoke_2509,
    OTHERS["fibo_edit"]: othertwins.smoke_fibo, OTHERS["flux2_dev"]: othertwins.smoke_flux2,
    OTHERS["flux_kontext"]: twins.smoke_kontext,
}  # fmt: skip
FIRST, SECOND = ("c0ffee" + "0" * 34, "decade" + "0" * 34)


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    return {hub_id: make() for hub_id, make in MADE.items()}


@pytest.fixture
def profile(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small and short, of the paper's ids alone."""
    fields = Profile.load("smoke").model_dump() | IDS
    fields["other_editors"] = {name: {"source": i, "n_steps": 2} for name, i in OTHERS.items()}
    fields |= {"lora": str(tmp_path / "lora"), "n_eval": 1, "tuning_set": "toypairs:toys"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(fields))
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "results"))
    return tmp_path / "own.yaml"


def abp(command: str, profile: Path, *more: str) -> Result:
    return CliRunner().invoke(main, [command, *more, "--profile", str(profile)])


def test_every_system_and_the_lora_edit_from_a_cache(
    profile: Path, folders: dict[str, Path], hub_cache: Path
) -> None:
    for hub_id, folder in folders.items():
        lay(hub_cache, hub_id, folder, FIRST)
    done = [abp("train-lora", profile)]
    done += [abp("edit", profile, name) for name in ("baseline", "gt_box", *OTHERS)]
    assert [result.output for result in done if result.exit_code] == []
    assert len(list(profile.parent.glob("results/edits/*/0000.png"))) == 2 + len(OTHERS)


@pytest.mark.parametrize("lacking", MADE)
def test_without_it_in_the_cache_one_sentence_says_how_to_get_it(
    lacking: str, profile: Path, folders: dict[str, Path], hub_cache: Path
) -> None:
    for hub_id in IDS.values():
        if hub_id != lacking:
            lay(hub_cache, hub_id, folders[hub_id], FIRST)
    names = {hub_id: name for name, hub_id in OTHERS.items()}
    asked = [("edit", names.get(lacking, "baseline"))]
    if lacking == IDS["editor"]:
        asked += [("train-lora",)]
    for command, *more in asked:
        result = abp(command, profile, *more)
        (sentence,) = result.output.strip().splitlines()
        assert result.exit_code and f"hf download {lacking}" in sentence
    if lacking == IDS["vlm"]:
        lay(hub_cache, lacking, folders[lacking], FIRST)
        (sentence,) = abp("edit", profile, "gt_box").output.strip().splitlines()
        assert "There is no LoRA in" in sentence and "abp train-lora" in sentence


def test_a_hub_pipeline_is_known_by_its_commit(folders: dict[str, Path], hub_cache: Path) -> None:
    hub_id = OTHERS["flux2_dev"]

    def known(revision: str | None = None) -> str:
        return Source.find(Flux2Pipeline, hub_id, revision).fingerprint

    lay(hub_cache, hub_id, folders[hub_id], FIRST)
    first = known()
    lay(hub_cache, hub_id, folders[hub_id], SECOND)
    assert known(FIRST) == first != known() == known(SECOND)
