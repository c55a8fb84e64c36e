"""The miniature editor as it is shipped: loaded by the stock class, good enough to be judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import noise
from diffusers import QwenImageEditPipeline

from abplib.core import paths
from abplib.editing import qwen_pipeline
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.judging import scene_reading as reading
from abplib.samples.scenes.render import render
from abplib.samples.scenes.sets import evaluation

FOLDER = paths.root() / "data/mini/editor"
SOME = range(0, 200, 20)


@pytest.fixture(scope="module")
def editor() -> QwenImageEditor:
    return QwenImageEditor.from_pretrained(FOLDER, image_area=128 * 128, n_steps=2, guidance=1)


def test_the_stock_class_loads_it_with_its_lora() -> None:
    pipeline = QwenImageEditPipeline.from_pretrained(FOLDER)
    pipeline.load_lora_weights(FOLDER / "lora")
    assert pipeline.get_list_adapters()["transformer"]


@torch.inference_mode()
def test_its_vae_leaves_objects_recognisable(editor: QwenImageEditor) -> None:
    """Kind and colour of 99 % of the objects, read from sources encoded and decoded."""
    samples = evaluation()
    pictures = [editor.picture(samples[index].image, None) for index in SOME]
    latents = qwen_pipeline.source_latents(editor.pipeline, pictures)
    decoded = qwen_pipeline.decode(editor.pipeline, latents, pictures[0].size)
    right = []
    for index, image in zip(SOME, decoded, strict=True):
        scene, _ = samples.scene_edit(index)
        source = reading._soft([render(scene)])[0]
        errors = reading._errors(scene, reading._seen(scene, [image], source))[0]
        nearest = [reading.LOOKS[i] for i in errors.argmin(-1)]  # with no favour for its own
        right += [
            look == (thing.kind, thing.colour)
            for look, thing in zip(nearest, scene.things, strict=True)
        ]
    assert len(right) > 50 and np.mean(right) >= 0.99


@pytest.mark.parametrize("size", [(129, 75), (448, 448), (31, 200)])
def test_it_edits_pictures_of_any_size(editor: QwenImageEditor, size: tuple[int, int]) -> None:
    assert editor.edit(noise(*size), "Remove the leftmost cup.", seed=0).size == size
