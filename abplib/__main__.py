"""The command line: `abp`, or `python -m abplib`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from abplib.core import store
from abplib.core.errors import AbpError
from abplib.profiles import Profile
from abplib.publish import steps

if TYPE_CHECKING:  # importing models takes seconds, which `--help` need not cost
    from abplib.vlm.encoder import ConditionEncoder


class Commands(click.Group):
    """A group whose commands end in one sentence and exit code 2 when they raise `AbpError`."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AbpError as error:
            click.echo(f"abp: {error}", err=True)
            ctx.exit(2)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="abplib")
def main() -> None:
    """Analysis-by-Proxy: the steps of the book, chapters, tools for your own images."""
    if (here := os.getcwd()) not in sys.path:  # as `python -m abplib` has it: one's own samples
        sys.path.insert(0, here)


@main.command()
@click.argument("name")
@click.option(
    "-p",
    "--parameter",
    "given",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="A parameter of the chapter; values are read as papermill reads them.",
)
def chapter(name: str, given: tuple[tuple[str, str], ...]) -> None:
    """Run one chapter, for instance 02_proxies."""
    from papermill.cli import _resolve_type

    from abplib.publish.notebooks import execute

    values = {key: _resolve_type(value) for key, value in given}
    click.echo(execute(name, values))


@main.command()
@click.option("--profile", default="mini", show_default=True)
def pages(profile: str) -> None:
    """Set the pages of the HTML book from the chapters that ran; `make book` runs them first."""
    from abplib.publish.pages import build

    click.echo(build(profile, log=click.echo))


@main.command()
@click.option("--check", is_flag=True, help="Change nothing; fail where something is out of date.")
def notebooks(check: bool) -> None:
    """Regenerate book/notebooks from book/chapters."""
    from abplib.publish.notebooks import regenerate, stale

    if not check:
        for path in regenerate():
            click.echo(path)
    elif changed := stale():
        names = ", ".join(path.name for path in changed)
        raise AbpError(f"Out of date: {names}; run `python -m abplib notebooks`.")


@main.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("instruction")
@click.option("--profile", default="mini", show_default=True)
@click.option("--vlm", help="Another model: a folder or a hub id.")
@click.option("--save", type=click.Path(path_type=Path), help="Write a PNG with the box drawn.")
def ground(image: Path, instruction: str, profile: str, vlm: str | None, save: Path | None) -> None:
    """Ask the VLM where an edit of your own IMAGE belongs."""
    from abplib.core.boxes import draw_overlay
    from abplib.core.images import load_image
    from abplib.vlm.grounding import Grounder

    picture = load_image(image)
    answer = Grounder(_encoder(profile, vlm)).locate([picture], [instruction])[0]
    click.echo(answer.text)
    if answer.box is None:
        raise AbpError("The answer holds no box: word the edit otherwise or take another model.")
    click.echo("box " + " ".join(f"{side:.3f}" for side in answer.box))
    if save:
        with store.replacing(save) as scratch:
            draw_overlay(picture, answer.box).save(scratch, format="png")
        click.echo(save)


@main.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("instruction")
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--profile", default="mini", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the proxy, where it is trained.")
def locate(image: Path, instruction: str, out: Path | None, profile: str, seed: int) -> None:
    """Draw the proxy's box and the VLM's attention on your own IMAGE, from a single pass.

    Writes a PNG to OUT, or beside the image. The proxy is the profile's; without one, that of
    chapter 2, which is trained first where it has not been.
    """
    from abplib.core.images import load_image
    from abplib.experiment import Experiment
    from abplib.plots.pictures import located
    from abplib.sections.own_image import locate as ask

    picture, made = load_image(image), Experiment(Profile.load(profile), seed)
    made.encoder.prepare([picture], [instruction])  # refuse what it cannot take before training
    guide = made.guide()
    found = ask(made.encoder, guide, picture, instruction)
    out = out or image.with_name(f"{image.stem}-located.png")
    with store.replacing(out) as scratch:
        located(picture, instruction, found).savefig(scratch, format="png", dpi=200)
    click.echo(guide.note)
    click.echo("box " + " ".join(f"{side:.3f}" for side in found.box))
    click.echo(out)


@main.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("instruction")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--layer", "layers", type=int, multiple=True, help="A decoder block; repeatable.")
@click.option("--profile", default="mini", show_default=True)
@click.option("--vlm", help="Another model: a folder or a hub id.")
def states(
    image: Path, instruction: str, out: Path, layers: tuple[int, ...], profile: str, vlm: str | None
) -> None:
    """Write the condition states of your own IMAGE to a .safetensors file.

    It holds `final` and each asked `layer_<l>`, [tokens, width], and `prompt_tokens`.
    """
    from safetensors.torch import save_file

    encoding = _encoder(profile, vlm).encode([image], [instruction], layers=layers, final=True)
    named = {l if l == "final" else f"layer_{l}": s[0] for l, s in encoding.states.items()}
    with store.replacing(out) as scratch:
        save_file(named | {"prompt_tokens": encoding.prompt_tokens[0]}, scratch)
    click.echo(out)


@main.command()
def claims() -> None:
    """Print every claim of the paper beside what the last build decided of it."""
    from abplib.publish.pages import CLAIMS, build_folder

    for row in store.read_json(build_folder() / CLAIMS):
        click.echo(f"{row['verdict']}: {row['claim']} ({row['where']})")
        click.echo("    " + " · ".join(filter(None, (row["measured"], row["command"]))))


@main.command()
def pin() -> None:
    """Write the commits at which runs found models of the hub into hub.lock.

    From then on a run refuses a model whose branch has moved.
    """
    from abplib.core import hub

    for asked, at in hub.pin().items():
        click.echo(f"{asked} {at}")
    click.echo(hub.LOCK)


@main.command()
@click.option("--profile", default="mini", show_default=True)
def plan(profile: str) -> None:
    """Say what a profile's stages take, which models they need, and what is not here.

    Exits with 1 where a stage cannot run. Nothing is downloaded.
    """
    from abplib.publish import plan

    planned = list(plan.stages(Profile.load(profile)))
    click.echo(plan.stage_table(planned).to_string(index=False))
    click.echo(f"\n{plan.model_table(planned).to_string(index=False)}\n\n{plan.FOOTNOTE}\n")
    missing = plan.missing(planned)
    for sentence in missing:
        click.echo(f"Missing: {sentence}")
    if missing:
        sys.exit(1)
    click.echo("Nothing is missing.")


@main.command()
@click.option("--profile", default="mini", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Default: the profile's lora.")
def train_lora(profile: str, out: Path | None) -> None:
    """Train the LoRA that reads boxes on the samples of the profile's lora_set; resumable.

    On several GPUs: `accelerate launch --num_processes 4 -m abplib train-lora`.
    """
    from abplib.core import parallel
    from abplib.editing.lora import training
    from abplib.experiment import Experiment

    made = Experiment(Profile.load(profile), steps.SEED)
    folder = out or made.lora_place
    training.train_lora(made.baseline, made.lora_samples, made.profile.lora_training, folder)
    if parallel.is_first():
        click.echo(folder)


main.add_command(steps.omniedit)
main.add_command(steps.labels)
main.add_command(steps.sweep)
main.add_command(steps.answers)
main.add_command(steps.edit)


def _encoder(profile: str, vlm: str | None) -> ConditionEncoder:
    """The VLM of a profile, or another one in its place."""
    from abplib.experiment import Experiment

    other = {} if vlm is None else {"vlm": vlm, "revision": None}
    return Experiment(Profile.load(profile, **other)).encoder


if __name__ == "__main__":
    sys.exit(main())
