"""Which method does which task, and why another one does not."""

from __future__ import annotations

from edgebert import registry
from edgebert.errors import ConfigError
from edgebert.tasks import load_task


def check_task(method: str, task: str) -> None:
    """Refuses a task that a method does not do.

    Raises:
        ConfigError: The method refuses it; says why, and which methods do it. Or one of the names is unknown.
    """
    load_task(task)
    module = registry.load("edgebert.methods", method)
    if task in module.TASKS:
        return
    names = registry.names("edgebert.methods")
    able = [name for name in names if task in registry.load("edgebert.methods", name).TASKS]
    raise ConfigError(f"{method} does not do {task}: {module.REFUSES[task]}; use {' or '.join(able)}.")
