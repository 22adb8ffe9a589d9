"""Runs a method's program in torch under a policy: what the engine must agree with, row by row.

Every step runs on every row and `where` picks what counts, so nothing here is gathered, grouped or left out. A dropped
token stays where it is: nothing attends to it any more, and its hidden state stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgebert.decisions import Decision, Followed, choose, follow, keep_tokens, select_position
from edgebert.methods._program import Batch, CompiledStep
from edgebert.policies import GatePosition, Policy, SelectPosition

Named = dict[str, Tensor]


@torch.no_grad()
def run_reference(
    steps: Sequence[CompiledStep], batch: Batch, policy: Policy | None = None
) -> tuple[list[Decision], Followed | None]:
    """Runs a program on a batch.

    Args:
        steps: A program.
        batch: Its input; `token_type_ids` of None means all 0.
        policy: The rule; None runs everything on every row and decides nothing.

    Returns:
        What every step gave that decides or answers, and what the rule made of it.
    """
    run = _Run(steps, batch, policy)
    for step in steps:
        _HANDLERS[step.kind](run, step)
    return run.decisions, None if policy is None else follow(policy, run.decisions, run.layers)


class _Run:
    """The values of all rows so far, and which layers they want."""

    def __init__(self, steps: Sequence[CompiledStep], batch: Batch, policy: Policy | None) -> None:
        types = batch.token_type_ids
        self.values = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "token_type_ids": torch.zeros_like(batch.input_ids) if types is None else types,
        }
        self.steps, self.policy = steps, policy
        self.layers = max(step.layer for step in steps)
        self.wanted = np.ones((len(batch.input_ids), self.layers), np.bool_)
        self.started: NDArray[np.int64] = batch.attention_mask.sum(dim=1).cpu().numpy()
        self.all_tokens = batch.attention_mask
        self.decisions: list[Decision] = []

    def compute(self, step: CompiledStep) -> Named:
        assert step.module is not None
        outputs = step.module(*(self.values[name] for name in step.inputs))
        return dict(zip(step.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))

    def decide(self, step: CompiledStep, named: Named, position: SelectPosition | None = None) -> Decision:
        self.values.update(named)
        made = {name: value.float().cpu().numpy() for name, value in named.items()}
        tokens = None
        if step.kind == "select":
            tokens = self.values["attention_mask"].sum(dim=1).cpu().numpy()
        elif step.kind == "drop":
            tokens = self.started
        self.decisions.append(Decision(step.kind, step.layer, made, position, tokens))
        return self.decisions[-1]


def _embed(run: _Run, step: CompiledStep) -> None:
    run.values.update(run.compute(step))


def _layer(run: _Run, step: CompiledStep) -> None:
    if step.part == "fused":
        return  # its parts follow
    runs = torch.from_numpy(run.wanted[:, step.layer - 1].copy())
    for name, value in run.compute(step).items():
        if name == "hidden":  # of tokens that were dropped it stays as it was
            value = torch.where(run.values["attention_mask"][:, :, None] != 0, value, run.values["hidden"])
        run.values[name] = _where(runs, value, run.values[name]) if name in run.values else value


def _plan(run: _Run, step: CompiledStep) -> None:
    made = run.decide(step, run.compute(step)).outputs
    if run.policy is not None:
        run.wanted = run.policy.settle(run.policy.plan(made, run.layers))


def _gate(run: _Run, step: CompiledStep) -> None:
    made = run.decide(step, run.compute(step)).outputs
    if run.policy is not None:
        executed = run.wanted[:, : step.layer - 1].sum(axis=1)
        position = GatePosition(step.layer, run.layers - step.layer)
        run.wanted[:, step.layer - 1] = run.policy.gate(made, position, executed)


def _select(run: _Run, step: CompiledStep) -> None:
    assert step.choice is not None
    decision = run.decide(step, run.compute(step), select_position(step, run.steps))
    pieces = np.ones((len(run.wanted), step.choices), np.bool_)
    if run.policy is not None:
        _, pieces = choose(run.policy, decision)
    run.values[step.choice] = torch.from_numpy(pieces).to(run.values["hidden"].device)


def _drop(run: _Run, step: CompiledStep) -> None:
    mask = run.values["attention_mask"]
    received = run.values["received"].float().masked_fill(mask == 0, -torch.inf)
    decision = run.decide(step, {"received": received})
    if run.policy is not None:
        kept = keep_tokens(run.policy, decision, run.layers)
        run.values["attention_mask"] = torch.from_numpy(kept).to(mask)


def _restore(run: _Run, step: CompiledStep) -> None:
    run.values["attention_mask"] = run.all_tokens


def _answer(run: _Run, step: CompiledStep) -> None:
    run.decide(step, run.compute(step))


_HANDLERS: dict[str, Callable[[_Run, CompiledStep], None]] = {
    "embed": _embed,
    "plan": _plan,
    "gate": _gate,
    "select": _select,
    "layer": _layer,
    "drop": _drop,
    "restore": _restore,
    "exit": _answer,
    "head": _answer,
}


def _where(runs: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(runs.to(new.device).reshape(-1, *([1] * (new.ndim - 1))), new, old)
