"""The standalone VLM: boxes by autoregressive text generation (section 4.1, appendix A.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm import tqdm
from transformers import BatchFeature

from abplib.core import store
from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.core.images import ImageLike
from abplib.core.parallel import ALL, Shard, ahead
from abplib.prompts import grounding_chat
from abplib.samples.base import Sample, SampleSet, Taken, check_number, take
from abplib.vlm import loading as vlms
from abplib.vlm.answers import boxes_in
from abplib.vlm.encoder import ConditionEncoder

MAX_NEW_TOKENS = 400
QUESTION = grounding_chat("")
"""What is asked, but for the instruction."""
_BATCH = 64
"""Samples that are asked about together."""
_COLUMNS = ["index", "sample_id", "answer", "refused", "across", "down", "cut"]
_PART = 256
"""Samples of one file of kept answers: what a killed run loses at most."""


@dataclass(frozen=True)
class Grounding:
    """A VLM's answer to where an edit belongs."""

    text: str
    """The answer as generated."""
    box: Box | None
    """Its first box, fractions of the source image; None where it holds none."""
    fault: str = ""
    """Why the VLM could not be asked, a sentence; empty where it was."""
    frame: tuple[int, int] = field(default=(0, 0), compare=False)
    """Across and down: units of which the image has so many, in which the boxes are written."""
    cut: bool = field(default=False, compare=False)
    """Whether the answer did not come to its end."""

    @classmethod
    def read(cls, text: str, frame: tuple[int, int], *, cut: bool) -> Grounding:
        """What an answer says."""
        boxes = boxes_in(text, frame, cut=cut)
        return cls(text, boxes[0] if boxes else None, frame=frame, cut=cut)


class Grounder:
    """Asks an encoder's Qwen-VL for the box of an edit, greedily and in batches."""

    def __init__(self, encoder: ConditionEncoder) -> None:
        """Raises AbpError for no chat template, and a family whose way of boxes is not known."""
        self.encoder, self.processor = encoder, encoder.processor
        if encoder.adapter.boxes is None:
            raise AbpError(
                f"How VLMs of type {encoder.model.config.model_type!r} write boxes is not known; "
                "take a Qwen-VL for boxes, or the samples' exact ones (labels: exact in the "
                "profile)."
            )
        if self.processor.chat_template is None:
            raise AbpError(
                "The VLM comes without a chat template, so it cannot be asked; add the model's own "
                "chat_template.jinja to its folder."
            )

    def locate(self, images: Sequence[ImageLike], instructions: Sequence[str]) -> list[Grounding]:
        """One answer for each image and instruction, ended by the model or after 400 tokens.

        Raises AbpError for an empty or too long instruction, one that holds chat markers, and what
        is not an image.
        """
        if len(images) != len(instructions):
            raise AbpError(
                f"There are {len(images)} images for {len(instructions)} instructions; give one "
                "image for each instruction."
            )
        answers: list[Grounding] = []
        for start in range(0, len(images), _BATCH):
            some = slice(start, start + _BATCH)
            answers += self._answers(self._chats(images[some], instructions[some]))
        return answers

    def locate_samples(
        self, samples: SampleSet | Sequence[Sample], rows: Sequence[int]
    ) -> list[tuple[str, Grounding]]:
        """Ids and answers of some samples; one that cannot be used has its `fault`.

        The next batch is read, resized and tokenized while the VLM answers.
        """
        batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
        answered: list[tuple[str, Grounding]] = []
        with tqdm(total=len(rows), desc="grounding", disable=None) as progress:
            prepare = partial(self._taken, samples)
            for taken, chats in ahead(prepare, batches, self.encoder.model.device):
                answers = iter(() if chats is None else self._answers(chats))
                answered += [
                    (name, Grounding("", None, fault) if sample is None else next(answers))
                    for name, sample, fault in taken
                ]
                progress.update(len(taken))
        return answered

    def _taken(
        self, samples: SampleSet | Sequence[Sample], rows: Sequence[int]
    ) -> tuple[list[Taken], BatchFeature | None]:
        """Samples, and the chats of those that can be used."""
        taken = [take(samples, row) for row in rows]
        try:
            return taken, self._chats_of(s.sample for s in taken)
        except AbpError:
            taken = [take(samples, row, lambda s: self._chats_of([s])) for row in rows]
            return taken, self._chats_of(s.sample for s in taken)

    def _chats_of(self, samples: Iterable[Sample | None]) -> BatchFeature | None:
        good = [sample for sample in samples if sample is not None]
        return self._chats([s.image for s in good], [s.instruction for s in good]) if good else None

    def _chats(self, images: Sequence[ImageLike], instructions: Sequence[str]) -> BatchFeature:
        """The questions as the model is given them: all that needs no weights."""
        vlms.check_instructions(instructions, self.processor)
        texts = [
            self.processor.apply_chat_template(
                grounding_chat(instruction), tokenize=False, add_generation_prompt=True
            )
            for instruction in instructions
        ]
        return vlms.chats(
            images, texts, self.encoder.model, self.processor, self.encoder.image_area
        )

    def _answers(self, chats: BatchFeature) -> list[Grounding]:
        said = vlms.generate_text(
            chats,
            self.encoder.model,
            self.processor,
            max_new_tokens=MAX_NEW_TOKENS,
            repetition_penalty=self.encoder.repetition_penalty,
        )
        thousandths = self.encoder.adapter.boxes == "thousandths"
        return [
            Grounding.read(text, (1000, 1000) if thousandths else seen, cut=not whole)
            for text, seen, whole in said
        ]


def kept_answers(
    encoder: ConditionEncoder, samples: SampleSet, rows: range, shard: Shard = ALL
) -> pd.DataFrame:
    """What the VLM answers about some samples of a set; each is asked about once, and kept on disk.

    Columns: index, sample_id, answer (text as generated, or why it was refused), refused, across,
    down and cut (see `Grounding`). They are kept in parts of 256 samples, each written as it is
    complete, so that a killed run goes on where it was and more samples add; a shard is some of
    the parts. Another way of reading boxes out of answers asks nothing anew.

    Raises:
        AbpError: there are not as many samples, or as `Grounder` does.
    """
    check_number(rows.stop, samples)
    place = _asked(encoder, samples, QUESTION, rows=rows, shard=shard)
    parts = [store.read_parquet(file)[0] for _, file in shard.take(_parts(place, rows))]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)


@store.stored(
    "answers",
    free=["rows", "shard"],
    lock=None,
    without=("core/boxes.py", "vlm/answers.py"),
)
def _asked(
    place: Path,
    encoder: ConditionEncoder,
    samples: SampleSet,
    _question: object,
    *,
    rows: range,
    shard: Shard,
) -> None:
    for part, file in shard.take(_parts(place, rows)):
        with store.alone(file):
            if file.exists():
                continue
            said = Grounder(encoder).locate_samples(samples, part)
            told = [
                (index, name, a.fault or a.text, bool(a.fault), *a.frame, a.cut)
                for index, (name, a) in zip(part, said, strict=True)
            ]
            store.write_parquet(file, pd.DataFrame(told, columns=_COLUMNS))


def _parts(place: Path, rows: range) -> list[tuple[range, Path]]:
    """The parts of some rows and their files: those that are there as they are, then new ones."""
    names = (file.stem.split("-") for file in place.glob("*-*.parquet"))
    present = {int(start): int(stop) for start, stop in names}
    parts, start = [], rows.start
    while start < rows.stop:
        part = range(start, present.get(start) or min(start + _PART, rows.stop))
        parts.append((part, place / f"{part.start:07d}-{part.stop:07d}.parquet"))
        start = part.stop
    return parts
