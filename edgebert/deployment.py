"""What evaluated bundles cost a device: latency, throughput, private memory and energy, for each number of threads.

Each bundle runs under each policy in a process of its own, and all of them take turns on the same texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgebert.measure import Measured
from edgebert.output import Reporter
from edgebert.rivals._protocol import Case, Scenario, Spec
from edgebert.rivals._turns import TimedSide, open_sides, time_together
from edgebert.runtime.hub import find_bundle
from edgebert.statistics import quantile_curve
from edgebert.text import Text

REPEATS = 3
_SCENARIOS: tuple[Scenario, ...] = ("single-stream", "offline")


def add_deployment(
    measured: Sequence[Measured],
    texts: Sequence[Text],
    *,
    threads: Sequence[int],
    batch_size: int,
    max_length: int | None,
    provider: str,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Times evaluated bundles under their policies; returns a row for each of them and each number of threads.

    A row is the evaluated one, with `p50_ms`, `p90_ms`, `p99_ms` and the 101 `latency_quantiles_ms` over texts answered
    one by one, `mean_ms` their mean, `texts_per_s` of a list in batches, `private_mb`, `energy_j` and
    `energy_source` of the list, and `n_timed`. Times run from token ids to result.

    Args:
        measured: The evaluated bundles and policies.
        texts: The texts to time.
        threads: Numbers of threads inside an operator.
        batch_size: Most texts in a batch of the list.
        max_length: Cut texts to this many tokens.
        provider: Execution provider.
        reporter: Where progress goes.
    """
    sides = [_side(entry.row["bundle"], provider) for entry in measured]
    rows = []
    turns = len(threads) * len(measured) * len(_SCENARIOS) * REPEATS
    with reporter.track("timing", turns) as advance:
        for count in threads:
            with open_sides(sides, count) as processes:
                everyone = list(zip(sides, processes, strict=True))
                timed = {
                    scenario: time_together(
                        everyone,
                        [_case(entry, texts, scenario, batch_size, max_length) for entry in measured],
                        REPEATS,
                        advance,
                    )
                    for scenario in _SCENARIOS
                }
            for entry, alone, listed in zip(measured, *timed.values(), strict=True):
                call_ms = [call for turn in alone.timed for call in turn.call_ms]
                rows.append(
                    {
                        **entry.row,
                        "threads": count,
                        "n_timed": len(texts),
                        "mean_ms": float(np.mean(call_ms)),
                        **{f"p{percent}_ms": float(np.percentile(call_ms, percent)) for percent in (50, 90, 99)},
                        "latency_quantiles_ms": quantile_curve(call_ms),
                        "texts_per_s": 1000.0 / float(np.median(listed.text_ms())),
                        **listed.footprint(),
                    }
                )
    return rows


def _side(path: str, provider: str) -> TimedSide:
    spec = Spec(side="bundle", bundle=path, provider=provider)
    return TimedSide(label=path, rival_of=None, spec=spec, bundle=find_bundle(path))


def _case(entry: Measured, texts: Sequence[Text], scenario: Scenario, batch_size: int, max_length: int | None) -> Case:
    return Case(
        batch=batch_size if scenario == "offline" else 1,
        texts=tuple(texts),
        max_length=max_length,
        scenario=scenario,
        policy=entry.row["rule"],
        knobs=entry.row["knobs"],
    )
