from __future__ import annotations

import dataclasses
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit as stock_module
import numpy as np
import pytest
import torch
from conftest import SMOKE_AREA, noise
from diffusers import QwenImageEditPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from abplib.core.errors import AbpError
from abplib.editing import conditions, qwen_image_edit, qwen_pipeline
from abplib.editing.base import Request
from abplib.editing.conditions import Condition
from abplib.editing.qwen_image_edit import QwenImageEditor, with_box
from abplib.editing.twins import smoke_editor
from abplib.vlm.loading import Answer

INSTRUCTIONS = ["remove it", "turn the second red apple from the left into a green pear"]
BOX = (0.25, 0.25, 0.75, 0.75)


def answer(text: str) -> Answer:
    return Answer(text, (64, 64))


def load(**settings: Any) -> QwenImageEditor:
    settings = {"image_area": SMOKE_AREA, "n_steps": 3, "guidance": 3.5, **settings}
    return QwenImageEditor.from_pretrained(smoke_editor(), **settings)


@pytest.fixture(scope="module")
def editor() -> QwenImageEditor:
    return load()


@pytest.fixture
def pictures(editor: QwenImageEditor) -> list[Image.Image]:
    """Two pictures of 80 x 48 pixels, as VLM and VAE see them."""
    return [editor.picture(noise(150, 90, seed), None) for seed in (1, 2)]


def encoded(
    editor: QwenImageEditor, pictures: list[Image.Image]
) -> tuple[torch.Tensor, Condition, Condition]:
    encoder = editor.encoder(pictures[0].size)
    return (
        qwen_pipeline.source_latents(editor.pipeline, pictures),
        conditions.positive(encoder, "final", pictures, INSTRUCTIONS),
        conditions.negative(encoder, "final", pictures),
    )


