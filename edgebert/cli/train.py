"""`edgebert train`: makes a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from edgebert.cli._options import (
    force_option,
    json_option,
    print_json,
    read_columns,
    require_training,
    say_hub,
    say_next,
    seed_range,
    set_option,
)
from edgebert.output import ConsoleReporter


@click.command(name="train")
@click.option(
    "-c", "--config", required=True, type=click.Path(path_type=Path), help="A file like those in export_configs."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The checkpoint folder to make.")
@click.option("--data", help="Folder with train.tsv (csv, jsonl, parquet), or a hub id.")
@click.option("--model", help="Encoder to start from: checkpoint folder, hub id, or embedded:minilm-l6.")
@click.option("--columns", help="Which column is which field, such as text=sentence,label=label.")
@click.option("--seed", type=seed_range, default=0, show_default=True)
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop every stage after this many steps.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted training.")
@set_option
@force_option
@json_option
def command(
    config: Path,
    output: Path,
    data: str | None,
    model: str | None,
    columns: str | None,
    seed: int,
    max_steps: int | None,
    resume: bool,
    settings: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Train a method and write a checkpoint."""
    from msgspec import to_builtins

    from edgebert.config import read_config, with_train

    read = with_train(read_config(config, settings), data=data, model=model, columns=read_columns(columns) or None)
    require_training("train")
    from edgebert.training import train_model

    say_hub(read.train.model)
    made = train_model(
        read, output, seed=seed, max_steps=max_steps, is_resumed=resume, force=force, reporter=ConsoleReporter()
    )
    if as_json:
        print_json({"schema": "edgebert.train/1", "checkpoint": str(output), **to_builtins(made.facts)})
    say_next(f"edgebert export {output} {output}.bundle")
