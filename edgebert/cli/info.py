"""`edgebert info`: says what a bundle is."""

from __future__ import annotations

from pathlib import Path

import click

from edgebert.cli._options import json_option, print_json, print_lines


@click.command(name="info")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@json_option
def command(bundle: Path | None, as_json: bool) -> None:
    """Show what a bundle is: method, labels, program, operating points, knobs. Without one, show this machine."""
    from edgebert.describe import describe_bundle, describe_machine, describe_text, machine_text

    if bundle is None:
        machine = describe_machine()
        print_json(machine) if as_json else print_lines(machine_text(machine))
        return
    facts = describe_bundle(bundle)
    print_json(facts) if as_json else print_lines(describe_text(facts))
