"""Answers that read no states, on boxes whose means are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Listed
from PIL import Image

from abplib.core.boxes import Box
from abplib.proxies.baselines import baselines, by_term, spatial_term
from abplib.samples.base import Sample
from abplib.samples.scenes.sets import multi_entity

LEFT: Box = (0.0, 0.0, 0.2, 0.2)
LOWER: Box = (0.0, 0.4, 0.2, 0.6)
RIGHT: Box = (0.8, 0.1, 1.0, 0.3)


def told(*pairs: tuple[str, Box]) -> Listed:
    """Samples of given instructions and boxes."""
    picture = Image.new("RGB", (8, 8))
    return Listed(Sample(f"s{i}", picture, text, box) for i, (text, box) in enumerate(pairs))


LEARNED = told(
    ("Turn the leftmost cup blue.", LEFT),
    ("Remove the leftmost dog.", LOWER),
    ("Turn the second cup from the right blue.", RIGHT),
)


def test_baselines_are_what_they_say() -> None:
    exact = torch.tensor([[0.4, 0.4, 0.6, 0.6], [0.0, 0.0, 0.2, 0.2]])
    trained = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.4, 0.3, 0.8, 0.9]])
    rows = baselines(["a", "b"], exact, trained, seed=0)
    assert rows["configuration"].tolist() == ["chance"] * 2 + ["centre_prior"] * 2
    prior = rows[rows["configuration"] == "centre_prior"]
    assert prior[["x1", "y1", "x2", "y2"]].to_numpy()[0] == pytest.approx([0.35, 0.3, 0.65, 0.7])
    assert prior["center_error"].to_numpy() == pytest.approx([0, 0.4 * 2**0.5], abs=1e-6)
    chance = rows[rows["configuration"] == "chance"]
    distances = [[0.4 * 2**0.5, (0.1**2 + 0.1**2) ** 0.5], [0, (0.5**2 + 0.5**2) ** 0.5]]
    assert chance["center_error"].to_numpy() == pytest.approx(np.mean(distances, 1), abs=0.05)
    assert chance["acc50"].to_numpy() == pytest.approx([0, 0.5], abs=0.1)


@pytest.mark.parametrize(
    ("instruction", "term"),
    [
        ("Turn the Leftmost cup blue.", "leftmost"),
        ("Replace the second apple from the right with a pear.", "second right"),
        ("Make the top left mug red!", "top left"),
        ("Remove the dog.", ""),
    ],
)
def test_the_term_is_the_spatial_words_in_order(instruction: str, term: str) -> None:
    assert spatial_term(instruction) == term


def test_the_answer_is_the_mean_box_of_the_term() -> None:
    asked = told(
        ("Move the leftmost chair.", (0.3, 0.2, 0.5, 0.4)),
        ("Move the second chair from the right.", RIGHT),
    )
    found = by_term(LEARNED, asked, 2)
    assert list(found["configuration"]) == ["text_only"] * 2
    assert found[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == [
        pytest.approx([0.0, 0.2, 0.2, 0.4]),
        pytest.approx(RIGHT),
    ]
    assert found["center_error"].tolist() == pytest.approx([0.3, 0])
    assert found["iou"].tolist() == pytest.approx([0, 1])
    assert found["acc50"].tolist() == [0, 1]
    assert found["known"].all()


def test_an_unknown_term_gets_the_mean_of_all_and_is_said() -> None:
    found = by_term(LEARNED, told(("Move the topmost chair.", RIGHT)), 1)
    assert found["x1"].tolist() == pytest.approx([0.8 / 3])
    assert found["known"].tolist() == [False]


def test_the_rule_finds_the_mini_worlds_terms() -> None:
    """Its own terms, but for the words that hold them together, without looking at them."""
    samples = multi_entity("training")
    for index in range(12):
        sample = samples[index]
        words = [w for w in str(sample.facts["spatial_term"]).split() if w not in ("from", "the")]
        assert spatial_term(sample.instruction) == " ".join(words)
