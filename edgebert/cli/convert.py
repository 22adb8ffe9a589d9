"""`edgebert convert`: takes in a checkpoint trained elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from edgebert.cli._options import force_option, json_option, print_json, say_hub, say_next
from edgebert.errors import require
from edgebert.output import ConsoleReporter


@click.command(name="convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--from", "naming", help="Whose tensor names it has, such as deebert; recognised if not given.")
@click.option("--config", type=click.Path(path_type=Path), help="Its configuration file, if not config.json beside it.")
@click.option("--tokenizer", help="Folder or hub id of its tokenizer, or a vocabulary file; SOURCE's if not given.")
@force_option
@json_option
def command(
    source: Path,
    checkpoint: Path,
    naming: str | None,
    config: Path | None,
    tokenizer: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a checkpoint trained elsewhere, a folder or a file of weights, into one of edgebert."""
    for module in ("torch", "transformers"):
        require(module, extra="export", purpose="edgebert convert")
    from msgspec import to_builtins

    from edgebert.convert import convert_checkpoint

    say_hub(tokenizer)
    made = convert_checkpoint(
        source,
        checkpoint,
        naming=naming,
        config=config,
        tokenizer=tokenizer,
        force=force,
        reporter=ConsoleReporter(),
    )
    if as_json:
        facts = to_builtins(made.checkpoint.facts)
        about = {"from": made.naming, "ignored": made.ignored, "notes": made.notes}
        print_json({"schema": "edgebert.convert/1", "checkpoint": str(checkpoint), **about, **facts})
    say_next(f"edgebert export {checkpoint} {checkpoint}.bundle")
