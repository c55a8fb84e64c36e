"""What makes the shipped weights and the multi-entity set: `python -m recipes`."""

from __future__ import annotations

from pathlib import Path

import click

from abplib.__main__ import Commands
from abplib.core import paths, store
from abplib.samples.scenes.sets import MANIFEST, build_manifest


@click.group(cls=Commands)
def main() -> None:
    """Make the shipped weights and the multi-entity set anew."""


@main.command()
@click.option("--out", type=click.Path(path_type=Path), help="Default: data/mini/vlm.")
@click.option("--work", type=click.Path(path_type=Path), help="Checkpoints; default: runs/vlm.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda if there is one.")
@click.option("--see-steps", type=click.IntRange(1), help="Batches of the first stage.")
@click.option("--speak-steps", type=click.IntRange(1), help="Batches of the second stage.")
@click.option("--no-compile", is_flag=True, help="Do without a C++ compiler; slower.")
def train_vlm(
    out: Path | None,
    work: Path | None,
    device: str | None,
    see_steps: int | None,
    speak_steps: int | None,
    no_compile: bool,
) -> None:
    """Train the miniature VLM from scratch, or go on where a run was killed."""
    import torch

    from abplib.vlm.twins import VLMShape
    from recipes.miniature.vlm_training import VLMTraining, train

    asked = {"see_steps": see_steps, "speak_steps": speak_steps}
    plan = VLMTraining(compile=not no_compile, **{k: v for k, v in asked.items() if v})
    folder, checkpoints = paths.root() / "data/mini/vlm", paths.root() / "runs/vlm"
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    click.echo(train(out or folder, work or checkpoints, plan, VLMShape(), device))


@main.command()
@click.option("--vlm", type=click.Path(path_type=Path), help="Default: data/mini/vlm.")
@click.option("--work", type=click.Path(path_type=Path), help="Judge the newest checkpoint there.")
@click.option("--batches", type=click.IntRange(4), help="Train light proxies with so many, too.")
@click.option("--layer", "layers", type=int, multiple=True, help="That they read; repeatable.")
def probe_vlm(
    vlm: Path | None, work: Path | None, batches: int | None, layers: tuple[int, ...]
) -> None:
    """Judge a miniature VLM, or one in training, on the tuning half."""
    from abplib.vlm.encoder import ConditionEncoder
    from abplib.vlm.twins import VLMShape
    from recipes.miniature import candidates
    from recipes.miniature.vlm_training import snapshot

    shape = VLMShape()
    folder = vlm or paths.root() / "data/mini/vlm"
    if work:
        folder, done = work / "snapshot", snapshot(work, work / "snapshot", shape)
        click.echo(done)
    encoder = ConditionEncoder.from_pretrained(folder, image_area=shape.side**2)
    click.echo(candidates.own_boxes(encoder).round(3).to_string())
    click.echo(f"words alone {candidates.words_alone():.3f}")
    click.echo(candidates.linear_errors(encoder).round(3).to_string())
    if batches:
        asked = layers or range(encoder.n_layers)
        found = candidates.proxy_errors(encoder, batches, asked, paths.root() / "runs/candidates")
        click.echo(found.round(3).to_string())


@main.command()
@click.option("--out", type=click.Path(path_type=Path), help="Default: data/mini/editor.")
@click.option("--work", type=click.Path(path_type=Path), help="Checkpoints; default: runs/editor.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda if there is one.")
def train_editor(out: Path | None, work: Path | None, device: str | None) -> None:
    """Train the miniature editor around the trained VLM, or go on where a run was killed."""
    import torch

    from recipes.miniature.editor import EditorPlan, make_editor

    root = paths.root()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder, checkpoints = out or root / "data/mini/editor", work or root / "runs/editor"
    click.echo(make_editor(folder, root / "data/mini/vlm", checkpoints, EditorPlan(), device))


@main.command()
@click.option("--vae", type=click.Path(path_type=Path), help="Default: that of data/mini/editor.")
@click.option("--work", type=click.Path(path_type=Path), help="Checkpoints; default: runs/editor.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda if there is one.")
@click.option("--steps", type=click.IntRange(1), help="Batches of each condition's training.")
def train_conditions(
    vae: Path | None, work: Path | None, device: str | None, steps: int | None
) -> None:
    """Train small transformers on four conditions and judge their edits; resumable."""
    from dataclasses import replace

    import torch

    from recipes.miniature.condition_comparison import ComparisonPlan, compare

    plan, root = ComparisonPlan(), paths.root()
    if steps:
        schedule = replace(plan.dit.schedule, steps=steps)
        plan = replace(plan, dit=replace(plan.dit, schedule=schedule))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    click.echo(
        compare(
            root / "data/mini/conditions.csv",
            root / "data/mini/vlm",
            vae or root / "data/mini/editor/vae",
            work or root / "runs/editor",
            plan,
            device,
        )
    )


@main.command()
def write_manifest() -> None:
    """Choose the 200/200 multi-entity samples anew and write their manifest."""
    path = paths.root() / MANIFEST
    store.write_json(path, build_manifest())
    click.echo(path)


@main.command()
@click.argument("stage")
@click.option("--out", type=click.Path(path_type=Path), help="Default: runs/spatial.")
@click.option("-n", "number", type=click.IntRange(2), help="Prompt pairs; default: the paper's.")
@click.option(
    "--labels", type=click.Path(path_type=Path), help="What people said, for verification."
)
@click.option("--profile", default="paper", show_default=True, help="Whose VLM and 2509 are used.")
@click.option("--seed", default=0, show_default=True)
def spatial(
    stage: str, out: Path | None, number: int | None, labels: Path | None, profile: str, seed: int
) -> None:
    """Run one STAGE of the multi-entity set (A.2), or go on where it was stopped.

    prompts, structures, images, edits, reversal, instructions, boxes, verification, split
    """
    from abplib.samples.multi_entity import FOLDER
    from recipes.multi_entity import making

    folder = out or paths.root() / FOLDER
    making.make(stage, folder, number, labels, profile, seed, click.echo)


if __name__ == "__main__":
    main(prog_name="recipes")
