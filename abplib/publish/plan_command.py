"""`abp plan` on the command line."""

from __future__ import annotations

import sys

import click

from abplib.tables import print_table


@click.command()
@click.option("--profile", default="mini", show_default=True)
def plan(profile: str) -> None:
    """Say what a profile needs and what this machine lacks for it.

    Exits with 1 where a stage cannot run. Nothing is downloaded.
    """
    from abplib.profiles import Profile
    from abplib.publish import plan as report
    from abplib.publish.plan_machine import Machine
    from abplib.publish.plan_stages import stages

    machine = Machine.here()
    made = report.Plan.of(stages(Profile.load(profile)), machine)
    click.echo(f"Profile {profile} on this machine: {machine}\n")
    print_table(report.STAGE_HEADER, list(made.stage_rows()))
    click.echo()
    print_table(report.MODEL_HEADER, list(made.model_rows()))
    click.echo(f"\n{report.footnote()}\n")
    missing = made.missing()
    for sentence in missing:
        click.echo(f"Missing: {sentence}")
    if missing:
        sys.exit(1)
    click.echo("Nothing is missing.")
