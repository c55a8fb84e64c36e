"""The comparison of trained conditions, at the smallest size: what is read, made and judged."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from abplib.core import store, trainer
from abplib.core.errors import AbpError
from abplib.core.trainer import Schedule
from abplib.editing.base import Request
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.editing.twins import SMOKE, build_vae, save_pipeline
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.samples.scenes.render import render
from abplib.samples.scenes.sets import evaluation
from abplib.sections import trained_conditions
from abplib.vlm.encoder import NOTHING, ConditionEncoder
from abplib.vlm.twins import smoke_vlm
from recipes.miniature import condition_comparison, condition_states, editor_data
from recipes.miniature.condition_comparison import RUNS, ComparisonPlan, build, compare, edit_all
from recipes.miniature.condition_states import (
    conditioned,
    encode_conditions,
    layers_read,
    read_conditions,
)
from recipes.miniature.editor_data import Pairs, Wording, encode_pairs
from recipes.miniature.editor_training import EditorTraining

PLAN = ComparisonPlan(
    shape=SMOKE,
    dit=EditorTraining(
        Schedule(steps=2, lr=1e-3, warmup=1, muon="blocks"), batch=4, scenes=2, compile=False
    ),
    held_out=1,
    samples=2,
    n_steps=2,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor_data, "_PART", 3)
    monkeypatch.setattr(condition_states, "_PART", 2)
    monkeypatch.setattr(condition_comparison, "_BATCH", 1)


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    build_vae(SMOKE, 1).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


class OfDepth(ConditionEncoder):
    """A VLM that has nothing but a depth."""

    n_layers = 0

    def __init__(self, depth: int) -> None:
        self.n_layers = depth


def test_layers_are_flux2s_and_the_papers_scaled_to_the_depth() -> None:
    assert layers_read(OfDepth(40))["stacked"] == (9, 19, 29)  # after 10, 20 and 30 blocks
    assert layers_read(OfDepth(28))["pooled"] == tuple(range(15, 25))
    assert layers_read(OfDepth(28))["middle"] == (20,)
    assert layers_read(OfDepth(8)) == {
        "final": ("final",), "middle": (6,), "pooled": (5, 6, 7), "stacked": (1, 3, 5),
    }  # fmt: skip


def test_one_pass_gives_every_condition(
    encoder: ConditionEncoder, images: list[Any], instructions: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        condition_states,
        "layers_read",
        lambda _: {"final": ("final",), "middle": (2,), "pooled": (1, 2), "stacked": (0, 1, 3)},
    )
    passes = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda *a, **k: passes.append(0) or encode(*a, **k))
    found = read_conditions(encoder, images, instructions)
    assert len(passes) == 1
    raw = encode(images, instructions, layers=range(4), final=True)
    one, two = (F.layer_norm(raw.states[l], (encoder.width,)) for l in (1, 2))
    assert torch.equal(found["final"].states, raw.states["final"])
    torch.testing.assert_close(found["middle"].states, two)
    torch.testing.assert_close(found["pooled"].states, (one + two) / 2)
    assert found["stacked"].states.shape[-1] == 3 * encoder.width
    torch.testing.assert_close(found["stacked"].states.chunk(3, -1)[1], one)
    for condition in found.values():
        assert torch.equal(condition.mask, raw.mask)
        assert not condition.states[~raw.mask].any()


def test_pairs_get_the_states_of_their_own_scenes(
    encoder: ConditionEncoder, vae: Path, tmp_path: Path
) -> None:
    pipeline = condition_comparison._pipeline(encoder, vae, "cpu")
    pairs = encode_pairs(tmp_path / "pairs", 3, Wording(), pipeline.vae, encoder)
    encode_conditions(tmp_path / "conditions", 3, Wording(), encoder)
    final = conditioned(pairs, tmp_path / "conditions", "final")
    np.testing.assert_allclose(final.conditions, pairs.conditions, atol=4e-3)
    np.testing.assert_allclose(final.nothing, pairs.nothing, atol=4e-3)
    stacked = conditioned(pairs, tmp_path / "conditions", "stacked")
    assert stacked.conditions.shape == (*pairs.conditions.shape[:2], 3 * encoder.width)
    last = condition_comparison._scenes(stacked, 2, 3)
    assert np.array_equal(last.conditions, stacked.conditions[2 * editor_data.EDITS :])
    assert np.array_equal(last.sources, pairs.sources[2:])
    assert {len(getattr(last, part.name)) for part in fields(Pairs)} == {1, editor_data.EDITS}


def test_only_what_reads_the_condition_depends_on_it() -> None:
    common, wide = (build(PLAN, 64, width).state_dict() for width in (64, 192))
    assert common.keys() == wide.keys()
    differ = {name for name in common if not torch.equal(common[name], wide[name])}
    assert differ == {"txt_norm.weight", "txt_in.weight"}


def test_edits_are_the_editors_own(encoder: ConditionEncoder, vae: Path, tmp_path: Path) -> None:
    pipeline, samples = condition_comparison._pipeline(encoder, vae, "cpu"), evaluation()
    dit = build(PLAN, encoder.width, encoder.width)
    plan = replace(PLAN, seed=5)
    made = edit_all(pipeline, {"final": dit}, encoder, samples, plan)["final"]
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
        given.append((positive.states, negative.states))
        return source

    monkeypatch.setattr(condition_comparison.qwen_pipeline, "denoise", denoise)
    pipeline, samples = condition_comparison._pipeline(encoder, vae, "cpu"), evaluation()
    dit = build(PLAN, encoder.width, 3 * encoder.width)
    edit_all(pipeline, {"stacked": dit}, encoder, samples, replace(PLAN, samples=1))
    sample = samples[0]
    for instruction, states in zip((sample.instruction, NOTHING), given[0], strict=True):
        wanted = read_conditions(encoder, [sample.image], [instruction])["stacked"].states
        torch.testing.assert_close(states, wanted, atol=1e-4, rtol=0)


def test_a_row_tells_whether_the_target_and_what_else_is_altered() -> None:
    samples = evaluation()
    scene, _ = samples.scene_edit(0)
    colour = next(c for c in ("red", "blue") if c not in {t.colour for t in scene.things})
    all_changed = replace(
        scene, things=tuple(replace(thing, colour=colour) for thing in scene.things)
    )
    edits = {
        "final": [samples.edited(0)],
        "middle": [samples[0].image],
        "pooled": [render(all_changed)],
    }
    rows = condition_comparison._judged(edits, samples).set_index("condition")
    assert list(rows["target_altered"]) == [True, False, True]
    assert list(rows["others_altered"]) == [0, 0, 1]
    assert list(rows["edit_success"]) == [True, False, False]
    assert set(rows["sample_id"]) == {samples[0].id}


def test_a_comparison_is_made_told_shown_and_made_no_second_time(
    vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: ConditionEncoder
) -> None:
    table = tmp_path / "conditions.csv"

    def make() -> Path:
        return compare(table, smoke_vlm(), vae, tmp_path / "work", PLAN, "cpu")

    rows = pd.read_csv(make())
    assert list(rows["condition"]) == [name for name in sorted(RUNS) for _ in range(2)]
    run = store.read_json(table.with_suffix(".json"))
    told = run["conditions"]
    assert run["plan"]["dit"]["schedule"]["steps"] == 2
    assert [about["layers"] for about in told.values()] == [
        ["final"],
        [3],
        [3],
        [0, 1, 2],
        ["final"],
    ]
    assert (
        told["stacked"]["parameters"] > told["final"]["parameters"] == told["pooled"]["parameters"]
    )
    losses = [about["held_out_loss"] for about in told.values()]
    assert len(set(losses)) >= 3 and all(0 < loss < 100 for loss in losses)

    experiment = Experiment(Profile.load("smoke", comparison=str(table)))
    trained, sentence = trained_conditions.find(experiment)
    assert trained is not None and "2 batches of 4 pairs" in sentence
    shown = trained_conditions.rate_table(trained, trained_conditions.rates(trained.rows, 0))
    assert list(shown["layers"]) == ["final", "3", "3", "0, 1, 2", "final"]

    monkeypatch.setattr(condition_states, "_encode", None)
    monkeypatch.setattr(editor_data, "_encode", None)
    monkeypatch.setattr(trainer._Run, "update", None)
    before = table.read_bytes()
    table.unlink()
    assert make().read_bytes() == before
    assert store.read_json(table.with_suffix(".json")) == run


def test_without_a_vae_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AbpError, match=r"no VAE in .*: run `train-editor` first"):
        compare(tmp_path / "t.csv", smoke_vlm(), tmp_path, tmp_path, PLAN, "cpu")
