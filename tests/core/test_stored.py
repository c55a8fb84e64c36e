"""What is computed once, and what makes it be computed again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import BaseModel

from abplib.core import store
from abplib.core.boxes import area

Edit = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Weights:
    """A stand-in for what tells itself."""

    fingerprint: str
    note: str = ""


@dataclass(frozen=True)
class Settings:
    """A stand-in for settings."""

    lr: float = 1e-3
    layers: tuple[int, ...] = (1, 2)


class Budget(BaseModel):
    """The same by pydantic."""

    steps: int = 3


@store.stored("toy", free=["batch"])
def toy(
    place: Path,
    weights: Weights,
    settings: Settings = Settings(),
    n: int = 2,
    batch: int = 8,
    *,
    fail: list[bool] | None = None,
    base: Path | None = None,
) -> dict[str, Any]:
    with (place / "calls.txt").open("a") as file:
        file.write("x")
    return {"n": n}


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "results"))


def calls(place: Path) -> int:
    return len((place / "calls.txt").read_text())


def test_the_same_inputs_are_computed_once() -> None:
    place = toy(Weights("a"))
    assert place == toy(Weights("a", note="elsewhere"), Settings(layers=(1, 2)), n=2, batch=1)
    assert calls(place) == 1 and store.summary_of(place) == {"n": 2}
    assert place == toy.place(Weights("a")) and place.parent.name == "toy"
    others = [toy(Weights("b")), toy(Weights("a"), Settings(lr=2e-3)), toy(Weights("a"), n=3)]
    assert len({place, *others}) == 4


def test_a_base_is_another_folder_of_results(tmp_path: Path) -> None:
    place = toy(Weights("a"), base=tmp_path / "other")
    assert place.parent == tmp_path / "other" / "toy" and place.name == toy(Weights("a")).name


def test_a_stopped_computation_goes_on_where_it_was() -> None:
    @store.stored("stops")
    def stops(place: Path, n: int) -> None:
        done = len(list(place.glob("*.txt")))
        for number in range(done, n):
            (place / f"{number}.txt").touch()
            if number == 1 and done == 0:
                raise KeyboardInterrupt
            assert number >= done

    with pytest.raises(KeyboardInterrupt):
        stops(4)
    assert store.summary_of(stops.place(4)) is None
    assert len(list(stops(4).glob("*.txt"))) == 4


def test_others_wait_for_what_one_computes() -> None:
    entered, ran = threading.Event(), []

    @store.stored("slow")
    def slow(place: Path) -> None:
        ran.append(1)
        entered.set()
        assert not waiting.join(0.2)

    waiting = threading.Thread(target=lambda: (entered.wait(), slow()))
    waiting.start()
    slow()
    waiting.join()
    assert len(ran) == 1


def test_parts_of_one_place_are_made_side_by_side() -> None:
    @store.stored("parts", free=["part"], lock=None)
    def parts(place: Path, n: int, part: int) -> None:
        (place / f"{part}.txt").touch()

    assert parts(2, 0) == parts(2, 1)
    assert len(list(parts.place(2, 0).glob("*.txt"))) == 2


class Plain:
    """Nothing tells one from another."""


class Named(NamedTuple):
    """A row."""

    x: int


def test_each_value_is_known_by_what_it_holds(tmp_path: Path) -> None:
    for place, content in {"a/w": "1", "b/w": "1", "c/v": "1", "d/v": "2"}.items():
        store.write_text(tmp_path / place, content)
    a, b, c, d = (tmp_path / name for name in "abcd")
    frame = pd.DataFrame({"x": [1.0, 2.0]})
    pairs: list[tuple[Any, Any]] = [
        (1, 2),
        (None, "None"),
        ([0.1, None], [0.1, 0.2]),
        ({"a": 1}, {"a": 2}),
        (Budget(), Budget(steps=4)),
        (Settings(), replace(Settings(), lr=1.0)),
        (Named(1), Named(2)),
        (torch.float32, torch.bfloat16),
        (torch.ones(2), torch.ones(1, 2)),
        ({"w": np.zeros(3)}, {"w": np.array([0, 0, 1.0])}),
        (frame, frame * 2),
        (frame, frame.iloc[::-1]),
        (frame, frame.rename(columns={"x": "y"})),
        (a, c),
        (c, d),
        (c / "v", d / "v"),
    ]
    assert store.identify(a) == store.identify(b)
    assert store.identify(frame) == store.identify(frame.copy())
    assert store.digest({"x": 1, "y": 2}) == store.digest({"y": 2, "x": 1})
    for one, other in pairs:
        assert store.identify(one)[0] == store.identify(one)[0] != store.identify(other)[0]
        store.digest(store.identify(one)[0])
    with pytest.raises(TypeError, match="A Plain has no fingerprint"):
        store.identify({"what": Plain()})


def test_a_change_of_code_that_is_reached_is_another_input(library: Edit) -> None:
    @store.stored("areas")
    def areas(place: Path, n: int) -> None:
        from abplib.core.boxes import area  # reached, though late

        (place / str(area(torch.ones(4)))).touch()

    @store.stored("plain")
    def plain(place: Path, n: int) -> None: ...

    before, other = areas.place(1), plain.place(1)
    library("core/boxes.py", '"""Boxes: ', '"""Said otherwise: ')
    library("core/boxes.py", "\n\n\n", "\n\n\n# said\n")
    library("core/boxes.py", "def iou(", "_MORE = 1\n\n\ndef iou(")
    assert areas.place(1) == before  # prose is no code, and it takes nothing else from there
    library("core/boxes.py", ".prod(-1)", ".prod(dim=-1)")
    assert areas.place(1) != before
    assert plain.place(1) == other  # which does not reach it


def test_the_class_of_an_argument_is_code_that_is_reached(library: Edit) -> None:
    @dataclass(frozen=True)
    class Reading:
        fingerprint: str = "a"

        def area(self) -> object:
            from abplib.core import boxes

            return boxes

    before = toy.place(Reading())  # type: ignore[arg-type]
    library("core/boxes.py", "def area(", "_MORE = 1\n\n\ndef area(")
    assert toy.place(Reading()) != before  # type: ignore[arg-type]
    assert area is not None
