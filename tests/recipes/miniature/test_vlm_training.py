"""Training of the miniature VLM: packing changes nothing, nor does a kill."""

from __future__ import annotations

import json
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
from recipes.miniature import vlm_training
from recipes.miniature.answers import Lesson, Turn, boxed, lesson, training_scene
from recipes.miniature.batches import Packer, patches, picture, sight
from recipes.miniature.seeing import watch, watch_block
from recipes.miniature.speaking import look, packed_mask
from recipes.miniature.vlm_training import VLMTraining, train

PLAN = VLMTraining(
    see_steps=3, see_batch=2, see_scenes=4, speak_steps=4, keep_steps=4, speak_batch=2, length=400,
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


@torch.inference_mode()
def test_a_packed_turn_has_the_states_of_a_lone_one(twin) -> None:
    model, processor = twin
    scene = next(s for s in map(training_scene, range(99)) if lesson(s, 64, 3).system != "")
    taught = lesson(scene, SMOKE.side, 3)
    packed = Packer(processor, SMOKE, 500)(taught)
    image = Image.fromarray(picture(scene, SMOKE))
    tokens = torch.from_numpy(packed.ids)[None]
    features = model.model.get_image_features(
        *(processor.image_processor([image], return_tensors="pt")[k] for k in
          ("pixel_values", "image_grid_thw"))
    ).pooler_output[0]  # fmt: skip
    embedded = model.get_input_embeddings()(tokens)
    where = (tokens == model.config.image_token_id)[..., None]
    together = model.model.language_model(
        inputs_embeds=embedded.masked_scatter(where, features),
        attention_mask={"full_attention": packed_mask(torch.from_numpy(packed.segments)[None])},
        position_ids=torch.from_numpy(packed.positions)[:, None],
        use_cache=False,
    ).last_hidden_state[0]
    for number, turn in enumerate(taught.turns, 1):
        alone = _states_alone(model, processor, image, taught.system, turn)
        mine = together[packed.segments == number]
        torch.testing.assert_close(mine, alone[-len(mine) :], atol=1e-4, rtol=0)


def _states_alone(model, processor, image: Image.Image, system: str, turn: Turn) -> torch.Tensor:
    chat = [
        {"role": "system", "content": system},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": turn.question}]},
    ]
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[f"{text}{turn.answer}<|im_end|>"], images=[image], return_tensors="pt")
    return model.model(**inputs, use_cache=False).last_hidden_state[0]


@torch.inference_mode()
def test_looking_is_the_blocks_own_attention(smoke_folder: Path) -> None:
    model, processor = load_vlm(smoke_folder)
    model.set_attn_implementation({"text_config": "eager"})
    scene = Scene("wood", "row", (Thing("cup", "red", 0.3, 0.4, 0.2),), 0)
    taught = Lesson(scene, "Look.", (Turn("Where?", boxed((0.2, 0.3, 0.4, 0.5), "cup", 64)),))
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
        packed_mask(torch.from_numpy(packed.segments[:n])[None]),
        is_image,
        torch.tensor([[row]]),
    )
    want = whole.attentions[layer][0, :, row, is_image[0]]
    torch.testing.assert_close(looks[0, :, 0], want, atol=1e-5, rtol=0)
    assert processor.tokenizer.decode(packed.ids[row + 1]) == "11"
    assert list(packed.cells[0].nonzero()[0]) == [5]  # second row, second column of four by four


def test_sight_knows_ranks_but_not_near_ties() -> None:
    places = (0.2, 0.5, 0.51, 0.8)
    things = tuple(Thing("cup", "red", x, 0.5, 0.12) for x in places)
    known = sight(Scene("wood", "row", things, 0), SMOKE)
    ranks = known.ranks.reshape(4, 4, 4)
    assert list(ranks[2, [0, 3], 0]) == [0, 3]  # cells of the leftmost and the rightmost cup
    assert list(ranks[2, [0, 3], 1]) == [3, 0]
    assert (ranks[2, 1:3, 0] == -1).all()


def test_killed_and_resumed_is_unbroken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", tmp_path / "w1", PLAN, SMOKE, "cpu")
    for die_at in (2, 4, 3, 2):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(vlm_training, "patches", _dying(die_at))
            train(tmp_path / "broken", tmp_path / "w2", PLAN, SMOKE, "cpu")
    mended = train(tmp_path / "broken", tmp_path / "w2", PLAN, SMOKE, "cpu")
    first, second = (load_file(f / "model.safetensors") for f in (whole, mended))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole / "curves.jsonl").read_text() == (mended / "curves.jsonl").read_text()


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


def test_the_card_tells_the_settings(tmp_path: Path) -> None:
    folder = train(tmp_path / "out", tmp_path / "work", PLAN, SMOKE, "cpu")
    facts = json.loads((folder / "training.json").read_text())
    assert facts["plan"]["speak_steps"] == PLAN.speak_steps
    assert f"{facts['parameters']:,} parameters" in (folder / "README.md").read_text()
    _, processor = load_vlm(folder)
    assert build_processor(processor.tokenizer, SMOKE).chat_template == processor.chat_template
