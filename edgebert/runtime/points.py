"""Finds the operating point or policy that a name or a knob means in a bundle, and makes its policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgebert.arguments import check_name
from edgebert.bundle.manifest import Manifest, OperatingPoint
from edgebert.errors import ConfigError, suggestion
from edgebert.policies import Policy, knob_names, make_policy

TUNED = ("accurate", "balanced", "fast", "guaranteed")
"""What `edgebert tune` calls its points unless told otherwise."""


def find_point(manifest: Manifest, name: str, *, where: str = "this bundle") -> OperatingPoint:
    """Returns the operating point of a name, or a policy's with its knobs as they are; `where` names the bundle.

    Raises:
        ConfigError: The bundle has neither of that name.
    """
    name = check_name("policy", name)
    points, rule = manifest.operating_points, manifest.rule
    if name in points:
        return points[name]
    if name not in manifest.policies:
        known = ", ".join(sorted({*points, *manifest.policies}))
        cure = "; edgebert tune makes it" if name in TUNED else ""
        raise ConfigError(f"{where} has no point or policy {name!r}; it has {known}{cure}.")
    return rule if name == rule.policy else OperatingPoint(policy=name, knobs={})


def policy_with(manifest: Manifest, knobs: Iterable[str]) -> str:
    """Returns the one policy of the method that has all these knobs; of several, the rule's own.

    Raises:
        ConfigError: None has them, or several have.
    """
    fitting = [policy for policy in manifest.policies if set(knobs) <= set(knob_names(policy))]
    own = manifest.rule.policy
    if own in fitting or len(fitting) == 1:
        return own if own in fitting else fitting[0]
    if fitting:
        raise ConfigError(
            f"the policies {' and '.join(fitting)} have the knobs {', '.join(sorted(knobs))}; name one of them."
        )
    known = {knob for policy in manifest.policies for knob in knob_names(policy)}
    wrong = sorted(set(knobs) - known)
    if wrong:
        raise ConfigError(f"unknown knob {wrong[0]!r}.{suggestion(wrong[0], known)}")
    raise ConfigError(f"no policy of {manifest.method} has the knobs {', '.join(sorted(knobs))} together.")


def make_point(manifest: Manifest, point: OperatingPoint, knobs: Mapping[str, Any]) -> tuple[Policy, OperatingPoint]:
    """Makes an operating point's policy, with knobs on top; returns both.

    Raises:
        ConfigError: A knob is unknown, or a value makes no sense.
    """
    rule = manifest.rule
    given = {name: value.item() if isinstance(value, np.generic) else value for name, value in knobs.items()}
    if given:  # what was measured is no longer so
        point = OperatingPoint(policy=point.policy, knobs={**point.knobs, **given})
    policy = make_policy(point.policy, point.knobs, exit_layers=manifest.exit_layers, rule=(rule.policy, rule.knobs))
    return policy, point
