"""The LoRA's training: the same on one process and on two, killed and resumed; what it leaves."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import SMOKE_AREA, Listed, noise
from diffusers import QwenImageEditPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from toypairs import SIZES, Toys

from abplib.__main__ import main
from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.editing.flow_matching import cell_weights, changed_cells
from abplib.editing.lora import pairs, training
from abplib.editing.lora.adapter import add_lora, save_lora
from abplib.editing.lora.settings import LoraTraining
from abplib.editing.lora.training import train_lora
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.editing.qwen_pipeline import LORA_FILE
from abplib.editing.twins import SMOKE, build_dit, smoke_editor
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.samples.base import Sample

SHORT = LoraTraining(
    rank=2, steps=6, lr=1e-2, warmup=1, mixed_precision=False, held_out=3, looks=3,
    checkpoint_every=1,
)  # fmt: skip
TOLERANCE = 1e-4
"""Of a weight. Its updates are of about the size of the rate, 1e-2, and there are six."""


@pytest.fixture(scope="module")
def editor() -> QwenImageEditor:
    return QwenImageEditor.from_pretrained(smoke_editor(), image_area=SMOKE_AREA)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("base")


@pytest.fixture(scope="module")
def trained(editor: QwenImageEditor, base: Path) -> Path:
    """The folder of a LoRA that one process trained without a break."""
    train_lora(editor, Toys(), SHORT, base / "lora-out", base=base)
    return base / "lora-out"


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / LORA_FILE)


def far(one: Path, other: Path) -> float:
    """The largest difference of a weight."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def command(folder: Path, settings: LoraTraining, *launcher: str) -> dict[str, Any]:
    """How to start `abp train-lora` on the toys, with all it leaves in a folder."""
    profile = {
        **Profile.load("smoke").model_dump(),
        "tuning_set": "toypairs:toys",
        "lora_training": settings.model_dump(),
    }
    (folder / "toys.yaml").write_text(yaml.safe_dump(profile))
    asked = ["train-lora", "--profile", str(folder / "toys.yaml"), "--out", str(folder / "out")]
    return {
        "args": [sys.executable, "-m", *launcher, "abplib", *asked],
        "env": os.environ
        | {
            "PYTHONPATH": f"{paths.root()}:{Path(__file__).parents[2]}",
            "ABP_RESULTS": str(folder),
            "OMP_NUM_THREADS": "1",
        },
    }


def test_two_processes_learn_what_one_does(trained: Path, tmp_path: Path) -> None:
    settings = SHORT.model_copy(update={"batch": SHORT.batch // 2})
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    done = subprocess.run(**command(tmp_path, settings, *launcher), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "out")]  # one of them speaks
    assert far(tmp_path / "out", trained) < TOLERANCE
    first, second = (store.read_json(f / "held_out.json") for f in (trained, tmp_path / "out"))
    assert [row["flow"] for row in first] == pytest.approx([row["flow"] for row in second], 1e-4)
    (one,), (two,) = (folder.glob("lora/*/done.json") for folder in (trained.parent, tmp_path))
    assert one.parent.name == two.parent.name  # either would go on where the other was
    (one_loss,), (two_loss,) = (store.read_json(file)["curves"] for file in (one, two))
    assert one_loss == pytest.approx(two_loss, rel=1e-4)


def test_the_global_batch_is_what_is_learned_from(
    trained: Path, editor: QwenImageEditor, base: Path, tmp_path: Path
) -> None:
    train_lora(editor, Toys(), SHORT.model_copy(update={"batch": 1}), tmp_path / "out", base=base)
    assert far(tmp_path / "out", trained) > 10 * TOLERANCE


def test_a_disk_that_is_full_as_a_lora_is_saved_is_one_sentence(tmp_path: Path) -> None:
    dit = build_dit(SMOKE, 8, seed=0)
    add_lora(dit, rank=4, seed=0, trained=True)
    whole = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, whole[1]))  # as long as a file may get
    try:
        with pytest.raises(AbpError, match=r"Cannot write .*safetensors .*: free some space"):
            save_lora(dit, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, whole)
    assert not list(tmp_path.iterdir())


class Killed(Exception):
    """Raised in the middle of a run."""


