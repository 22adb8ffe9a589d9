"""Runs a method's program in torch under a policy: what the engine must agree with, row by row.

Every step runs on every row and `where` picks what counts, so nothing here is gathered, grouped or left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edgebert.methods._program import Batch, CompiledStep
from edgebert.policies import Decision, Followed, GatePosition, Policy, follow

DECIDES = ("plan", "gate", "exit", "head")


def paths_depend_on_rule(steps: Sequence[CompiledStep]) -> bool:
    """Says whether layers can be left out, so that what later steps give depends on the rule."""
    return any(step.kind == "gate" or (step.kind == "plan" and "hidden" in step.inputs) for step in steps)


@torch.no_grad()
def run_reference(
    steps: Sequence[CompiledStep], batch: Batch, policy: Policy | None = None
) -> tuple[list[Decision], Followed | None]:
    """Runs a program on a batch.

    Args:
        steps: A program.
        batch: Its input; `token_type_ids` of None means all 0.
        policy: The rule; None runs every layer on every row and decides nothing.

    Returns:
        What every step gave that decides or answers, and what the rule made of it.
    """
    types = batch.token_type_ids
    values = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "token_type_ids": torch.zeros_like(batch.input_ids) if types is None else types,
    }
    layers = max(step.layer for step in steps)
    wanted = np.ones((len(batch.input_ids), layers), np.bool_)
    decisions: list[Decision] = []
    for step in steps:
        outputs = step.module(*(values[name] for name in step.inputs))
        named = dict(zip(step.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
        if step.kind == "layer":
            runs = torch.from_numpy(wanted[:, step.layer - 1].copy())
            for name, value in named.items():
                values[name] = _where(runs, value, values[name])
            continue
        values.update(named)
        if step.kind not in DECIDES:
            continue
        made = {name: value.float().cpu().numpy() for name, value in named.items()}
        decisions.append(Decision(step.kind, step.layer, made))
        if policy is not None and step.kind == "plan":
            wanted = policy.settle(policy.plan(made, layers))
        elif policy is not None and step.kind == "gate":
            executed = wanted[:, : step.layer - 1].sum(axis=1)
            wanted[:, step.layer - 1] = policy.gate(made, GatePosition(step.layer, layers - step.layer), executed)
    return decisions, None if policy is None else follow(policy, decisions, layers)


def _where(runs: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(runs.to(new.device).reshape(-1, *([1] * (new.ndim - 1))), new, old)
