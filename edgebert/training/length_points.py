"""Chooses the operating points of a model that drops tokens: the Pareto front of a search on rows held out of train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgebert.bundle.manifest import OperatingPoint
from edgebert.candidates import check_answers, check_comparable, keeps
from edgebert.config import TrainConfig
from edgebert.decisions import Followed, all_layers, spent_macs
from edgebert.methods._program import AdaptiveModel, Batch, CompiledStep, LengthSearch
from edgebert.output import Reporter
from edgebert.policies import DropPosition, Policy, make_policy
from edgebert.tasks import Task
from edgebert.text import join_rows
from edgebert.training.length_search import ALL, Candidate, Lengths, search_lengths
from edgebert.training.loop import wants_bf16
from edgebert.training.operating_points import on_cpu
from edgebert.training.rows import Rows

POLICY = "lengths"


def choose_lengths(
    model: AdaptiveModel,
    search: LengthSearch,
    rows: Rows,
    *,
    task: Task,
    train: TrainConfig,
    reporter: Reporter,
    seed: int = 0,
    size: int = 16,
) -> dict[str, OperatingPoint]:
    """Searches for lengths, and names what it found.

    Args:
        model: The trained model.
        search: How to search.
        rows: Held-out rows.
        task: Says what the scores mean.
        train: Says how much of the metric `default` may lose, and in what precision the model runs here.
        reporter: Where progress goes.
        seed: Of the search.
        size: Rows that run together.

    Returns:
        Every point of the front by what it costs in hundredths of all tokens in all layers, such as `lengths_42`, the
        better one where two cost the same, and as `default` the cheapest one that keeps the metric.

    Raises:
        DataError: The metric of these rows is not defined.
        EdgeBertError: The model answers with what is no number.
    """
    check_comparable(task, rows.targets, f"train.tuning_rows={len(rows)}")
    steps = model.steps()
    layers = model.encoder.config.layers
    with on_cpu(model), reporter.track("search lengths", search.evaluations) as advance:

        def measure(lengths: Lengths) -> tuple[float, float]:
            policy = make_policy(POLICY, {"lengths": as_knob(lengths)}, exit_layers=())
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=wants_bf16(train)):
                scores, cost_ratio = _run(search, steps, rows, policy, layers, size)
            if lengths == (ALL,) * layers:
                check_answers(scores)
            metric = task.metric(task.predictions(scores, rows.encoded), rows.targets)
            advance(1, f"{task.METRIC} {metric:.4f} at {cost_ratio:.2f} of the cost")
            return cost_ratio, metric

        everything, full_metric = measure((ALL,) * layers)
        front = search_lengths(
            lambda lengths: (everything, full_metric) if lengths == (ALL,) * layers else measure(lengths),
            search.largest_drops,
            algorithm=search.algorithm,
            evaluations=search.evaluations,
            seed=seed,
        )
    precision = " in bf16" if wants_bf16(train) else ""
    chosen_on = f"{len(rows)} rows of train{precision}; all tokens have {task.METRIC} {full_metric:.4f}"
    points = {f"{POLICY}_{round(100 * found.cost):02d}": _point(found, layers, chosen_on) for found in front}
    kept = next(found for found in front if keeps(found.metric, full_metric - train.max_drop_points / 100))
    return {"default": _point(kept, layers, chosen_on), **dict(reversed(points.items()))}


def as_knob(lengths: Lengths) -> str:
    """Returns lengths as the policy takes them.

    >>> as_knob((100, 75, 5))
    '1.00,0.75,0.05'
    """
    return ",".join(f"{length / ALL:.2f}" for length in lengths)


def _point(found: Candidate, layers: int, chosen_on: str) -> OperatingPoint:
    return OperatingPoint(
        policy=POLICY,
        knobs={"lengths": as_knob(found.lengths)},
        chosen_on=chosen_on,
        metric=found.metric,
        mean_layers=float(layers),
        cost_ratio=found.cost,
    )


def _run(
    search: LengthSearch, steps: Sequence[CompiledStep], rows: Rows, policy: Policy, layers: int, size: int
) -> tuple[NDArray[Any], float]:
    """Returns the scores of all rows under a policy, and the share of the full cost."""
    scores = []
    spent = full = 0.0
    for places, batch in rows.batches(size):
        length = batch.attention_mask.sum(dim=1).numpy()
        keep = [np.minimum(policy.keep(DropPosition(layer, layers), length), length) for layer in range(1, layers + 1)]
        answers = search.answer_at(batch, [torch.from_numpy(count) for count in keep])
        scores.append((places, answers.float().numpy()))
        spent += spent_macs(steps, policy, _followed(keep, batch), length).sum()
        full += all_layers(steps).of(length).sum()
    return join_rows(scores, len(rows)), float(spent / full)


def _followed(keep: Sequence[NDArray[np.int64]], batch: Batch) -> Followed:
    """Returns what is known of rows once it is known how many of their tokens go on from each layer."""
    rows, tokens = batch.attention_mask.shape
    stays = [np.arange(tokens) < count[:, None] for count in keep]
    return Followed(
        scores=np.zeros((rows, 0)),
        exit_layer=np.full(rows, len(keep)),
        path=np.ones((rows, len(keep)), np.bool_),
        token_layers=np.sum(stays, axis=0),
    )
