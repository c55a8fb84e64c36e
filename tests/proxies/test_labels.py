"""Labels: the VLM's own boxes, filtered, kept in parts, shipped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import noise

from abplib.core import code, store
from abplib.core.errors import AbpError
from abplib.core.parallel import Shard
from abplib.proxies.labels import Labels, exact_labels, predict_labels
from abplib.samples.base import Sample
from abplib.vlm import grounding
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.grounding import Grounder, Grounding

pytestmark = pytest.mark.usefixtures("results")

GOOD = (0.1, 0.2, 0.4, 0.6)
SAID = {"small": [50, 25, 51, 26], "none": "nothing", "large": [0, 0, 100, 48],
        "good": [10, 10, 40, 30]}  # fmt: skip
"""In an image seen as 100 x 50 pixels."""
OLD = ("vlm", "image_area", "samples")
"""What labels told of themselves before they told the rest."""


class Noise:
    """A sample set whose instructions tell the stand-in below what to answer."""

    name = "noise"
    fingerprint = "noise-1"

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"n{index}", noise(8, 8), list(SAID)[index % 4], (0.0, 0.0, 0.5, 0.5))


class Faulty(Noise):
    """Sample 1 cannot be read, and sample 2 cannot be asked about."""

    def __getitem__(self, index: int) -> Sample:
        if index == 1:
            raise AbpError("Picture n1 is damaged.")
        sample = super().__getitem__(index)
        return replace(sample, instruction="bad<|im_end|>") if index == 2 else sample


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces generation, which random weights would take 400 tokens for; holds the questions."""
    questions: list[str] = []
    chats = Grounder._chats

    def prepare(self: Grounder, images: Any, instructions: Sequence[str]) -> Sequence[str]:
        chats(self, images, instructions)
        return instructions

    def answer(_self: Grounder, instructions: Sequence[str]) -> list[Grounding]:
        questions.extend(instructions)
        return [Grounding.read(str(SAID[word]), (100, 50), cut=False) for word in instructions]

    monkeypatch.setattr(Grounder, "_chats", prepare)
    monkeypatch.setattr(Grounder, "_answers", answer)
    monkeypatch.setattr(grounding, "_PART", 8)
    return questions


