"""Edits on disk: Table 1's methods on the evaluation samples, made and judged once.

An edit is a PNG in its method's folder, written as its batch is done; a killed run makes only the
missing ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from abplib import prompts
from abplib.core import boxes, store
from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.core.shards import ALL, Shard
from abplib.editing import conditions, controls, qwen_image_edit, qwen_pipeline, stills
from abplib.editing.base import Editor
from abplib.editing.controls import EditedSamples, Identity, Paste
from abplib.editing.methods import METHODS, Guide, Method
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.samples.base import SampleSet, check_number
from abplib.vlm import encoder, loading

_CODE = (
    boxes, conditions, controls, encoder, prompts, qwen_image_edit, qwen_pipeline, stills, loading,
)  # fmt: skip
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
    base: Path | None = None,
) -> list[Path]:
    """Edit the first `n` samples by the method called `name`; the files of the edits, in order.

    Args:
        name: a key of `METHODS`.
        editor: with a LoRA, which methods leave out that have none.
        samples: their fingerprint names the folder.
        n: how many, from the start.
        seed: sample i is edited with the random numbers of `seed + i`.
        guides: boxes for each of the `n` samples, where the method wants them.
        shard: which part of the samples is edited and returned; all by default.
        base: in place of the folder of results.

    Raises:
        AbpError: there is no such method, `n` is not in 1..len(samples), boxes that the method
            wants are missing, exact edits are to be pasted that are not known, or as editors do.
    """
    method = _method(name)
    check_number(n, samples)
    chosen = _editor(name, editor, samples)
    return _made(method, chosen, samples, _shown(method, guides, n), seed, shard, base)


def make_other_edits(
    editor: Editor,
    samples: SampleSet,
    n: int,
    seed: int,
    *,
    shard: Shard = ALL,
    base: Path | None = None,
) -> list[Path]:
    """The same by another system of Table 1, which is shown no boxes.

    Raises:
        AbpError: `n` is not in 1..len(samples), or as editors do.
    """
    check_number(n, samples)
    return _made(Method(editor.name), editor, samples, [None] * n, seed, shard, base)


def _made(
    method: Method,
    editor: Editor,
    samples: SampleSet,
    shown: Sequence[Box | None],
    seed: int,
    shard: Shard,
    base: Path | None,
) -> list[Path]:
    """Files of a shard of the edits, one for each of `shown`; what is missing is made."""
    place = store.folder(
        "edits",
        base=base,
        method=asdict(method),
        editor=editor.fingerprint,
        samples=samples.fingerprint,
        boxes=store.digest(shown),
        seed=seed,
        code=store.digest_files(*_code(editor)),
    )
    files = [place / f"{index:04d}.png" for index in range(len(shown))]
    batches = shard.take([files[start : start + _BATCH] for start in range(0, len(files), _BATCH)])
    todo = [batch for batch in batches if not all(file.exists() for file in batch)]
    for batch in tqdm(todo, desc=method.label, disable=not todo, mininterval=5):
        with store.alone(*batch):
            part = [int(file.stem) for file in batch if not file.exists()]
            if not part:  # another process made them meanwhile
                continue
            asked = [samples[index] for index in part]
            made = editor.edit_many(
                [sample.image for sample in asked],
                [sample.instruction for sample in asked],
                [seed + index for index in part],
                boxes=[shown[index] for index in part] if editor.reads_boxes else None,
            )
            for index, image in zip(part, made, strict=True):
                with store.replacing(files[index]) as scratch:
                    image.save(scratch, format="png")
    return [file for batch in batches for file in batch]


def _code(editor: Editor) -> list[str]:
    """Files of what edits: `_CODE`, and where the editor's class and its bases are written."""
    own = {inspect.getfile(c) for c in type(editor).__mro__ if c.__module__.startswith("abplib.")}
    return sorted({*own, *(str(module.__file__) for module in _CODE)})


def _editor(name: str, editor: QwenImageEditor, samples: SampleSet) -> Editor:
    """What edits by the method called `name`."""
    if name == "identity":
        return Identity()
    if name == "paste":
        if not isinstance(samples, EditedSamples):
            raise AbpError(
                f"The exact edits of {samples.name} are not known, so none can be pasted: give its "
                "set an `edited` method, or leave the method paste out."
            )
        return Paste(samples)
    method = METHODS[name]
    return replace(editor, condition=method.condition, lora=editor.lora if method.lora else None)


def _shown(
    method: Method, guides: Mapping[Guide, Sequence[Box | None]], n: int
) -> list[Box | None]:
    """The boxes that a method draws, one for each of `n` samples; None for none."""
    if method.guide is None:
        return [None] * n
    found = list(guides.get(method.guide, ()))
    if len(found) < n:
        raise AbpError(
            f"{method.label} is shown boxes, and for {n} samples there are {len(found)} from "
            f"{method.guide!r}: give one for each, or None where none is known."
        )
    return found[:n]


def _method(name: str) -> Method:
    if name not in METHODS:
        raise AbpError(f"There is no method {name!r}: choose from {', '.join(METHODS)}.")
    return METHODS[name]
