"""The command line, one file per command: each reads its options, calls one function and prints what it returns.

Data goes to stdout, messages and progress to stderr. A command's file defines `command` and bears its name; heavy code
is imported inside the command that needs it.
"""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

import click

from edgebert import __version__, registry
from edgebert.cli._ending import ToldToEnd, one_line_warnings, told_to_end
from edgebert.errors import EdgeBertError, suggestion
from edgebert.interrupts import interruptible
from edgebert.printable import message_line


class _Group(click.Group):
    """A group that suggests the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command {args[0]!r}.{suggestion(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgebert")
@click.pass_context
def cli(context: click.Context) -> None:
    """BERT models that do only the work each input needs.

    Train one, export it to ONNX graphs, and run those conditionally on ONNX Runtime.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> NoReturn:
    """Runs the command line; every error is one line on stderr and an exit code.

    A command that is told to end (SIGTERM, or SIGHUP as its terminal closes) first removes what it has half-written.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks is written as an escape
    try:
        with interruptible(), one_line_warnings(), told_to_end():
            code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except ToldToEnd as told:
        _fail(f"ended by {told.signal.name}", 128 + told.signal)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except click.ClickException as error:
        hint = f" Try: {error.ctx.command_path} --help" if isinstance(error, click.UsageError) and error.ctx else ""
        _fail(error.format_message() + hint, 2)
    except EdgeBertError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail_output(error)
    except Exception as error:
        if os.environ.get("EDGEBERT_DEBUG"):
            raise
        _fail(_reason(error), 1)


def _reason(error: Exception) -> str:
    """Says what an error means that was not raised on purpose: the system has no more to give, or it is a bug."""
    if isinstance(error, MemoryError):
        return "out of memory; give less at once."
    return f"{type(error).__name__}: {error} (a bug: set EDGEBERT_DEBUG=1 for the traceback)"


def _fail_output(error: OSError) -> NoReturn:
    """Ends for a file that cannot be read or written; of a pipe that nobody reads any more nothing is said."""
    if os.environ.get("EDGEBERT_DEBUG"):
        raise error
    if error.filename is None:
        # What stdout still holds would be tried once more at the end, and fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        sys.exit(1)
    _fail(f"{error.filename or 'output'}: {error.strerror or error}", 1)


def _add_commands() -> None:
    """Adds the commands of this folder, and gives every option an environment variable named after its long flag.

    EDGEBERT_RUN_FORMAT is `run --format`.
    """
    for name in registry.names(__name__):
        command: click.Command = registry.load(__name__, name).command
        for option in command.params:
            flags = [flag for flag in option.opts if flag.startswith("--")]
            if flags:
                option.envvar = f"EDGEBERT_{name}_{flags[0].lstrip('-')}".replace("-", "_").upper()
        cli.add_command(command)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {message_line(message)}", err=True)
    sys.exit(code)


_add_commands()
