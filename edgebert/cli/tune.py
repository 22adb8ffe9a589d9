"""`edgebert tune`: chooses operating points of a bundle on labelled data."""

from __future__ import annotations

from pathlib import Path

import click

from edgebert.cli._options import (
    force_option,
    json_option,
    print_json,
    print_lines,
    provider_option,
    read_columns,
    say_next,
    set_option,
)
from edgebert.errors import ConfigError
from edgebert.output import ConsoleReporter


@click.command(name="tune")
@click.argument("bundle")
@click.option(
    "--data",
    required=True,
    help="File, folder or hub id of texts that neither trained the model nor will be reported.",
)
@click.option("--split", help="Which split of a folder or hub id.")
@click.option("--columns", help="Which column is which field, such as text=sentence,label=label.")
@click.option(
    "--budget",
    metavar="KIND=X",
    help="One point that meets speedup=2 (wall time of full depth over its own, one text at a time), latency-ms=8, "
    "flops=0.5 (share of all layers) or min-metric=0.9. Without: accurate, balanced and fast, which lose at most 0.2, "
    "1.0 and 2.5 points.",
)
@click.option(
    "--guarantee",
    metavar="EPS,DELTA",
    help="One point whose risk is at most EPS, but for a share DELTA of draws of the texts. Void if the model was "
    "trained or stopped on them.",
)
@click.option(
    "--procedure",
    type=click.Choice(["learn-then-test", "conformal"]),
    default="learn-then-test",
    show_default=True,
    help="conformal: --guarantee EPS alone, which holds on average over draws.",
)
@click.option(
    "--risk",
    type=click.Choice(["metric-drop", "disagreement"]),
    help="What is bounded; disagreement with full depth needs no labels and is the default where there are none.",
)
@click.option("--name", help="What the one point is called.")
@click.option("--default", "default", metavar="NAME", help="Make this one of the chosen points the default too.")
@click.option("--policy", "policies", multiple=True, help="Policy to choose from; may be repeated.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write a new bundle; else BUNDLE is replaced.")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="Take the section `tune` of this file.")
@set_option
@click.option("--max-length", type=click.IntRange(min=4))
@click.option("-t", "--threads", type=click.IntRange(min=1))
@provider_option
@force_option
@json_option
def command(
    bundle: str,
    data: str,
    split: str | None,
    columns: str | None,
    budget: str | None,
    guarantee: str | None,
    procedure: str,
    risk: str | None,
    name: str | None,
    default: str | None,
    policies: tuple[str, ...],
    output: Path | None,
    config: Path | None,
    settings: tuple[str, ...],
    max_length: int | None,
    threads: int | None,
    provider: str,
    force: bool,
    as_json: bool,
) -> None:
    """Choose operating points for a bundle, of any precision, and write them into it."""
    from edgebert.config import read_config
    from edgebert.tune import tune_bundle, tune_settings, tuning_table

    result = tune_bundle(
        bundle,
        data,
        budget=budget,
        guarantee=_read_guarantee(guarantee) if guarantee is not None else None,
        procedure=procedure.replace("-", "_"),  # type: ignore[arg-type]  # click.Choice has checked it
        risk=risk.replace("-", "_") if risk else None,  # type: ignore[arg-type]
        name=name,
        default=default,
        target=output,
        force=force,
        policies=policies or None,
        settings=tune_settings(bundle, read_config(config).tune if config else None, settings),
        columns=read_columns(columns),
        split=split,
        threads=threads,
        max_length=max_length,
        provider=provider,
        reporter=ConsoleReporter(),
    )
    print_json(result) if as_json else print_lines(tuning_table(result))
    chosen = " ".join(f"--policy {point['name']}" for point in result["points"])
    say_next(f"edgebert eval {result['target']} --data OTHER_TEXTS {chosen} --policy never")


def _read_guarantee(text: str) -> tuple[float, float | None]:
    """Reads `0.02,0.1`, or `0.02` alone.

    Raises:
        ConfigError: It is neither.
    """
    epsilon, comma, delta = text.partition(",")
    try:
        return float(epsilon), float(delta) if comma else None
    except ValueError as error:
        raise ConfigError(f"--guarantee {text}: expected EPS,DELTA, such as 0.02,0.1.") from error
