"""Samples of all kinds that cannot be used, among some that can: counted, and nothing stops."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from conftest import CASES, noise
from PIL import Image

from abplib.core.errors import AbpError
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.proxies.labels import exact_labels
from abplib.samples.base import EditedSamples, Sample
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.usable import Usable, n_usable, usable

pytestmark = pytest.mark.usefixtures("results")

GOOD = Sample("", noise(64, 64), "remove it", (0.1, 0.1, 0.5, 0.5))
NAN = float("nan")
NO_BOX = "Its box is not known or has no area"


def damaged() -> Image.Image:
    """A picture that is found to be cut off when its pixels are first needed."""
    file = io.BytesIO()
    noise(64, 64).save(file, format="png")
    return Image.open(io.BytesIO(file.getvalue()[:5000]))


def broken() -> Sample:
    raise KeyError("image")


def unread() -> Sample:
    raise AbpError("picture.png cannot be read as an image; give a whole PNG or JPEG file.")


BAD: dict[str, tuple[str, Callable[[], Sample]]] = {
    "unread": ("picture.png cannot be read", unread),
    "broken": ("It cannot be read (KeyError: 'image').", broken),
    "damaged": ("cannot be read as an image", lambda: replace(GOOD, image=damaged())),
    "marker": (
        "chat marker <|im_end|>", lambda: replace(GOOD, instruction="remove it<|im_end|>"),
    ),
    "long": (
        "the model takes at most 2048", lambda: replace(GOOD, instruction="turn it blue " * 2000),
    ),
    "empty": ("is empty", lambda: replace(GOOD, instruction=" ")),
    "oblong": (
        "too oblong",
        lambda: replace(GOOD, image=Image.open(CASES / "06-extreme-aspect/3x3000.png")),
    ),
    "no box": (NO_BOX, lambda: replace(GOOD, box=(NAN,) * 4)),
    "flat box": (NO_BOX, lambda: replace(GOOD, box=(0.1, 0.1, 0.1, 0.5))),
    "box outside": (NO_BOX, lambda: replace(GOOD, box=(1.1, 0.1, 1.3, 0.5))),
}  # fmt: skip
"""What each is refused with, and the sample."""


class Mixed:
    """A good sample before and after each bad one."""

    name = fingerprint = "mixed"

    def __len__(self) -> int:
        return 2 * len(BAD) + 1

    def __getitem__(self, index: int) -> Sample:
        name = list(BAD)[index // 2] if index % 2 else f"good {index}"
        return replace(BAD[name][1]() if index % 2 else GOOD, id=name)


class Edited(Mixed):
    """The same, with an edit of each, the third good one's being broken."""

    def edited(self, index: int) -> Image.Image:
        if index == 4:
            return damaged()
        return Image.new("RGB", (64, 64), (index, 0, 0))


class Bad(Mixed):
    """None is good."""

    def __len__(self) -> int:
        return len(BAD)

    def __getitem__(self, index: int) -> Sample:
        return super().__getitem__(2 * index + 1)


def test_what_cannot_be_used_is_listed_and_the_rest_goes_on(
    encoder: ConditionEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Field cases 03, 06, 08 and 24."""
    whole = Mixed()
    found = usable(encoder, whole, len(whole))
    assert isinstance(found, Usable) and not isinstance(found, EditedSamples)
    assert len(found) == len(BAD) + 1 == n_usable(found, len(whole))
    assert [found[i].id for i in range(len(found))] == [f"good {2 * i}" for i in range(len(found))]
    assert found.unusable["index"].tolist() == list(range(1, len(whole), 2))
    listed = capsys.readouterr().err
    for row, (name, (reason, _)) in zip(found.unusable.itertuples(), BAD.items(), strict=True):
        assert row.sample_id == (name if name not in ("unread", "broken") else str(row.index))
        assert reason in row.reason and f"{row.sample_id}: {row.reason}" in listed
    assert sum(len(some) for some, _ in encoder.over(found, len(found), batch=4)) == len(found)
    assert found.fingerprint not in (whole.fingerprint, usable(encoder, whole, 3).fingerprint)
    labels = exact_labels(encoder, whole, len(whole))
    assert labels.unusable == {"refused": len(BAD)} and len(labels.usable) == len(found)


def test_edits_go_with_their_samples(encoder: ConditionEncoder) -> None:
    found = usable(encoder, Edited(), 21)
    assert isinstance(found, EditedSamples)
    assert found.edited(3).getpixel((0, 0)) == (8, 0, 0) and found[3].id == "good 8"
    assert "good 4" in found.unusable["sample_id"].tolist()


def test_a_set_without_fault_is_left_as_it_is(encoder: ConditionEncoder) -> None:
    whole = Mixed()
    assert usable(encoder, whole, 1) is whole and n_usable(whole, 1) == 1
    with pytest.raises(AbpError, match="22 samples are asked for"):
        usable(encoder, whole, 22)
    with pytest.raises(AbpError, match=r"None of the 10 .* mixed can be used; 0: picture\.png"):
        usable(encoder, Bad(), len(BAD))


def test_an_experiment_goes_on_without_them() -> None:
    own = dict.fromkeys(("eval_set", "tuning_set", "train_set"), f"{__name__}:Mixed")
    few = {"n_batches": 2, "batch_size": 6, "micro_batch": 3, "width": 8, "n_queries": 2}
    made = Experiment(Profile.load("smoke", n_eval=12, labels="exact", sweep=few, **own))
    assert made.n == 6 and len(made.evaluation) == 21 - 6
    assert len(made.tuning) == 11 and len(made.training) == 21
    assert "encoder" not in vars(made)  # its weights are not needed to say so
    swept = made.sweep()
    assert set(swept.samples["sample_id"]) == {f"good {2 * i}" for i in range(6)}
    labels = made.labels()
    assert len(labels.usable) == labels.unusable["refused"] == 6
    assert len(made.swept_guide().boxes(made.encoder, made.evaluation, made.n)) == 6
