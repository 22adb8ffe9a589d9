"""Measures wall time: bundles, and rivals beside them, each in its own process and taking turns.

A figure that compares two sides is only worth something when both were timed in one run on the same machine. So all
sides of a case are loaded at once, in a child process each, and time one turn after the other; the order of the sides
is reversed from each repeat to the next (A B, B A, ...). A ratio is taken inside each repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert import registry
from edgebert.bundle import TOKENIZER_NAME, open_bundle
from edgebert.data import texts_of
from edgebert.errors import ConfigError, suggestion
from edgebert.host import host_facts
from edgebert.output import Advance, Reporter
from edgebert.rivals._process import SideProcess
from edgebert.rivals._protocol import Case, Spec
from edgebert.rivals._turns import Record, TimedSide, open_sides, time_together
from edgebert.statistics import quantile_curve
from edgebert.tasks import load_task
from edgebert.text import Text

SCHEMA = "edgebert.bench/1"
DEFAULT_LENGTHS = (16, 32, 128)

_RESAMPLES = 2000
# The smallest and the largest of 5 hold the median with 94 %, so no interval from fewer means what it says.
FEWEST_PAIRS = 5
_BUSY_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What to time, with one number of threads after the other.

    Attributes:
        sides: The bundles, then the rivals.
        pairs: Places of a bundle and its rival in `sides`.
        cases: What all sides are timed on together.
        ladders: A bundle's place, and a case stopped after each of its exit layers.
        repeats: Turns of each side in each case.
        per_step: Whether every side has as many turns more, in which its steps are timed.
    """

    sides: list[TimedSide]
    pairs: list[tuple[int, int]]
    cases: list[Case]
    ladders: list[tuple[int, list[Case]]]
    repeats: int
    per_step: bool

    @property
    def turns(self) -> int:
        """How many turns all of it takes."""
        each = 2 if self.per_step else 1
        return self.repeats * (each * len(self.cases) * len(self.sides) + sum(len(steps) for _, steps in self.ladders))


