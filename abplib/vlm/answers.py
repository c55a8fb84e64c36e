"""The boxes that a VLM's answer says, by a table of shapes.

What appendix A.1 asks for invites many ways to write a box. A shape is read where it says one box,
and not at all where it may say something else: polygons, lists of points, percentages, what was
only thought.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from abplib.core.boxes import Box, from_pixels

Numbers = list[str]

_NUMBER = r"""["']?([-+]?(?:\d+\.?\d*|\.\d+))["']?(?!\w|\.?…|[\w.]*\s*%)"""
_NUMBERS = r"\s*[,\s]\s*".join([_NUMBER] * 4)

_FOUR = [
    # [x1, y1, x2, y2], (x1, y1, x2, y2), also where what holds it is closed before it
    rf"[\[(]\s*{_NUMBERS}\s*,?\s*(?:[\])]|(?=[}}`]|\Z))",
    # <box>x1 y1 x2 y2</box>
    rf"<b?box>\s*{_NUMBERS}\s*</",
    # Bounding box: x1, y1, x2, y2
    r"(?:box(?:_2d)?|coordinates|y2[\])]?)[\s\"'*:=]*(?:is|are)?[\s*:=]+"
    rf"{_NUMBERS}(?!\s*,?\s*[-+]?\.?\d)",
    # x1, y1, x2, y2, and nothing else
    rf"\A\s*{_NUMBERS}\s*\Z",
]
_POINT = rf"[\[(]\s*{_NUMBER}\s*,\s*{_NUMBER}\s*[\])]"
_SIDE = rf"[\"']?\b([xy]_?min|[xy]_?max|[xy][012]|left|top|right|bottom)[\"']?\s*[:=]\s*{_NUMBER}"
_SIDES = (
    ("x1", "y1", "x2", "y2"), ("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"),
)  # fmt: skip

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_OTHER_KEY = re.compile(
    r"\w*(?:point|poly|quad|segm|line|cent|size|wh\b)\w*[\"'*\s]*[:=][\s\[({\"']*\Z", re.IGNORECASE
)
_CORNER = re.compile(r"(?:top|bottom|upper|lower)[\s_-]*(?:left|right)|x2", re.IGNORECASE)
_AROUND_CORNERS = re.compile(
    r"and|to|is|are|at|the|its|with|corners?|coordinates?|point|position|of|box|x2|y2"
    r"|top|bottom|upper|lower|left|right"
)


def boxes_in(text: str, frame: tuple[int, int], *, cut: bool = False) -> list[Box]:
    """Every box of an answer, in order, as fractions of the image; one without area is none.

    Numbers count in units of which the image has `frame` = (across, down), or are fractions where
    all four lie in 0..1 and one is written with a point. `cut` says that the answer was cut off, so
    that a number at its end may go on.
    """
    text = re.split(r"</think(?:ing)?>", _THOUGHT.sub(" ", text))[-1] + "…" * cut
    shapes = sorted([*_lists(text), *_corners(text), *_named(text)])
    boxes = [_scaled(numbers, frame) for start, numbers in shapes if not _is_other(text[:start])]
    return [box for box in boxes if box[0] < box[2] and box[1] < box[3]]


def _lists(text: str) -> Iterator[tuple[int, Numbers]]:
    """Four numbers in a row."""
    for shape in _FOUR:
        for match in re.finditer(shape, text, re.IGNORECASE):
            yield match.start(), list(match.groups())


def _corners(text: str) -> Iterator[tuple[int, Numbers]]:
    """Two points that are said to be corners, or stand side by side."""
    for run in _runs(_POINT, text):
        if len(run) == 2:
            yield run[0].start(), [*run[0].groups(), *run[1].groups()]


def _named(text: str) -> Iterator[tuple[int, Numbers]]:
    """Four sides, each with its name."""
    for run in _runs(_SIDE, text):
        named = {match[1].lower().replace("_", ""): match[2] for match in run}
        for sides in _SIDES:
            if len(run) == 4 and named.keys() == set(sides):
                yield run[0].start(), [named[side] for side in sides]


def _runs(shape: str, text: str) -> Iterator[list[re.Match[str]]]:
    """Matches that belong together, by what stands between each and the next."""
    run: list[re.Match[str]] = []
    for match in re.finditer(shape, text, re.IGNORECASE):
        if run and not _joins(text[run[-1].end() : match.start()]):
            yield run
            run = []
        run.append(match)
    yield run


def _joins(between: str) -> bool:
    words = re.findall(r"[^\W_]+", between.lower())
    if not words or words == ["to"]:
        return re.fullmatch(r"[\s,;–—→>-]*(?:to)?\s*", between, re.IGNORECASE) is not None
    return all(map(_AROUND_CORNERS.fullmatch, words)) and _CORNER.search(between) is not None


def _is_other(before: str) -> bool:
    """Whether the key before a shape says that it is no box."""
    return _OTHER_KEY.search(before[-80:]) is not None


def _scaled(numbers: Numbers, frame: tuple[int, int]) -> Box:
    x1, y1, x2, y2 = map(float, numbers)
    inside = all(0 <= side <= 1 for side in (x1, y1, x2, y2))
    fractions = inside and any(re.search(r"\.\d", number) for number in numbers)
    return from_pixels((x1, y1, x2, y2), (1, 1) if fractions else frame)