def far(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures' bytes."""
    assert one.size == other.size
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_edits_are_the_stock_pipelines(
    editor: QwenImageEditor,
    pictures: list[Image.Image],
    guidance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = pictures[0].size
    assert size == (80, 48)
    monkeypatch.setattr(stock_module, "calculate_dimensions", lambda *_: (*size, None))
    editor.pipeline.set_progress_bar_config(disable=True)
    source, asked, unasked = encoded(editor, pictures)
    assert not asked.mask.all()

    def stock(output_type: str) -> Any:
        return editor.pipeline(
            image=pictures,
            prompt_embeds=asked.states,
            prompt_embeds_mask=asked.mask.long(),
            negative_prompt_embeds=unasked.states if guidance > 1 else None,
            negative_prompt_embeds_mask=unasked.mask.long() if guidance > 1 else None,
            true_cfg_scale=guidance,
            num_inference_steps=3,
            generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
            output_type=output_type,
        ).images

    found = qwen_pipeline.denoise(
        editor.pipeline,
        source,
        asked,
        unasked if guidance > 1 else None,
        (5, 6),
        size=size,
        n_steps=3,
        guidance=guidance,
    )
    torch.testing.assert_close(found, stock("latent"), rtol=0, atol=1e-4)
    edits = dataclasses.replace(editor, guidance=guidance).edit_many(
        list(map(Request, pictures, INSTRUCTIONS, (5, 6)))
    )
    for edit, expected in zip(edits, stock("pil"), strict=True):
        assert far(edit, expected) <= 1


def test_edits_do_not_depend_on_the_batch(editor: QwenImageEditor) -> None:
    images = [noise(64, 64, 1), noise(150, 90, 2), noise(64, 64, 1), noise(64, 64, 3)]
    texts, seeds = [INSTRUCTIONS[row] for row in (0, 0, 0, 1)], [1, 1, 2, 1]
    asked = list(map(Request, images, texts, seeds))
    together = editor.edit_many(asked)
    for request, edit in zip(asked, together, strict=True):
        assert far(editor.edit(*request), edit) <= 1
    assert far(together[0], together[2]) > 20  # another seed
    assert [edit.size for edit in together] == [image.size for image in images]


def test_images_of_any_mode_come_back_upright_at_their_size(
    editor: QwenImageEditor, tmp_path: Path
) -> None:
    images = [noise(101, 67).convert(mode) for mode in ("L", "RGBA", "P", "CMYK")]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    noise(101, 67).save(tmp_path / "turned.png", exif=exif)
    upright = noise(101, 67).transpose(Image.Transpose.ROTATE_270)
    *made, turned, expected = editor.edit_many(
        [Request(image, "remove it", 0) for image in (*images, tmp_path / "turned.png", upright)]
    )
    assert {(edit.size, edit.mode) for edit in made} == {((101, 67), "RGB")}
    assert far(turned, expected) == 0


def test_every_variant_edits_otherwise_under_its_own_name(
    editor: QwenImageEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "describe", lambda *_: [answer("A red apple on white.")])
    kinds = ["final", "norm_avg", "full_description"]
    variants = [dataclasses.replace(editor, condition=kind) for kind in kinds]
    assert [variant.name for variant in variants] == [
        "Qwen-Image-Edit",
        "Norm-AVG",
        "Full description",
    ]
    variants += [
        dataclasses.replace(editor, **changed)
        for changed in ({"n_steps": 2}, {"guidance": 1.0}, {"image_area": 96 * 96})
    ]
    edits = {v.edit(noise(64, 64), "remove it", seed=0).tobytes() for v in variants}
    assert len(edits) == len({v.fingerprint for v in variants}) == len(variants)
    assert all(variant.pipeline is editor.pipeline for variant in variants)


def test_the_fingerprint_is_of_weights_and_configuration(
    editor: QwenImageEditor, tmp_path: Path
) -> None:
    def fingerprint() -> str:
        return load_from(folder).fingerprint

    folder = Path(shutil.copytree(smoke_editor(), tmp_path / "editor"))
    assert fingerprint() == editor.fingerprint
    (folder / "README.md").write_text("What it is.")
    assert fingerprint() == editor.fingerprint
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.02", "0.03"))
    assert fingerprint() != editor.fingerprint


def load_from(folder: Path) -> QwenImageEditor:
    return QwenImageEditor.from_pretrained(folder, image_area=SMOKE_AREA, n_steps=3, guidance=3.5)


@pytest.fixture(scope="module")
def lora() -> Path:
    """A LoRA of appendix B.2's kind, with random weights that tell."""
    return smoke_editor() / "lora"


def test_a_lora_is_switched_on_and_off_exactly(lora: Path) -> None:
    base, image = load(), noise(64, 64)
    plain = base.edit(image, "remove it", seed=0)
    ours = dataclasses.replace(base, lora=lora)
    assert ours.pipeline is base.pipeline
    assert (ours.name, ours.reads_boxes, base.reads_boxes) == ("Ours", True, False)
    assert ours.fingerprint != base.fingerprint
    told = ours.edit(image, "remove it", seed=0)
    assert far(told, plain) > 1
    assert far(base.edit(image, "remove it", seed=0), plain) == 0
    assert far(ours.edit(image, "remove it", seed=0), told) == 0
    assert dataclasses.replace(base, lora=lora).fingerprint == ours.fingerprint


@torch.no_grad()
@pytest.mark.parametrize(
    "variant", ["final", "norm_avg", "full_description", "ours", "ours_seeing_it"]
)
def test_variants_read_what_the_pipeline_would(
    variant: str, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        conditions, "describe", lambda _, pictures, __: [answer("An apple.")] * len(pictures)
    )
    ours = variant.startswith("ours")
    shown = variant == "ours_seeing_it"  # the VLM the box; else the VAE alone
    changed = {"lora": lora, "vlm_sees_box": shown} if ours else {"condition": variant}
    editor, instruction = dataclasses.replace(load(), **changed), INSTRUCTIONS[1]
    pipeline, box = editor.pipeline, BOX if ours else None
    image, seen = noise(90, 60), []
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["encoder_hidden_states"][0]), with_kwargs=True
    )
    editor.edit(image, instruction, seed=0, box=box)
    handle.remove()
    said = f"{instruction} An apple." if variant == "full_description" else instruction
    inputs = pipeline.processor(
        text=[pipeline.prompt_template_encode.format(said)],
        images=[editor.picture(image, box if shown else None)],
        return_tensors="pt",
    )
    states = pipeline.text_encoder(**inputs, output_hidden_states=True).hidden_states
    expected = states[-1]
    if variant == "norm_avg":
        layers = torch.stack(states[1:])
        expected = torch.nn.functional.layer_norm(layers, layers.shape[-1:]).mean(0)
    kept = expected[0, pipeline.prompt_template_encode_start_idx :]
    torch.testing.assert_close(seen[0][: len(kept)], kept, rtol=0, atol=1e-5)

    sources = [noise(101, 67), noise(300, 90), noise(1400, 1001)]
    asked = [Request(source, instruction, seed, box) for seed, source in enumerate(sources)]
    first, second = (editor.edit_many(asked) for _ in range(2))
    assert [edit.size for edit in first] == [source.size for source in sources]
    assert first == second