def bench_bundles(
    bundles: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    policy: str = "default",
    settings: Mapping[str, Any] | None = None,
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    lengths: Sequence[int] | None = None,
    against: str | Path | None = None,
    against_batch: int | None = None,
    against_policy: str = "default",
    reference: str | None = None,
    scenario: Literal["single-stream", "offline"] = "single-stream",
    repeats: int = 5,
    max_texts: int = 500,
    provider: str = "cpu",
    compact: bool = True,
    per_layer: bool = False,
    per_step: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Times bundles on random token ids of given lengths, or on real texts.

    Every combination of bundle, threads, batch and length (or texts) gives a row; a rival gives rows of its own, and
    each bundle a ratio to it. In a row, `mean_ms`, `min_ms` and `max_ms` are the median, the smallest and the largest
    of the repeats' means, and `p50_ms`, `p90_ms`, `p99_ms` and the 101 `latency_quantiles_ms` are taken over all calls
    of all repeats; all of them in ms per call of `batch` rows for lengths, and in ms per text for texts. Wall time
    runs from token ids to result; tokenizing is `tokenize_ms`, ms per text. `first_ms` is the first call, before any
    warm-up. A ratio is the bundle's time over the rival's, per text: below 1 the bundle is faster.

    Args:
        bundles: Bundle folders.
        data: Texts to time, in their order: a file or hub id that the bundles' task reads; of a folder, its validation
            file. A question with all windows of its passage is one text. None times random token ids.
        columns: The data's column for a field, such as {"text": "sentence"}.
        policy: Operating point or policy of the bundles.
        settings: Knobs on top of it.
        threads: Numbers of threads inside an operator.
        batches: Rows in a call, or for `offline` most rows in a batch.
        lengths: Tokens of random rows; unused with `data`. None: 16, 32 and 128, as far as all bundles take them.
        against: The rival: a bundle folder, or a name: `whole` (the bundle's own whole-model graph), `single` (its
            single file), `uncompacted` (the bundle, finished rows staying in their batch), `torch`, `optimum` or
            `optimum_int8` (the static model of the same encoder shape).
        against_batch: The rival's batch size; None is that of the bundles.
        against_policy: Operating point or policy of a rival that is a bundle folder.
        reference: Checkpoint of the rivals `torch` and `optimum`; None gives them random weights.
        scenario: With `data`: one text a call, or the whole list at once, sorted by length.
        repeats: Turns of each side in each case; a ratio has an interval from 5 on.
        max_texts: Read at most this many texts.
        provider: `cpu` or `cuda`.
        compact: Let finished rows leave their batch at once.
        per_layer: Also fit time = fixed + k x layer over the exit layers k, at each length.
        per_step: Also time the graphs inside: `steps_ms` has, in the unit of `mean_ms`, the wall time of each kind of
            step and what is left for `python`, `step_calls` the number of session calls.
        reporter: Where progress goes.

    Returns:
        Plain data: `schema`, `host`, `rows`, `ratios` and `fits`.

    Raises:
        ConfigError: An option, a name or a bundle's choice makes no sense.
        DataError: The data cannot be read.
        BundleError: A bundle is refused.
        MissingExtraError: A rival's package is not installed.
        EdgeBertError: A side's process died.
    """
    _check(
        threads=threads, batches=batches, lengths=lengths or DEFAULT_LENGTHS, repeats=[repeats], max_texts=[max_texts]
    )
    _check_scenario(data, scenario, [*batches, *([] if against_batch is None else [against_batch])], per_layer)
    spec = Spec(side="bundle", bundle="", provider=provider, policy=policy, knobs=dict(settings or {}), compact=compact)
    sides = _bundle_sides(bundles, spec)
    pairs = _add_rivals(sides, against, against_batch, against_policy, reference)
    texts = _read_texts(sides, data, columns, max_texts)
    cases = _cases(sides, batches, () if texts else lengths, texts, scenario)
    ladders = [(n, ladder) for n in range(len(bundles)) if per_layer for ladder in _ladders(sides[n], cases)]
    plan = _Plan(sides=sides, pairs=pairs, cases=cases, ladders=ladders, repeats=repeats, per_step=per_step)
    result: dict[str, Any] = {"schema": SCHEMA, "host": host_facts(), "rows": [], "ratios": [], "fits": []}
    reporter = reporter or Reporter()
    _warn_if_busy(result["host"], reporter)
    with reporter.track("bench", len(threads) * plan.turns) as advance:
        for count in threads:
            with open_sides(sides, count) as processes:
                _carry_out(plan, processes, advance, result)
    return result


def _warn_if_busy(host: Mapping[str, Any], reporter: Reporter) -> None:
    if (host["load_average"] or 0.0) > _BUSY_SHARE * host["threads"]:
        reporter.say(
            f"this machine is busy (load average {host['load_average']} on {host['threads']} processors): "
            "ratios are rough and absolute timings mean little."
        )


def _carry_out(plan: _Plan, processes: Sequence[SideProcess], advance: Advance, result: dict[str, Any]) -> None:
    """Times every case and every ladder with the sides as they are loaded, and adds to the result."""
    for case in plan.cases:
        everyone = list(zip(plan.sides, processes, strict=True))
        cases = [case if s.batch is None else msgspec.structs.replace(case, batch=s.batch) for s in plan.sides]
        records = time_together(everyone, cases, plan.repeats, advance)
        if plan.per_step:
            _time_steps(records, plan.repeats, advance)
        result["rows"] += [_row(record) for record in records]
        result["ratios"] += [_ratio(records[ours], records[rival]) for ours, rival in plan.pairs]
    for number, ladder in plan.ladders:
        one = [(plan.sides[number], processes[number])] * len(ladder)
        result["fits"].append(_fit(time_together(one, ladder, plan.repeats, advance)))


def _time_steps(records: Sequence[Record], repeats: int, advance: Advance) -> None:
    """Gives every side more turns, in which its steps are timed."""
    for record in records:
        for _ in range(repeats):
            record.steps.append(record.process.time_steps(record.prepared.case))
            advance(1, record.side.label)


def _check(**options: Sequence[int]) -> None:
    for name, values in options.items():
        if not values or min(values) < 1:
            got = ", ".join(map(str, values)) or "nothing"
            raise ConfigError(f"{name}: expected whole numbers of 1 or more, got {got}.")


def _check_scenario(data: str | Path | None, scenario: str, batches: Sequence[int], per_layer: bool) -> None:
    """Refuses options that contradict each other."""
    if scenario not in ("single-stream", "offline"):
        raise ConfigError(f"unknown scenario {scenario!r}.{suggestion(scenario, ('single-stream', 'offline'))}")
    if min(batches) < 1:
        raise ConfigError(f"against_batch: expected 1 or more, got {min(batches)}.")
    if data is None and scenario == "offline":
        raise ConfigError("scenario offline: answers a list of texts; say which with --data.")
    if data is not None and scenario == "single-stream" and max(batches) > 1:
        raise ConfigError(
            f"scenario single-stream: is one text a call, got batch {max(batches)}; use --scenario offline for batches."
        )
    if data is not None and per_layer:
        raise ConfigError("per-layer: is fitted at fixed lengths; leave --data out and give lengths.")


def _bundle_sides(bundles: Sequence[str | Path], spec: Spec) -> list[TimedSide]:
    """Returns the bundles as sides; `spec` says all but the folder."""
    if not bundles:
        raise ConfigError("bench: expected at least one bundle, got none; name a bundle folder.")
    return [
        TimedSide(
            label=str(path),
            rival_of=None,
            spec=msgspec.structs.replace(spec, bundle=str(path)),
            bundle=open_bundle(path),
        )
        for path in bundles
    ]


def _add_rivals(
    sides: list[TimedSide],
    against: str | Path | None,
    batch: int | None,
    policy: str,
    reference: str | None,
) -> list[tuple[int, int]]:
    """Appends the rivals, one for each bundle or one for all; returns (bundle, rival) as places in `sides`."""
    if against is None:
        if batch is not None or reference is not None:
            raise ConfigError("against_batch and reference: belong to a rival; name one with --against.")
        return []
    ours, name = len(sides), str(against)
    if name in _rival_names():
        for side in sides[:ours]:
            spec = msgspec.structs.replace(side.spec, side=name, reference=reference)
            sides.append(TimedSide(label=name, rival_of=side.label, spec=spec, bundle=side.bundle, batch=batch))
        return [(number, ours + number) for number in range(ours)]
    if not Path(name).is_dir():
        raise ConfigError(
            f"--against {name}: no such bundle folder, and no such rival.{suggestion(name, _rival_names())}"
        )
    if reference is not None:
        raise ConfigError(f"--reference: goes with the rivals torch and optimum, not with the bundle {name}.")
    spec = msgspec.structs.replace(sides[0].spec, bundle=name, policy=policy, knobs={})
    sides.append(TimedSide(label=name, rival_of=None, spec=spec, bundle=open_bundle(name), batch=batch))
    return [(number, ours) for number in range(ours)]


def _rival_names() -> list[str]:
    return [name for name in registry.names("edgebert.rivals") if name != "bundle"]


def _read_texts(
    sides: Sequence[TimedSide], data: str | Path | None, columns: Mapping[str, str] | None, limit: int
) -> tuple[Text, ...]:
    if data is None:
        return ()
    for side in sides:
        if not side.bundle.has(TOKENIZER_NAME):
            raise ConfigError(f"{side.bundle.path}: has no tokenizer, so texts cannot be timed; leave --data out.")
    names = {side.bundle.manifest.task for side in sides}
    tasks = [load_task(name) for name in sorted(names)]
    if len({task.ASKED for task in tasks}) > 1:
        raise ConfigError(f"data: expected bundles that are asked alike, got {' and '.join(sorted(names))}.")
    examples = tasks[0].read(data, split="validation", columns=columns, require_labels=False)[:limit]
    return tuple(texts_of(examples))


def _cases(
    sides: Sequence[TimedSide],
    batches: Sequence[int],
    lengths: Sequence[int] | None,
    texts: tuple[Text, ...],
    scenario: Literal["single-stream", "offline"],
) -> list[Case]:
    """Returns every batch with every length, or with the texts."""
    if texts:
        return [Case(batch=batch, texts=texts, scenario=scenario) for batch in batches]
    for side in sides:
        longest = side.bundle.manifest.encoder.max_length
        if lengths and max(lengths) > longest:
            raise ConfigError(f"lengths: {side.bundle.path} takes at most {longest} tokens, got {max(lengths)}.")
    if not lengths:
        longest = min(side.bundle.manifest.encoder.max_length for side in sides)
        lengths = [length for length in DEFAULT_LENGTHS if length <= longest] or [longest]
    vocabulary = min(side.bundle.manifest.encoder.vocabulary_size for side in sides)
    return [Case(batch=batch, length=length, vocabulary_size=vocabulary) for batch in batches for length in lengths]


def _ladders(side: TimedSide, cases: Sequence[Case]) -> list[list[Case]]:
    """Returns, for each case, the same case stopped after each of the bundle's exit layers."""
    manifest = side.bundle.manifest
    if "fixed" not in manifest.policies or len(manifest.exit_layers) < 2:
        raise ConfigError(
            f"per-layer: {side.bundle.path} ({manifest.method}) has no exits to stop at; it works for bundles with the "
            "policy `fixed`, such as those of dact_bert."
        )
    return [
        [msgspec.structs.replace(case, policy="fixed", knobs={"layer": layer}) for layer in manifest.exit_layers]
        for case in cases
    ]


def _row(record: Record) -> dict[str, Any]:
    """Returns one row of the result."""
    side, case, prepared, ready = record.side, record.case, record.prepared, record.process.ready
    unit = 1 if case.texts else prepared.texts_per_call
    repeats_ms = record.text_ms() * unit
    row: dict[str, Any] = {
        "bundle": side.label,
        "rival_of": side.rival_of,
        "method": ready.method,
        "policy": ready.policy,
        "knobs": ready.knobs,
        "precision": ready.precision,
        "provider": side.spec.provider,
        "threads": record.process.threads,
        "batch": case.batch,
        "seq_len": case.length or None,
        "scenario": case.scenario if case.texts else None,
        "n": prepared.texts_per_call * len(record.timed[0].call_ms),
        "mean_layers": float(np.mean([turn.mean_layers for turn in record.timed])),
        "mean_tokens": prepared.mean_tokens,
        "tokenize_ms": prepared.tokenize_ms,
        "load_ms": ready.load_ms,
        "first_ms": prepared.first_ms,
        "mean_ms": float(np.median(repeats_ms)),
        "min_ms": float(repeats_ms.min()),
        "max_ms": float(repeats_ms.max()),
    }
    is_list = case.scenario == "offline"
    calls_ms = [call_ms for turn in record.timed for call_ms in turn.call_ms]
    for percent in (50, 90, 99):
        row[f"p{percent}_ms"] = None if is_list else float(np.percentile(calls_ms, percent))
    row["latency_quantiles_ms"] = None if is_list else quantile_curve(calls_ms)
    row["texts_per_s"] = 1000.0 * unit / row["mean_ms"]
    row |= record.footprint()
    row |= record.step_times()
    row["repeats_ms"] = repeats_ms.tolist()
    row["turns"] = record.turns
    row["pid"] = ready.pid
    return row


def _ratio(ours: Record, rival: Record) -> dict[str, Any]:
    """Returns the bundle's time over the rival's, per text, from the repeats as pairs.

    The interval is a 95 % percentile bootstrap of the median over the pairs; a winner is named only when it leaves
    1 out. Fewer than 5 pairs have no interval and no winner.
    """
    pairs = ours.text_ms() / rival.text_ms()
    low, high = _median_interval(pairs) if len(pairs) >= FEWEST_PAIRS else (None, None)
    winner = None
    if low is not None and high is not None and not low <= 1.0 <= high:
        winner = ours.side.label if high < 1.0 else rival.side.label
    return {
        "bundle": ours.side.label,
        "against": rival.side.label,
        "threads": ours.process.threads,
        "batch": ours.case.batch,
        "against_batch": rival.case.batch,
        "seq_len": ours.case.length or None,
        "scenario": ours.case.scenario if ours.case.texts else None,
        "ratio": float(np.median(pairs)),
        "ci_low": low,
        "ci_high": high,
        "min": float(pairs.min()),
        "max": float(pairs.max()),
        "pairs": pairs.tolist(),
        "winner": winner,
    }


def _median_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    resamples = np.random.default_rng(0).choice(values, (_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(resamples, axis=1), [2.5, 97.5])
    return float(low), float(high)


def _fit(records: Sequence[Record]) -> dict[str, Any]:
    """Fits time = fixed + k x layer, least squares, to the median call of each exit layer k."""
    layers = [int(record.case.knobs["layer"] or 0) for record in records]
    call_ms = [float(np.median(record.text_ms())) * record.prepared.texts_per_call for record in records]
    layer_ms, fixed_ms = (float(value) for value in np.polyfit(layers, call_ms, 1))
    errors = [abs(fixed_ms + k * layer_ms - ms) / ms for k, ms in zip(layers, call_ms, strict=True)]
    first = records[0]
    return {
        "bundle": first.side.label,
        "threads": first.process.threads,
        "batch": first.case.batch,
        "seq_len": first.case.length,
        "fixed_ms": fixed_ms,
        "layer_ms": layer_ms,
        "fixed_over_layer": fixed_ms / layer_ms if layer_ms else None,
        "max_relative_error": max(errors),
        "exit_layers": layers,
        "mean_ms": call_ms,
    }
