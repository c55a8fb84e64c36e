"""The table of shapes in which a VLM may say a box, and what is none."""

from __future__ import annotations

import json

import pytest
from conftest import CASES
from hypothesis import given, settings
from hypothesis import strategies as st

from abplib.core.boxes import Box
from abplib.vlm.answers import boxes_in

FRAME = (100, 100)
A, B = (0.1, 0.2, 0.3, 0.4), (0.05, 0.06, 0.7, 0.8)
ONE_BOX = [
    '```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "the dog"}\n]\n```',
    '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": ""}]\n```',
    '[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]',
    '{"bbox_2d": [10, 20, 30, 40], "label": "dog"}',
    '{"label": "dog", "bbox_2d": [10, 20, 30, 40]}',
    '{"bbox_2d": [10.0, 20.00, 30.0, 40.0]}',
    '{"bbox_2d":[10,20,30,40],"label":"third dog (brown)"}',
    '{"bbox_2d": [10, 20, 30, 40], "label": "dog", "sub_label": "brown"}',
    '```\n{"bbox_2d": [10, 20, 30, 40], "label": "dog"}\n```',
    '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}',
    '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "do',
    '```json\n[{"bbox_2d": [10, 20, 30, 40], "la',
    '```json\n[{"bbox_2d": [10, 20, 30, 40]',
    '[{"bbox_2d": [10, 20, 30, 40], "label": "dog"},]',
    '[{"bbox_2d": [10, 20, 30, 40,], "label": "dog",}]',
    "[{'bbox_2d': [10, 20, 30, 40], 'label': 'dog'}]",
    "{'bbox_2d': (10, 20, 30, 40), 'label': None}",
    '{"bbox": [10, 20, 30, 40], "label": "dog"}',
    '{"box_2d": [10, 20, 30, 40], "label": "it\'s a dog"}',
    '{"x1": 10, "y1": 20, "x2": 30, "y2": 40, "label": "dog"}',
    "[10, 20, 30, 40]",
    "(10, 20, 30, 40)",
    "[[10, 20, 30, 40]]",
    "[[10, 20], [30, 40]]",
    "[10.0,20.0,30.0,40.0]\n",
    "10, 20, 30, 40",
    "10 20 30 40",
    "(10, 20), (30, 40)",
    "(10,20),(30,40)",
    "(10, 20) (30, 40)",
    "x1=10, y1=20, x2=30, y2=40",
    "x1: 10, y1: 20, x2: 30, y2: 40",
    "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>",
    "The dog should turn brown. [10, 20, 30, 40]",
    "The bounding box is [10, 20, 30, 40], which holds the 2 dogs.",
    'Sure! Here it is:\n```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]\n```\nDone.',
    # field case 09: what A.1's own words invite
    "(x1, y1) = (10, 20), (x2, y2) = (30, 40)",
    "(10, 20) to (30, 40)",
    "(10, 20) - (30, 40)",
    "Top-left corner: (10, 20)\nBottom-right corner: (30, 40)",
    "- **Top-left corner**: (10, 20)\n- **Bottom-right corner**: (30, 40)",
    "(10, 20) is the top-left corner and (30, 40) is the bottom-right corner.",
    "The upper left is at (10, 20), the lower right corner at (30, 40).",
    "top-right: (30, 20), bottom-left: (10, 40)",
    '{"top_left": [10, 20], "bottom_right": [30, 40]}',
    "Bounding box: 10, 20, 30, 40",
    "The bounding box is 10 20 30 40.",
    "**Bounding Box:** (10, 20, 30, 40)",
    "(x1, y1, x2, y2) = (10, 20, 30, 40)",
    "x1, y1, x2, y2 = 10, 20, 30, 40",
    "<box>10 20 30 40</box>",
    "<box>[[10, 20, 30, 40]]</box>",
    "bbox = [10 20 30 40]",
    '{"bbox_2d": ["10","20","30","40"]}',
    '{"bbox_2d": [[10, 20], [30, 40]]}',
    '{"xmin": 10, "ymin": 20, "xmax": 30, "ymax": 40}',
    '{"x_min": 10, "x_max": 30, "y_min": 20, "y_max": 40}',
    '{"bbox": {"left": 10, "top": 20, "right": 30, "bottom": 40}}',
    '{"bbox_2d": [0.1, 0.2, 0.3, 0.4]}',
    "[30, 40, 10, 20]",
    "[10, 20, 30, 40",
    '{"bbox_2d": [10, 20, 30, 40}',
    '<think>maybe [1, 2, 3, 4]?</think>[{"bbox_2d": [10, 20, 30, 40]}]',
    "maybe [1, 2, 3, 4]?</think>[10, 20, 30, 40]",
]


