"""Follows a rule through exits, as most tests of rules do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.decisions import Decision, follow
from edgebert.policies import Outputs, Policy


def replay(
    policy: Policy, exits: Sequence[Outputs], exit_layers: Sequence[int]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Follows a rule through the recorded exits of all rows.

    Args:
        policy: The rule.
        exits: For each exit, in order, the outputs of every row.
        exit_layers: The layer (from 1) of each exit.

    Returns:
        The scores each row stopped with, [rows, labels], and the layer it stopped after, int64 [rows].
    """
    decisions = [Decision("exit", layer, outputs) for outputs, layer in zip(exits, exit_layers, strict=True)]
    followed = follow(policy, decisions, max(exit_layers))
    return followed.scores, followed.exit_layer