def test_boxes_are_drawn_on_what_the_models_see(lora: Path) -> None:
    base, image = load(), noise(128, 128)
    ours = dataclasses.replace(base, lora=lora, vlm_sees_box=True)
    seen = with_box(base.picture(image, None), BOX)
    assert ours.picture(image, BOX).tobytes() == seen.tobytes()
    edit = ours.edit(image, "remove it", seed=0, box=BOX)
    expected = ours.edit(seen, "remove it", seed=0)
    assert far(edit, expected.resize(image.size, Image.Resampling.LANCZOS)) == 0
    without = ours.edit(image, "remove it", seed=0)
    assert far(edit, without) > 1
    papers = dataclasses.replace(ours, vlm_sees_box=False)
    assert far(edit, papers.edit(image, "remove it", seed=0, box=BOX)) > 1
    assert papers.fingerprint != ours.fingerprint


@pytest.mark.parametrize(("side", "line"), [(32, 1), (128, 2), (1024, 16)])
def test_the_line_lies_around_the_box_and_grows_with_the_picture(side: int, line: int) -> None:
    drawn = np.asarray(with_box(Image.new("RGB", (2 * side, side // 2)), BOX))
    red = (drawn == (255, 0, 0)).all(-1)
    across = np.flatnonzero(red[side // 4])  # of a box from side / 2 to 3 side / 2
    left, right = range(side // 2 - line, side // 2), range(3 * side // 2, 3 * side // 2 + line)
    assert across.tolist() == [*left, *right]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_area": 1024**2 + 1}, "Qwen-Image-Edit edits at up to 1024 x 1024"),
        ({"lora": Path("absent")}, "no LoRA at absent"),
    ],
)
def test_bad_settings_are_refused(
    editor: QwenImageEditor, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(AbpError, match=message):
        dataclasses.replace(editor, **settings)


def test_bad_requests_are_refused_before_any_work(editor: QwenImageEditor) -> None:
    image = noise(64, 64)
    with pytest.raises(AbpError, match="Instruction 1 is empty"):
        editor.edit_many([Request(image, text, 0) for text in ("remove it", " ")])
    with pytest.raises(AbpError, match="Qwen-Image-Edit reads no boxes"):
        editor.edit(image, "remove it", seed=0, box=BOX)
    with pytest.raises(AbpError, match="too oblong"):
        editor.edit(noise(400, 4), "remove it", seed=0)
    with pytest.raises(AbpError, match="no image at absent"):
        editor.edit("absent.png", "remove it", seed=0)


def test_a_lora_of_another_model_or_a_part_of_one_is_refused(lora: Path, tmp_path: Path) -> None:
    weights = load_file(lora / qwen_pipeline.LORA_FILE)
    deeper = {key.replace("blocks.1", "blocks.9"): torch.ones_like(weights[key]) for key in weights}
    for name, changed, message in [
        ("wider", {key: torch.zeros(2 * len(weights[key]), 7) for key in weights}, "size mismatch"),
        ("deeper", {**weights, **deeper}, r"has no transformer\.transformer_blocks\.9"),
        ("other", {"nothing": torch.zeros(1)}, "has no nothing"),
        ("peft", {f"base_model.model.{key}": weights[key] for key in weights}, "has no base_model"),
        ("half", {key: weights[key] for key in weights if "lora_A" in key}, "lora_B"),
        ("cut", weights, ""),
        ("empty", {}, ""),
    ]:
        (tmp_path / name).mkdir()
        file = tmp_path / name / qwen_pipeline.LORA_FILE
        save_file(changed, file)
        if name == "cut":
            file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(AbpError, match=f"{name}/.* cannot be loaded .*{message}"):
            reader = dataclasses.replace(load(), lora=tmp_path / name)
            reader.edit(noise(64, 64), "remove it", 0, box=BOX)


def kohya(key: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """As sd-scripts and musubi-tuner name a weight of `lora`, which has alpha 4."""
    module, _, factor = key.removeprefix("transformer.").rpartition(".lora_")
    named = "lora_unet_" + module.replace(".", "_")
    down = factor == "A.weight"
    alpha = {named + ".alpha": torch.tensor(4.0)} if down else {}
    return {f"{named}.lora_{'down' if down else 'up'}.weight": weight, **alpha}


@pytest.mark.parametrize(
    "written",
    [
        kohya,
        lambda key, w: {"diffusion_model." + key.removeprefix("transformer."): w},  # ComfyUI
        lambda key, w: {  # DiffSynth-Studio
            key.removeprefix("transformer.").replace(".weight", ".default.weight"): w
        },
    ],
    ids=["kohya", "comfyui", "diffsynth"],
)
def test_a_lora_of_another_trainer_edits_the_same(
    lora: Path, tmp_path: Path, written: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]
) -> None:
    renamed: dict[str, torch.Tensor] = {}
    for key, weight in load_file(lora / qwen_pipeline.LORA_FILE).items():
        renamed |= written(key, weight)
    save_file(renamed, tmp_path / "of_another_name.safetensors")
    base = load()
    first, second, third = (
        dataclasses.replace(base, lora=place).edit(noise(64, 64), "remove it", 0, box=BOX)
        for place in (lora, tmp_path, tmp_path / "of_another_name.safetensors")
    )
    assert far(first, second) <= 1 and far(second, third) == 0
    save_file(renamed, tmp_path / "second.safetensors")
    with pytest.raises(AbpError, match="give the folder or the file"):
        dataclasses.replace(base, lora=tmp_path)


def test_what_an_editor_is_known_by_is_known_before_it_is_loaded(
    lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QwenImageEditPipeline, "from_pretrained", None)
    base = load()
    ours = dataclasses.replace(base, lora=lora)
    assert len({base.fingerprint, ours.fingerprint}) == 2
    monkeypatch.undo()
    plain = base.edit(noise(64, 64), "remove it", seed=0)
    held = weakref.ref(base.pipeline.transformer)
    ours.let_go()  # which shares it
    assert held() is None
    assert far(base.edit(noise(64, 64), "remove it", seed=0), plain) == 0


def test_an_offloaded_editor_computes_where_its_parts_are_brought(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editor, asked = load(), []
    gpu = torch.device("cuda")
    monkeypatch.setattr(QwenImageEditPipeline, "_execution_device", property(lambda _: gpu))
    monkeypatch.setattr(qwen_image_edit, "at_once", lambda device: asked.append(device) or 1)
    editor.edit(noise(64, 64), "remove it", seed=0)
    assert set(asked) == {gpu}


def test_a_folder_without_a_whole_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AbpError, match=r"no model_index\.json"):
        load_from(tmp_path)
    with pytest.raises(AbpError, match="no pipeline at"):
        load_from(tmp_path / "absent")
    folder = Path(shutil.copytree(smoke_editor(), tmp_path / "editor"))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["proj_out.weight"]
    save_file(tensors, weights)
    with pytest.raises(AbpError, match=r"transformer of .* lacks .*proj_out\.weight"):
        _ = load_from(folder).pipeline
    for spoil in (
        lambda: weights.write_bytes(b"cut off"),
        lambda: weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"),
        lambda: (weights.unlink(), weights.symlink_to(tmp_path / "gone")),
        lambda: (folder / "model_index.json").write_text("{"),
    ):
        spoil()
        with pytest.raises(AbpError, match="cannot be loaded"):
            _ = load_from(folder).pipeline
