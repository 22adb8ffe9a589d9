"""`edgebert report`: draws the results of eval and bench."""

from __future__ import annotations

from pathlib import Path

import click

from edgebert.cli._options import force_option
from edgebert.output import ConsoleReporter


@click.command(name="report")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The HTML file to write.")
@click.option("--svg", type=click.Path(path_type=Path), help="A folder for the same charts as SVG.")
@force_option
def command(results: tuple[Path, ...], output: Path, svg: Path | None, force: bool) -> None:
    """Draw results of eval --json and bench --json: one page, no network."""
    from edgebert.report import write_report

    write_report(results, output, svg=svg, force=force, reporter=ConsoleReporter())
