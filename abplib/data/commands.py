"""The paper's data on the command line: `abp omniedit`, `abp spatial`."""

from __future__ import annotations

from pathlib import Path

import click

from abplib import paths
from abplib.errors import AbpError


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Default: runs/omniedit.")
@click.option("--location", help="A folder of its parquet shards; default: the hub.")
@click.option("-n", "number", type=click.IntRange(1), help="Rows; default: the paper's 128,000.")
@click.option("--shards", type=click.IntRange(1), help="Take them from so many shards alone.")
@click.option("--seed", type=int, help="Of the choice; default: 0.")
@click.option("--label", "profile", help="Then let this profile's VLM label them.")
def omniedit(
    out: Path | None,
    location: str | None,
    number: int | None,
    shards: int | None,
    seed: int | None,
    profile: str | None,
) -> None:
    """Choose rows of OmniEdit, fetch them and label them, or go on where a run was stopped.

    All 571 shards are 3 TB to read; 61 hold enough rows in a tenth of that (--shards 61).
    """
    from abplib.data.omniedit import LOCATION, PAPER_ROWS, Manifest, choose
    from abplib.data.omniedit_rows import FOLDER, MANIFEST, OmniEdit, fetch, write_labels

    folder = out or paths.root() / FOLDER
    if (folder / MANIFEST).exists():
        manifest = Manifest.load(folder / MANIFEST)
        known = manifest.recipe
        asked = {"location": location, "n": number, "n_shards": shards, "seed": seed}
        if other := [key for key, value in asked.items() if value not in (None, known[key])]:
            raise AbpError(
                f"{folder} holds a choice with {other[0]} = {known[other[0]]}: leave the option "
                "out to go on with that, or give another --out."
            )
        click.echo(f"Going on in {folder} with its {known['n']} rows by seed {known['seed']}")
    else:
        manifest = choose(
            location or LOCATION, n=number or PAPER_ROWS, n_shards=shards, seed=seed or 0
        )
    fetch(manifest, folder, click.echo)
    samples = OmniEdit(folder)
    click.echo(f"{len(samples)} rows in {folder}, {samples.unusable or 'none'} unusable")
    click.echo(f"manifest {manifest.fingerprint}")
    if profile:
        from abplib.analysis import load_encoder
        from abplib.labels import predict_labels
        from abplib.profiles import Profile

        found = predict_labels(load_encoder(Profile.load(profile)), samples, len(samples))
        write_labels(found, folder / "labels.jsonl")
        click.echo(f"{len(found.usable)} labels usable, {found.unusable or 'none'} not")


@click.command()
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
    from abplib.data import making
    from abplib.data.spatial_set import FOLDER

    folder = out or paths.root() / FOLDER
    making.make(stage, folder, number, labels, profile, seed, click.echo)
