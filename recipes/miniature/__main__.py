"""Makes all that is shipped under `data/mini` from nothing."""

from __future__ import annotations

from pathlib import Path

import click

from abplib.core import paths


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Default: data/mini.")
@click.option("--work", type=click.Path(path_type=Path), help="Checkpoints; default: runs.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda if there is one.")
def main(out: Path | None, work: Path | None, device: str | None) -> None:
    """Make the shipped weights from nothing, or go on where a run was killed."""
    import torch

    from recipes.miniature.making import MiniaturePlan, make

    root = paths.root()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    click.echo(make(out or root / "data/mini", work or root / "runs", MiniaturePlan(), device))


if __name__ == "__main__":
    main()