@pytest.mark.parametrize("answer", ONE_BOX)
def test_the_box_of_an_answer_is_read(answer: str) -> None:
    assert boxes_in(answer, FRAME) == [pytest.approx(A)]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "There is no dog in this image.",
        "[]",
        "```json\n[]\n```",
        '{"bbox_2d": [], "label": "dog"}',
        '{"bbox_2d": [10, 20, 30], "label": "dog"}',
        '{"bbox_2d": [10, 20, 30, 40, 50], "label": "dog"}',
        "[ten, twenty, thirty, forty]",
        "The 4 dogs are at 10, 20, 30, 40 and more.",
        '{"quad_2d": [[10, 10], [90, 10], [90, 80], [10, 80]], "label": "cup"}',
        "polygon: (10, 20), (30, 20), (30, 40), (10, 40)",
        '{"points": [[34, 56], [78, 90], [35, 88]]}',
        '{"points": [[10, 20], [30, 40]]}',
        '[{"point_2d": [10, 20]}, {"point_2d": [30, 40]}]',
        '{"bbox_xywh": [10, 20, 30, 40]}',
        "The dog is at (10, 20) and the cat at (30, 40).",
        "The dogs are at (10, 20) and (30, 40).",
        "Bounding box: 10, 20, 30, 40, 50",
        '{"bbox_2d": ["10", "20", "30", "40", "50"]}',
        "[10%, 20%, 30%, 40%]",
        "x1: 10%, y1: 20%, x2: 30%, y2: 40%",
        "x: 10, y: 20, width: 30, height: 40",
        "<think>It may be [10, 20, 30, 40]",
        "[10, 20, 10, 40]",
        "[110, 20, 130, 40]",
    ],
)
def test_no_box_is_made_up(answer: str) -> None:
    assert boxes_in(answer, FRAME) == []


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('[{"bbox_2d": [10, 20, 30, 4', []),
        ("(10, 20), (30, 4", []),
        ("10, 20, 30, 4", []),
        ("Bounding box: 10, 20, 30, 4", []),
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}, {"bbox_2d": [5, 6', [A]),
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}, {"bbox_2d": [5, 6, 70, 8', [A]),
    ],
)
def test_a_number_that_may_go_on_is_not_read(answer: str, found: list[Box]) -> None:
    assert boxes_in(answer, FRAME, cut=True) == [pytest.approx(box) for box in found]


def test_every_box_comes_in_order() -> None:
    answer = '[{"bbox_2d": [10, 20, 30, 40]}, {"label": "cat", "bbox_2d": [5, 6, 70, 80]}]'
    assert boxes_in(answer, FRAME) == [pytest.approx(A), pytest.approx(B)]
    assert boxes_in("[[10, 20, 30, 40], [5, 6, 70, 80]]", FRAME) == boxes_in(answer, FRAME)


def test_corners_are_ordered_clamped_and_scaled() -> None:
    assert boxes_in("[30, -4.5, 10, 2000]", (100, 50)) == [pytest.approx((0.1, 0, 0.3, 1))]
    assert boxes_in("[0, 0, 1, 1]", FRAME) == [pytest.approx((0, 0, 0.01, 0.01))]
    assert boxes_in("[0.0, 0.0, 1.0, 1.0]", FRAME) == [(0, 0, 1, 1)]


def test_the_answers_from_the_field() -> None:
    """Field cases 08 and 09."""
    outside = (CASES / "08-degenerate-box/answer.txt").read_text()
    assert boxes_in(outside, (32, 448)) == []
    lines = (CASES / "09-grounding-shapes/answers.jsonl").read_text().splitlines()
    box = pytest.approx((0.12, 0.34, 0.56, 0.78))
    assert [boxes_in(json.loads(line), FRAME) for line in lines] == [[], [], *[[box]] * 4]


SHAPES = (
    "[{}, {}, {}, {}]", '{{"bbox_2d": [{}, {}, {}, {}]}}', "({}, {}), ({}, {})",
    "({},{}) to ({},{})", "(x1, y1) = ({}, {}), (x2, y2) = ({}, {})", "<box>{} {} {} {}</box>",
    "Bounding box: {}, {}, {}, {}", '{{"xmin": {}, "ymin": {}, "xmax": {}, "ymax": {}}}',
    "Top-left corner: ({}, {}), bottom-right corner: ({}, {})",
)  # fmt: skip
PROSE = st.text("abcdefg hijklm.!?\n", max_size=40)


@settings(deadline=None, max_examples=150)
@given(
    box=st.tuples(*[st.integers(0, 99)] * 2, *[st.integers(1, 40)] * 2),
    shape=st.sampled_from(SHAPES),
    before=PROSE,
    after=PROSE,
    thought=st.booleans(),
)
def test_a_known_box_is_read_whatever_stands_around_it(
    box: tuple[int, ...], shape: str, before: str, after: str, thought: bool
) -> None:
    x, y, width, height = box
    said = shape.format(x, y, x + width, y + height)
    start = "<think>[1, 2, 3, 4]</think>" if thought else ""
    expected = (x / 140, y / 140, (x + width) / 140, (y + height) / 140)
    found = boxes_in(f"{start}{before} {said}\n{after}", (140, 140))
    assert found == [pytest.approx(expected)]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(
    st.sampled_from([*"[](){},:'\"", "x1", "bbox_2d", " ", "box", "<think>", "</think>", "to"]),
    st.integers().map(str), st.floats().map(str), st.text(max_size=3),
), max_size=40).map("".join))  # fmt: skip
def test_any_text_gives_boxes_of_the_image_or_none(text: str) -> None:
    for x1, y1, x2, y2 in boxes_in(text, FRAME):
        assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