def test_a_killed_run_goes_on_to_the_same_weights(
    trained: Path,
    editor: QwenImageEditor,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = 0
    whole = pairs._pair

    def dying(*given: Any) -> dict[str, Tensor]:
        nonlocal encoded
        encoded += 1
        if encoded == 5:
            raise Killed
        return whole(*given)

    monkeypatch.setattr(pairs, "_pair", dying)
    with pytest.raises(Killed):
        train_lora(editor, Toys(), SHORT, tmp_path / "out", base=tmp_path)
    kept = training.save_lora
    saved = 0

    def failing(*given: Any) -> None:
        nonlocal saved
        saved += 1
        if saved == 2:
            raise Killed
        kept(*given)

    monkeypatch.setattr(training, "save_lora", failing)
    with pytest.raises(Killed):
        train_lora(editor, Toys(), SHORT, tmp_path / "out", base=tmp_path)
    assert encoded == 1 + len(Toys())  # the four from before are not encoded again
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    fitted = train_lora(editor, Toys(), SHORT, tmp_path / "out", base=tmp_path)
    assert far(tmp_path / "out", trained) == 0
    assert fitted.curves[-1]["step"] == SHORT.steps


def test_what_is_trained_is_trained_no_second_time(
    trained: Path,
    editor: QwenImageEditor,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(QwenImageEditPipeline, "from_pretrained", None)
    train_lora(editor, Toys(), SHORT, tmp_path / "again", base=base)
    assert far(tmp_path / "again", trained) == 0


def test_the_best_checkpoint_is_kept(
    editor: QwenImageEditor, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[float] = [3.0, 1.0, 2.0]
    looked: list[dict[str, Tensor]] = []

    def look(run: training._Run) -> float:
        named = run.dit.named_parameters()
        looked.append({n: p.detach().clone() for n, p in named if p.requires_grad})
        return shown[len(looked) - 1]

    monkeypatch.setattr(training._Run, "_held_out", look)
    train_lora(editor, Toys(), SHORT.model_copy(update={"seed": 1}), tmp_path, base=base)
    log = store.read_json(tmp_path / "held_out.json")
    assert [row["flow"] for row in log] == shown
    assert [row["passes"] for row in log] == [0.67, 1.33, 2.0]  # of 6 samples by 2
    found = weights(tmp_path)
    for name, value in looked[1].items():
        assert torch.equal(found["transformer." + name.replace(".default", "")], value)


def test_it_learns_and_an_editor_edits_by_it(
    editor: QwenImageEditor, base: Path, tmp_path: Path
) -> None:
    settings = LoraTraining(
        rank=16, steps=25, batch=6, lr=1e-2, warmup=5, held_out=3, looks=5,
        gradient_checkpointing=False,
    )  # fmt: skip
    train_lora(editor, Toys(), settings, tmp_path, base=base)
    losses = [row["flow"] for row in store.read_json(tmp_path / "held_out.json")]
    assert losses[-1] < 0.9 * losses[0]
    plain = QwenImageEditor.from_pretrained(
        smoke_editor(), image_area=SMOKE_AREA, n_steps=2, guidance=1.0
    )
    ours = replace(plain, lora=tmp_path)
    given = (noise(64, 64), "flip it", 0)
    assert ours.edit(*given, box=(0.1, 0.2, 0.5, 0.7)) != plain.edit(*given)


def test_weights_in_bf16_have_a_lora_in_float32(tmp_path: Path) -> None:
    editor = QwenImageEditor.from_pretrained(
        smoke_editor(), image_area=SMOKE_AREA, dtype=torch.bfloat16
    )
    settings = LoraTraining(steps=2, held_out=3, looks=2)
    fitted = train_lora(editor, Toys(), settings, tmp_path / "out", base=tmp_path)
    assert 0 < fitted.curves[-1]["flow"] < 10
    assert {value.dtype for value in weights(tmp_path / "out").values()} == {torch.float32}


def test_a_pair_is_what_the_editor_sees_and_is_to_make(
    editor: QwenImageEditor, trained: Path
) -> None:
    place = next((trained.parent / "lora_pairs").glob("*"))
    whole = QwenImageEditor.from_pretrained(
        smoke_editor(), image_area=SMOKE_AREA, n_steps=2, guidance=1.0
    )
    sample = Toys()[1]
    picture = whole.picture(sample.image, sample.box)
    found = pairs.BoxedPairs(sorted(place.glob("*.safetensors")))[1]
    latents = pairs.qwen_pipeline.source_latents(whole.pipeline, [picture])[0]
    assert torch.equal(found["source"], latents)
    assert not torch.equal(found["source"], found["target"])
    seen = whole.picture(sample.image, None)
    states = whole.encoder(seen.size).encode([seen], [sample.instruction], final=True)
    assert torch.equal(found["states"], states.states["final"][0])
    assert found["grid"].tolist() == [picture.height // 16, picture.width // 16]


def test_batches_hold_one_shape_each_and_mask_their_padding(
    editor: QwenImageEditor, trained: Path
) -> None:
    place = next((trained.parent / "lora_pairs").glob("*"))
    single = [pairs.BoxedPairs(sorted(place.glob("*.safetensors")))[row] for row in range(5)]
    batches = pairs.batched(single)
    assert sorted(len(batch["source"]) for batch in batches) == [2, 3]
    assert len({tuple(batch["grid"][0].tolist()) for batch in batches}) == len(SIZES)
    for batch in batches:
        assert not batch["mask"].all()
        assert not batch["states"][~batch["mask"]].any()


def test_changed_cells_weigh_more() -> None:
    source = torch.zeros(1, 3, 8)  # two channels of four cells
    target = source.clone()
    target[0, 1, 6] = 1.0  # the third cell of the second channel
    changed = torch.zeros(1, 3, 4, dtype=torch.bool)
    changed[0, 1, 2] = True
    assert torch.equal(changed_cells(source, target), changed)
    heavy = torch.ones(1, 3, 8)
    heavy[0, 1, [2, 6]] = 9.0
    assert torch.equal(cell_weights(source, target, 8.0), heavy)


class Holed(Toys):
    """Toys of which two have no box and one no target."""

    fingerprint = "holed"

    def __getitem__(self, index: int) -> Sample:
        whole = super().__getitem__(index)
        return replace(whole, box=(float("nan"),) * 4) if index in (0, 5) else whole

    def edited(self, index: int) -> Image.Image:
        if index == 3:
            raise OSError("a broken picture")
        return super().edited(index)


def test_pairs_that_cannot_be_used_are_listed_and_stop_no_others(
    editor: QwenImageEditor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_lora(editor, Holed(), SHORT, tmp_path / "out", base=tmp_path)
    told = capsys.readouterr().err
    assert "3 of 9 training pairs of toys cannot be made:" in told
    for said in ("0: It has no box", "3: It cannot be read (OSError: a broken", "5: It has no box"):
        assert said in told
    assert weights(tmp_path / "out")
    log = store.read_json(tmp_path / "out" / "held_out.json")
    assert log[-1]["passes"] == 4.0  # of the three that are left, by two
    with pytest.raises(AbpError, match="toys has 6 samples that can be used; 5 held out and 2 a"):
        train_lora(
            editor, Holed(), SHORT.model_copy(update={"held_out": 5}), tmp_path / "no",
            base=tmp_path,
        )  # fmt: skip


def test_samples_that_cannot_teach_are_refused(editor: QwenImageEditor, tmp_path: Path) -> None:
    with pytest.raises(AbpError, match="edits of listed are not known"):
        train_lora(
            editor,
            Listed(Toys()[i] for i in range(9)),
            SHORT,
            tmp_path / "out",
            base=tmp_path,
        )
    many = SHORT.model_copy(update={"held_out": 8})
    with pytest.raises(AbpError, match="toys has 9 samples that can be used; 8 held out and 2 a"):
        train_lora(editor, Toys(), many, tmp_path / "out", base=tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_shipped_lora_was_trained_by_the_profiles_settings() -> None:
    record = store.read_json(paths.root() / "data/mini/editor/training.json")["plan"]["lora"]
    assert record == Profile.load("mini").lora_training.model_dump()


def test_what_a_profile_leaves_out_is_the_papers() -> None:
    paper = Profile.load("paper").lora_training.model_dump()
    names = {"batch": "batch_size", "warmup": "warmup_steps"}
    asked = ("rank", "steps", "batch", "lr", "warmup", "weight_decay", "clip")
    reported = store.read_json(paths.root() / "data/paper/reported.json")["numbers"]
    for name in asked:
        assert paper[name] == reported[f"lora_{names.get(name, name)}"]["value"], name
    settings = Profile.load("paper").lora_training
    assert settings.passes(settings.steps, 400) == reported["lora_epochs"]["value"]


def test_a_profile_without_lora_or_with_a_strange_budget_is_refused(tmp_path: Path) -> None:
    fields = Profile.load("smoke").model_dump()
    for changes, sentence in (
        ({"lora": None}, "has no LoRA: set lora"),
        ({"lora_training": {"batches": 3}}, "lora_training.batches is not a known name"),
    ):
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({**fields, **changes}))
        given = ["train-lora", "--profile", str(tmp_path / "own.yaml")]
        outcome = CliRunner().invoke(main, given)
        assert outcome.exit_code == 2
        assert sentence in outcome.output


def test_a_new_lora_goes_into_a_local_editor_or_the_checkout(tmp_path: Path) -> None:
    inside = Experiment(Profile.load("smoke", lora="another"))
    assert inside.lora_place == smoke_editor() / "another"
    with pytest.raises(AbpError, match="train one by `abp train-lora --profile smoke`"):
        _ = inside.lora_folder
    assert Experiment(Profile.load("paper")).lora_place == paths.root() / "runs/paper/lora"
    own = Experiment(Profile.load("smoke", lora=str(tmp_path)))
    assert own.lora_folder == tmp_path
