"""Labels: the VLM's own boxes, filtered, kept in parts, shipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import noise
from PIL import Image

from abplib.core import store
from abplib.core.errors import AbpError
from abplib.core.parallel import Shard
from abplib.proxies import labels
from abplib.proxies.labels import Labels, exact_labels, predict_labels, predict_shard
from abplib.samples.base import Sample
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.grounding import Grounder, Grounding

GOOD = (0.1, 0.2, 0.4, 0.6)
SAID = {
    "small": (0.5, 0.5, 0.51, 0.51),
    "none": None,
    "large": (0.0, 0.0, 1.0, 0.95),
    "good": GOOD,
}


class Noise:
    """A sample set whose instructions tell the stand-in below what to answer."""

    name = "noise"
    fingerprint = "noise-1"

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"n{index}", noise(8, 8), list(SAID)[index % 4], (0.0, 0.0, 0.5, 0.5))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces generation, which random weights would take 400 tokens for; holds the questions."""
    questions: list[str] = []

    def locate(
        _self: Grounder,
        images: Sequence[Image.Image],
        instructions: Sequence[str],
        *,
        batch_size: int = 64,
    ) -> list[Grounding]:
        questions.extend(instructions)
        return [Grounding(f"said {word}", SAID[word], 1) for word in instructions]

    monkeypatch.setattr(Grounder, "locate", locate)
    monkeypatch.setattr(labels, "_CHUNK", 8)
    return questions


def test_unusable_answers_are_counted_by_reason(
    encoder: ConditionEncoder, asked: list[str], tmp_path: Path
) -> None:
    found = predict_labels(encoder, Noise(), 10, base=tmp_path)
    assert found.unusable == {"too_small": 3, "no_box": 3, "too_large": 2}
    assert list(found.usable["index"]) == [3, 7]
    assert found.usable[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == [list(GOOD)] * 2
    assert found.frame["answer"][1] == "said none"
    assert found.frame["answer"][3] == ""


def test_shards_ask_for_what_is_then_read(
    encoder: ConditionEncoder, asked: list[str], tmp_path: Path
) -> None:
    for number in (2, 1, 3, 4, 5):  # of four parts, so that the fifth has none
        predict_shard(encoder, Noise(), 30, Shard(number, 5), base=tmp_path)
    assert len(asked) == 30
    assert len(predict_labels(encoder, Noise(), 30, base=tmp_path).frame) == 30
    assert len(asked) == 30


def test_nothing_is_asked_twice(
    encoder: ConditionEncoder, asked: list[str], tmp_path: Path
) -> None:
    first = predict_labels(encoder, Noise(), 10, base=tmp_path)
    again = predict_labels(encoder, Noise(), 10, base=tmp_path)
    assert len(asked) == 10
    assert again.fingerprint == first.fingerprint
    more = predict_labels(encoder, Noise(), 30, base=tmp_path)
    assert len(asked) == 30
    assert list(more.frame["index"]) == list(range(30))
    fewer = predict_labels(encoder, Noise(), 9, base=tmp_path)
    assert len(asked) == 30
    assert list(fewer.frame["index"]) == list(range(9))


def test_a_killed_run_goes_on_after_its_last_part(
    encoder: ConditionEncoder,
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = predict_labels(encoder, Noise(), 24, base=tmp_path / "whole")
    answer = Grounder.locate
    calls = iter([answer, answer])

    def killed(*args: object, **kwargs: object) -> object:
        try:
            return next(calls)(*args, **kwargs)  # type: ignore[arg-type]
        except StopIteration:
            raise KeyboardInterrupt from None

    with monkeypatch.context() as patch:
        patch.setattr(Grounder, "locate", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_labels(encoder, Noise(), 24, base=tmp_path)
    asked.clear()
    resumed = predict_labels(encoder, Noise(), 24, base=tmp_path)
    assert len(asked) == 8
    assert resumed.fingerprint == whole.fingerprint


def test_shipped_labels_serve_the_same_vlm_and_samples_only(
    encoder: ConditionEncoder, asked: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "shipped.parquet"
    made = predict_labels(encoder, Noise(), 12, base=tmp_path / "a")
    made.ship(path)
    asked.clear()
    used = predict_labels(encoder, Noise(), 8, shipped=path, base=tmp_path / "b")
    assert not asked
    assert "those of shipped.parquet" in used.note
    extended = predict_labels(encoder, Noise(), 14, shipped=path, base=tmp_path / "b")
    assert len(asked) == 2
    assert list(extended.frame["index"]) == list(range(14))

    foreign = Labels(made.frame, {**made.key, "vlm": "other"}, "")
    foreign.ship(path)
    computed = predict_labels(encoder, Noise(), 12, shipped=path, base=tmp_path / "c")
    assert "shipped.parquet is of another vlm" in computed.note
    assert computed.fingerprint == made.fingerprint
    absent = predict_labels(encoder, Noise(), 4, shipped=tmp_path / "no", base=tmp_path / "c")
    assert "no is not there" in absent.note


def test_the_fingerprint_follows_the_boxes(
    encoder: ConditionEncoder, asked: list[str], tmp_path: Path
) -> None:
    made = predict_labels(encoder, Noise(), 8, base=tmp_path)
    moved = made.frame.assign(x1=made.frame["x1"] + 1e-6)
    assert replace(made, frame=moved).fingerprint != made.fingerprint


def test_refusals(encoder: ConditionEncoder, asked: list[str], tmp_path: Path) -> None:
    for n in (0, 41):
        with pytest.raises(AbpError, match=f"{n} samples are asked for, .*1 to 40"):
            predict_labels(encoder, Noise(), n, base=tmp_path)
    with pytest.raises(AbpError, match="None of the VLM's 3 answers holds a usable box"):
        predict_labels(encoder, Noise(), 3, base=tmp_path)
    store.write_text(tmp_path / "bad.parquet", "not a table")
    with pytest.raises(AbpError, match="not a readable table"):
        predict_labels(encoder, Noise(), 3, shipped=tmp_path / "bad.parquet", base=tmp_path)


def test_exact_boxes_can_stand_in(encoder: ConditionEncoder, asked: list[str]) -> None:
    found = exact_labels(encoder, Noise(), 3)
    assert found.usable[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == [[0.0, 0.0, 0.5, 0.5]] * 3
    assert not asked and not found.unusable
    with pytest.raises(AbpError, match="ask for 1 to 40"):
        exact_labels(encoder, Noise(), 41)
