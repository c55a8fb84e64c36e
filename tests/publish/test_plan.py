"""`abp plan`: sizes of models, stages, what a machine lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from torch import nn

from abplib.__main__ import main
from abplib.core import hub, paths
from abplib.core.errors import AbpError
from abplib.editing.lora.adapter import add_lora
from abplib.editing.methods import CONTROLS, METHODS, OTHERS
from abplib.experiment import Experiment
from abplib.judging.clients import KEYS
from abplib.paper import facts
from abplib.profiles import Profile, known_profiles
from abplib.proxies.bank import Bank
from abplib.proxies.configurations import swept
from abplib.publish import plan
from abplib.publish.plan import Stage, missing, networks, stages
from abplib.samples import omniedit
from abplib.sections.cost import gpu_hours

QWEN, EDIT, FLUX2 = (
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen-Image-Edit",
    "black-forest-labs/FLUX.2-dev",
)


def abp(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the cache, no network, no key."""

    def unreached(hub_id: str, kind: hub.Kind = "model") -> None:
        raise AbpError(f"{hub_id} is not here and the hub cannot be reached: {hub.remedy(hub_id)}.")

    monkeypatch.setattr(hub, "cached", lambda _id: None)
    monkeypatch.setattr(hub, "check_access", unreached)
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)


@pytest.mark.parametrize(
    ("source", "gigabytes"),
    [  # what the hub's file lists show of bf16 weights
        (QWEN, {"vlm": 16.6}),
        (EDIT, {"transformer": 40.9, "text_encoder": 16.6}),
        ("black-forest-labs/FLUX.1-Kontext-dev", {"transformer": 23.8, "text_encoder_2": 9.5}),
        (FLUX2, {"transformer": 64.4}),
        ("briaai/Fibo-Edit", {"transformer": 16.6, "text_encoder": 6.2}),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", {"vlm": 48.0}),
    ],
)
def test_parameters_counted_from_shapes_are_those_of_the_files(
    source: str, gigabytes: dict[str, float]
) -> None:
    found = networks(source)
    for name, size in gigabytes.items():
        assert found[name] / 1e9 == pytest.approx(size, abs=0.06)


def test_hours_are_those_of_the_papers_gpu() -> None:
    assert gpu_hours(312e12 * 3600) == pytest.approx(2.5)
    assert gpu_hours(156e12 * 3600, peak="tflops_tf32") == pytest.approx(2.5)


def planned(profile: Profile) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages(profile)}


def weights(*networks: nn.Module) -> int:
    """Bytes of the networks' parameters."""
    return sum(w.numel() * w.element_size() for net in networks for w in net.parameters())


def test_memory_is_what_the_code_holds() -> None:
    """The bank with its gradients and Adam's moments; encoder and editor; a transformer's LoRA."""
    made = Experiment(Profile.load("smoke", lora="absent/lora"))
    found, settings = planned(made.profile), made.profile.sweep
    chosen = swept(made.encoder, made.profile.n_untrained, made.seed)
    bank = Bank(chosen, made.encoder.width, settings)
    gradients = bank.gradients
    bank.step()
    kept = [tensor for tensor in (*bank.state().values(), *gradients) if tensor.ndim]
    proxies = found["proxies (ch. 2)"]
    assert proxies.sizes[-1] == sum(4 * tensor.numel() for tensor in kept)

    networks = [n for n in made.baseline.pipeline.components.values() if isinstance(n, nn.Module)]
    held = weights(made.encoder.model, *networks)
    assert sum(found["edits (ch. 1, 5)"].sizes) == pytest.approx(held, rel=0.05)

    body = replace(made.baseline.source, without=("text_encoder", "vae")).pipeline.transformer
    before = weights(body)
    add_lora(body, made.profile.lora_training.rank, 0, trained=False)
    trained = 4 * (weights(body) - before)
    assert found["LoRA (B.2)"].sizes == [pytest.approx(before, rel=0.05), trained]


