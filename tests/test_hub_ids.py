"""Commands on the paper's ids of the hub: out of a cache without a network, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import othertwins
import pytest
import yaml
from click.testing import CliRunner, Result
from conftest import noise
from diffusers import Flux2Pipeline
from hubcache import lay

from abplib.__main__ import main
from abplib.core import hub, store
from abplib.editing import twins
from abplib.editing.loading import Source
from abplib.profiles import Profile
from abplib.vlm import loading
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.loading import Answer
from abplib.vlm.twins import smoke_vlm
from recipes.__main__ import main as recipes
from recipes.multi_entity.rows import Instruction, Pair, Picture, Reversal

VLM, EDITOR = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen-Image-Edit"
OTHERS = {name: about.source for name, about in Profile.load("paper").other_editors.items()}
MADE = {
    VLM: smoke_vlm, EDITOR: twins.smoke_editor,
    OTHERS["qwen_image_edit_2509"]: othertwins.smoke_2509,
    OTHERS["fibo_edit"]: othertwins.smoke_fibo, OTHERS["flux2_dev"]: othertwins.smoke_flux2,
    OTHERS["flux_kontext"]: twins.smoke_kontext,
}  # fmt: skip
FIRST, SECOND = ("c0ffee" + "0" * 34, "decade" + "0" * 34)
SWEEP = {"n_batches": 1, "batch_size": 2, "n_curve_eval": 2, "width": 8, "n_queries": 2}


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    return {hub_id: make() for hub_id, make in MADE.items()}


@pytest.fixture(autouse=True)
def place(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a small profile of the paper's ids, a picture, a set begun (A.2)."""

    def say(chats: Any, *_: Any, **__: Any) -> list[Answer]:
        return [Answer("[16, 32, 48, 64]", (64, 64))] * len(chats["input_ids"])

    monkeypatch.setattr(loading, "generate_text", say)
    fields = Profile.load("smoke", sweep=SWEEP).model_dump() | {"vlm": VLM, "editor": EDITOR}
    fields["other_editors"] = {name: {"source": i, "n_steps": 2} for name, i in OTHERS.items()}
    fields |= {"lora": str(tmp_path / "lora"), "n_eval": 2, "tuning_set": "toypairs:toys"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(fields))
    noise(64, 64).save(tmp_path / "photo.png")
    rows = {
        "prompts": Pair(id="0000", generation="Three dogs and a cat.", edit="Make all dogs."),
        "images": Picture(id="0000", file="../photo.png", sha256="", seed=0),
        "reversal": Reversal(id="0000", source="../photo.png", target="../photo.png"),
        "instructions": Instruction(id="0000", instruction="Turn the leftmost dog.", answer=""),
    }
    for name, row in rows.items():
        store.append_line(tmp_path / "set" / f"{name}.jsonl", row)
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def abp(command: str) -> Result:
    words = command.replace("IMAGE", "photo.png move").split()
    group = recipes if words[0] == "spatial" else main
    return CliRunner().invoke(group, [*words, "--profile", "own.yaml"])


def refused(command: str, said: str) -> None:
    """One sentence on stderr, nothing else, exit code 2."""
    done = abp(command)
    (sentence,) = done.stderr.strip().splitlines()
    assert (done.exit_code, done.stdout) == (2, "") and said in sentence


@pytest.mark.parametrize(
    ("command", "needed", "left"),
    [
        ("ground IMAGE --save drawn.png", VLM, "drawn.png"),
        ("states IMAGE out.safetensors", VLM, "out.safetensors"),
        ("labels -n 2", VLM, "results/answers/*/*.parquet"),
        ("sweep", VLM, "results/sweep/*/done.json"),
        ("spatial boxes --out set", VLM, "set/boxes.jsonl"),
        ("spatial edits --out set", OTHERS["qwen_image_edit_2509"], "set/edits/0000.png"),
        ("edit baseline", VLM, "results/edits/*/0001.png"),
        ("edit baseline", EDITOR, "results/edits/*/0001.png"),
        *((f"edit {name}", i, "results/edits/*/0001.png") for name, i in OTHERS.items()),
    ],
)
def test_a_command_runs_out_of_the_cache_and_from_nowhere_is_one_sentence(
    command: str, needed: str, left: str, place: Path, folders: dict[str, Path], hub_cache: Path
) -> None:
    for hub_id in folders.keys() - {needed}:
        lay(hub_cache, hub_id, folders[hub_id], FIRST)
    refused(command, f"{needed} is not here and the hub cannot be reached: connect to the network")
    lay(hub_cache, needed, folders[needed], FIRST)
    done = abp(command)
    assert done.exit_code == 0, done.output
    assert list(place.glob(left))


def test_what_a_run_found_is_pinned_and_a_model_that_has_moved_is_refused(
    place: Path, folders: dict[str, Path], hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LOCK", str(place / "hub.lock"))
    lay(hub_cache, VLM, folders[VLM], FIRST)
    assert abp("ground IMAGE").exit_code == 0
    assert CliRunner().invoke(main, ["pin"]).output.startswith(f"{VLM}@main {FIRST}\n")
    assert abp("ground IMAGE").exit_code == 0
    lay(hub_cache, VLM, folders[VLM], SECOND)
    refused("ground IMAGE", f"{VLM}@main has moved: it is at {SECOND} and")


def test_the_lora_is_trained_and_used_out_of_the_cache(
    place: Path, folders: dict[str, Path], hub_cache: Path
) -> None:
    lay(hub_cache, VLM, folders[VLM], FIRST)
    refused("train-lora", f"hf download {EDITOR}")
    lay(hub_cache, EDITOR, folders[EDITOR], FIRST)
    refused("edit gt_box", "There is no LoRA in")
    for command in ("train-lora", "edit gt_box"):
        done = abp(command)
        assert done.exit_code == 0, done.output
    assert list(place.glob("results/edits/*/0001.png"))


@pytest.mark.parametrize(
    ("hub_id", "loaded"),
    [
        (VLM, lambda *of: ConditionEncoder.from_pretrained(VLM, image_area=64**2, revision=of[0])),
        (OTHERS["flux2_dev"], lambda *of: Source.find(Flux2Pipeline, OTHERS["flux2_dev"], *of)),
    ],
)
def test_a_model_of_the_hub_is_known_by_its_commit(
    hub_id: str, loaded: Callable[[str | None], Any], folders: dict[str, Path], hub_cache: Path
) -> None:
    def known(revision: str | None = None) -> str:
        return str(loaded(revision).fingerprint)

    lay(hub_cache, hub_id, folders[hub_id], FIRST)
    first = known()
    lay(hub_cache, hub_id, folders[hub_id], SECOND)
    assert known(FIRST) == first != known() == known(SECOND)
