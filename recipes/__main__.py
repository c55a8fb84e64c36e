"""What makes the shipped weights and the multi-entity set: `python -m recipes`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from abplib.__main__ import Commands
from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.samples.multi_entity import FOLDER, N_SCENES
from abplib.samples.scenes.sets import MANIFEST, build_manifest

STAGES = ("prompts", "structures", "images", "edits", "reversal", "instructions", "boxes",
          "verification", "split")  # fmt: skip


@click.group(cls=Commands)
def main() -> None:
    """Make the shipped weights and the multi-entity set anew."""


def _device(context: click.Context, option: click.Parameter, given: str | None) -> str:
    import torch

    if given == "cuda" and not torch.cuda.is_available():
        raise AbpError("No CUDA device is visible here: train with --device cpu.")
    return given or ("cuda" if torch.cuda.is_available() else "cpu")


def place(name: str, default: str) -> click.Option:
    """An option that names a folder or file; by default one of the checkout."""
    at = click.Path(path_type=Path)
    return click.Option([name], type=at, default=lambda: paths.root() / default,
                        show_default=default)  # fmt: skip


def training(out: str, work: str) -> Callable[[Callable[..., Path]], click.Command]:
    """A command that trains, or goes on where it was killed: its results' and checkpoints' places.

    Both are in the checkout unless others are given; the function returns what it made.
    """

    def command(train: Callable[..., Path]) -> click.Command:
        def run(out: Path, work: Path, device: str) -> None:
            click.echo(train(out, work, device))

        options = [
            place("--out", out),
            place("--work", work),
            click.Option(["--device"], type=click.Choice(["cpu", "cuda"]), callback=_device,
                         help="Default: cuda if there is one."),
        ]  # fmt: skip
        name = train.__name__.replace("_", "-")
        return main.command(name, params=options, help=train.__doc__)(run)

    return command


@training("data/mini", "runs")
def miniature(out: Path, work: Path, device: str) -> Path:
    """Make all that is shipped under data/mini from nothing; resumable."""
    from recipes.miniature.making import MiniaturePlan, make

    return make(out, work, MiniaturePlan(), device)


@training("data/mini/vlm", "runs/vlm")
def train_vlm(out: Path, work: Path, device: str) -> Path:
    """Train the miniature VLM from scratch; resumable."""
    from abplib.vlm.twins import VLMShape
    from recipes.miniature.vlm_training import VLMTraining, train

    return train(out, work, VLMTraining(), VLMShape(), device)


@training("data/mini/editor", "runs/editor")
def train_editor(out: Path, work: Path, device: str) -> Path:
    """Train the miniature editor around the trained VLM; resumable."""
    from recipes.miniature.editor import EditorPlan, make_editor

    return make_editor(out, paths.root() / "data/mini/vlm", work, EditorPlan(), device)


@training("data/mini/vlm/conditions.csv", "runs/editor")
def train_conditions(out: Path, work: Path, device: str) -> Path:
    """Train the transformer on other conditions and wordings, judge their edits; resumable."""
    from recipes.miniature.condition_comparison import ComparisonPlan, compare

    root = paths.root() / "data/mini"
    return compare(out, root / "vlm", root / "editor", work, ComparisonPlan(), device)


@main.command()
@click.option("--profile", default="mini", show_default=True, help="Whose proxies are trained.")
@click.option("--batches", default=160, show_default=True, help="That each learns from.")
def sensitivity(profile: str, batches: int) -> None:
    """Train chapter 2's proxies with each choice made otherwise that the paper leaves open."""
    from abplib.experiment import Experiment
    from abplib.profiles import Profile
    from recipes.sensitivity import CHOICES, vary

    click.echo(vary(Experiment(Profile.load(profile)), batches, CHOICES))


@main.command()
def write_manifest() -> None:
    """Choose the multi-entity samples anew and write their manifest."""
    path = paths.root() / MANIFEST
    store.write_json(path, build_manifest())
    click.echo(path)


@main.command(params=[place("--out", FOLDER)])
@click.argument("stage", type=click.Choice(STAGES))
@click.option("-n", "number", type=click.IntRange(2), default=N_SCENES, help="Prompt pairs.")
@click.option("--labels", type=click.Path(path_type=Path), help="Verification: what people said.")
@click.option("--profile", default="paper", show_default=True, help="Whose VLM and 2509 are used.")
@click.option("--seed", default=0, show_default=True)
def spatial(
    stage: str, out: Path, number: int, labels: Path | None, profile: str, seed: int
) -> None:
    """Run one STAGE of the multi-entity set (A.2), or go on where it was stopped."""
    from abplib.experiment import Experiment
    from abplib.judging.human.labels import read_labels
    from abplib.profiles import Profile
    from abplib.vlm.grounding import Grounder
    from recipes.multi_entity import models, stages

    made, log = Experiment(Profile.load(profile)), click.echo
    match stage:
        case "prompts":
            stages.write_prompts(out, models.GeminiWriter(), number, log)
        case "structures":
            stages.structure_prompts(out, models.GeminiWriter(), log)
        case "images":
            stages.paint_images(out, models.FiboPainter.from_pretrained(), seed, log)
        case "edits":
            stages.edit_images(out, made.other("qwen_image_edit_2509"), seed, log)
        case "reversal":
            stages.reverse(out, log)
        case "instructions":
            stages.write_instructions(out, models.MistralDescriber.from_pretrained(), log)
        case "boxes":
            stages.ground_boxes(out, Grounder(made.encoder), made.profile.vlm, log)
        case "verification":
            if labels is None:
                raise AbpError(
                    "Stage verification reads what people said: give --labels, the file of labels "
                    "that was made of a Label Studio export."
                )
            stages.verify(out, read_labels(labels), log)
        case "split":
            stages.split(out, seed, log)


if __name__ == "__main__":
    main(prog_name="recipes")
