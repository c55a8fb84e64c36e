"""The miniature editor's training, at the smallest size: it runs, resumes, learns and is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPipeline
from safetensors.torch import load_file

from abplib.core import parallel
from abplib.core.errors import AbpError
from abplib.core.parallel import Shard
from abplib.core.trainer import Schedule
from abplib.editing.lora.settings import LoraTraining
from abplib.editing.qwen_pipeline import for_stills
from abplib.editing.twins import SMOKE, build_dit, build_vae
from abplib.samples.scenes import sets
from abplib.samples.scenes.edits import LOOK
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.twins import smoke_vlm
from recipes.miniature import editor_data, vae_training
from recipes.miniature.editor import EditorPlan, make_editor
from recipes.miniature.editor_data import (
    EDITS,
    Pairs,
    Wording,
    encode_pairs,
    scene_edits,
    to_latents,
)
from recipes.miniature.editor_training import EditorTraining, draw, flow_loss, pack
from recipes.miniature.vae_training import VAETraining

SHORT = Schedule(steps=2, lr=1e-3, warmup=1, muon="taps|blocks", average=0.5)
PLAN = EditorPlan(
    shape=SMOKE,
    vae=VAETraining(SHORT, SHORT, crop=32, crops_batch=2, whole_batch=2, pictures=8, compile=False),
    dit=EditorTraining(SHORT, batch=4, scenes=2, compile=False),
    large=EditorTraining(SHORT, batch=6, scenes=4, compile=False),
    lora=LoraTraining(steps=2, lr=1e-3, batch=2, held_out=2, looks=2),
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor_data, "_PART", 2)
    few = replace(sets.training(), size=8)  # the LoRA's, each of which is encoded
    monkeypatch.setattr(sets, "training", lambda: few)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    patch = pytest.MonkeyPatch()
    patch.setattr(editor_data, "_PART", 2)
    vae = for_stills(build_vae(SMOKE, 0))
    encoder = ConditionEncoder.from_pretrained(smoke_vlm(), image_area=SMOKE.side**2)
    found = encode_pairs(tmp_path_factory.mktemp("pairs"), 2, Wording(), vae, encoder)["final"]
    patch.undo()
    return found


def test_an_editor_is_made_saved_and_made_no_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_editor(tmp_path / "editor", smoke_vlm(), tmp_path / "work", PLAN, "cpu")
    pipeline = QwenImageEditPipeline.from_pretrained(folder)
    assert pipeline.transformer.dtype == torch.float32
    assert len(set(pipeline.vae.config.latents_std)) > 1
    pipeline.load_lora_weights(folder / "lora")
    assert pipeline.get_list_adapters()
    assert "lora 0 (cpu, torch" in (folder / "README.md").read_text()
    weights = "transformer/diffusion_pytorch_model.safetensors"
    before = load_file(folder / weights)
    monkeypatch.setattr(editor_data, "_encode", None)
    monkeypatch.setattr(vae_training, "_picture", None)
    again = load_file(
        make_editor(tmp_path / "editor", smoke_vlm(), tmp_path / "work", PLAN, "cpu") / weights
    )
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_one_process_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "share", lambda: Shard(1, 2))
    with pytest.raises(AbpError, match="One process trains the miniature editor"):
        make_editor(tmp_path / "editor", smoke_vlm(), tmp_path / "work", PLAN, "cpu")
    assert not list(tmp_path.iterdir())


def test_trained_taps_are_what_the_saved_vae_sees(tmp_path: Path) -> None:
    vae, _ = vae_training.train_vae(tmp_path, PLAN.vae, SMOKE, "cpu")
    still = build_vae(SMOKE, 0)
    still.load_state_dict(vae.state_dict())
    picture = torch.rand(1, 3, 1, SMOKE.side, SMOKE.side) * 2 - 1
    with torch.no_grad():
        stock = still.encode(picture).latent_dist.mode()
        assert torch.allclose(vae.encode(picture).latent_dist.mode(), stock, atol=1e-5)
    assert not still.encoder.conv_in.weight[:, :, :-1].any()


def test_training_names_objects_by_look_on_scenes_that_are_not_alike() -> None:
    taught = [scene_edits(i, Wording(by_place=0.1, described=0.3), 64) for i in range(400)]
    edits = [edit for _, found in taught for edit in found]
    placed = [e.term != LOOK for e in edits if e.target is not None]
    assert 0.05 < np.mean(placed) < 0.15
    assert 0.25 < np.mean([" Place: " in e.instruction for e in edits]) < 0.35
    for scene, _ in taught:
        assert len({(t.kind, t.colour) for t in scene.things}) > 1
        assert scene.seed >= editor_data.SEED_SPACE
    assert len({scene.seed for scene, _ in taught}) == len(taught)
    never = [scene_edits(i, Wording(0.0, 0.0), 64)[1] for i in range(100)]
    assert not any(e.term != LOOK for found in never for e in found if e.target is not None)


def test_pairs_have_their_shapes(pairs: Pairs) -> None:
    assert pairs.sources.shape == (2, SMOKE.channels, 8, 8)
    assert len(pairs.targets) == len(pairs.conditions) == 2 * EDITS


def test_latents_are_standardised_as_the_pipeline_does() -> None:
    vae = for_stills(build_vae(SMOKE, 0))
    vae.register_to_config(latents_mean=[1.0] * 4, latents_std=[2.0] * 4)
    picture = torch.rand(2, 3, 64, 64) * 2 - 1
    raw = vae.encode(picture[:, :, None]).latent_dist.mode()[:, :, 0]
    assert torch.allclose(to_latents(vae, picture), (raw - 1) / 2, atol=1e-5)


def test_each_pass_takes_every_pair_once_and_drops_some_instructions(pairs: Pairs) -> None:
    n = len(pairs.targets)
    plan = EditorTraining(SHORT, batch=n, nothing=0.5)
    batch = draw(pairs, plan, 3)
    seen = sorted(target.numpy().tobytes() for target in batch["target"])
    assert seen == sorted(target.astype(np.float32).tobytes() for target in pairs.targets)
    lengths = set(batch["mask"].sum(1).tolist())
    empty = pairs.nothing.shape[1]
    assert empty in lengths and len(lengths) > 1
    blank = batch["states"][batch["mask"].sum(1) == empty]
    assert not blank[:, empty:].any()
    assert torch.equal(draw(pairs, plan, 3)["states"], batch["states"])


def test_the_loss_weighs_what_an_edit_changes_and_falls_for_the_true_velocity(
    pairs: Pairs,
) -> None:
    batch = draw(pairs, EditorTraining(SHORT, batch=4), 0)
    batch["target"] = batch["source"].clone()
    batch["target"][..., 2:4, 2:4] += 1.0

    class Oracle(torch.nn.Module):
        off = 0.0

        def forward(self, **given: torch.Tensor) -> tuple[torch.Tensor]:
            tokens = batch["target"].shape[-1] // 2
            noisy = given["hidden_states"][:, : tokens**2]
            s = given["timestep"][:, None, None]
            clean = pack(batch["target"])
            truth = (noisy - clean) / s  # of x_t = (1 - s) x + s noise
            changed = (batch["target"] - batch["source"]).abs().amax(1, keepdim=True) > 0.1
            return (truth + self.off * pack(changed.float().expand_as(batch["target"])),)

    perfect, wrong = Oracle(), Oracle()
    wrong.off = 1.0
    assert flow_loss(perfect, batch, 8.0) < 1e-6
    assert flow_loss(wrong, batch, 8.0) > flow_loss(wrong, batch, 0.0) > 0


def test_a_few_steps_on_one_batch_lower_the_loss(pairs: Pairs) -> None:
    dit = build_dit(SMOKE, 64, 0).train()
    batch = draw(pairs, EditorTraining(SHORT, batch=8), 0)
    optimiser = torch.optim.AdamW(dit.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        torch.manual_seed(0)
        loss = flow_loss(dit, batch, 8.0)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
