"""Which variants exist: the file name is the variant's name.

A kind of variant (methods, policies, encoders, tasks) is a package; each of its modules is one variant.
Files that start with an underscore are shared parts, not variants.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from edgebert.errors import ConfigError, suggestion


def names(package: str) -> list[str]:
    """Returns the sorted names of the variants in a package, without importing any of them."""
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Imports one variant.

    Args:
        package: Import name of the kind, such as `edgebert.methods`.
        name: The variant's name as a user types it.

    Raises:
        ConfigError: No such variant; the message names the nearest.
    """
    known = names(package)
    if name not in known:
        kind = {"policies": "policy", "convert": "naming", "quantize": "backend"}.get(
            package.rpartition(".")[2], package.rpartition(".")[2].rstrip("s")
        )
        raise ConfigError(f"unknown {kind} {name!r}.{suggestion(name, known)}")
    return importlib.import_module(f"{package}.{name}")
