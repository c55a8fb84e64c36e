from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMOKE_AREA, noise
from othertwins import smoke_flux2
from safetensors.torch import load_file, save_file
from torch import nn

from abplib.core.errors import AbpError
from abplib.editing import conditions, loading
from abplib.editing.base import Request
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.editing.stock import Flux2Editor
from abplib.editing.twins import smoke_editor

GIGABYTE = 1024**3


@pytest.mark.parametrize(
    ("lacking", "refused"),
    [("lm_head.weight", False), ("language_model.model.layers.3.mlp.up_proj.weight", True)],
)
def test_only_weights_that_no_edit_needs_may_lack(
    tmp_path: Path, lacking: str, refused: bool
) -> None:
    folder = Path(shutil.copytree(smoke_flux2(), tmp_path / "flux2"))
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    (key,) = (key for key in tensors if key.endswith(lacking))
    del tensors[key]
    save_file(tensors, weights, metadata={"format": "pt"})
    if refused:
        with pytest.raises(AbpError, match=r"text_encoder of .* lacks .*up_proj"):
            _ = Flux2Editor.from_pretrained(folder).pipeline
    else:
        whole = Flux2Editor.from_pretrained(smoke_flux2(), image_area=SMOKE_AREA, n_steps=2)
        editor = Flux2Editor.from_pretrained(folder, image_area=SMOKE_AREA, n_steps=2)
        image = noise(64, 64)
        assert editor.edit(image, "remove it", 0) == whole.edit(image, "remove it", 0)


def test_a_pipeline_of_another_class_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(smoke_editor(), tmp_path / "editor"))
    with pytest.raises(AbpError, match="cannot be loaded"):
        _ = Flux2Editor.from_pretrained(folder).pipeline
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("AutoencoderKLQwenImage", "AutoencoderOfNobody"))
    with pytest.raises(AbpError, match=r"AutoencoderOfNobody.*fetch or make it again"):
        _ = QwenImageEditor.from_pretrained(folder).pipeline


class Pipeline:
    """Three parts, and where they were put."""

    def __init__(self) -> None:
        sizes = {"text_encoder": 3, "transformer": 5, "vae": 1}
        self.components = {
            "tokenizer": object(),
            **{
                name: nn.Linear(n, GIGABYTE // 4, bias=False, device="meta")
                for name, n in sizes.items()
            },
        }
        self.put: object = None

    def to(self, device: torch.device) -> Pipeline:
        self.put = device
        return self

    def enable_model_cpu_offload(self, device: torch.device) -> None:
        self.put = "part by part", device


@pytest.mark.parametrize(
    ("free", "put"),
    [
        (9 * GIGABYTE, "whole"),
        (9 * GIGABYTE - 1, "part by part"),
        (5 * GIGABYTE, "part by part"),
        (5 * GIGABYTE - 1, None),
    ],
)
def test_free_memory_decides_where_parts_go(
    monkeypatch: pytest.MonkeyPatch, free: int, put: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free + loading.ROOM, 2**40))
    device, pipeline = torch.device("cuda"), Pipeline()
    if put is None:
        with pytest.raises(AbpError, match=r"transformer needs 14 GB .* 14 GB are free"):
            loading.place(pipeline, device)  # type: ignore[type-var]
        return
    assert loading.place(pipeline, device) is pipeline  # type: ignore[type-var]
    assert pipeline.put == (device if put == "whole" else (put, device))


def test_an_offloaded_qwen_image_edit_edits_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "MAX_DESCRIPTION", 4)
    editor = QwenImageEditor.from_pretrained(
        smoke_editor(), image_area=SMOKE_AREA, n_steps=2, guidance=3.0
    )
    described = dataclasses.replace(editor, condition="full_description")
    images = [noise(64, 64), noise(101, 67)]
    asked = [Request(image, "remove it", seed) for seed, image in enumerate(images)]
    expected = [e.edit_many(asked) for e in (editor, described)]
    woken: list[str] = []
    editor.pipeline.enable_model_cpu_offload(device="cpu")
    for name in ("text_encoder", "vae"):
        part = getattr(editor.pipeline, name)
        wake = part._hf_hook.pre_forward

        def waking(*args: Any, wake: Any = wake, name: str = name, **kwargs: Any) -> Any:
            woken.append(name)
            return wake(*args, **kwargs)

        part._hf_hook.pre_forward = waking
    found = [e.edit_many(asked) for e in (editor, described)]
    assert found == expected
    assert woken[:2] == ["text_encoder", "vae"]
