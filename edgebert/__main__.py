"""`edgebert`, and `python -m edgebert`: the command line, which Ctrl-C ends in one line while it is still imported."""

from __future__ import annotations

import sys

from edgebert.interrupts import interruptible


def main() -> None:
    """Runs the command line."""
    try:
        with interruptible():
            from edgebert.cli import main as run_command
        run_command()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
