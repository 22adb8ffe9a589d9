"""`python -m edgebert.cli` is `edgebert`."""

from __future__ import annotations

from edgebert.cli import main

if __name__ == "__main__":
    main()