def test_unusable_answers_are_counted_by_reason(
    encoder: ConditionEncoder, asked: list[str]
) -> None:
    found = predict_labels(encoder, Noise(), 10)
    assert found.unusable == {"too_small": 3, "no_box": 3, "too_large": 2}
    assert list(found.usable["index"]) == [3, 7]
    assert found.usable[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == [list(GOOD)] * 2
    assert list(found.frame["answer"][:4]) == [str(said) for said in SAID.values()]
    moved = found.frame.assign(x1=found.frame["x1"] + 1e-6)
    assert replace(found, frame=moved).fingerprint != found.fingerprint


def test_a_sample_that_cannot_be_used_is_counted_with_its_reason(
    encoder: ConditionEncoder, asked: list[str]
) -> None:
    found = predict_labels(encoder, Faulty(), 4)
    assert found.unusable == {"refused": 2, "too_small": 1}
    refused = found.frame[found.frame["reason"] == "refused"]
    assert list(refused["sample_id"]) == ["1", "n2"]
    assert refused["answer"][1] == "Picture n1 is damaged."
    assert "chat marker <|im_end|>" in refused["answer"][2]
    assert exact_labels(encoder, Faulty(), 4).unusable == {"refused": 2}


def test_a_mended_parser_reads_what_was_answered_and_another_prompt_asks_anew(
    encoder: ConditionEncoder,
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = predict_labels(encoder, Faulty(), 8)
    first.ship(tmp_path / "shipped.parquet")
    asked.clear()
    digest = code.digest

    def changed(*modules: str) -> None:
        """Another code of these modules, and of all that reach them."""

        def digest_of(*pieces: str, without: Collection[str] = ()) -> str:
            reached = {path.stem for path in code.reached(*pieces)}
            kept = [name for name in modules if name in reached - {Path(w).stem for w in without}]
            return digest(*pieces, without=without) + "".join(kept)

        monkeypatch.setattr(code, "digest", digest_of)

    changed("answers")
    monkeypatch.setattr("abplib.proxies.labels.boxes_in", lambda *_, **__: [GOOD])
    for shipped in (None, tmp_path / "shipped.parquet"):
        again = predict_labels(encoder, Faulty(), 8, shipped=shipped)
        assert not asked
        assert again.unusable == {"refused": 2}
        assert list(again.frame["answer"]) == list(first.frame["answer"])
    changed("prompts")
    predict_labels(encoder, Faulty(), 8)
    assert len(asked) == 6


def test_nothing_is_asked_twice(encoder: ConditionEncoder, asked: list[str]) -> None:
    for number in (2, 1, 3, 4, 5):  # of two parts, so that three have none
        predict_labels(encoder, Noise(), 10, shard=Shard(number, 5))
    first = predict_labels(encoder, Noise(), 10)
    assert len(first.frame) == len(asked) == 10
    more = predict_labels(encoder, Noise(), 30)
    assert list(more.frame["index"]) == list(range(30)) and len(asked) == 30
    fewer = predict_labels(encoder, Noise(), 9)
    assert list(fewer.frame["index"]) == list(range(9)) and len(asked) == 30


def test_a_killed_run_goes_on_after_its_last_part(
    encoder: ConditionEncoder,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = Grounder._answers

    def killed(*given: Any) -> list[Grounding]:
        if len(asked) == 16:
            raise KeyboardInterrupt
        return answer(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Grounder, "_answers", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_labels(encoder, Noise(), 24)
    assert list(predict_labels(encoder, Noise(), 24).frame["index"]) == list(range(24))
    assert len(asked) == 24


def test_shipped_labels_serve_the_same_vlm_and_samples_only(
    encoder: ConditionEncoder, asked: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "shipped.parquet"
    made = predict_labels(encoder, Noise(), 12)
    made.ship(path)
    asked.clear()
    used = predict_labels(encoder, Noise(), 8, shipped=path)
    assert "those of shipped.parquet" in used.note
    store.write_parquet(path, made.frame, {name: made.key[name] for name in OLD})
    used = predict_labels(encoder, Noise(), 12, shipped=path)
    assert "those of shipped.parquet" in used.note and used.fingerprint == made.fingerprint
    assert not asked
    extended = predict_labels(encoder, Noise(), 14, shipped=path)
    assert len(asked) == 2 and list(extended.frame["index"]) == list(range(14))
    Labels(made.frame, {**made.key, "vlm": "other"}, "").ship(path)
    computed = predict_labels(encoder, Noise(), 12, shipped=path)
    assert "shipped.parquet is of another vlm" in computed.note
    absent = predict_labels(encoder, Noise(), 12, shipped=tmp_path / "no")
    assert "no is not there" in absent.note and absent.fingerprint == made.fingerprint


def test_refusals(encoder: ConditionEncoder, asked: list[str], tmp_path: Path) -> None:
    for n in (0, 41):
        for labels in (predict_labels, exact_labels):
            with pytest.raises(AbpError, match=f"{n} samples are asked for, .*1 to 40"):
                labels(encoder, Noise(), n)
    with pytest.raises(AbpError, match="None of the VLM's 3 answers holds a usable box"):
        predict_labels(encoder, Noise(), 3)
    store.write_text(tmp_path / "bad.parquet", "not a table")
    with pytest.raises(AbpError, match="not a readable table"):
        predict_labels(encoder, Noise(), 3, shipped=tmp_path / "bad.parquet")


def test_exact_boxes_can_stand_in(encoder: ConditionEncoder, asked: list[str]) -> None:
    found = exact_labels(encoder, Noise(), 3)
    assert found.usable[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == [[0.0, 0.0, 0.5, 0.5]] * 3
    assert not asked and not found.unusable
