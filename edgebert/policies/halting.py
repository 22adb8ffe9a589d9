"""halting: DACT's rule. A row stops once the layers left cannot change the argmax of its mixed answer.

Eyzaguirre and Soto, CVPR 2020 (https://openaccess.thecvf.com/content_CVPR_2020), used by DACT-BERT
(https://arxiv.org/abs/2109.11745). With a_n = y_n p_{n-1} + a_{n-1} (1 - p_{n-1}), p_n = h_n p_{n-1} and d exits left,
a row stops iff a* (1 - p_n)^d >= a' + p_n d, where a* and a' are the two largest entries of a_n; it answers a_n, whose
argmax is that of a_N. `bound: tight` is ours: with q = (1 - p_n)^d stop iff a* q >= a' q + (1 - q), which holds
whenever the published bound does. `slack` above 0 is added to the left side; the argmax may then differ.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from edgebert import policies
from edgebert.policies import ExitPosition, Outputs, State, Verdict, probabilities, safe_log

CHEAPER: dict[str, Literal["lower", "higher"]] = {"slack": "higher"}
GRID = [
    {"slack": slack}
    for slack in (
        0.0,
        0.02,
        0.05,
        0.1,
        0.15,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.8,
        1.0,
        1.25,
        1.5,
        2.0,
        2.5,
        3.0,
        4.0,
        6.0,
        8.0,
        12.0,
        16.0,
        24.0,
    )
]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The knobs.

    Attributes:
        slack: How far the bound may be missed; 0 is the sound rule.
        bound: `paper` or `tight`.
    """

    slack: float = 0.0
    bound: Literal["paper", "tight"] = "paper"

    def __post_init__(self) -> None:
        if not self.slack >= 0:
            raise ValueError(f"slack: expected 0 or more, got {self.slack}")


class Policy(policies.Policy):
    """The rule with its slack and bound."""

    needs = frozenset({"halt"})

    def __init__(self, config: Config, exit_layers: tuple[int, ...], rule: object = None) -> None:
        self.config = config

    def start(self, rows: int) -> State:
        """Nothing answered yet and all weight still to come: a_1 = y_1 whatever a_0 is, and p_0 = 1."""
        return {"remaining": np.ones(rows)}

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Mixes one unit's answer in and stops the rows that nothing can change any more."""
        label = np.asarray(probabilities(outputs), np.float64)
        before = state["remaining"][:, None]
        answer = label * before + state["answer"] * (1 - before) if "answer" in state else label
        remaining = np.asarray(outputs["halt"], np.float64) * state["remaining"]
        ordered = np.sort(answer, axis=-1)
        best, second = ordered[:, -1], ordered[:, -2]
        left = position.exits_left
        kept = (1 - remaining) ** left
        rival = second * kept + (1 - kept) if self.config.bound == "tight" else second + remaining * left
        finished = best * kept + self.config.slack >= rival
        return Verdict({"answer": answer, "remaining": remaining}, finished, lambda: safe_log(answer))
