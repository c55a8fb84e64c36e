"""Adapters of other VLM families: what the encoder and the grounder make of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from conftest import Listed, noise
from familytwins import TWINS

from abplib.core.errors import AbpError
from abplib.experiment import Experiment
from abplib.profiles import parse
from abplib.samples.base import Sample
from abplib.sections import adapting
from abplib.vlm import adapters, grounding, loading
from abplib.vlm.encoder import NOTHING, ConditionEncoder
from abplib.vlm.grounding import Grounder
from abplib.vlm.loading import Answer
from abplib.vlm.maps import attention_maps
from abplib.vlm.twins import qwen3_vl_folder

AREA = 64 * 64
PICTURES, ASKED = [noise(96, 64, seed=3), noise(40, 160, seed=4)], ["remove it", "turn it blue"]

SAMPLES = Listed(
    Sample(text, picture, text, (0, 0, 0.5, 0.5))
    for picture, text in zip(PICTURES, ASKED, strict=True)
)


def twin(family: str) -> ConditionEncoder:
    return ConditionEncoder(*TWINS[family](), image_area=AREA, fingerprint="")


def test_a_family_without_an_adapter_is_refused() -> None:
    model, processor = TWINS["internvl"]()
    model.config.model_type = "unheard_of"
    with pytest.raises(AbpError, match=r"no adapter for VLMs of type 'unheard_of'; give .*gemma3"):
        ConditionEncoder(model, processor, image_area=AREA, fingerprint="")


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "chat template takes no system prompt and picture .*; give the adapter a `templ"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "does not hold '<IMG_CONTEXT>'"),
    ],
)
def test_a_chat_template_that_does_not_fit_is_named(template: str | None, sentence: str) -> None:
    model, processor = TWINS["internvl"]()
    processor.chat_template = template
    with pytest.raises(AbpError, match=sentence):
        ConditionEncoder(model, processor, image_area=AREA, fingerprint="")


@pytest.mark.parametrize("marker", ["<end_of_turn>", "<start_of_image>"])
def test_chat_markers_of_other_families_are_refused(marker: str) -> None:
    with pytest.raises(AbpError, match=f"chat marker {marker}, which"):
        twin("gemma3").prepare([noise(64, 64)], [f"remove it{marker}"])


def test_offloaded_weights_are_read_alike(tmp_path: Path) -> None:
    plain, offloaded = twin("qwen2_5_vl"), twin("qwen2_5_vl")
    kept = ("embed_tokens", "norm", "rotary_emb", "layers.0", "layers.1")
    places = dict.fromkeys(
        ["model.visual", "lm_head", *(f"model.language_model.{part}" for part in kept)], "cpu"
    )
    places["model.language_model.layers.2"] = "disk"
    dispatch_model(offloaded.model, places, main_device="cpu", offload_dir=str(tmp_path))
    last_block = offloaded.model.get_decoder().layers[2]
    assert {parameter.device.type for parameter in last_block.parameters()} == {"meta"}
    mine, other = (
        encoder.encode(PICTURES, ASKED, layers=range(3), final=True, attention=[2])
        for encoder in (plain, offloaded)
    )
    for layer, states in mine.states.items():
        assert torch.equal(states, other.states[layer])
    assert torch.equal(mine.attention[2], other.attention[2])


def test_the_rest_of_the_analysis_reads_another_family() -> None:
    encoder = twin("mistral3")
    maps = attention_maps(encoder, PICTURES, ASKED, [0, 2])
    assert [tuple(found.raw.shape[2:]) for found in maps] == [(3, 5), (8, 2)]
    prompt_tokens = encoder.encode(PICTURES, ASKED).prompt_tokens
    assert [found.n_prompt for found in maps] == prompt_tokens.sum(1).tolist()


@pytest.mark.parametrize("family", TWINS)
def test_the_negative_prompt_is_a_space_in_every_family(family: str) -> None:
    encoder = twin(family)
    encoding = encoder.encode(PICTURES[:1], [NOTHING])
    prompt = encoding.input_ids[encoding.prompt_tokens]
    assert encoder.processor.tokenizer.decode(prompt) == " "


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("qwen2_5_vl", (8 / 80, 12 / 48, 40 / 80, 24 / 48)),
        ("qwen2_vl", (0.008, 0.012, 0.04, 0.024)),
        ("qwen3_vl", (0.008, 0.012, 0.04, 0.024)),
    ],
)
def test_boxes_are_read_in_the_familys_units(
    family: str, expected: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Answer("[8, 12, 40, 24]", seen=(80, 48))
    monkeypatch.setattr(loading, "generate_text", lambda *_, **__: [said])
    found = Grounder(twin(family)).locate(PICTURES[:1], ASKED[:1])
    assert found[0].box == pytest.approx(expected)


def test_families_that_write_boxes_in_an_unknown_way_do_not_ground() -> None:
    with pytest.raises(AbpError, match="How VLMs of type 'internvl' write boxes is not known"):
        Grounder(twin("internvl"))


def test_another_qwen_answers_in_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounding, "MAX_NEW_TOKENS", 4)
    found = Grounder(twin("qwen3_vl")).locate(PICTURES, ASKED)
    assert len(found) == 2 and all(isinstance(answer.text, str) for answer in found)


def test_the_tables_of_the_chapter() -> None:
    assert set(adapting.adapters().index) == set(adapters.ADAPTERS)
    ran = [adapting.Finding("runs", ""), adapting.Finding("grid", "Wrong.")]
    table = adapting.verdicts({"dead": [adapting.Finding("runs", "No.")], "alive": ran})
    assert table.loc["grid"].tolist() == ["–", "fails"]
    assert table.loc["runs"].tolist() == ["fails", "passes"]


def test_changes_are_parts_of_the_states_size() -> None:
    encoder = twin("qwen3_vl")
    same = adapting.changes(encoder, encoder, SAMPLES, 2)
    assert (same["change"] == 0).all() and len(same) == 2 * 4
    vision = encoder.model.model.visual.merger.linear_fc2.bias
    louder = twin("qwen3_vl")
    torch.nn.init.ones_(louder.model.model.visual.merger.linear_fc2.bias)
    assert vision.abs().max() == 0
    other = adapting.change_by_layer(adapting.changes(encoder, louder, SAMPLES, 2), seed=0)
    right, wrong = (e.encode(PICTURES, ASKED, layers=[1]).states[1] for e in (encoder, louder))
    expected = ((wrong - right).norm(dim=(1, 2)) / right.norm(dim=(1, 2))).mean()
    assert other["value"][1] == pytest.approx(float(expected), rel=1e-5)
    assert list(other["label"]) == ["layer 0", "layer 1", "layer 2", "final"]
    assert list(other["name"][2:]) == ["change.layer_2", "change.final"] and (other["n"] == 2).all()


def test_the_chapter_brings_a_model_of_its_own() -> None:
    own = parse("06_adapting", {"profile": "smoke"})
    assert Experiment(own.resolve()).vlm_source == str(qwen3_vl_folder())
    other = parse("06_adapting", {"profile": "smoke", "vlm": "org/model"})
    assert other.resolve().vlm == "org/model"
