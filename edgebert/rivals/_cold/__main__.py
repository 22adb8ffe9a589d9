"""A rival started cold: `python -m edgebert.rivals._cold WAY ARGUMENTS` answers each line of stdin with a line."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Loads the model and answers lines until stdin ends."""
    way, *arguments = sys.argv[1:]
    answer = importlib.import_module(f"edgebert.rivals._cold.{way}").start(*arguments)
    for line in sys.stdin:
        sys.stdout.write(f"{answer(line.rstrip())}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
