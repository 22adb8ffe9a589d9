"""Any number of rows through the engine: in batches of like length, and everything back in the order given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgebert.policies import Policy
from edgebert.runtime.engine import Engine
from edgebert.runtime.forks import inside_model
from edgebert.runtime.outcome import Mask, Outcome
from edgebert.text import Encoded, Values, batches, join_rows

MAX_BATCH_TOKENS = 8192
_PLAN_ROWS = 1024  # a plan made ahead is a look-up


def run_rows(
    engine: Engine,
    policy: Policy,
    encoded: Sequence[Encoded],
    *,
    pad: Callable[[Sequence[Encoded]], Values],
    batch_size: int,
    sort: bool,
    compact: bool,
    show_progress: bool,
) -> Outcome:
    """Runs token ids under a policy.

    Args:
        engine: The loaded program.
        policy: Says who stops where and who runs what.
        encoded: Token ids of each row.
        pad: Makes some rows one batch, int64 [rows, tokens] each.
        batch_size: Most rows in a batch.
        sort: Put rows of like length together. False batches them as they come.
        compact: Let finished rows leave their batch at once.
        show_progress: Show a progress bar on stderr.

    Returns:
        An outcome of all rows; every array is in the order given.
    """
    n = len(encoded)
    if n == 1 and not engine.plans_ahead and not show_progress:  # what is below costs a short text several percent
        with inside_model():
            return engine.run(pad(encoded), policy, compact=compact)
    outcome = Outcome.empty(n, engine.layers)
    lengths = [len(row.ids) for row in encoded]
    plan = _plan_ahead(engine, policy, encoded, lengths, pad, outcome) if engine.plans_ahead else None
    groups = batches(
        lengths,
        max_rows=batch_size,
        max_tokens=MAX_BATCH_TOKENS,
        sort=sort,
        depths=None if plan is None else plan.sum(axis=1),
        cut_depths=policy.needs_equal_plans,
    )
    scores, token_layers = [], []
    for places in _progress(groups, n, show_progress):
        inputs = pad([encoded[i] for i in places])
        with inside_model():
            part = engine.run(inputs, policy, compact=compact, plan=None if plan is None else plan[places])
        outcome.put(places, part)
        scores.append((places, part.scores))
        if part.token_layers is not None:
            token_layers.append((places, part.token_layers))
    if scores:
        outcome.scores = join_rows(scores, n)
    if token_layers:
        outcome.token_layers = join_rows(token_layers, n)
    return outcome


def _plan_ahead(
    engine: Engine,
    policy: Policy,
    encoded: Sequence[Encoded],
    lengths: Sequence[int],
    pad: Callable[[Sequence[Encoded]], Values],
    outcome: Outcome,
) -> Mask:
    """Makes the plan of every row before they are put into batches, bool [rows, layers]."""
    plan = np.zeros((len(encoded), engine.layers), np.bool_)
    for places in batches(lengths, max_rows=_PLAN_ROWS, max_tokens=_PLAN_ROWS * MAX_BATCH_TOKENS):
        inputs = pad([encoded[i] for i in places])
        with inside_model():
            plan[places] = engine.plan(inputs, policy, outcome, places)
    return plan


def _progress(groups: Iterator[NDArray[np.int64]], total: int, is_shown: bool) -> Iterator[NDArray[np.int64]]:
    """Passes the batches on, with a progress bar on stderr when asked for."""
    if not is_shown:
        yield from groups
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("texts", total=total)
        for group in groups:
            yield group
            bar.advance(task, len(group))
