from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import QwenImageEditPipeline

from abplib.editing import twins
from abplib.editing.twins import (
    SMOKE,
    assemble,
    build_dit,
    build_scheduler,
    build_vae,
    save_pipeline,
    smoke_editor,
)
from abplib.prompts import EDIT_PREFIX, N_DROPPED
from abplib.vlm import twins as vlm_twins


@pytest.fixture
def pipeline(smoke_folder: Path) -> QwenImageEditPipeline:
    return assemble(smoke_folder, build_vae(SMOKE, 1), build_dit(SMOKE, vlm_twins.SMOKE.width, 2))


def test_the_stock_pipeline_loads_what_was_saved(
    pipeline: QwenImageEditPipeline, tmp_path: Path
) -> None:
    pipeline.vae.register_to_config(latents_mean=[0.5] * 4, latents_std=[2.0] * 4)
    folder = save_pipeline(pipeline, tmp_path / "editor")
    assert [path.name for path in tmp_path.iterdir()] == ["editor"]
    loaded = QwenImageEditPipeline.from_pretrained(folder)
    for part in ("text_encoder", "transformer", "vae"):
        saved = getattr(pipeline, part).state_dict()
        again = getattr(loaded, part).state_dict()
        assert saved.keys() == again.keys()
        assert all(torch.equal(saved[name], again[name]) for name in saved)
        assert not getattr(loaded, part).training
    assert loaded.vae.config.latents_mean == [0.5] * 4
    settings = {k: v for k, v in build_scheduler().config.items() if not k.startswith("_")}
    assert settings == {k: v for k, v in loaded.scheduler.config.items() if k in settings}
    assert len(loaded.tokenizer(EDIT_PREFIX).input_ids) == N_DROPPED
    assert loaded.prompt_template_encode_start_idx == N_DROPPED


def test_a_failed_save_leaves_what_was_there(
    pipeline: QwenImageEditPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_pipeline(pipeline, tmp_path / "editor")

    def fail(partial: Path) -> None:
        partial.mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(pipeline, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pipeline(pipeline, folder)
    QwenImageEditPipeline.from_pretrained(folder)


def test_the_smoke_editor_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = smoke_editor()
    monkeypatch.setattr(twins, "save_pipeline", None)
    assert smoke_editor() == folder and (folder / "model_index.json").is_file()