def test_work_is_what_the_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Experiment(Profile.load("smoke", lora="absent/lora"))
    found, lora = planned(made.profile), made.profile.lora_training
    assert found["proxies (ch. 2)"].does.startswith(f"{made.n_labels} passes")
    assert found["LoRA (B.2)"].does.startswith(f"{lora.steps} steps of {lora.batch} ")
    edits = [n for n in METHODS if n not in CONTROLS]
    n_edits = made.profile.n_eval * len(edits)
    assert found["edits (ch. 1, 5)"].does == f"{n_edits} edits of {made.baseline.n_steps} steps"
    monkeypatch.setattr(plan, "bank", lambda *_: (0, 0.0))  # which takes long to count
    paper = planned(Profile.load("paper"))
    for name in OTHERS:
        steps = hub.function_of(OTHERS[name].editor).steps
        assert paper[f"{name} (ch. 5)"].does == f"200 edits of {steps} steps"

    n_rows, about = paper["training samples"].n_rows, facts()["data"][omniedit.HUB_ID]
    assert n_rows == omniedit.PAPER_ROWS
    read: list[str] = []

    def index(_location: str, name: str, _kept: Path | None) -> pd.DataFrame:
        read.append(name)
        ids = [f"{name}/{row}" for row in range(about["rows"] // about["shards"])]
        return pd.DataFrame({"id": ids, "task": "swap", "shard": name, "row": range(len(ids))})

    monkeypatch.setattr(omniedit, "_shards", lambda *_: map(str, range(about["shards"])))
    monkeypatch.setattr(omniedit, "_index", index)
    omniedit.choose(n=n_rows)
    (size,) = plan.model_table([paper["training samples"]])["GB"]
    assert f"({len(read)} shards)" in size and len(read) == 61


def test_the_bank_of_the_paper_is_counted() -> None:
    """By hand: 3 x 30 proxies read 1,428 tokens of width 3,584 in six blocks, three passes."""
    _, operations = plan.bank(QWEN, Profile.load("paper"))
    keys_and_values = 3 * 2 * 1428 * 3584 * (2 * 256)
    assert operations > 128_000 * 3 * 30 * keys_and_values
    assert (
        f"{operations:.1e} operations in TF32"
        in planned(Profile.load("paper"))["proxies (ch. 2)"].does
    )


def test_a_folder_is_sized_by_its_weights(smoke_folder: Path, tmp_path: Path) -> None:
    weights = sum(file.stat().st_size for file in smoke_folder.glob("*.safetensors"))
    assert networks(str(smoke_folder)) == {smoke_folder.name: weights}
    with pytest.raises(AbpError, match="holds no weights"):
        networks(str(tmp_path))


def test_every_model_has_a_source_and_a_known_kind_of_gate() -> None:
    for source, about in facts()["models"].items():
        assert about["source"].startswith("https://"), source
        assert about["gated"] in ("yes", "no", "unknown"), source
        assert about["licence"], source


def test_the_data_file_knows_every_model_of_the_paper_profile() -> None:
    paper = Experiment(Profile.load("paper"))
    assert set(paper.profile.other_editors) == set(OTHERS)
    others = [paper.other_source(name) for name in OTHERS]
    for source in (paper.vlm_source, paper.editor_source, *others):
        assert networks(source)


def test_a_model_of_unknown_size_is_said_to_be_so() -> None:
    unknown = [Stage("s", models=("somebody/else",))]
    assert plan.stage_table(unknown).iloc[0, 2:].tolist() == ["unknown"] * 2
    assert plan.model_table(unknown).iloc[0, 1:].tolist() == ["unknown"] * 3


def test_the_paper_profile_lists_what_is_missing(offline: None) -> None:
    done = abp("plan", "--profile", "paper")
    assert done.exit_code == 1, done.output
    lines = done.stdout.splitlines()
    said = [line.removeprefix("Missing: ") for line in lines if line.startswith("Missing: ")]
    for name in ("multi-entity set", "OmniEdit", QWEN, EDIT, FLUX2, "gemini-2.5-pro"):
        assert any(name in sentence for sentence in said), name
    assert len(said) == len(set(said))
    assert any(FLUX2 in line and "Non-Commercial" in line for line in lines)


def test_the_default_profile_lacks_nothing() -> None:
    done = abp("plan", "--profile", "mini")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "Nothing is missing."
    assert str(paths.root()) not in done.stdout


@pytest.mark.parametrize("field", ["vlm", "editor"])
def test_a_missing_folder_is_a_missing_thing(field: str, offline: None) -> None:
    profile = Profile.load("smoke", **{field: "data/mini/absent"})
    assert any("data/mini/absent is missing" in said for said in missing(list(stages(profile))))


def test_services_want_a_key(monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    monkeypatch.setattr(plan, "bank", lambda *_: (0, 0.0))
    profile = Profile.load("paper", judge_model="gemini-9")
    assert planned(profile)["judging (ch. 5)"].lacks.startswith("gemini-9 has to be asked")
    monkeypatch.setenv(KEYS[0], "not-a-key")
    assert planned(profile)["judging (ch. 5)"].lacks == ""


def test_every_shipped_profile_can_be_planned() -> None:
    for name in known_profiles():
        assert list(stages(Profile.load(name)))
