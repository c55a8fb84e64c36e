"""What the specimen was taught, asked of it: right and wrong descriptions, and the rates."""

import pandas as pd
import pytest

from abplib.core.stats import wilson
from abplib.samples.scenes.sets import named_by_look
from abplib.sections import specimen
from abplib.vlm.loading import Answer
from recipes.miniature.answers import explain

SIDE = 64
"""Of the picture that the untrained VLM sees, in pixels."""


@pytest.mark.parametrize(
    ("spoil", "right"),
    [
        (lambda text: text, (True, True, True)),
        (lambda text: f"A crane, {text}", (True, True, True)),  # no kind of this world
        (lambda text: "A red thing." + text[text.index(".") + 1 :], (False, True, True)),
        (lambda text: text.replace("becomes", "became"), (True, False, True)),
        (lambda text: text[: text.index("Place")], (True, True, False)),
        (lambda text: text[: text.rindex("[")] + "[0,0,3,3]", (True, True, False)),
        (lambda text: "", (False, False, False)),
    ],
)
def test_descriptions_are_held_against_the_scene(monkeypatch, results, encoder, spoil, right):
    samples = named_by_look()
    swap = next(i for i in range(len(samples)) if samples.scene_edit(i)[1].task == "swap")

    def describe(encoder, images, instructions):
        told = (explain(*samples.scene_edit(index), SIDE) for index in range(len(images)))
        return [Answer(spoil(text), (SIDE, SIDE)) for text in told]

    monkeypatch.setattr(specimen, "describe", describe)
    rows = specimen.described(encoder, samples, swap + 1)
    assert tuple(rows[[*specimen.DESCRIBED]].iloc[swap]) == right


def test_rates_count_what_was_done_by_kind_of_task():
    samples = named_by_look()
    tasks = pd.Series([samples[index].facts["task"] for index in range(30)])
    verdicts = pd.DataFrame({"method": "baseline", "index": range(30), "success": tasks == "swap"})
    texts = pd.DataFrame({"objects": [True, False], "change": True, "place": False})
    answers = {"multi_entity": pd.DataFrame({"accurate": [True, True, False]})}
    rates = specimen.abilities(answers, texts, verdicts, samples).set_index("name")
    assert rates.loc["success.swap", "value"] == 1 and rates.loc["success.attribute", "value"] == 0
    assert rates.loc["success.all", "value"] == pytest.approx((tasks == "swap").mean())
    assert rates.loc["accurate_box.multi_entity", ["value", "low", "high"]].tolist() == list(
        wilson(2, 3)[:3]
    )
    assert rates.loc["described.objects", "value"] == 0.5
