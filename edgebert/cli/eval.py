"""`edgebert eval`: measures bundles on labelled data."""

from __future__ import annotations

import click

from edgebert.cli._options import (
    json_option,
    print_json,
    print_lines,
    provider_option,
    read_columns,
    read_numbers,
    share_range,
)
from edgebert.errors import QualityError
from edgebert.output import ConsoleReporter


@click.command(name="eval")
@click.argument("bundles", nargs=-1, required=True)
@click.option("--data", required=True, multiple=True, help="Labelled file, folder or hub id; several count together.")
@click.option("--split", default="validation", show_default=True, help="Which split of a folder or hub id.")
@click.option("--columns", help="Which column is which field, such as text=sentence,label=label.")
@click.option("--policy", "policies", multiple=True, help="Operating point or policy; may be repeated.")
@click.option("--set", "settings", multiple=True, metavar="KNOB=VALUE", help="Set a knob of every policy.")
@click.option(
    "--against", multiple=True, help="static-frontier, fixed-exits, or a bundle to compare with text by text."
)
@click.option("--min-metric", type=share_range, help="Exit with 4 when the first row's metric is below this (0 to 1).")
@click.option("-b", "--batch-size", default=32, show_default=True, help="1 gives latency percentiles.")
@click.option(
    "--timed-texts",
    default=0,
    show_default=True,
    help="Time so many of the texts, each bundle in a process of its own: latency, texts/s, memory, energy.",
)
@click.option(
    "--maps",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Write into --json what ran on so many of the texts: layers, pieces, tokens.",
)
@click.option("--max-length", type=click.IntRange(min=4))
@click.option("-t", "--threads", metavar="1,2", help="Threads; several give a row each, with --timed-texts.")
@provider_option
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@json_option
def command(
    bundles: tuple[str, ...],
    data: tuple[str, ...],
    split: str,
    columns: str | None,
    policies: tuple[str, ...],
    settings: tuple[str, ...],
    against: tuple[str, ...],
    min_metric: float | None,
    batch_size: int,
    timed_texts: int,
    maps: int,
    max_length: int | None,
    threads: str | None,
    provider: str,
    form: str,
    as_json: bool,
) -> None:
    """Measure accuracy, layers and time on labelled texts."""
    from edgebert.config import parse_setting
    from edgebert.evaluate import evaluate_bundle
    from edgebert.evaluation_table import evaluation_csv, evaluation_table

    result = evaluate_bundle(
        bundles,
        data,
        policies=policies or ("default",),
        settings=dict(parse_setting(text) for text in settings),
        columns=read_columns(columns),
        split=split,
        against=against,
        threads=read_numbers(threads, "--threads") if threads else None,
        batch_size=batch_size,
        timed_texts=timed_texts,
        maps=maps,
        max_length=max_length,
        provider=provider,
        reporter=ConsoleReporter(),
    )
    if as_json or form == "json":
        print_json(result)
    elif form == "csv":
        click.echo(evaluation_csv(result).rstrip())
    else:
        print_lines(evaluation_table(result))
    metric = result["rows"][0]["metric"]
    if min_metric is not None and not metric >= min_metric:  # nan is no metric that is reached
        raise QualityError(f"{bundles[0]}: expected a metric of at least {min_metric}, got {metric:.4f}.")
