"""`abp plan`: sizes of models, stages, what a machine lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
from abplib.proxies.configurations import configurations
from abplib.publish import plan
from abplib.publish.plan import Machine, Stage, missing, networks, stages
from abplib.samples import omniedit
from abplib.sections.cost import gpu_hours

QWEN, EDIT, FLUX2 = (
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen-Image-Edit",
    "black-forest-labs/FLUX.2-dev",
)
A100 = Machine("A100", 80 * 10**9, 200 * 10**9, 10**12)
NONE = Machine(None, 0, 16 * 10**9, 10**11)


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


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not here can be had."""
    monkeypatch.setattr(hub, "cached", lambda _id: None)
    monkeypatch.setattr(hub, "check_access", lambda _id, _kind: None)


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
    assert gpu_hours(312e12 * 3600, 0.5) == pytest.approx(2)
    assert gpu_hours(156e12 * 3600, 0.5, peak="tflops_tf32") == pytest.approx(2)


def planned(profile: Profile) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages(profile)}


def weights(*networks: nn.Module) -> int:
    """Bytes of the networks' parameters."""
    return sum(w.numel() * w.element_size() for net in networks for w in net.parameters())


def test_memory_is_what_the_code_holds() -> None:
    """The bank with its gradients and Adam's moments; encoder and editor; a transformer's LoRA."""
    made = Experiment(Profile.load("smoke", lora="absent/lora"))
    found, settings = planned(made.profile), made.profile.sweep
    bank = Bank(configurations(made.encoder), made.encoder.width, settings)
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


def test_work_is_what_the_code_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Experiment(Profile.load("smoke", lora="absent/lora"))
    found, lora = planned(made.profile), made.profile.lora_training
    assert found["proxies (ch. 2)"].does.startswith(f"{made.n_labels} passes")
    assert found["LoRA (B.2)"].does.startswith(f"{lora.steps} steps of {lora.batch} ")
    edits = [n for n in METHODS if n not in CONTROLS]
    n_edits = made.profile.n_eval * len(edits)
    assert found["edits (ch. 1, 5)"].does == f"{n_edits} edits of {made.baseline.n_steps} steps"
    paper = planned(Profile.load("paper"))
    for name in OTHERS:
        steps = hub.function_of(OTHERS[name].editor).steps
        assert paper[f"{name} (ch. 5)"].does == f"200 edits of {steps} steps"

    asked: dict[str, object] = {}
    monkeypatch.setattr(omniedit, "choose", lambda *_, **how: asked.update(how) or {}["stop"])
    abp("omniedit", "--out", str(tmp_path))
    assert asked["n"] == paper["training samples"].n_rows == 128_000
    (row,) = [row for row in plan.model_rows([paper["training samples"]])]
    assert f"({asked['n_shards']} shards)" in row[3] and asked["n_shards"] == 61


def test_the_bank_of_the_paper_is_counted() -> None:
    """By hand: 30 proxies read 1,428 tokens of width 3,584 in each of six blocks, three passes."""
    _, operations = plan.bank(QWEN, Profile.load("paper"))
    keys_and_values = 3 * 2 * 1428 * 3584 * (2 * 256)
    assert operations > 128_000 * 30 * keys_and_values
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


def of_paper() -> list[Stage]:
    """The paper's stages that run models."""
    return [stage for stage in stages(Profile.load("paper")) if stage.models]


def test_the_paper_on_its_own_gpu_lacks_no_gpu(online: None) -> None:
    assert missing(of_paper(), A100) == []
    names = {stage.name for stage in of_paper()}
    assert {"labels (ch. 2)", "proxies (ch. 2)", "LoRA (B.2)", "images (A.2)"} <= names


def test_a_gpu_that_is_too_small_is_named(online: None) -> None:
    said = missing(of_paper(), Machine("small", 24 * 10**9, 64 * 10**9, 10**12))
    assert any("edits (ch. 1, 5) keeps 41 GB of weights on the GPU" in line for line in said)
    assert not any("labels" in line for line in said)  # 17 GB fit


def test_without_a_gpu_large_models_cannot_run_and_small_ones_can(
    online: None, smoke_folder: Path
) -> None:
    large, small = Stage("large", models=(QWEN,)), Stage("small", models=(str(smoke_folder),))
    (said,) = missing([large, small], NONE)
    assert "Stage large" in said and "use a GPU of 17 GB" in said


def test_a_full_disk_is_named(online: None) -> None:
    full = Machine("A100", 80 * 10**9, 200 * 10**9, 10**9)
    assert "17 GB and 1 GB of disk are free" in missing([Stage("s", models=(QWEN,))], full)[0]


def test_a_model_of_unknown_size_is_said_to_be_so(online: None) -> None:
    unknown = [Stage("s", models=("somebody/else",))]
    assert [row[2:4] for row in plan.stage_rows(unknown)] == [("unknown", "unknown")]
    assert next(plan.model_rows(unknown))[1:4] == ("unknown", "unknown", "unknown")


def test_the_paper_profile_lists_what_is_missing(
    offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "here", classmethod(lambda _cls: NONE))
    done = abp("plan", "--profile", "paper")
    assert done.exit_code == 1, done.output
    lines = done.stdout.splitlines()
    said = [line.removeprefix("Missing: ") for line in lines if line.startswith("Missing: ")]
    for name in ("multi-entity set", "OmniEdit", QWEN, EDIT, FLUX2, "gemini-2.5-pro", "use a GPU"):
        assert any(name in sentence for sentence in said), name
    assert len(said) == len(set(said))
    (proxies,) = [line for line in lines if line.startswith("proxies (ch. 2)")]
    assert "2 h, 60 GB (one proxy)" in proxies
    assert any(line.startswith(FLUX2) and "Non-Commercial" in line for line in lines)


def test_the_default_profile_lacks_nothing() -> None:
    done = abp("plan", "--profile", "mini")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "Nothing is missing."
    assert str(paths.root()) not in done.stdout


def test_a_missing_folder_is_a_missing_thing(tmp_path: Path, offline: None) -> None:
    for field in ("vlm", "editor"):
        profile = Profile.load("smoke", **{field: "data/mini/absent"})
        assert any(
            "data/mini/absent is missing" in line for line in missing(list(stages(profile)), A100)
        )


def test_services_want_a_key(monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    judging = [Stage("judging", service="gemini-2.5-pro")]
    assert "set GEMINI_API_KEY" in missing(judging, A100)[0]
    profile = Profile.load("paper", judge_model="gemini-9")
    (asked,) = [stage for stage in stages(profile) if stage.name.startswith("judging")]
    assert missing([asked], A100)[0].startswith("gemini-9 has to be asked")
    assert [row[:2] for row in plan.model_rows([asked])] == [("gemini-9", "unknown")]
    monkeypatch.setenv(KEYS[0], "not-a-key")
    assert missing(judging, A100) == []


def test_every_shipped_profile_can_be_planned() -> None:
    for name in known_profiles():
        assert list(stages(Profile.load(name)))
