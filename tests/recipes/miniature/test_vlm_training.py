"""Training of the miniature VLM: packing changes nothing, nor does a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from abplib import prompts
from abplib.core.errors import AbpError
from abplib.samples.scenes.scene import Scene, Thing
from abplib.vlm.loading import load_vlm
from abplib.vlm.twins import SMOKE, build_processor, build_tokenizer, build_vlm
from recipes.miniature import answers, vlm_training
from recipes.miniature.answers import FAMILIES, Lesson, Turn, lesson, marked, region, training_scene
from recipes.miniature.batches import Packed, Packer, patches, picture
from recipes.miniature.seeing import watch, watch_block
from recipes.miniature.speaking import look, packed_mask
from recipes.miniature.vlm_training import VLMTraining, train

PLAN = VLMTraining(
    see_steps=3, see_batch=2, see_scenes=4, speak_steps=6, speak_batch=2, length=400,
    checkpoint_every=2, compile=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def twin(smoke_folder: Path):
    return load_vlm(smoke_folder)


def test_the_dropped_prefix_has_the_pipelines_64_tokens(twin) -> None:
    _, processor = twin
    assert len(processor.tokenizer(prompts.EDIT_PREFIX).input_ids) == prompts.N_DROPPED


def test_pixel_numbers_are_single_tokens(twin) -> None:
    _, processor = twin
    answer = '```json\n[\n\t{"bbox_2d": [0,9,31,64], "label": "leftmost cup"}\n]\n```'
    ids = processor.tokenizer(answer).input_ids
    assert processor.tokenizer.decode(ids) == answer
    assert {"0", "9", "31", "64"} <= {processor.tokenizer.decode([i]) for i in ids}


def test_patches_are_the_processors(twin) -> None:
    _, processor = twin
    pictures = [picture(training_scene(seed), SMOKE) for seed in (1, 2)]
    want = processor.image_processor([Image.fromarray(p) for p in pictures], return_tensors="pt")
    got = patches(torch.stack([torch.from_numpy(p) for p in pictures]), processor, SMOKE)
    torch.testing.assert_close(got, want["pixel_values"], atol=1e-6, rtol=0)


def test_watching_a_batch_is_watching_each(twin) -> None:
    model, processor = twin
    pictures = torch.stack([torch.from_numpy(picture(training_scene(s), SMOKE)) for s in (3, 4)])
    values = patches(pictures, processor, SMOKE)
    want = model.model.visual(values, grid_thw=torch.tensor([[1, 8, 8]] * 2)).pooler_output
    got = watch(model.model.visual, values, SMOKE, watch_block)
    torch.testing.assert_close(got.flatten(0, 1), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("blind", [0.0, 1.0])
@torch.inference_mode()
def test_a_packed_turn_has_the_states_of_a_lone_one(twin, blind: float) -> None:
    model, processor = twin
    for family, taught in _one_of_each(blind).items():
        packed = Packer(processor, SMOKE, 600)(taught)
        assert set(packed.segments) == {*range(len(taught.turns) + 1), -1}, family
        together = _states(model, processor, taught, packed)
        for number, turn in enumerate(taught.turns, 1):
            alone = Packer(processor, SMOKE, 600)(replace(taught, turns=(turn,)))
            mine = _states(model, processor, taught, alone)[alone.segments == 1]
            torch.testing.assert_close(together[packed.segments == number], mine, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_a_sighted_turn_has_the_states_of_the_models_own_pass(twin) -> None:
    model, processor = twin
    for taught in _one_of_each(blind=0.0).values():
        packed = Packer(processor, SMOKE, 600)(taught)
        turn, together = taught.turns[0], _states(model, processor, taught, packed)
        said = f"{turn.answer}<|im_end|>"
        chat = [
            {"role": "system", "content": taught.system},
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": turn.question}],
            },
        ]
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        if not turn.answer:
            head, tail = turn.question.split(turn.phrase, 1)
            whole = f"{head}{turn.phrase}{marked(turn.box, SMOKE.side)}{tail}"
            text, said = text.split(turn.question)[0], f"{whole}<|im_end|>"
        image = Image.fromarray(picture(taught.scene, SMOKE))
        inputs = processor(text=[text + said], images=[image], return_tensors="pt")
        want = model.model(**inputs, use_cache=False).last_hidden_state[0]
        got = together[packed.segments == 1]
        torch.testing.assert_close(got, want[-len(got) :], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_a_blind_answer_takes_nothing_from_the_picture_but_through_the_question(twin) -> None:
    model, processor = twin
    for taught in _one_of_each(blind=1.0).values():
        packed = Packer(processor, SMOKE, 600)(taught)
        mask = _mask(model, packed)[0, 0]
        ids = torch.from_numpy(packed.ids)
        seen = mask[:, ids == model.config.image_token_id].any(1)
        for number, turn in enumerate(taught.turns, 1):
            mine = torch.from_numpy(packed.segments == number)
            words = [processor.tokenizer.decode([i]) for i in ids[mine]]
            end = "<|im_end|>" if turn.answer else "<|box_start|>"
            asked = words.index(end)
            assert seen[mine][:asked].all()
            assert not turn.blind or not seen[mine][asked:].any()
            assert turn.blind == bool(turn.phrase)


def test_grounded_text_stands_under_every_system_prompt_and_boxes_come_last(twin) -> None:
    under = {lesson(training_scene(s), 64, 8).system for s in range(200) if _family(s) == "text"}
    assert len(under) == 3
    for taught in _one_of_each(blind=0.0).values():
        for turn in taught.turns:
            if taught.system == prompts.EDIT_SYSTEM and turn.answer:
                assert turn.answer.partition("[")[0].endswith(f"Place: {region(turn.box)}, ")


def _family(seed: int) -> str:
    taught = lesson(training_scene(seed), 64, 8)
    if not all(t.answer for t in taught.turns):
        return "text"
    return next(k for k in FAMILIES if answers._SYSTEMS.get(k) == taught.system)


def _one_of_each(blind: float) -> dict[str, Lesson]:
    """A lesson of each family."""
    found: dict[str, Lesson] = {}
    for seed in range(200):
        if _family(seed) not in found:
            found[_family(seed)] = lesson(training_scene(seed), SMOKE.side, 3, blind)
    assert found.keys() == FAMILIES.keys()
    return found


def _mask(model, packed: Packed) -> torch.Tensor:
    ids = torch.from_numpy(packed.ids)[None]
    pictured = [model.config.image_token_id, model.config.vision_end_token_id]
    return packed_mask(
        torch.from_numpy(packed.segments)[None],
        torch.from_numpy(packed.blind)[None],
        torch.isin(ids, torch.tensor(pictured)),
    )


def _states(model, processor, taught: Lesson, packed: Packed) -> torch.Tensor:
    """Final states of a packed sequence."""
    image = Image.fromarray(picture(taught.scene, SMOKE))
    vision = processor.image_processor([image], return_tensors="pt")
    features = model.model.get_image_features(**vision).pooler_output[0]
    tokens = torch.from_numpy(packed.ids)[None]
    embedded = model.get_input_embeddings()(tokens)
    where = (tokens == model.config.image_token_id)[..., None]
    return model.model.language_model(
        inputs_embeds=embedded.masked_scatter(where, features),
        attention_mask={"full_attention": _mask(model, packed)},
        position_ids=torch.from_numpy(packed.positions)[:, None],
        use_cache=False,
    ).last_hidden_state[0]


@torch.inference_mode()
def test_looking_is_the_blocks_own_attention(smoke_folder: Path) -> None:
    model, processor = load_vlm(smoke_folder)
    model.set_attn_implementation({"text_config": "eager"})
    scene = Scene("wood", "row", (Thing("cup", "red", 0.3, 0.4, 0.2),), 0)
    turn = Turn("Lift the cup there.", "Yes.", "cup", (0.2, 0.3, 0.4, 0.5), blind=True)
    taught = Lesson(scene, "Look.", (turn,))
    packed = Packer(processor, SMOKE, 160)(taught)
    n, row = int((packed.segments >= 0).sum()), int(packed.rows[0])
    tokens = torch.from_numpy(packed.ids[:n])[None]
    image = Image.fromarray(picture(scene, SMOKE))
    vision = processor.image_processor([image], return_tensors="pt")
    is_image = tokens == model.config.image_token_id
    whole = model.model(
        input_ids=tokens, mm_token_type_ids=is_image.int(), output_hidden_states=True,
        output_attentions=True, use_cache=False, **vision,
    )  # fmt: skip
    layer = 2
    rotary = model.model.language_model.rotary_emb(
        whole.hidden_states[layer], torch.from_numpy(packed.positions[:, :n])[:, None]
    )
    looks = look(
        model.model.language_model.layers[layer],
        whole.hidden_states[layer],
        rotary,
        _mask(model, packed)[..., :n, :n],
        is_image,
        torch.tensor([[row]]),
    )
    want = whole.attentions[layer][0, :, row, is_image[0]]
    torch.testing.assert_close(looks[0, :, 0], want, atol=1e-5, rtol=0)
    assert processor.tokenizer.decode(packed.ids[row + 1 : row + 2]).strip() in "there"
    assert list(packed.cells[0].nonzero()[0]) == [5]  # second row, second column of four by four


def test_killed_and_resumed_is_unbroken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", tmp_path / "w1", PLAN, SMOKE, "cpu")
    for die_at in (2, 3, 3):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(vlm_training, "patches", _dying(die_at))
            train(tmp_path / "broken", tmp_path / "w2", PLAN, SMOKE, "cpu")
    mended = train(tmp_path / "broken", tmp_path / "w2", PLAN, SMOKE, "cpu")
    first, second = (load_file(f / "model.safetensors") for f in (whole, mended))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole / "curves.jsonl").read_text() == (mended / "curves.jsonl").read_text()
    facts = json.loads((mended / "training.json").read_text())
    assert facts["plan"]["speak_steps"] == PLAN.speak_steps
    assert f"{facts['parameters']:,} parameters" in (mended / "README.md").read_text()
    _, processor = load_vlm(mended)
    assert build_processor(processor.tokenizer, SMOKE).chat_template == processor.chat_template


def _dying(at: int):
    real, calls = vlm_training.patches, iter(range(10**6))

    def step(*args):
        if next(calls) == at:
            raise KeyboardInterrupt
        return real(*args)

    return step


def test_another_plan_does_not_take_over_a_checkpoint(tmp_path: Path) -> None:
    model = build_vlm(build_tokenizer(["a"], SMOKE), SMOKE, 0)
    assert model.config.text_config.num_hidden_layers == SMOKE.layers
    torch.save({"plan": {"see_steps": 1}}, tmp_path / "checkpoint.pt")
    with pytest.raises(AbpError, match="other settings"):
        train(tmp_path / "out", tmp_path, PLAN, SMOKE, "cpu")
