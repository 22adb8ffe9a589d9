"""What a manifest names must be known to this edgebert: its task, its policies and the values that those read."""

from __future__ import annotations

import msgspec

from edgebert.bundle import Bundle
from edgebert.bundle.manifest import ADVICE, MANIFEST_NAME, Manifest
from edgebert.errors import BundleError, ConfigError
from edgebert.policies import knob_names, needed_values
from edgebert.runtime.points import make_point
from edgebert.tasks import Task, load_task, task_settings


def check_meaning(bundle: Bundle) -> tuple[Task, msgspec.Struct]:
    """Returns a bundle's task and the task's settings, once everything that its manifest names is known.

    Raises:
        BundleError: The task, one of its settings, a policy or a knob is unknown, or a policy reads what no step makes.
    """
    manifest, where = bundle.manifest, bundle.path / MANIFEST_NAME
    try:
        task = load_task(manifest.task)
        settings = task_settings(task, manifest.task_settings, where="task_settings")
        task.check_labels(manifest.labels, where="labels")
        for policy in manifest.policies:
            knob_names(policy)
        for point in (manifest.rule, *manifest.operating_points.values()):
            make_point(manifest, point, {})
    except ConfigError as error:
        raise BundleError(f"{where}: {str(error).rstrip('.')}; {ADVICE}") from error
    for policy in manifest.policies:
        if missing := _not_made(manifest, policy):
            raise BundleError(f"{where}: the policy {policy} reads {', '.join(missing)}, which no step makes; {ADVICE}")
    return task, settings


def _not_made(manifest: Manifest, policy: str) -> list[str]:
    """Returns the values that a policy reads and that some step which decides does not make."""
    decides = [step for step in manifest.program if step.kind in ("exit", "gate", "plan")]
    needed = needed_values(policy)
    return sorted({name for step in decides for name in needed - set(step.outputs or step.inputs)})
