"""Chooses the operating points a checkpoint carries, on rows held out of train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgebert.bundle.manifest import Knobs, OperatingPoint, exit_layers_of
from edgebert.candidates import Candidate, cheapest_that_keeps, grid_of
from edgebert.decisions import Decision, Followed, follow, paths_depend_on_rule
from edgebert.methods._program import Batch, CompiledStep
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

    Args:
        model: The trained model.
        steps: Its program.
        rows: Held-out rows.
        rule: The method's own rule; its full-depth answer is what must be kept.
        policies: The method's policies; the rule's choice is called `default`, any other by the policy's name.
        task: Says what the scores mean.
        max_drop_points: How much of the full-depth metric may be lost, in hundredths.
    """
    if rule[0] == "never":
        return {"default": OperatingPoint(policy="never", knobs={})}
    layers = max(step.layer for step in steps)
    exit_layers = exit_layers_of([(step.kind, step.layer) for step in steps])
    recorded = None if paths_depend_on_rule(steps) else record_decisions(model, steps, rows)

    def measure(policy: str, knobs: Knobs) -> Candidate:
        made = make_policy(policy, knobs, exit_layers=exit_layers, rule=rule)
        if recorded is None:
            scores, path, cost_ratio = run_rule(model, steps, rows, made)
        else:
            followed = follow(made, recorded, layers)
            scores, path = followed.scores, followed.path
            cost_ratio = float(path.mean())
        return Candidate(
            policy=policy,
            knobs=knobs,
            metric=task.metric(task.predictions(scores, rows.encoded), rows.targets),
            mean_layers=float(path.sum(axis=1).mean()),
            cost_ratio=cost_ratio,
        )

    full = measure("never", {}).metric
    points = {}
    for policy in policies:
        settings = grid_of(policy, rule) or ([rule[1]] if policy == rule[0] else [])
        measured = [measure(policy, knobs) for knobs in settings]
        if measured:
            kept = cheapest_that_keeps(measured, full - max_drop_points / 100) or measured[0]
            points["default" if policy == rule[0] else policy] = OperatingPoint(
                policy=policy,
                knobs=kept.knobs,
                chosen_on=f"{len(rows)} rows of train; full depth has {task.METRIC} {full:.4f}",
                metric=kept.metric,
                mean_layers=kept.mean_layers,
                cost_ratio=kept.cost_ratio,
            )
    return points


def run_rule(
    model: nn.Module, steps: Sequence[CompiledStep], rows: Rows, policy: Policy, size: int = 64
) -> tuple[NDArray[Any], NDArray[np.bool_], float]:
    """Runs a program under a rule, in torch.

    Returns:
        The scores, float [rows, ...], the layers each row ran, bool [rows, layers], and the multiply-accumulates of
        what ran over those of all layers, a mean over rows.
    """
    scores, paths, ratios = [], [], []
    with on_cpu(model):
        for places, batch in rows.batches(size):
            _, followed = run_reference(steps, batch, policy)
            assert followed is not None
            scores.append((places, followed.scores))
            paths.append((places, followed.path))
            ratios.append(cost_ratios(steps, batch, followed))
    return join_rows(scores, len(rows)), join_rows(paths, len(rows)), float(np.concatenate(ratios).mean())


def cost_ratios(steps: Sequence[CompiledStep], batch: Batch, followed: Followed) -> NDArray[np.float64]:
    """Returns each row's multiply-accumulates over those of all layers, float64 [rows], by what a rule made of it."""
    length = batch.attention_mask.sum(dim=1).cpu().numpy()
    spent, full = np.zeros(len(length)), np.zeros(len(length))
    for step in steps:
        tokens, runs = length, step.layer <= followed.exit_layer
        if step.part == "fused":
            continue  # its parts are counted
        if step.kind != "layer":
            spent += runs * step.macs.of(tokens)
            continue
        full += step.macs.of(length) + step.choices * step.each.of(length)
        # A token that is dropped inside a layer has taken part in its attention.
        through = step.layer - (step.part == "attention")
        if followed.token_layers is not None and through:
            tokens = (followed.token_layers >= through).sum(axis=1)
        cost = step.macs.of(tokens)
        if step.choice is not None:
            cost += step.each.of(tokens) * followed.chosen[step.choice][:, step.layer - 1].sum(axis=1)
        spent += followed.path[:, step.layer - 1] * cost
    return spent / full


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
