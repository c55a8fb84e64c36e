"""Steps that chapters share, each a command, so that a graph of jobs can run them beforehand.

A chapter that runs alone computes what is missing by the same functions; see `workflow/Snakefile`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.core.parallel import Shard
from abplib.editing.methods import METHODS, Guide
from abplib.profiles import LABELS_FILE, ChapterParameters, Profile, parse

if TYPE_CHECKING:
    from abplib.core.boxes import Box

SEED = ChapterParameters().seed
"""The chapters' own default, so that they find what the steps made."""

_profile = click.option("--profile", default="mini", show_default=True)
_shard = click.option(
    "--shard",
    default="1-of-1",
    show_default=True,
    callback=lambda context, option, text: Shard.read(text),
    help="Do a part of it.",
)


@click.command()
@_profile
@click.option("-n", "number", type=click.IntRange(1), help="Default: what the profile trains on.")
@_shard
def labels(profile: str, number: int | None, shard: Shard) -> None:
    """Let the VLM label the training samples of chapter 2."""
    from abplib.experiment import Experiment
    from abplib.proxies.labels import predict_labels

    made = Experiment(Profile.load(profile), SEED)
    shipped = Path(made.vlm_source) / LABELS_FILE
    n = number or made.n_labels
    predict_labels(made.encoder, made.training, n, shipped=shipped, shard=shard)


@click.command()
@_profile
def sweep(profile: str) -> None:
    """Train the proxies of chapter 2, which chapters 3 and 4 take apart."""
    from abplib.experiment import Experiment

    Experiment(Profile.load(profile), SEED).sweep()


@click.command()
@_profile
def answers(profile: str) -> None:
    """Ask the VLM for the boxes of the evaluation samples, for chapters 1 and 5."""
    from abplib.experiment import Experiment
    from abplib.sections.vlm_boxes import ask

    made = Experiment(Profile.load(profile), SEED)
    ask(made.encoder, made.evaluation, made.n)


@click.command()
@click.argument("method")
@_profile
@_shard
def edit(method: str, profile: str, shard: Shard) -> None:
    """Edit the evaluation samples by a METHOD of Table 1, for chapters 1 and 5.

    METHOD is one of chapter 5's, such as `baseline` or `ours`, or another system that the profile
    names.
    """
    from abplib.editing.runs import make_edits, make_other_edits
    from abplib.experiment import Experiment
    from abplib.sections.editing_validation import answered_boxes
    from abplib.sections.vlm_boxes import ask

    chosen = Profile.load(profile)
    known = (*METHODS, *chosen.other_editors)
    if method not in known:
        raise AbpError(f"There is no method {method!r}: choose from {', '.join(known)}.")
    made = Experiment(chosen, SEED)
    samples, n = made.evaluation, made.n
    if method in chosen.other_editors:
        make_other_edits(made.other(method), samples, n, SEED, shard=shard)
        return
    boxes: dict[Guide, Sequence[Box | None]] = {}
    match METHODS[method].guide:
        case "proxy":
            boxes["proxy"] = made.guide().boxes(made.encoder, samples, n)
        case "vlm":
            boxes["vlm"] = answered_boxes(ask(made.encoder, samples, n))
        case "exact":
            boxes["exact"] = [samples[index].box for index in range(n)]
    editor = made.editor if METHODS[method].lora else made.baseline
    make_edits(method, editor, samples, n, SEED, boxes, shard=shard)


def key(step: Callable[..., object] | str, profile: str) -> str:
    """Hash of what determines what a function of this module computes, or the chapter called so.

    Where models or samples are missing, the sentence that says so stands for all.

    Raises:
        AbpError: there is no such profile.
    """
    from abplib import chapter as chapters

    chosen = Profile.load(profile)
    try:
        if isinstance(step, str):
            return store.digest(chapters.of_chapter(step, parse(step, {"profile": profile})))
        return store.digest(chapters.inputs(chosen, inspect.getsource(step)))
    except AbpError as error:
        return str(error)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Default: runs/omniedit.")
@click.option("--location", help="A folder of its parquet shards; default: the hub.")
@click.option("-n", "number", type=click.IntRange(1), help="Rows; default: the paper's 128,000.")
@click.option("--seed", default=0, show_default=True, help="Of the choice.")
def omniedit(out: Path | None, location: str | None, number: int | None, seed: int) -> None:
    """Choose rows of OmniEdit and fetch them, or go on where a run was stopped."""
    from abplib.samples.omniedit import FOLDER, LOCATION, PAPER_ROWS, OmniEdit, choose, fetch

    folder = out or paths.root() / FOLDER
    manifest = choose(location or LOCATION, n=number or PAPER_ROWS, seed=seed, kept=folder)
    fetch(manifest, folder, click.echo)
    samples = OmniEdit(folder)
    click.echo(f"{len(samples)} rows in {folder}, {samples.unusable or 'none'} unusable")
    click.echo(f"manifest {manifest.fingerprint}")
