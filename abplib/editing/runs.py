"""Edits on disk: Table 1's methods on the evaluation samples, made once.

An edit is a PNG in its method's folder, written as its batch is done; a killed run makes only the
missing ones. An editor whose edits are all there is not loaded. A sample that an editor cannot edit
stops none of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from abplib.core import store
from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.core.parallel import ALL, Shard
from abplib.core.store import stored
from abplib.editing import controls, faults
from abplib.editing.base import Editor, Request
from abplib.editing.methods import CONTROLS, METHODS, Guide, Method
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.samples.base import EditedSamples, Sample, SampleSet, check_number, take

_BATCH = 32
"""Samples edited together: what a killed run loses at most; the least part of a shard."""


def make_edits(
    name: str,
    editor: QwenImageEditor,
    samples: SampleSet,
    n: int,
    seed: int,
    guides: Mapping[Guide, Sequence[Box | None]],
    *,
    shard: Shard = ALL,
) -> list[Path | None]:
    """Edit the first `n` samples by the method called `name`.

    Args:
        name: a key of `METHODS`.
        editor: with a LoRA, which methods leave out that have none.
        samples: their fingerprint names the folder.
        n: how many, from the start.
        seed: sample i is edited with the random numbers of `seed + i`.
        guides: boxes for each of the `n` samples, where the method wants them.
        shard: which part of the samples is edited and returned; all by default.

    Returns: the files of the edits, in order; None for a sample that cannot be edited, of which the
        standard error tells the id and why.

    Raises:
        AbpError: there is no such method, `n` is not in 1..len(samples), boxes that the method
            wants are missing, exact edits are to be pasted that are not known, no sample can be
            edited, or the editor cannot be loaded.
    """
    if name not in METHODS:
        raise AbpError(f"There is no method {name!r}: choose from {', '.join(METHODS)}.")
    check_number(n, samples)
    method = METHODS[name]
    if name in CONTROLS:
        if name == "paste" and not isinstance(samples, EditedSamples):
            raise AbpError(
                f"The exact edits of {samples.name} are not known, so none can be pasted: give its "
                "set an `edited` method, or leave the method paste out."
            )
        return _files(_controlled(name, samples, n, shard=shard), samples, n, method.label, shard)
    lora = editor.lora if method.lora else None
    variant = replace(editor, condition=method.condition, lora=lora)
    return _edits(variant, samples, _shown(method, guides, n), seed, shard)


def make_other_edits(
    editor: Editor, samples: SampleSet, n: int, seed: int, *, shard: Shard = ALL
) -> list[Path | None]:
    """The same by another system of Table 1, which is shown no boxes and is let go afterwards."""
    check_number(n, samples)
    files = _edits(editor, samples, [None] * n, seed, shard)
    editor.let_go()
    return files


def n_cut(files: Sequence[Path | None]) -> int:
    """On how many edits the VLM's description was cut off before its end."""
    cut = 0
    for file in filter(None, files):
        with Image.open(file) as image:
            cut += image.info.get("cut") == "True"
    return cut


def _edits(
    editor: Editor, samples: SampleSet, shown: Sequence[Box | None], seed: int, shard: Shard
) -> list[Path | None]:
    """Files of a shard of the edits, one for each of `shown`; what is missing is made."""
    place = _made(editor, samples, shown, seed, shard=shard)
    return _files(place, samples, len(shown), editor.name, shard)


def _files(place: Path, samples: SampleSet, n: int, editor: str, shard: Shard) -> list[Path | None]:
    files = [file for batch in _batches(place, n, shard) for file in batch]
    return faults.made(files, f"edits of {samples.name} by {editor}")


@stored("edits", free=["shard"], lock=None)
def _made(
    place: Path,
    editor: Editor,
    samples: SampleSet,
    shown: Sequence[Box | None],
    seed: int,
    *,
    shard: Shard,
) -> None:
    def edit(asked: Mapping[int, Sample]) -> list[Image.Image]:
        boxes = {index: shown[index] if editor.reads_boxes else None for index in asked}
        return editor.edit_many(
            [
                Request(sample.image, sample.instruction, seed + index, boxes[index])
                for index, sample in asked.items()
            ]
        )

    todo = [batch for batch in _batches(place, len(shown), shard) if faults.waiting(batch)]
    if todo:
        editor.load()
    for batch in tqdm(todo, desc=editor.name, disable=not todo, mininterval=5):
        _fill(batch, samples, edit, editor.check)


@stored("edits", free=["shard"], lock=None)
def _controlled(place: Path, name: str, samples: SampleSet, n: int, *, shard: Shard) -> None:
    control = getattr(controls, name)
    for batch in _batches(place, n, shard):
        _fill(batch, samples, lambda asked: [control(samples, index) for index in asked])


def _fill(
    batch: Sequence[Path],
    samples: SampleSet,
    edit: Callable[[Mapping[int, Sample]], Sequence[Image.Image]],
    check: Callable[[Sample], object] = lambda _: None,
) -> None:
    """Make the missing files of a batch, of the samples that `check` lets pass.

    All of it is edited again where one is missing, since the last bits of an edit depend on those
    that are made with it.
    """
    with store.alone(*batch):
        if not (missing := faults.waiting(batch)):  # another process may have made them meanwhile
            return
        asked: dict[Path, Sample] = {}
        for file in batch:
            taken = take(samples, int(file.stem), check)
            if taken.sample is not None:
                asked[file] = taken.sample
            elif file in missing:
                faults.give_up(file, taken)
        edits = edit({int(file.stem): sample for file, sample in asked.items()})
        for file, image in zip(asked, edits, strict=True):
            if file not in missing:
                continue
            told = PngInfo()
            for key in ("description", "cut"):
                if key in image.info:
                    told.add_itxt(key, str(image.info[key]))
            with store.replacing(file) as scratch:
                image.save(scratch, format="png", pnginfo=told, compress_level=1)


def _batches(place: Path, n: int, shard: Shard) -> Sequence[list[Path]]:
    files = [place / f"{index:04d}.png" for index in range(n)]
    return shard.take([files[start : start + _BATCH] for start in range(0, n, _BATCH)])


def _shown(
    method: Method, guides: Mapping[Guide, Sequence[Box | None]], n: int
) -> list[Box | None]:
    """The boxes that a method draws, one for each of `n` samples; None for none."""
    if method.guide is None:
        return [None] * n
    boxes = list(guides.get(method.guide, ()))
    if len(boxes) < n:
        raise AbpError(
            f"{method.label} is shown boxes, and for {n} samples there are {len(boxes)} from "
            f"{method.guide!r}: give one for each, or None where none is known."
        )
    return boxes[:n]
