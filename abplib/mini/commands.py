"""Commands of the mini world on the command line."""

from __future__ import annotations

from pathlib import Path

import click

from abplib import paths, results
from abplib.mini.sets import MANIFEST, build_manifest


@click.command()
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

    from abplib.mini.twin import VLMShape
    from abplib.mini.vlm_training import VLMTraining, train

    asked = {"see_steps": see_steps, "speak_steps": speak_steps}
    plan = VLMTraining(compile=not no_compile, **{k: v for k, v in asked.items() if v})
    folder, checkpoints = paths.root() / "data/mini/vlm", paths.root() / "runs/vlm"
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    click.echo(train(out or folder, work or checkpoints, plan, VLMShape(), device))


@click.command()
@click.option("--vlm", type=click.Path(path_type=Path), help="Default: data/mini/vlm.")
@click.option("--work", type=click.Path(path_type=Path), help="Judge the newest checkpoint there.")
@click.option("--batches", type=click.IntRange(4), help="Train light proxies with so many, too.")
@click.option("--layer", "layers", type=int, multiple=True, help="That they read; repeatable.")
def probe_vlm(
    vlm: Path | None, work: Path | None, batches: int | None, layers: tuple[int, ...]
) -> None:
    """Judge a miniature VLM, or one in training, on the tuning half."""
    from abplib.encoder import ConditionEncoder
    from abplib.mini import candidates
    from abplib.mini.twin import VLMShape
    from abplib.mini.vlm_training import snapshot

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


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Default: data/mini/editor.")
@click.option("--work", type=click.Path(path_type=Path), help="Checkpoints; default: runs/editor.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda if there is one.")
def train_editor(out: Path | None, work: Path | None, device: str | None) -> None:
    """Train the miniature editor around the trained VLM, or go on where a run was killed."""
    import torch

    from abplib.mini.editor_making import EditorPlan, make_editor

    root = paths.root()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder, checkpoints = out or root / "data/mini/editor", work or root / "runs/editor"
    click.echo(make_editor(folder, root / "data/mini/vlm", checkpoints, EditorPlan(), device))


@click.command()
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

    from abplib.mini.condition_comparison import ComparisonPlan, compare

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


@click.command()
def write_manifest() -> None:
    """Choose the 200/200 multi-entity samples anew and write their manifest."""
    path = paths.root() / MANIFEST
    results.write_json(path, build_manifest())
    click.echo(path)
