"""`edgebert info`: says what a bundle is."""

from __future__ import annotations

from pathlib import Path

import click

from edgebert.cli._options import json_option, print_json


@click.command(name="info")
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def command(bundle: Path, as_json: bool) -> None:
    """Show what a bundle is: method, labels, program, operating points, knobs."""
    from edgebert.describe import describe_bundle, describe_text

    facts = describe_bundle(bundle)
    if as_json:
        print_json(facts)
    else:
        click.echo(describe_text(facts))
