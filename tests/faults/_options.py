"""Nonsense for every option of every command."""

from collections.abc import Iterator

import click

NONSENSE = (
    "",
    " ",
    "0",
    "-1",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e309",
    "9" * 30,
    "9" * 5000,
    "0x10",
    "1_0",
    "\uff11\uff12",
    "x",
    "true",
    "a=b",
    "a=b=c",
    "=",
    "a=[",
    "a=!!python/name:os.system",
    ",",
    "1,,2",
    "1,2,",
    "0.1,0.1,0.1",
    "-",
    "@",
    "@/nothing",
    "@/dev/zero",
    "../..",
    "/",
    "/dev/null",
    "/dev/zero",
    "/dev/null/x",
    "./nothing",
    "\udcff",
    "\x1b[31m\x07",
    "\u202eabc",
    "日本",
    "a\nb",
    "a" * 3000,
    "%s{0}",
)
_HUB_OPTIONS = ("model", "tokenizer", "reference", "data", "calibration", "evaluation", "source", "bundles", "bundle")


def cases(command: click.Command) -> Iterator[tuple[str, str]]:
    """Yields a flag of a command and a value for it, for all of both; none that would be looked for on a network."""
    for option in command.params:
        flags = [flag for flag in option.opts if flag.startswith("--")]
        if not flags or getattr(option, "is_flag", False):
            continue
        for value in NONSENSE:
            if option.name not in _HUB_OPTIONS or value.startswith(("/", ".", "@")) or not value.strip():
                yield flags[0], value
