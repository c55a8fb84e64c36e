"""Everything from nothing, at the smallest size: killed again and again it is as if unbroken."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from abplib.core.trainer import Schedule
from abplib.editing import twins as editors
from abplib.editing.lora.settings import LoraTraining
from abplib.proxies.settings import SweepSettings
from abplib.samples.scenes import sets
from abplib.vlm.twins import SMOKE
from recipes.miniature import answers, editor_data, vlm_training
from recipes.miniature.condition_comparison import ComparisonPlan
from recipes.miniature.editor import EditorPlan
from recipes.miniature.editor_training import EditorTraining
from recipes.miniature.making import MiniaturePlan, make
from recipes.miniature.vae_training import VAETraining
from recipes.miniature.vlm_training import VLMTraining

SHORT = Schedule(steps=2, lr=1e-3, warmup=1, muon="taps|blocks", average=0.5, checkpoint_every=1)
DIT = EditorTraining(SHORT, batch=4, scenes=2, compile=False)
PLAN = MiniaturePlan(
    shape=SMOKE,
    vlm=VLMTraining(
        see_steps=2, see_batch=2, see_scenes=4, speak_steps=2, speak_batch=2, length=400,
        checkpoint_every=1, compile=False,
    ),
    editor=EditorPlan(
        shape=editors.SMOKE,
        vae=VAETraining(
            SHORT, SHORT, crop=32, crops_batch=2, whole_batch=2, pictures=8, compile=False
        ),
        dit=DIT,
        large=DIT,
        lora=LoraTraining(steps=2, lr=1e-3, batch=2, held_out=2, looks=2),
    ),
    guide=SweepSettings(
        n_batches=2, batch_size=4, micro_batch=4, width=8, n_queries=2, n_heads=2, n_blocks=1,
        lr=1e-3, checkpoint_every=1, eval_every=2, n_curve_eval=2,
    ),
    exact_labels=True,
    comparison=ComparisonPlan(shape=editors.SMOKE, dit=DIT, held_out=2, samples=2, n_steps=2),
)  # fmt: skip


class Killed(BaseException):
    """As a signal would: no `except Exception` may stop it."""


def test_killed_and_resumed_everything_is_as_if_unbroken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editor_data, "_PART", 2)
    few = replace(sets.training(), size=8)  # the LoRA's, each of which is encoded
    monkeypatch.setattr(sets, "training", lambda: few)
    monkeypatch.setattr(vlm_training, "corpus", lambda side: answers.corpus(40, side))
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "r1"))
    whole = make(tmp_path / "whole", tmp_path / "w1", PLAN, "cpu")
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "r2"))
    backward, attempts = torch.Tensor.backward, 0
    for attempts in itertools.count(1):
        left = itertools.count()

        def dying(*args: object, left: itertools.count[int] = left, **options: object) -> None:
            if next(left) == 5:
                raise Killed
            backward(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "backward", dying)
            try:
                mended = make(tmp_path / "mended", tmp_path / "w2", PLAN, "cpu")
                break
            except Killed:
                assert attempts < 20
    assert attempts > 3
    weights = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert {str(path.parts[0]) for path in weights} == {"vlm", "editor", "proxy"}
    for path in weights:
        first, second = load_file(whole / path), load_file(mended / path)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), path
    for name in (
        "vlm/conditions.csv",
        "proxy/choice.json",
        "vlm/curves.jsonl",
        "editor/curves.jsonl",
    ):
        assert (whole / name).read_text() == (mended / name).read_text(), name
    told = json.loads((mended / "vlm/training.json").read_text())
    assert told["plan"]["blind"] == PLAN.vlm.blind
