"""Chooses the operating points a checkpoint carries, on rows held out of train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgebert.bundle.manifest import Knobs, OperatingPoint, exit_layers_of
from edgebert.candidates import Candidate, cheapest_that_keeps, check_answers, check_comparable, grid_of
from edgebert.decisions import Decision, all_layers, follow, paths_depend_on_rule, spent_macs
from edgebert.methods._program import CompiledStep
from edgebert.methods._reference import run_reference
from edgebert.policies import Policy, make_policy
from edgebert.tasks import Task
from edgebert.text import join_rows
from edgebert.training.rows import Rows


def choose_operating_points(
    model: nn.Module,
    steps: Sequence[CompiledStep],
    rows: Rows,
    *,
    rule: tuple[str, Knobs],
    policies: Sequence[str],
    task: Task,
    max_drop_points: float,
) -> dict[str, OperatingPoint]:
    """Chooses, for every policy with a grid, the cheapest setting that keeps the metric.

    Where none does, `default` is full depth, and another policy gets no point.

    Args:
        model: The trained model.
        steps: Its program.
        rows: Held-out rows.
        rule: The method's own rule; its full-depth answer is what must be kept.
        policies: The method's policies; the rule's choice is called `default`, any other by the policy's name.
        task: Says what the scores mean.
        max_drop_points: How much of the full-depth metric may be lost, in hundredths.

    Raises:
        DataError: The metric of these rows is not defined.
        EdgeBertError: The model answers with what is no number.
    """
    check_comparable(task, rows.targets, f"train.tuning_rows={len(rows)}")
    if rule[0] == "never":
        return {"default": OperatingPoint(policy="never", knobs={})}
    layers = max(step.layer for step in steps)
    exit_layers = exit_layers_of([(step.kind, step.layer) for step in steps])
    recorded = None if paths_depend_on_rule(steps) else record_decisions(model, steps, rows)
    lengths = np.array([len(row.ids) for row in rows.encoded])

    def measure(policy: str, knobs: Knobs) -> Candidate:
        made = make_policy(policy, knobs, exit_layers=exit_layers, rule=rule)
        if recorded is None:
            scores, path, cost_ratio = run_rule(model, steps, rows, made)
        else:
            followed = follow(made, recorded, layers)
            scores, path = followed.scores, followed.path
            cost_ratio = float(spent_macs(steps, made, followed, lengths).sum() / all_layers(steps).of(lengths).sum())
        if policy == "never":
            check_answers(scores)
        return Candidate(
            policy=policy,
            knobs=knobs,
            metric=task.metric(task.predictions(scores, rows.encoded), rows.targets),
            mean_layers=float(path.sum(axis=1).mean()),
            cost_ratio=cost_ratio,
        )

    full = measure("never", {})
    points = {}
    for policy in policies:
        settings = grid_of(policy, rule) or ([rule[1]] if policy == rule[0] else [])
        measured = [measure(policy, knobs) for knobs in settings]
        kept = cheapest_that_keeps(measured, full.metric - max_drop_points / 100)
        if policy == rule[0]:
            points["default"] = _point(kept or full, rows, task, full)
        elif kept is not None:
            points[policy] = _point(kept, rows, task, full)
    return points


def _point(found: Candidate, rows: Rows, task: Task, full: Candidate) -> OperatingPoint:
    return OperatingPoint(
        policy=found.policy,
        knobs=found.knobs,
        chosen_on=f"{len(rows)} rows of train; full depth has {task.METRIC} {full.metric:.4f}",
        metric=found.metric,
        mean_layers=found.mean_layers,
        cost_ratio=found.cost_ratio,
    )


def run_rule(
    model: nn.Module, steps: Sequence[CompiledStep], rows: Rows, policy: Policy, size: int = 64
) -> tuple[NDArray[Any], NDArray[np.bool_], float]:
    """Runs a program under a rule, in torch.

    Returns:
        The scores, float [rows, ...], the layers each row ran, bool [rows, layers], and the multiply-accumulates of
        what ran on all rows over those of all layers.
    """
    scores, paths = [], []
    spent = full = 0.0
    with on_cpu(model):
        for places, batch in rows.batches(size):
            _, followed = run_reference(steps, batch, policy)
            assert followed is not None
            scores.append((places, followed.scores))
            paths.append((places, followed.path))
            lengths = batch.attention_mask.sum(dim=1).cpu().numpy()
            spent += spent_macs(steps, policy, followed, lengths).sum()
            full += all_layers(steps).of(lengths).sum()
    return join_rows(scores, len(rows)), join_rows(paths, len(rows)), float(spent / full)


def record_decisions(model: nn.Module, steps: Sequence[CompiledStep], rows: Rows, size: int = 64) -> list[Decision]:
    """Runs every step that decides or answers, on every row and in torch, at full depth.

    Returns:
        What each gave, rows in their own order; of different numbers of tokens, padded with zeros.
    """
    with on_cpu(model):
        batches = [(places, run_reference(steps, batch)[0]) for places, batch in rows.batches(size)]
    return [
        Decision(
            first.kind,
            first.layer,
            {
                name: join_rows([(places, batch[number].outputs[name]) for places, batch in batches], len(rows))
                for name in first.outputs
            },
        )
        for number, first in enumerate(batches[0][1])
    ]


@contextlib.contextmanager
def on_cpu(model: nn.Module) -> Iterator[None]:
    """Moves a model to the CPU without dropout, and back to where and what it was."""
    was_training, device = model.training, next(model.parameters()).device
    model.cpu().eval()
    try:
        yield
    finally:
        model.to(device).train(was_training)
