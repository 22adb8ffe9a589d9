"""`edgebert bench`: times bundles and rivals."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from edgebert.cli._options import (
    json_option,
    policy_option,
    print_json,
    print_lines,
    provider_option,
    read_columns,
    read_numbers,
    repeat_range,
    say_hub,
)
from edgebert.errors import ConfigError
from edgebert.output import ConsoleReporter

_WARM_OPTIONS = ("batches", "lengths", "against_batch", "scenario", "per_layer", "per_step", "max_texts", "max_length")


@click.command(name="bench")
@click.argument("bundles", nargs=-1, required=True)
@click.option("--data", help="Labelled or plain file whose texts are timed; else random ids of --lengths.")
@click.option("--columns", help="Which column is which field, such as text=sentence.")
@policy_option
@click.option("--set", "settings", multiple=True, metavar="KNOB=VALUE", help="Set a knob of the policy.")
@click.option("-t", "--threads", default="1", show_default=True, help="Thread counts, such as 1,2.")
@click.option("-b", "--batches", default="1", show_default=True, help="Batch sizes, such as 1,32.")
@click.option("-l", "--lengths", help="Lengths in tokens; by default 16, 32 and 128, as far as the bundles take them.")
@click.option(
    "--against",
    multiple=True,
    help="A bundle, whole, single, uncompacted, torch, torch_compile, optimum, optimum_int8, openvino, "
    "openvino_bf16 or openvino_int8; may be repeated.",
)
@click.option("--against-batch", type=click.IntRange(min=1), help="Batch size of the other side.")
@click.option(
    "--reference", help="A plain checkpoint for torch, optimum and openvino; else random weights of the same shape."
)
@click.option(
    "--scenario",
    type=click.Choice(["single-stream", "offline"]),
    default="single-stream",
    show_default=True,
    help="One text after the other, or the whole file in batches.",
)
@click.option("--cold", is_flag=True, help="Time process start to first answer instead, and private memory then.")
@click.option("--per-layer", is_flag=True, help="Fit time = fixed + k x layer.")
@click.option("--per-step", is_flag=True, help="Time the graphs inside: embed, layers, exits, predictors, Python.")
@click.option("--repeats", type=repeat_range, default=5, show_default=True, help="Turns of each side.")
@click.option("--max-texts", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--max-length", type=click.IntRange(min=1), help="Cut texts to this many tokens.")
@provider_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    bundles: tuple[str, ...],
    data: str | None,
    columns: str | None,
    policy: str,
    settings: tuple[str, ...],
    threads: str,
    batches: str,
    lengths: str | None,
    against: tuple[str, ...],
    against_batch: int | None,
    reference: str | None,
    scenario: str,
    cold: bool,
    per_layer: bool,
    per_step: bool,
    repeats: int,
    max_texts: int,
    max_length: int | None,
    provider: str,
    as_json: bool,
) -> None:
    """Time bundles, and rivals beside them: child processes that take turns."""
    from edgebert.bench import bench_bundles
    from edgebert.bench.cold import bench_cold
    from edgebert.bench_table import cold_table, table
    from edgebert.config import parse_setting

    say_hub(reference)
    shared: dict[str, Any] = {
        "data": data,
        "columns": read_columns(columns) or None,
        "policy": policy,
        "settings": dict(parse_setting(text) for text in settings),
        "threads": read_numbers(threads, "--threads"),
        "against": against,
        "reference": reference,
        "repeats": repeats,
        "provider": provider,
        "reporter": ConsoleReporter(),
    }
    if cold:
        _refuse_warm_options(context)
        result = bench_cold(bundles, **shared)
        print_json(result) if as_json else print_lines(cold_table(result))
        return
    result = bench_bundles(
        bundles,
        batches=read_numbers(batches, "--batches"),
        lengths=read_numbers(lengths, "--lengths") if lengths else None,
        against_batch=against_batch,
        scenario=scenario,  # type: ignore[arg-type]  # click.Choice has checked it
        per_layer=per_layer,
        per_step=per_step,
        max_texts=max_texts,
        max_length=max_length,
        **shared,
    )
    print_json(result) if as_json else print_lines(table(result))


def _refuse_warm_options(context: click.Context) -> None:
    """Refuses options that mean nothing where one text is answered in a fresh process."""
    given = [name for name in _WARM_OPTIONS if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"--cold: answers one text in a fresh process each time; leave {names} out.")
