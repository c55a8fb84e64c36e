"""The local judge on the random twin: it hears the whole question, and its noise is no score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Listed, noise
from hubcache import lay

from abplib.core.errors import AbpError
from abplib.judging import vlm_judge
from abplib.judging.asking import UNUSABLE
from abplib.judging.clients import LocalVlm
from abplib.judging.vlm_judge import VqaJudge
from abplib.samples.base import Sample

SAMPLES = Listed([Sample("s0", noise(64, 64), "Move the cup.", (0.1, 0.2, 0.6, 0.9))])


@pytest.fixture
def judge(smoke_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VqaJudge:
    monkeypatch.setenv("ABP_ROOT", str(tmp_path))
    monkeypatch.setattr("abplib.judging.clients.MAX_NEW_TOKENS", 8)
    judge = vlm_judge.local_vlm(str(smoke_folder)).scores
    assert isinstance(judge, VqaJudge)
    return judge


def test_noise_is_counted_and_never_scored(judge: VqaJudge) -> None:
    (found,) = judge.judge(SAMPLES, 0, [noise(64, 64, seed=1)])
    assert (found.edit, found.success) == (None, None)
    assert vlm_judge.tally(judge.table())[UNUSABLE] == 1
    held = judge.record_file.read_text()
    assert str(Path.home()) not in held and "/" not in judge.name


def test_the_model_hears_the_question_and_sees_three_images(
    judge: VqaJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(judge.wire, LocalVlm)
    model, processor = judge.wire._loaded
    answer = '{"reason": "as asked", "edit": 4, "accuracy": 3, "leakage": 1}'
    given: dict[str, Any] = {}

    def generate(input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        given.update(inputs, input_ids=input_ids)
        said = processor.tokenizer(answer, return_tensors="pt")["input_ids"]
        return torch.cat([input_ids, said], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    (found,) = judge.judge(SAMPLES, 0, [noise(64, 64, seed=1)])
    assert (found.edit, found.accuracy, found.leakage, found.reason) == (4, 3, 1, "as asked")
    assert len(given["image_grid_thw"]) == 3
    heard = processor.tokenizer.decode(given["input_ids"][0])
    assert "The instruction was: Move the cup." in heard and heard.count("<|vision_start|>") == 3


def test_a_model_of_the_hub_judges_too_and_is_known_by_its_commit(
    judge: VqaJudge, smoke_folder: Path, hub_cache: Path
) -> None:
    commits = [name + "0" * 34 for name in ("c0ffee", "decade")]
    known = set()
    for commit in commits:
        lay(hub_cache, "org/vlm", smoke_folder, commit)
        named = vlm_judge.local_vlm("org/vlm").scores
        known.add(named.fingerprint)
    assert len(known) == 2 and judge.fingerprint not in known
    (found,) = named.judge(SAMPLES, 0, [noise(64, 64, seed=1)])
    assert found.edit is None and named.name == "vlm"


def test_a_missing_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ABP_ROOT", str(tmp_path))
    with pytest.raises(AbpError, match="There is no VLM at"):
        vlm_judge.local_vlm(str(tmp_path / "none")).judge(SAMPLES, 0, [noise(64, 64)])
