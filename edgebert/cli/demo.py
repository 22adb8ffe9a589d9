"""`edgebert demo`: the main job on an embedded default."""

from __future__ import annotations

from pathlib import Path

import click

from edgebert.cli._options import force_option, require_training, seed_range
from edgebert.output import ConsoleReporter


@click.command(name="demo")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("demo-run"), show_default=True)
@click.option("--seed", type=seed_range, default=0, show_default=True)
@force_option
def command(output: Path, seed: int, force: bool) -> None:
    """Train, export, verify and run a voice-command model; minutes on 2 cores, no network."""
    require_training("demo")
    from edgebert.demo import run_demo

    click.echo(run_demo(output, seed=seed, force=force, reporter=ConsoleReporter()))
