"""Which method does which task, and why another one does not."""

from __future__ import annotations

from edgebert import registry
from edgebert.errors import ConfigError
from edgebert.tasks import load_task


def policies_for(method: str, task: str) -> tuple[str, ...]:
    """Returns the policies of a method that make sense for a task."""
    names: tuple[str, ...] = registry.load("edgebert.methods", method).POLICIES
    if load_task(task).HAS_PROBABILITIES:
        return names
    return tuple(name for name in names if not registry.load("edgebert.policies", name).Policy.needs_probabilities)


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
