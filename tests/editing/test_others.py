from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as plus_module
import numpy as np
import othertwins
import pandas as pd
import pytest
import torch
from conftest import SMOKE_AREA, noise
from diffusers.pipelines.bria_fibo import pipeline_bria_fibo_edit as fibo_module
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext_module
from PIL import Image

from abplib import profiles
from abplib.core import paths
from abplib.core.errors import AbpError
from abplib.core.hub import function_of
from abplib.editing import runs, twins
from abplib.editing.base import Editor, Request
from abplib.editing.loading import SIDE
from abplib.editing.methods import OTHERS, others_run
from abplib.editing.qwen_image_edit_2509 import ANNOUNCED
from abplib.editing.stock import StockEditor
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.samples.scenes.sets import evaluation
from abplib.sections import editing_validation
from abplib.vlm import loading

INSTRUCTION = "turn the second red apple from the left into a green pear"
TWINS: dict[str, Callable[[], Path]] = {
    "qwen_image_edit_2509": othertwins.smoke_2509,
    "fibo_edit": othertwins.smoke_fibo,
    "flux2_dev": othertwins.smoke_flux2,
    "flux_kontext": twins.smoke_kontext,
}
KINDS: dict[str, Any] = {name: function_of(system.editor) for name, system in OTHERS.items()}
STOCK = [name for name in TWINS if issubclass(KINDS[name], StockEditor)]
CARDS = {
    "qwen_image_edit_2509": (40, 4.0),
    "fibo_edit": (50, 5.0),
    "flux2_dev": (50, 4.0),
    "flux_kontext": (28, 2.5),
}

every = pytest.mark.parametrize("name", TWINS)
every_stock = pytest.mark.parametrize("name", STOCK)


@cache
def load(name: str) -> Any:
    """A twin with the guidance of its model card and few steps."""
    editor = KINDS[name].from_pretrained(TWINS[name](), image_area=SMOKE_AREA, n_steps=2)
    assert isinstance(editor, Editor)
    return editor


def far(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures' bytes."""
    assert one.size == other.size
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


def given(module: torch.nn.Module, run: Callable[[], object]) -> dict[str, Any]:
    """What a part is called with when `run` first calls it."""
    seen: list[dict[str, Any]] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append({**kwargs, "args": args}), with_kwargs=True
    )
    run()
    handle.remove()
    return seen[0]


@every
def test_seeds_decide_and_batches_do_not(name: str) -> None:
    editor = load(name)
    images = [noise(101, 67, 1).convert("L"), noise(101, 67, 1).convert("L"), noise(300, 90)]
    texts, seeds = [INSTRUCTION, INSTRUCTION, "remove it"], [5, 6, 5]
    asked = list(map(Request, images, texts, seeds))
    together = editor.edit_many(asked)
    for edit, request in zip(together, asked, strict=True):
        assert far(edit, editor.edit(*request)) <= 1
    assert [(edit.size, edit.mode) for edit in together] == [(i.size, "RGB") for i in images]
    assert far(together[0], together[1]) > 20  # another seed
    assert far(together[0], editor.edit(images[0], "remove it", seed=5)) > 0  # another instruction


@every
def test_a_pipeline_edits_by_default_as_its_card_says(name: str) -> None:
    editor = KINDS[name].from_pretrained(TWINS[name]())
    assert (editor.n_steps, editor.guidance, editor.image_area) == (*CARDS[name], SIDE**2)


STOCK_CALLS: dict[str, tuple[tuple[int, int], Callable[[Image.Image], dict[str, Any]]]] = {
    "fibo_edit": (
        (80, 48),
        lambda picture: {
            "prompt": {"edit_instruction": INSTRUCTION},
            "guidance_scale": 5.0,
            "width": picture.width,
            "height": picture.height,
        },
    ),
    "flux2_dev": ((96, 64), lambda picture: {"prompt": INSTRUCTION, "guidance_scale": 4.0}),
    "flux_kontext": (
        (96, 48),
        lambda picture: {
            "prompt": INSTRUCTION,
            "guidance_scale": 2.5,
            "width": picture.width,
            "height": picture.height,
            "max_area": picture.width * picture.height,
            "_auto_resize": False,
        },
    ),
}


