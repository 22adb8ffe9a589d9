"""Chooses the operating points a checkpoint carries, on rows held out of train."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from edgebert import registry
from edgebert.bundle.manifest import Knobs, OperatingPoint, exit_layers_of
from edgebert.methods._program import CompiledStep
from edgebert.methods._reference import paths_depend_on_rule, run_reference
from edgebert.policies import Decision, Policy, follow, make_policy
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

    def measure(policy: str, knobs: Knobs) -> tuple[float, float]:
        made = make_policy(policy, knobs, exit_layers=exit_layers, rule=rule)
        decisions = record_decisions(model, steps, rows, made) if recorded is None else recorded
        followed = follow(made, decisions, layers)
        metric = task.metric(task.predictions(followed.scores, rows.encoded), rows.targets)
        return metric, float(followed.path.sum(axis=1).mean())

    full, _ = measure("never", {})
    points = {}
    for policy in policies:
        base = rule[1] if policy == rule[0] else {}
        settings: list[Knobs] = [{**base, **knobs} for knobs in registry.load("edgebert.policies", policy).GRID]
        measured = [(knobs, *measure(policy, knobs)) for knobs in settings]
        kept = [entry for entry in measured if entry[1] >= full - max_drop_points / 100] or measured[:1]
        if kept:
            knobs, metric, mean_layers = min(kept, key=lambda entry: entry[2])
            points["default" if policy == rule[0] else policy] = OperatingPoint(
                policy=policy,
                knobs=knobs,
                chosen_on=f"{len(rows)} rows of train; full depth has {task.METRIC} {full:.4f}",
                metric=metric,
                mean_layers=mean_layers,
            )
    return points


def record_decisions(
    model: nn.Module, steps: Sequence[CompiledStep], rows: Rows, policy: Policy | None = None, size: int = 64
) -> list[Decision]:
    """Runs every step that decides or answers, on every row and in torch, under a rule or at full depth.

    Returns:
        What each gave, rows in their own order; of different numbers of tokens, padded with zeros.
    """
    was_training = model.training
    device = next(model.parameters()).device
    model.cpu().eval()
    batches = [(places, run_reference(steps, batch, policy)[0]) for places, batch in rows.batches(size)]
    model.to(device).train(was_training)
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
