"""Measures wall time: bundles, and rivals beside them, each in its own process and taking turns.

A figure that compares two sides is only worth something when both were timed in one run on the same machine. So all
sides of a case are loaded at once, in a child process each, and time one turn after the other; the order of the sides
is reversed from each repeat to the next (A B, B A, ...). A ratio is taken inside each repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgebert.arguments import check_count, one_or_more, one_or_more_counts
from edgebert.bench._cases import make_cases, make_ladders, read_data
from edgebert.bench._rows import make_fit, make_ratio, make_row
from edgebert.bench._sides import add_rivals, bundle_sides
from edgebert.data import Example, texts_of
from edgebert.errors import ConfigError, suggestion
from edgebert.host import host_facts
from edgebert.output import Advance, Reporter
from edgebert.rivals._process import SideProcess
from edgebert.rivals._protocol import Case, Spec
from edgebert.rivals._turns import Record, TimedSide, open_sides, time_together
from edgebert.tasks import load_task

SCHEMA = "edgebert.bench/1"
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
        labelled: The examples timed, where all of them have labels.
    """

    sides: list[TimedSide]
    pairs: list[tuple[int, int]]
    cases: list[Case]
    ladders: list[tuple[int, list[Case]]]
    repeats: int
    per_step: bool
    labelled: Sequence[Example]

    @property
    def turns(self) -> int:
        """How many turns all of it takes."""
        each = 2 if self.per_step else 1
        return self.repeats * (each * len(self.cases) * len(self.sides) + sum(len(steps) for _, steps in self.ladders))


def bench_bundles(
    bundles: str | Path | Sequence[str | Path],
    *,
    data: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    policy: str = "default",
    settings: Mapping[str, Any] | None = None,
    threads: int | Sequence[int] = (1,),
    batches: int | Sequence[int] = (1,),
    lengths: int | Sequence[int] | None = None,
    against: str | Path | Sequence[str | Path] | None = None,
    against_batch: int | None = None,
    against_policy: str = "default",
    reference: str | None = None,
    scenario: Literal["single-stream", "offline"] = "single-stream",
    repeats: int = 5,
    max_texts: int = 500,
    max_length: int | None = None,
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
    Where all texts have labels, `metric` says how good the answers are; random weights have none.

    Args:
        bundles: Bundle folders, or one.
        data: Texts to time, in their order: a file or hub id that the bundles' task reads; of a folder, its validation
            file. A question with all windows of its passage is one text. None times random token ids.
        columns: The data's column for a field, such as {"text": "sentence"}.
        policy: Operating point or policy of the bundles.
        settings: Knobs on top of it.
        threads: Numbers of threads inside an operator.
        batches: Rows in a call, or for `offline` most rows in a batch.
        lengths: Tokens of random rows; unused with `data`. None: 16, 32 and 128, as far as all bundles take them.
        against: The rival or rivals: bundle folders, or names: `whole` (the bundle's own whole-model graph),
            `single` (its single file), `uncompacted` (the bundle, finished rows staying in their batch), or the static
            model of the same encoder shape in `torch`, `torch_compile`, `optimum`, `optimum_int8`, `openvino`,
            `openvino_bf16` or `openvino_int8`.
        against_batch: The rivals' batch size; None is that of the bundles.
        against_policy: Operating point or policy of a rival that is a bundle folder.
        reference: Checkpoint of the rivals that are static models; None gives them random weights.
        scenario: With `data`: one text a call, or the whole list at once, sorted by length.
        repeats: Turns of each side in each case; a ratio has an interval from 5 on.
        max_texts: Read at most this many texts.
        max_length: Cut texts to this many tokens; None is the bundle's own limit.
        provider: Where the bundles' graphs run: a file in `edgebert/runtime/providers`.
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
    bundles = one_or_more("bundles", bundles)
    threads, batches = one_or_more_counts("threads", threads), one_or_more_counts("batches", batches)
    lengths = one_or_more_counts("lengths", lengths) if lengths is not None else None
    repeats, max_texts = check_count("repeats", repeats), check_count("max_texts", max_texts)
    _check_scenario(data, scenario, [*batches, *([] if against_batch is None else [against_batch])])
    _check_lengths(data, max_length, per_layer, lengths=lengths, columns=columns)
    spec = Spec(side="bundle", bundle="", provider=provider, policy=policy, knobs=dict(settings or {}), compact=compact)
    sides = bundle_sides(bundles, spec)
    rivals = one_or_more("against", against or ())
    pairs = add_rivals(sides, [str(rival) for rival in rivals], against_batch, against_policy, reference)
    examples = read_data(sides, data, columns, max_texts)
    sides = [replace(side, spec=_with_calibration(side.spec, examples, max_length)) for side in sides]
    cases = make_cases(sides, batches, () if examples else lengths, examples, scenario, max_length)
    ladders = [(n, ladder) for n in range(len(bundles)) if per_layer for ladder in make_ladders(sides[n], cases)]
    labelled = examples if all(example.is_labelled for example in examples) else ()
    for side in sides if labelled else ():  # before anything is timed, not after
        manifest = side.bundle.manifest
        load_task(manifest.task).encode_targets(labelled, manifest.labels, where=str(data))
    plan = _Plan(
        sides=sides,
        pairs=pairs,
        cases=cases,
        ladders=ladders,
        repeats=repeats,
        per_step=per_step,
        labelled=labelled,
    )
    result: dict[str, Any] = {"schema": SCHEMA, "host": host_facts(), "rows": [], "ratios": [], "fits": []}
    reporter = reporter or Reporter()
    _warn_if_busy(result["host"], reporter)
    with reporter.track("bench", len(threads) * plan.turns) as advance:
        for count in threads:
            with open_sides(sides, count) as processes:
                _carry_out(plan, processes, advance, result)
    return result


def _with_calibration(spec: Spec, examples: Sequence[Example], max_length: int | None) -> Spec:
    return msgspec.structs.replace(spec, calibration=tuple(texts_of(examples)), max_length=max_length)


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
        for record in records if plan.labelled else []:
            record.judge(plan.labelled)
        result["rows"] += [make_row(record) for record in records]
        result["ratios"] += [make_ratio(records[ours], records[rival]) for ours, rival in plan.pairs]
    for number, ladder in plan.ladders:
        one = [(plan.sides[number], processes[number])] * len(ladder)
        result["fits"].append(make_fit(time_together(one, ladder, plan.repeats, advance)))


def _time_steps(records: Sequence[Record], repeats: int, advance: Advance) -> None:
    """Gives every side more turns, in which its steps are timed."""
    for record in records:
        for _ in range(repeats):
            record.steps.append(record.process.time_steps(record.prepared.case))
            advance(1, record.side.label)


def _check_scenario(data: str | Path | None, scenario: str, batches: Sequence[int]) -> None:
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


def _check_lengths(
    data: str | Path | None,
    max_length: int | None,
    per_layer: bool,
    *,
    lengths: Sequence[int] | None,
    columns: Mapping[str, str] | None,
) -> None:
    """Refuses options for texts where there are none, and the other way round."""
    if data is not None and lengths:
        raise ConfigError("lengths: are those of random token ids; texts have their own, cut by max_length.")
    if data is None and columns:
        raise ConfigError("columns: are those of data; name some, or leave columns out.")
    if max_length is not None and max_length < 1:
        raise ConfigError(f"max_length: expected 1 or more, got {max_length}.")
    if data is None and max_length is not None:
        raise ConfigError("max_length: cuts texts; give random token ids their lengths with --lengths.")
    if data is not None and per_layer:
        raise ConfigError("per-layer: is fitted at fixed lengths; leave --data out and give lengths.")