@every_stock
def test_an_edit_is_the_pipelines(name: str) -> None:
    size, call = STOCK_CALLS[name]
    picture = noise(*size)
    editor = dataclasses.replace(load(name), image_area=size[0] * size[1])
    assert editor.size(size) == size
    expected = editor.pipeline(
        image=picture,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(7),
        **call(picture),
    ).images[0]
    assert far(editor.edit(picture, INSTRUCTION, seed=7), expected) == 0


def test_2509_edits_as_its_pipeline_does_with_3d_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editor = load("qwen_image_edit_2509")
    pipeline, picture = editor.pipeline, noise(80, 48)
    vlm_area = round(80 * 48 * plus_module.CONDITION_IMAGE_SIZE / plus_module.VAE_IMAGE_SIZE)
    copy = loading.fit_image(picture, vlm_area, pipeline.processor).size
    sizes = {plus_module.CONDITION_IMAGE_SIZE: copy, plus_module.VAE_IMAGE_SIZE: picture.size}
    monkeypatch.setattr(plus_module, "calculate_dimensions", lambda area, _: sizes[area])

    def stock() -> Image.Image:
        return pipeline(
            image=picture,
            prompt=INSTRUCTION,
            negative_prompt=" ",
            true_cfg_scale=4.0,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(7),
        ).images[0]

    def mend(model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        types = (kwargs["input_ids"] == model.config.image_token_id).int()
        return args, {**kwargs, "mm_token_type_ids": types}

    def read(run: Callable[[], object]) -> Any:
        """The condition of the instruction."""
        return given(pipeline.transformer, run)["encoder_hidden_states"][0]

    found = editor.edit(picture, INSTRUCTION, seed=7)
    own, lost = read(lambda: editor.edit(picture, INSTRUCTION, seed=7)), read(stock)
    hook = pipeline.text_encoder.register_forward_pre_hook(mend, with_kwargs=True)
    seen = given(pipeline.text_encoder, stock)["input_ids"]
    mended = read(stock)
    assert far(found, stock()) <= 1
    hook.remove()
    own = own[: len(mended)]  # without what pads it to the length of the negative prompt
    torch.testing.assert_close(own, mended, rtol=0, atol=1e-5)
    assert (own - lost).abs().max() > 1e-3
    text = pipeline.tokenizer.decode(seen[0])
    assert f"user\n{ANNOUNCED}<|vision_start|>" in text and INSTRUCTION in text


@every_stock
def test_the_text_encoder_reads_the_tokens_that_are_counted_and_no_image(name: str) -> None:
    editor = load(name)
    part = getattr(editor.pipeline, "text_encoder_2", None) or editor.pipeline.text_encoder
    read = given(part, lambda: editor.edit(noise(64, 64), INSTRUCTION, seed=0))
    mask = read.get("attention_mask")
    if mask is None:  # of T5, which pads with 0
        mask = read["args"][0] != 0
    assert editor.n_tokens(INSTRUCTION) == int(mask[0].sum())
    assert "pixel_values" not in read


def test_sizes_are_those_that_the_pipelines_choose() -> None:
    rng = np.random.default_rng(0)
    sources = [tuple(16 * side for side in row) for row in rng.integers(20, 63, (200, 2)).tolist()]
    kontext, fibo, flux2 = (
        dataclasses.replace(load(name), image_area=SIDE**2)
        for name in ("flux_kontext", "fibo_edit", "flux2_dev")
    )
    for width, height in sources:
        aspect = width / height
        _, *chosen = min(
            (abs(aspect - w / h), w, h) for w, h in kontext_module.PREFERRED_KONTEXT_RESOLUTIONS
        )
        assert kontext.size((width, height)) == tuple(chosen)
        assert fibo_module._vae_safe_dims(width, height) == (width, height)
        assert fibo.size((width, height)) == min(
            fibo_module.PREFERRED_RESOLUTION[SIDE**2], key=lambda s: abs(s[0] / s[1] - aspect)
        )
        w, h = flux2.size((width, height))
        assert w % 16 == h % 16 == 0 and 0.93 * SIDE**2 < w * h <= SIDE**2
        assert w / h == pytest.approx(aspect, rel=0.04)


@every
def test_what_cannot_be_read_is_refused(name: str) -> None:
    editor, image = load(name), noise(64, 64)
    with pytest.raises(AbpError, match=r"nstruction.* is empty"):
        editor.edit(image, " ", seed=0)
    with pytest.raises(AbpError, match=r"tokens where .*; shorten"):
        editor.edit(image, "star " * 3100, seed=0)
    marker = {"flux_kontext": "</s>", "flux2_dev": "[INST]"}.get(name, "<|im_end|>")
    with pytest.raises(AbpError, match=r"nstruction.* holds"):
        editor.edit(image, f"remove it {marker}", seed=0)


def test_flux2_refuses_what_its_pipeline_does() -> None:
    with pytest.raises(AbpError, match="does not take an image of 2000 x 100 pixels"):
        dataclasses.replace(load("flux2_dev"), image_area=SIDE**2).edit(noise(2000, 100), "x", 0)


def test_the_page_says_what_must_be_said_of_a_system() -> None:
    assert others_run([]) == "none is run here"
    assert others_run(["flux2_dev", "flux_kontext"]) == "this run has FLUX.2 dev, FLUX.1 Kontext"
    assert others_run(["fibo_edit"]).endswith("so its row is of a model out of its format")
    page = (paths.root() / "book/chapters/05_editing_validation.md").read_text()
    assert "others_run(others)" in page and "{glue:text}`ch5.others:s`" in page


def test_fingerprints_tell_settings_and_systems_apart() -> None:
    editors = [load(name) for name in TWINS]
    kontext = load("flux_kontext")
    editors += [
        dataclasses.replace(kontext, **changed)
        for changed in ({"n_steps": 3}, {"guidance": 3.0}, {"image_area": 96 * 96})
    ]
    assert len({editor.fingerprint for editor in editors}) == len(editors)


def test_a_profile_names_other_editors() -> None:
    assert set(OTHERS) == set(get_args(profiles.OtherEditorName)) == set(TWINS)
    source = "abplib.editing.twins:smoke_kontext"
    named = {"flux_kontext": {"source": source, "n_steps": 2}}
    profile = Profile.load("smoke", other_editors=named)
    made = Experiment(profile)
    editor = made.other("flux_kontext")
    assert (editor.n_steps, editor.guidance) == (2, 2.5)
    assert editor.image_area == profile.image_area
    assert editor.fingerprint == load("flux_kontext").fingerprint
    without = Experiment(Profile.load("smoke", other_editors={}))
    assert made.model_fingerprint != without.model_fingerprint
    with pytest.raises(AbpError, match="'smoke' has no flux2_dev: name its source"):
        made.other("flux2_dev")
    with pytest.raises(AbpError, match="other_editors"):
        Profile.load("smoke", other_editors={"flux_3": {"source": source}})


def test_other_systems_edits_are_kept_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, samples = load("flux_kontext"), evaluation()
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path))
    files = runs.make_other_edits(editor, samples, 2, seed=3)
    expected = editor.edit(samples[1].image, samples[1].instruction, seed=4)
    assert files[1] is not None
    with Image.open(files[1]) as image:
        assert far(image, expected) <= 1
    monkeypatch.setattr(type(editor), "_edit_many", None)  # not to be called again
    assert runs.make_other_edits(editor, samples, 2, seed=3) == files
    with pytest.raises(AbpError, match="ask for 1 to"):
        runs.make_other_edits(editor, samples, 0, seed=3)

    metrics = ("lpips", "l2", "vqa_edit", "vqa_accuracy", "vqa_leakage", "vqa", "edit_success")
    names = [*runs.METHODS, "flux_kontext"]
    rows = itertools.product(names, metrics, (0.0, 1.0))
    scores = pd.DataFrame(rows, columns=["method", "metric", "value"])
    summary = editing_validation.summarise(scores, seed=0)
    assert list(editing_validation.figure_8(summary).index) == names
    assert editing_validation.success_rates(summary)["label"].iloc[-1] == editor.name
    table = editing_validation.measured_table(summary, ("baseline", "flux_kontext"), "LPIPS")
    assert list(table.index) == ["Qwen-Image-Edit", "FLUX.1 Kontext"]
    assert editing_validation.reported_values()["flux_kontext", "vqa_edit"] == 2.105
