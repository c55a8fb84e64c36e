"""Edits on disk: Table 1's methods on the evaluation samples, made and judged once.

An edit is a PNG in its method's folder, written as its batch is done; a killed run makes only the
missing ones. Verdicts and distances are kept per method, one row a sample, and written batch by
batch likewise.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm import tqdm

from abplib import prompts
from abplib.core import boxes, paths, store
from abplib.core.boxes import Box
from abplib.core.errors import AbpError
from abplib.core.shards import ALL, Shard
from abplib.editing import conditions, controls, qwen_image_edit, qwen_pipeline, stills
from abplib.editing.base import Editor
from abplib.editing.controls import EditedSamples, Identity, Paste
from abplib.editing.methods import METHODS, Guide, Method
from abplib.editing.others import OTHERS
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.judging.base import Judge
from abplib.judging.preservation import Preservation
from abplib.paper import VQA
from abplib.samples.base import SampleSet, check_number
from abplib.vlm import encoder, loading

VERDICTS = ("success", "failure", "edit", "accuracy", "leakage", "reason")
"""Columns that a judge gives; see `judges.base.Judgement`."""

_CODE = (
    boxes, conditions, controls, encoder, prompts, qwen_image_edit, qwen_pipeline, stills, loading,
)  # fmt: skip
_BATCH = 32
"""Samples edited or judged together: what a killed run loses at most; the least part of a shard."""


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


def label(name: str) -> str:
    """What tables and figures call a method or another system."""
    return METHODS[name].label if name in METHODS else OTHERS[name].title


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


def judged(
    files: Mapping[str, Sequence[Path]],
    samples: SampleSet,
    judge: Judge,
    preservation: Preservation,
    *,
    base: Path | None = None,
) -> pd.DataFrame:
    """Verdicts and distances of the edits of some methods: one row a method and sample.

    What is not on disk yet is judged sample by sample, all methods together, which spares the judge
    most of its work. Columns: method, index, sample_id, those of `VERDICTS`, those of
    `Preservation.rows`.
    """
    places = {
        name: store.folder(
            "verdicts",
            base=base,
            edits=[made[0].parent.name, len(made)],
            judge=judge.fingerprint,
            preservation=preservation.fingerprint,
            samples=samples.fingerprint,
        )
        for name, made in files.items()
    }
    verdicts = {name: place / "rows.parquet" for name, place in places.items()}
    parts = {name: _parts(places[name], len(made)) for name, made in files.items()}
    with store.alone((base or paths.results()) / "verdicts"):  # chapters judge the same edits
        missing = {name: made for name, made in files.items() if not verdicts[name].exists()}
        _judge(missing, parts, samples, judge, preservation)
        for name in missing:
            whole = pd.concat([store.read_parquet(part)[0] for part in parts[name]])
            store.write_parquet(verdicts[name], whole)
        for part in itertools.chain(*parts.values()):
            part.unlink(missing_ok=True)
    found = [store.read_parquet(path)[0].assign(method=name) for name, path in verdicts.items()]
    rows = pd.concat(found, ignore_index=True)
    rows["failure"] = rows["failure"].astype(object).where(rows["failure"].notna(), None)
    return rows[["method", *rows.columns.drop("method")]]


def _parts(place: Path, n: int) -> list[Path]:
    """Files that hold the verdicts on `n` edits until all are there, one for `_BATCH` samples."""
    starts = range(0, n, _BATCH)
    return [place / f"{start:04d}-{min(start + _BATCH, n):04d}.parquet" for start in starts]


def _judge(
    files: Mapping[str, Sequence[Path]],
    parts: Mapping[str, Sequence[Path]],
    samples: SampleSet,
    judge: Judge,
    preservation: Preservation,
) -> None:
    """Write the missing parts of some methods.

    Where one method lacks a part, all of them are judged: who is judged together decides the last
    bit of a distance.
    """
    longest = max(map(len, files.values()), default=0)
    with tqdm(total=longest, desc="judging edits", mininterval=5, disable=None) as progress:
        for number, start in enumerate(range(0, longest, _BATCH)):
            batch = range(start, min(start + _BATCH, longest))
            made = {name: parts[name][number] for name in files if number < len(parts[name])}
            if all(part.exists() for part in made.values()):
                progress.update(len(batch))
                continue
            rows = []
            for index in batch:
                there = {name: edits[index] for name, edits in files.items() if index < len(edits)}
                rows.append(_rows(there, index, samples, judge, preservation))
                progress.update()
            found = pd.concat(rows)
            for name, part in made.items():
                store.write_parquet(part, found[found["method"] == name].drop(columns="method"))


def _rows(
    files: Mapping[str, Path],
    index: int,
    samples: SampleSet,
    judge: Judge,
    preservation: Preservation,
) -> pd.DataFrame:
    """Verdicts and distances of the methods' edits of one sample."""
    sample, edits = samples[index], [_read(path) for path in files.values()]
    verdicts = judge.judge(samples, index, edits)
    facts = [
        {"method": name, "index": index, "sample_id": sample.id, **asdict(verdict)}
        for name, verdict in zip(files, verdicts, strict=True)
    ]
    n = len(edits)
    kept = preservation.rows([sample.image] * n, edits, [sample.box] * n)
    return pd.concat([pd.DataFrame(facts), kept], axis=1)


def succeeded(rows: pd.DataFrame) -> pd.Series:
    """Whether each edit of `judged` succeeds, bool, without the edits that the judge left open.

    Open are those that it refused or answered in no usable way, or that people did not decide.

    Raises:
        AbpError: all edits of a method are open.
    """
    known = rows["success"].notna()
    if mute := sorted(set(rows["method"]) - set(rows["method"][known])):
        raise AbpError(
            f"The judge says of no edit by {label(mute[0])} whether it succeeds: have the edits "
            "labelled (book/annotation.md), or take a judge that tells."
        )
    return rows["success"][known].astype(bool)


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """`judged` with one row a sample, method and metric: columns sample_id, method, metric, value.

    Scores go by Table 1's names: vqa_edit, vqa_accuracy, vqa_leakage, and vqa for their mean
    (Figure 8); success by edit_success.
    """
    names = {"edit": "vqa_edit", "accuracy": "vqa_accuracy", "leakage": "vqa_leakage"}
    numbers = rows.drop(columns=["index", "failure", "reason"])
    renamed = numbers.rename(columns=names | {"success": "edit_success"})
    renamed["vqa"] = renamed[list(VQA)].mean(axis=1)
    return renamed.astype({"edit_success": float}).melt(
        id_vars=["method", "sample_id"], var_name="metric", value_name="value"
    )


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


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _method(name: str) -> Method:
    if name not in METHODS:
        raise AbpError(f"There is no method {name!r}: choose from {', '.join(METHODS)}.")
    return METHODS[name]
