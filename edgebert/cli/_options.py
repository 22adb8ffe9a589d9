"""What several commands share: options, their reading, and how results are printed."""

from __future__ import annotations

import math
from typing import Any

import click

from edgebert.errors import ConfigError, require
from edgebert.hub import may_be_hub_id
from edgebert.output import json_text
from edgebert.printable import printable

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
force_option = click.option("--force", is_flag=True, help="Replace what is there.")
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one key; may be repeated."
)
policy_option = click.option(
    "--policy", "policy", default="default", show_default=True, help="Operating point or policy."
)
provider_option = click.option(
    "--provider", default="cpu", show_default=True, help="Where graphs run; edgebert info lists what there is."
)


class NumberRange(click.FloatRange):
    """A range of finite numbers: click's own takes nan, which no comparison refuses, into any."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns the number; fails where there is none, or it is outside the range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"expected a finite number, got {value}.", param, ctx)
        return number


share_range = NumberRange(0, 1)
"""What a share, or a metric, can be."""
positive_range = NumberRange(min=0, min_open=True)
"""What a tolerance or a budget can be."""
repeat_range = click.IntRange(1, 10_000)
"""How often a measurement may be repeated: it would not end in a lifetime otherwise."""
seed_range = click.IntRange(0, 2**32 - 1)
"""What random number generators take as a seed."""


def require_training(command: str) -> None:
    """Says which extra is missing before anything heavy is imported.

    Raises:
        MissingExtraError: A package that training needs is not installed.
    """
    for module in ("torch", "transformers", "accelerate", "sklearn", "scipy"):
        require(module, extra="demo" if command == "demo" else "train", purpose=f"edgebert {command}")


def say_hub(source: str | None) -> None:
    """Says of a single name that no folder has that it is looked for on the hub, where old models have such names."""
    if source is not None and "/" not in source and may_be_hub_id(source):
        click.echo(printable(f"{source}: no such folder; trying the hub"), err=True)


def say_next(command: str) -> None:
    """Suggests the next command on stderr."""
    click.echo(printable(f"next: {command}"), err=True)


def print_json(value: object) -> None:
    """Prints plain data as JSON to stdout."""
    click.echo(json_text(value, indent=2))


def print_lines(text: str) -> None:
    """Prints lines to stdout; whatever stands in them, it steers no terminal."""
    click.echo("\n".join(printable(line) for line in text.split("\n")))


def read_columns(text: str | None) -> dict[str, str]:
    """Reads `text=sentence,label=label`.

    Raises:
        ConfigError: A part is not of the form field=column.
    """
    columns = {}
    for part in text.split(",") if text else []:
        field, equals, column = part.partition("=")
        if not equals or not field or not column:
            raise ConfigError(f"--columns {text}: expected field=column, such as text=sentence,label=label.")
        columns[field] = column
    return columns


def read_numbers(text: str, option: str) -> list[int]:
    """Reads `1,2,4`.

    Raises:
        ConfigError: A part is no whole number from 1 to a million.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} {text:.80}: expected numbers with commas between, such as 1,2.") from error
    if min(numbers) < 1 or max(numbers) > 1_000_000:
        raise ConfigError(f"{option} {text:.80}: expected numbers of 1 or more, up to a million.")
    return numbers
