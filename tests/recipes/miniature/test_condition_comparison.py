"""The comparison of trained conditions, at the smallest size: what is read, made and judged."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch.nn import functional as F

from abplib.core import store, trainer
from abplib.core.errors import AbpError
from abplib.core.trainer import Schedule
from abplib.editing.base import Request
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.editing.twins import SMOKE, build_dit, build_vae, save_pipeline
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.samples.scenes.render import render
from abplib.samples.scenes.sets import evaluation
from abplib.sections import trained_conditions
from abplib.vlm.encoder import NOTHING, ConditionEncoder
from abplib.vlm.twins import smoke_vlm
from recipes.miniature import condition_comparison, condition_states, editor_data
from recipes.miniature.condition_comparison import ComparisonPlan, compare, edit_all
from recipes.miniature.condition_states import CONDITIONS, layers_read, read_conditions
from recipes.miniature.editor_data import Pairs, Wording, encode_pairs
from recipes.miniature.editor_training import EditorTraining

PLAN = ComparisonPlan(
    shape=SMOKE,
    dit=EditorTraining(
        Schedule(steps=2, lr=1e-3, warmup=1, muon="blocks"), batch=4, scenes=2, compile=False
    ),
    by_place={"none": 0.0, "many": 1.0},
    held_out=1,
    samples=2,
    n_steps=2,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor_data, "_PART", 3)
    monkeypatch.setattr(condition_comparison, "_BATCH", 1)


@pytest.fixture
def editor(tmp_path: Path, encoder: ConditionEncoder) -> Path:
    """What a comparison takes of an editor."""
    build_vae(SMOKE, 1).save_pretrained(tmp_path / "editor/vae")
    build_dit(SMOKE, encoder.width, 0).save_pretrained(tmp_path / "editor/transformer")
    return tmp_path / "editor"


@pytest.fixture
def vae(editor: Path) -> Path:
    return editor / "vae"


class OfDepth(ConditionEncoder):
    """A VLM that has nothing but a depth."""

    n_layers = 0

    def __init__(self, depth: int) -> None:
        self.n_layers = depth


def test_layers_are_the_papers_scaled_to_the_depth() -> None:
    assert layers_read(OfDepth(28)) == {
        "final": ("final",), "middle": (20,), "pooled": tuple(range(15, 25)),
    }  # fmt: skip
    assert layers_read(OfDepth(8)) == {"final": ("final",), "middle": (6,), "pooled": (5, 6, 7)}


def test_one_pass_gives_every_condition(
    encoder: ConditionEncoder, images: list[Any], instructions: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    layers = {"final": ("final",), "middle": (2,), "pooled": (1, 2)}
    monkeypatch.setattr(condition_states, "layers_read", lambda _: layers)
    passes = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda *a, **k: passes.append(0) or encode(*a, **k))
    found = read_conditions(encoder, images, instructions)
    assert len(passes) == 1
    raw = encode(images, instructions, layers=(1, 2), final=True)
    one, two = (F.layer_norm(raw.states[l], (encoder.width,)) for l in (1, 2))
    assert torch.equal(found["final"].states, raw.states["final"])
    torch.testing.assert_close(found["middle"].states, two)
    torch.testing.assert_close(found["pooled"].states, (one + two) / 2)
    for condition in found.values():
        assert torch.equal(condition.mask, raw.mask)
        assert not condition.states[~raw.mask].any()
    assert read_conditions(encoder, images, instructions, ["middle"]).keys() == {"middle"}


def test_pairs_have_the_states_of_their_own_scenes_under_every_condition(
    encoder: ConditionEncoder, vae: Path, tmp_path: Path
) -> None:
    pipeline = condition_comparison._pipeline(encoder, vae, "cpu")
    both = encode_pairs(
        tmp_path / "pairs", 3, Wording(), pipeline.vae, encoder, ("final", "pooled")
    )
    plain = encode_pairs(tmp_path / "plain", 3, Wording(), pipeline.vae, encoder)
    assert plain.keys() == {"final"} and both.keys() == {"final", "pooled"}
    for part in fields(Pairs):
        assert np.array_equal(getattr(both["final"], part.name), getattr(plain["final"], part.name))
    pooled = both["pooled"]
    assert pooled.conditions.shape == both["final"].conditions.shape
    assert not np.array_equal(pooled.conditions, both["final"].conditions)
    last = condition_comparison._scenes(pooled, 2, 3)
    assert np.array_equal(last.conditions, pooled.conditions[2 * editor_data.EDITS :])
    assert np.array_equal(last.sources, pooled.sources[2:])
    assert {len(getattr(last, part.name)) for part in fields(Pairs)} == {1, editor_data.EDITS}


def test_edits_are_the_editors_own(encoder: ConditionEncoder, vae: Path, tmp_path: Path) -> None:
    pipeline, samples = condition_comparison._pipeline(encoder, vae, "cpu"), evaluation()
    dit = build_dit(PLAN.shape, encoder.width, 0)
    plan, run = replace(PLAN, seed=5), ("final", "none")
    made = edit_all(pipeline, {run: dit}, encoder, samples, plan)[run]
    pipeline.register_modules(transformer=dit)
    editor = QwenImageEditor.from_pretrained(
        save_pipeline(pipeline, tmp_path / "editor"),
        image_area=encoder.image_area,
        n_steps=plan.n_steps,
        guidance=plan.guidance,
    )
    asked = [samples[index] for index in range(2)]
    stock = editor.edit_many(
        [Request(s.image, s.instruction, 5 + row) for row, s in enumerate(asked)]
    )
    for mine, theirs, sample in zip(made, stock, asked, strict=True):
        assert mine.size == sample.image.size
        difference = np.abs(np.asarray(mine, int) - np.asarray(theirs, int))
        assert difference.max() <= 1 and difference.mean() < 0.01


def test_the_negative_prompt_is_read_as_the_condition_is(
    encoder: ConditionEncoder, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def denoise(pipeline: Any, source: Any, positive: Any, negative: Any, *rest: Any, **more: Any):
        given.append((positive.states, negative and negative.states))
        return source

    monkeypatch.setattr(condition_comparison.qwen_pipeline, "denoise", denoise)
    pipeline, samples = condition_comparison._pipeline(encoder, vae, "cpu"), evaluation()
    dit = build_dit(PLAN.shape, encoder.width, 0)
    for guidance in (1.0, 1.5):
        plan = replace(PLAN, samples=1, guidance=guidance)
        edit_all(pipeline, {("pooled", "none"): dit}, encoder, samples, plan)
    sample = samples[0]
    for instruction, states in zip((sample.instruction, NOTHING), given[1], strict=True):
        wanted = read_conditions(encoder, [sample.image], [instruction])["pooled"].states
        torch.testing.assert_close(states, wanted, atol=1e-4, rtol=0)
    assert given[0][1] is None  # not guided


def test_a_row_tells_whether_the_target_and_what_else_is_altered() -> None:
    samples = evaluation()
    scene, _ = samples.scene_edit(0)
    colour = next(c for c in ("red", "blue") if c not in {t.colour for t in scene.things})
    all_changed = replace(
        scene, things=tuple(replace(thing, colour=colour) for thing in scene.things)
    )
    edits = {
        ("final", "none"): [samples.edited(0)],
        ("middle", "none"): [samples[0].image],
        ("pooled", "none"): [render(all_changed)],
    }
    rows = condition_comparison._judged(edits, samples).set_index("condition")
    assert list(rows["target_altered"]) == [True, False, True]
    assert list(rows["others_altered"]) == [0, 0, 1]
    assert list(rows["edit_success"]) == [True, False, False]
    assert set(rows["sample_id"]) == {samples[0].id}


def test_a_comparison_is_made_told_shown_and_made_no_second_time(
    editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = shutil.copytree(smoke_vlm(), tmp_path / "vlm") / trained_conditions.FILE

    def make() -> Path:
        return compare(table, smoke_vlm(), editor, tmp_path / "work", PLAN, "cpu")

    rows = pd.read_csv(make())
    keys = list(zip(rows["condition"], rows["by_place"], strict=True))
    assert keys == [(c, a) for c in CONDITIONS for a in ("many", "none") for _ in range(2)]
    run = store.read_json(table.with_suffix(".json"))
    assert run["plan"]["dit"]["schedule"]["steps"] == 2
    told = pd.DataFrame(run["runs"])
    assert list(told["layers"]) == [["final"], [3], [3]] * 2
    assert told["parameters"].nunique() == 1
    assert told["held_out_loss"].between(0, 100).all() and told["held_out_loss"].nunique() >= 4

    experiment = Experiment(Profile.load("smoke", vlm=str(tmp_path / "vlm")))
    trained, sentence = trained_conditions.find(experiment)
    assert trained is not None and "2 more batches of 4 pairs" in sentence
    assert "another transformer than this editor's" in sentence
    own = Experiment(experiment.profile.model_copy(update={"editor": str(editor)}))
    assert "another" not in trained_conditions.find(own)[1]
    shown = trained_conditions.rate_table(trained, trained_conditions.rates(trained, 0))
    assert list(shown["layers"]) == ["final", "3", "3"] * 2

    monkeypatch.setattr(editor_data, "_encode", None)
    monkeypatch.setattr(trainer._Run, "update", None)
    before = table.read_bytes()
    table.unlink()
    assert make().read_bytes() == before
    assert store.read_json(table.with_suffix(".json")) == run


def test_each_starts_from_the_editor_but_for_how_it_reads(editor: Path) -> None:
    shipped = QwenImageTransformer2DModel.from_pretrained(editor / "transformer").state_dict()
    start, again = (condition_comparison._start(editor / "transformer", 3) for _ in range(2))
    differs = {k for k, w in start.state_dict().items() if not torch.equal(w, shipped[k])}
    assert differs == {"txt_in.weight", "txt_in.bias"}
    assert torch.equal(start.txt_in.weight, again.txt_in.weight)


def test_without_an_editor_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AbpError, match=r"no editor in .*: run `train-editor`"):
        compare(tmp_path / "t.csv", smoke_vlm(), tmp_path, tmp_path, PLAN, "cpu")
