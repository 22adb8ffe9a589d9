"""`edgebert scale`: how cost grows with depth, width, length, batch and the number of texts."""

from __future__ import annotations

import click

from edgebert.cli._options import (
    json_option,
    policy_option,
    print_json,
    print_lines,
    provider_option,
    read_columns,
    read_numbers,
    repeat_range,
)
from edgebert.output import ConsoleReporter


@click.command(name="scale")
@click.argument("bundle")
@click.option("--data", help="File whose texts are streamed, over and over; nothing is streamed without.")
@click.option("--columns", help="Which column is which field, such as text=sentence.")
@click.option("--texts", type=click.IntRange(1, 10**12), default=100_000, show_default=True, help="Texts to stream.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Batches of the stream.")
@click.option("--max-length", type=click.IntRange(min=1), help="Cut the stream's texts to this many tokens.")
@policy_option
@click.option("-l", "--lengths", help="Lengths of the grid; by default 16, 32, 64 and 128, as far as possible.")
@click.option("-b", "--batches", default="1,8,32", show_default=True, help="Batch sizes of the grid.")
@click.option("-t", "--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--repeats", type=repeat_range, default=3, show_default=True, help="Turns of each grid point.")
@provider_option
@json_option
def command(
    bundle: str,
    data: str | None,
    columns: str | None,
    texts: int,
    batch_size: int,
    max_length: int | None,
    policy: str,
    lengths: str | None,
    batches: str,
    threads: int,
    repeats: int,
    provider: str,
    as_json: bool,
) -> None:
    """Stream texts in bounded memory; time a grid of calls and fit two numbers that foretell them."""
    from edgebert.scale import scale_bundle
    from edgebert.scale_table import scale_table

    result = scale_bundle(
        bundle,
        data=data,
        columns=read_columns(columns) or None,
        texts=texts,
        batch_size=batch_size,
        max_length=max_length,
        policy=policy,
        lengths=read_numbers(lengths, "--lengths") if lengths else None,
        batches=read_numbers(batches, "--batches"),
        threads=threads,
        repeats=repeats,
        provider=provider,
        reporter=ConsoleReporter(),
    )
    print_json(result) if as_json else print_lines(scale_table(result))
