"""Chooses the operating points a checkpoint carries, on rows held out of train."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgebert import registry
from edgebert.bundle.manifest import Knobs, OperatingPoint
from edgebert.methods._program import CompiledStep, full_depth
from edgebert.policies import Outputs, make_policy, replay
from edgebert.training.rows import Rows


def choose_operating_points(
    model: nn.Module,
    steps: Sequence[CompiledStep],
    rows: Rows,
    *,
    rule: tuple[str, Knobs],
    policies: Sequence[str],
    task: ModuleType,
    max_drop_points: float,
) -> dict[str, OperatingPoint]:
    """Chooses, for every policy with a grid, the cheapest setting that keeps the metric.

    Args:
        model: The trained model.
        steps: Its program.
        rows: Held-out rows.
        rule: The method's own rule; its full-depth answer is what must be kept.
        policies: The method's policies; the rule's choice is called `default`, any other by the policy's name.
        task: The task's module.
        max_drop_points: How much of the full-depth metric may be lost, in hundredths.
    """
    if rule[0] == "never":
        return {"default": OperatingPoint(policy="never", knobs={})}
    exits = record_exits(model, steps, rows)
    layers = [step.layer for step in steps if step.kind == "exit"]

    def measure(policy: str, knobs: Knobs) -> tuple[float, float]:
        made = make_policy(policy, knobs, exit_layers=layers, rule=rule)
        scores, exit_layer = replay(made, exits, layers)
        values = task.metrics(scores.argmax(axis=1), rows.labels, scores.shape[1])
        return values[task.METRIC], float(exit_layer.mean())

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


def record_exits(model: nn.Module, steps: Sequence[CompiledStep], rows: Rows, size: int = 64) -> list[Outputs]:
    """Runs every exit on every row and returns each exit's outputs, rows in their own order."""
    was_training = model.training
    device = next(model.parameters()).device
    model.cpu().eval()
    recorded: list[dict[str, NDArray[np.float32]]] = []
    with torch.inference_mode():
        for places, batch in rows.batches(size):
            for number, outputs in enumerate(full_depth(steps, batch)):
                if number == len(recorded):
                    recorded.append({k: np.zeros((len(rows), *v.shape[1:]), np.float32) for k, v in outputs.items()})
                for name, value in outputs.items():
                    recorded[number][name][places] = value.numpy()
    model.to(device).train(was_training)
    return list(recorded)
