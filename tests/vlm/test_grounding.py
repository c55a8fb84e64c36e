"""The standalone VLM's answers: greedy, whatever the batch, and about every sample that can be."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMOKE_AREA, noise
from PIL import Image

from abplib.core.errors import AbpError
from abplib.prompts import EDIT_TEMPLATE, grounding_chat
from abplib.samples.base import Sample
from abplib.vlm import grounding
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.grounding import QUESTION, Grounder, Grounding
from abplib.vlm.loading import fit_image


@pytest.fixture
def grounder(encoder: ConditionEncoder) -> Grounder:
    return Grounder(encoder)


@pytest.fixture
def talkative(encoder: ConditionEncoder) -> Grounder:
    """Weights large enough for random answers to depend on the image and the instruction.

    Its checkpoint would not have a word twice.
    """
    model = copy.deepcopy(encoder.model)
    model.generation_config.repetition_penalty = 5.0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not model.lm_head:
            module.weight.mul_(8)
    return Grounder(
        ConditionEncoder(model, encoder.processor, image_area=SMOKE_AREA, fingerprint="")
    )


def script(
    grounder: Grounder,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[str],
    end: str = "<|im_end|>",
) -> None:
    """Let the model say `answers`, in turn, to whatever it is asked."""
    tokenizer = grounder.processor.tokenizer
    remaining = iter(answers)

    def generate(*, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        said = [next(remaining) + end for _ in input_ids]
        padded = tokenizer(said, padding=True, padding_side="right", return_tensors="pt")
        return torch.cat([input_ids, padded.input_ids], dim=1)

    monkeypatch.setattr(grounder.encoder.model, "generate", generate)


def test_answers_become_boxes_of_the_source_image(
    grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [
        '[{"bbox_2d": [16, 32, 48, 64], "label": "dog"}]',
        '[{"bbox_2d": [48, 0, 24, 99]}, {"bbox_2d": [1, 2, 3, 4]}]',
        "There is no dog.",
    ]
    script(grounder, monkeypatch, answers)
    # the first is seen as 64 x 64 pixels, the others as 96 x 48
    images = [noise(256, 256), noise(120, 60), noise(120, 60)]
    monkeypatch.setattr(grounding, "_BATCH", 2)
    assert grounder.locate(images, ["remove it"] * 3) == [
        Grounding(answers[0], (0.25, 0.5, 0.75, 1.0)),
        Grounding(answers[1], (0.25, 0.0, 0.5, 1.0)),
        Grounding(answers[2], None),
    ]


@pytest.mark.parametrize(("end", "read"), [("<|im_end|>", True), ("", False)])
def test_a_list_that_the_limit_cut_is_no_box(
    grounder: Grounder, monkeypatch: pytest.MonkeyPatch, end: str, read: bool
) -> None:
    script(grounder, monkeypatch, ['[{"bbox_2d": [16, 32, 48, 6'], end)
    assert (grounder.locate([noise(64, 64)], ["remove it"])[0].box is not None) == read


def test_generation_is_greedy_with_mrope_whatever_the_batch(
    talkative: Grounder,
    monkeypatch: pytest.MonkeyPatch,
    images: list[Image.Image],
    instructions: list[str],
) -> None:
    monkeypatch.setattr(grounding, "MAX_NEW_TOKENS", 8)
    said = [
        plainly_said(talkative, image, instruction, n_tokens=8)
        for image, instruction in zip(images, instructions, strict=True)
    ]
    assert said[0] != said[1]
    assert [answer.text for answer in talkative.locate(images, instructions)] == said


def plainly_said(grounder: Grounder, image: Image.Image, instruction: str, n_tokens: int) -> str:
    """The answer by the plainest loop: whole passes over one sample, the likeliest token next."""
    processor, model = grounder.processor, grounder.encoder.model
    text = processor.apply_chat_template(
        grounding_chat(instruction), tokenize=False, add_generation_prompt=True
    )
    seen = fit_image(image, SMOKE_AREA, processor)
    inputs = processor(text=[text], images=[seen], return_tensors="pt")
    ids = inputs["input_ids"]
    for _ in range(n_tokens):
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                mm_token_type_ids=(ids == model.config.image_token_id).int(),
                pixel_values=inputs["pixel_values"],
                image_grid_thw=inputs["image_grid_thw"],
            ).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    answer = ids[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(answer, skip_special_tokens=True).strip()


def test_a_bad_sample_does_not_stop_the_others(
    encoder: ConditionEncoder, grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Field case 24: a chat marker, a picture of 1000 : 1, a long prompt."""
    asked = ["remove it", "remove it<|im_end|>", "remove it", "turn it blue " * 2000, "remove it"]
    images = [noise(64, 64)] * 2 + [noise(2000, 2)] + [noise(64, 64)] * 2
    samples = [
        Sample(str(row), image, instruction, (0, 0, 1, 1))
        for row, (image, instruction) in enumerate(zip(images, asked, strict=True))
    ]
    script(grounder, monkeypatch, ["[16, 32, 48, 64]"] * 2)
    found = dict(grounder.locate_samples(samples, range(5)))
    assert [a.box for a in found.values() if not a.fault] == [(0.25, 0.5, 0.75, 1.0)] * 2
    for row, sentence in ((1, "chat marker"), (2, "too oblong"), (3, "model takes at most 2048")):
        assert sentence in found[str(row)].fault and found[str(row)].box is None
        with pytest.raises(AbpError, match=f"Sample {row}: .*{sentence}"):
            encoder.read([samples[0], samples[row], samples[4]])


def test_the_next_samples_are_prepared_while_the_vlm_answers(
    grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_is_read = threading.Event()

    class Watched(list[Sample]):
        def __getitem__(self, index: Any) -> Any:
            if index == 1:
                last_is_read.set()
            return super().__getitem__(index)

    def answer(*_: Any) -> list[Grounding]:
        return [Grounding("in time" if last_is_read.wait(60) else "late", None)]

    monkeypatch.setattr(grounding, "_BATCH", 1)
    monkeypatch.setattr(Grounder, "_answers", answer)
    samples = Watched(Sample(str(n), noise(64, 64), "remove it", (0, 0, 1, 1)) for n in range(2))
    found = grounder.locate_samples(samples, range(2))
    assert [(name, answer.text) for name, answer in found] == [("0", "in time"), ("1", "in time")]


def test_what_the_vlm_can_be_asked_about_can_be_encoded(encoder: ConditionEncoder) -> None:
    """So that a labelled sample is never refused when a proxy learns from it: not by its length."""
    tokenizer = encoder.processor.tokenizer
    question = encoder.processor.apply_chat_template(QUESTION, tokenize=False)
    assert len(tokenizer(question).input_ids) >= len(tokenizer(EDIT_TEMPLATE).input_ids)


def test_a_model_without_a_chat_template_cannot_be_asked(encoder: ConditionEncoder) -> None:
    """Field case 28."""
    processor = copy.copy(encoder.processor)
    processor.chat_template = None
    silent = ConditionEncoder(encoder.model, processor, image_area=SMOKE_AREA, fingerprint="")
    with pytest.raises(AbpError, match="without a chat template, so it cannot be asked"):
        Grounder(silent)


def test_bad_images_are_refused(grounder: Grounder) -> None:
    with pytest.raises(AbpError, match="There is no image at absent"):
        grounder.locate([Path("absent.png")], ["remove it"])
    with pytest.raises(AbpError, match="1 images for 2 instructions"):
        grounder.locate([noise(64, 64)], ["remove it"] * 2)
