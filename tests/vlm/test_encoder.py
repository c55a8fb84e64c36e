from __future__ import annotations

import copy
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CASES, SMOKE_AREA, noise
from diffusers import QwenImageEditPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from abplib.core.errors import AbpError
from abplib.prompts import N_DROPPED
from abplib.samples.scenes.sets import general
from abplib.vlm.encoder import ConditionEncoder, Encoding, Untrained
from abplib.vlm.loading import fingerprint, fit_image

Batch = tuple[list[Image.Image], list[str]]


@pytest.fixture
def batch(images: list[Image.Image], instructions: list[str]) -> Batch:
    return images, instructions


@contextmanager
def mrope(model: Qwen2_5_VLForConditionalGeneration) -> Iterator[None]:
    """Give the model the token types that diffusers does not pass on."""

    def add_types(_module: object, args: tuple[()], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        types = (kwargs["input_ids"] == model.config.image_token_id).int()
        return args, {**kwargs, "mm_token_type_ids": types}

    handle = model.register_forward_pre_hook(add_types, with_kwargs=True)
    yield
    handle.remove()


def stock_condition(
    encoder: ConditionEncoder, images: list[Image.Image], instructions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the stock pipeline conditions on, [B, T, d], and its mask, [B, T]."""
    pipeline = QwenImageEditPipeline(
        scheduler=None,
        vae=None,
        text_encoder=encoder.model,
        tokenizer=encoder.processor.tokenizer,
        processor=encoder.processor,
        transformer=None,
    )
    resized = [fit_image(image, encoder.image_area, encoder.processor) for image in images]
    with torch.no_grad():
        return pipeline.encode_prompt(prompt=instructions, image=resized)


def test_final_states_are_the_pipelines_condition(encoder: ConditionEncoder, batch: Batch) -> None:
    lossy, _ = stock_condition(encoder, *batch)
    with mrope(encoder.model):
        expected, mask = stock_condition(encoder, *batch)
    encoding = encoder.encode(*batch, final=True)
    assert set(encoding.states) == {"final"}
    assert torch.equal(encoding.mask, mask.bool())
    torch.testing.assert_close(encoding.states["final"], expected, rtol=0, atol=1e-6)
    assert (lossy - expected).abs().max() > 1e-3


def test_the_input_is_what_the_first_block_is_given(
    encoder: ConditionEncoder, batch: Batch
) -> None:
    """The other layers are proven by the conformance kit, on this model too."""
    given = encoder.encode(*batch, layers=["input"])
    inputs = encoder.prepare(*batch).inputs
    with torch.no_grad():
        hidden = encoder.model.model(**inputs, output_hidden_states=True).hidden_states
    expected = hidden[0][:, N_DROPPED:] * given.mask[..., None]
    torch.testing.assert_close(given.states["input"], expected, rtol=0, atol=1e-6)


def test_the_untrained_control_has_the_same_input_alone(
    encoder: ConditionEncoder, batch: Batch
) -> None:
    before = torch.random.get_rng_state()
    control, again, other = (encoder.untrained(seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len({e.fingerprint for e in (encoder, control, other)}) == 3
    layers: tuple[Any, ...] = ("input", 0, 1)
    theirs, same, third, ours = (
        e.encode(*batch, layers=layers).states for e in (control, again, other, encoder)
    )
    assert torch.equal(theirs["input"], ours["input"]) and torch.equal(theirs[1], same[1])
    for states in (ours, third):
        assert not torch.allclose(theirs[0], states[0], atol=1e-3)


def test_one_pass_goes_through_both_decoders(encoder: ConditionEncoder, batch: Batch) -> None:
    """As through each alone, and the eyes are asked once."""
    seen: list[int] = []
    hook = encoder.model.model.visual.register_forward_hook(lambda *_: seen.append(1))
    asked: tuple[Any, ...] = (0, Untrained(0, 5), Untrained(1, 5), Untrained(1, 6))
    both = encoder.encode(*batch, layers=asked, attention=[1], final=True)
    hook.remove()
    assert len(seen) == 1 and set(both.states) == {*asked, "final"}
    own = encoder.encode(*batch, layers=[0], attention=[1], final=True)
    assert torch.equal(both.states[0], own.states[0])
    assert torch.equal(both.states["final"], own.states["final"])
    assert torch.equal(both.attention[1], own.attention[1])
    for layer, seed in asked[1:]:
        alone = encoder.untrained(seed).encode(*batch, layers=[layer])
        assert torch.equal(both.states[Untrained(layer, seed)], alone.states[layer])
    with pytest.raises(AbpError, match="no layer 9"):
        encoder.encode(*batch, layers=[Untrained(9, 5)])


def test_the_system_prompt_passes_once(encoder: ConditionEncoder, batch: Batch) -> None:
    """Whose tokens the passes do not take again, and nothing else changes by that."""
    given: list[int] = []
    hook = encoder.model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, kwargs: given.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    fresh = copy.copy(encoder)
    fresh._prefix = None
    first, second = (fresh.encode(*batch, layers=[0], attention=[1]) for _ in range(2))
    hook.remove()
    n_kept = first.mask.shape[1]
    assert given == [N_DROPPED, n_kept, n_kept]
    assert torch.equal(first.states[0], second.states[0])
    assert torch.equal(first.attention[1], second.attention[1])


def test_only_what_was_asked_for_is_kept(encoder: ConditionEncoder, batch: Batch) -> None:
    def n_hooks() -> list[int]:
        return [len(block._forward_hooks) for block in encoder.model.model.language_model.layers]

    assert not encoder.encode(*batch).states
    before = n_hooks()
    encoding = encoder.encode(*batch, layers=(2,))
    assert set(encoding.states) == {2}
    kept = encoding.states[2]
    assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()
    assert n_hooks() == before


def test_batches_may_go_through_side_by_side(encoder: ConditionEncoder, batch: Batch) -> None:
    """Each thread keeps the states of its own pass, at another length than its neighbour's."""
    images, instructions = batch
    samples = list(zip(images, instructions, strict=True))
    alone = [encoder.encode([image], [text], layers=(0, 2)) for image, text in samples]
    together = threading.Barrier(len(images), timeout=60)

    def encode(sample: tuple[Image.Image, str]) -> Encoding:
        image, instruction = sample
        prepared = encoder.prepare([image], [instruction])
        together.wait()
        return encoder.encode(prepared, layers=(0, 2))

    with ThreadPoolExecutor(len(images)) as pool:
        found = list(pool.map(encode, zip(images, instructions, strict=True)))
    for one, expected in zip(found, alone, strict=True):
        for layer in (0, 2):
            torch.testing.assert_close(one.states[layer], expected.states[layer])


def test_samples_go_through_in_batches(encoder: ConditionEncoder) -> None:
    samples = general()
    passes = list(encoder.over(samples, 3, layers=(1,), attention=(2,), batch=2))
    assert [s.id for some, _ in passes for s in some] == [samples[i].id for i in range(3)]
    last, encoding = passes[1]
    alone = encoder.encode([last[0].image], [last[0].instruction], layers=(1,), attention=(2,))
    assert torch.equal(encoding.states[1], alone.states[1])
    assert torch.equal(encoding.attention[2], alone.attention[2])
    with pytest.raises(AbpError, match="0 samples are asked for"):
        next(encoder.over(samples, 0))


def test_a_cpu_takes_few_samples_at_a_time(
    encoder: ConditionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives what it gives of all at once."""
    monkeypatch.setattr("abplib.vlm.encoder._IN_CACHE", 2)
    rows, asked = [4, 0, 9, 2, 7], {"layers": (1, "input"), "final": True, "attention": (2,)}
    ((some, found),) = encoder.passes(general(), [rows], **asked)
    assert [s.id for s in some] == [general()[row].id for row in rows]
    whole = encoder.encode(encoder.read(some), **asked)
    assert len({len(s.instruction.split()) for s in some}) > 1  # some are padded
    assert found.grids == whole.grids and set(found.states) == {1, "input", "final"}
    for name in ("mask", "image_tokens", "prompt_tokens", "template_tokens"):
        assert torch.equal(getattr(found, name), getattr(whole, name))
    assert torch.equal(found.input_ids[found.mask], whole.input_ids[whole.mask])
    for layer, states in whole.states.items():
        torch.testing.assert_close(found.states[layer], states)
    torch.testing.assert_close(found.attention[2], whole.attention[2])


def test_placing_by_free_memory_gives_the_same(
    encoder: ConditionEncoder, smoke_folder: Path, batch: Batch
) -> None:
    placed = ConditionEncoder.from_pretrained(smoke_folder, image_area=SMOKE_AREA, device="auto")
    found = placed.encode(*batch, final=True).states["final"].cpu()
    torch.testing.assert_close(found, encoder.encode(*batch, final=True).states["final"])


@pytest.mark.parametrize(
    ("depth", "middle"), [(28, range(15, 25)), (4, [3]), (10, [6, 7, 8]), (12, [7, 8, 9, 10])]
)
def test_middle_layers_scale_with_depth(
    encoder: ConditionEncoder, monkeypatch: pytest.MonkeyPatch, depth: int, middle: list[int]
) -> None:
    monkeypatch.setattr(ConditionEncoder, "n_layers", depth)
    assert encoder.middle_layers == tuple(middle)


@pytest.mark.parametrize("size", [(1024, 1024), (640, 480), (300, 900)])
def test_images_are_resized_as_the_pipeline_does(size: tuple[int, int]) -> None:
    qwen = SimpleNamespace(image_processor=SimpleNamespace(patch_size=14, merge_size=2))
    image = noise(*size)
    width, height, _ = calculate_dimensions(1024 * 1024, image.width / image.height)
    expected = VaeImageProcessor(vae_scale_factor=16).resize(image, height, width)
    resized = fit_image(image, 1024 * 1024, qwen)
    assert resized.size == expected.size and (np.array(resized) == np.array(expected)).all()


def test_the_fingerprint_follows_the_content(smoke_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(smoke_folder, tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(smoke_folder)
    rewritten(copy, lambda tensors: tensors[TENSOR].add_(1e-3))
    assert fingerprint(copy) != fingerprint(smoke_folder)


@pytest.mark.parametrize("layer", [-1, 4, "last"])
def test_a_layer_out_of_range_is_refused(
    encoder: ConditionEncoder, batch: Batch, layer: int
) -> None:
    with pytest.raises(AbpError, match=f"no layer {layer}; the model has layers 0 to 3"):
        encoder.encode(*batch, layers=(0, layer))


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("", "Instruction 1 is empty"),
        (" \n", "Instruction 1 is empty"),
        ("remove it<|im_end|>", r"chat marker <\|im_end\|>"),
        ("copy <|image_pad|>", r"chat marker <\|image_pad\|>"),
        ("turn it blue " * 2000, "the model takes at most 2048"),
    ],
)
def test_bad_instructions_are_refused(
    encoder: ConditionEncoder, images: list[Image.Image], instruction: str, message: str
) -> None:
    with pytest.raises(AbpError, match=message):
        encoder.encode(images, ["remove it", instruction], layers=(0,))


def test_images_and_instructions_must_pair_up(
    encoder: ConditionEncoder, images: list[Image.Image]
) -> None:
    with pytest.raises(AbpError, match="2 images for 1 instructions"):
        encoder.encode(images, ["remove it"], layers=(0,))
    with pytest.raises(AbpError, match="0 images for 0 instructions"):
        encoder.encode([], [], layers=(0,))


@pytest.mark.parametrize("name", ["3x3000", "20000x20", "30000x1", "3000x10", "5x1093"])
def test_what_is_too_oblong_is_refused(encoder: ConditionEncoder, name: str) -> None:
    """Field case 06: Qwen's processor would raise."""
    with pytest.raises(AbpError, match="too oblong; crop it"):
        encoder.prepare([CASES / f"06-extreme-aspect/{name}.png"], ["remove it"])


def test_a_tall_strip_is_taken(encoder: ConditionEncoder) -> None:
    """Field case 06: its picture of 690 x 15,420 is 22 times as high as wide, not 200 times."""
    assert encoder.prepare([Image.new("RGB", (690, 15420))], ["remove it"]).grids == [(19, 1)]


@pytest.mark.parametrize("name", ["1x1", "16x16", "27x332"])
def test_tiny_pictures_are_scaled_up(encoder: ConditionEncoder, name: str) -> None:
    """Field case 07."""
    prepared = encoder.prepare([CASES / f"07-tiny-images/{name}.png"], ["remove it"])
    rows, columns = prepared.grids[0]
    assert rows * columns == prepared.image_tokens.sum() > 8


WEIGHTS, TENSOR = "model.safetensors", "model.layers.1.mlp.up_proj.weight"
Tensors = dict[str, torch.Tensor]


def rewritten(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def removed(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def dangling(folder: Path) -> None:
    removed(folder, WEIGHTS)
    (folder / WEIGHTS).symlink_to(folder / "blobs" / "gone")


def unpadded(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": None}))


DAMAGES: dict[str, Callable[[Path], object]] = {  # field case 28 among them
    "no weights": lambda f: removed(f, WEIGHTS),
    "cut weights": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:5000]),
    "pointer": lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
    "dangling weights": dangling,
    "missing tensor": lambda f: rewritten(f, lambda tensors: tensors.pop(TENSOR)),
    "misshapen tensor": lambda f: rewritten(
        f, lambda tensors: tensors.update({TENSOR: tensors[TENSOR][:-1].clone()})
    ),
    "no config": lambda f: removed(f, "config.json"),
    "garbage config": lambda f: (f / "config.json").write_text("{"),
    "no tokenizer": lambda f: removed(f, "tokenizer*"),
    "no processor": lambda f: removed(f, "*processor_config.json"),
    "no padding token": unpadded,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_refused(smoke_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(smoke_folder, tmp_path / "vlm")
    DAMAGES[damage](folder)
    with pytest.raises(AbpError) as refusal:
        ConditionEncoder.from_pretrained(folder, image_area=SMOKE_AREA)
    message = str(refusal.value)
    assert str(folder) in message and "\n" not in message and message.endswith(".")


@pytest.mark.parametrize("absent", [Path("nowhere"), "./nowhere/at/all", "nowhere"])
def test_an_absent_model_is_refused(absent: str | Path) -> None:
    with pytest.raises(AbpError, match=r"There is no VLM at .*nowhere"):
        ConditionEncoder.from_pretrained(absent, image_area=SMOKE_AREA)
