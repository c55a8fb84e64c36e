"""`abp train-lora`."""

from __future__ import annotations

from pathlib import Path

import click

from abplib.profiles import Profile


@click.command()
@click.option("--profile", default="mini", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Default: the profile's lora.")
def train_lora(profile: str, out: Path | None) -> None:
    """Train the LoRA that reads boxes on the profile's tuning samples; resumable.

    On several GPUs: `accelerate launch --num_processes 4 -m abplib train-lora`.
    """
    import torch

    from abplib.core import processes
    from abplib.editing.lora import training
    from abplib.editing.lora.pairs import EditorSource
    from abplib.experiment import Experiment

    chosen = Profile.load(profile)
    made = Experiment(chosen)
    editor = EditorSource.of(
        made.editor_source,
        image_area=chosen.image_area,
        dtype=getattr(torch, chosen.dtype),
        revision=chosen.editor_revision,
    )
    folder = out or made.lora_place
    training.train_lora(editor, made.tuning, chosen.lora_training, folder)
    if processes.is_first():
        click.echo(folder)
