"""Results of `edgebert eval --json` and `edgebert bench --json`, read and checked."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, TypeVar

import msgspec

from edgebert.errors import DataError, suggestion
from edgebert.output import json_text
from edgebert.read import read_file

EVALUATED, TIMED = "edgebert.eval/1", "edgebert.bench/1"
_LARGEST_BYTES = 64 * 1024 * 1024

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Layers = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
"""Pictures have a place for each."""


class Maps(msgspec.Struct, frozen=True, kw_only=True):
    """What ran on the first texts; see `edgebert.maps`."""

    paths: list[str] = []
    keep_rates: dict[str, list[list[float]]] = {}
    tokens: list[list[tuple[str, int]]] = []


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """What rows of both kinds have.

    Attributes:
        bundle: The bundle as it was named when it was measured.
        method: Its method.
        policy: Operating point or policy.
        knobs: Its knobs.
        precision: Of the weights.
        threads: Threads inside an operator.
        mean_layers: Mean number of layers that ran on a text.
        latency_quantiles_ms: The wall time of one call in percent steps, 101 numbers; None where calls were not timed
            one by one.
        private_mb: Private memory; None where it was not measured.
        name: What pictures call the bundle.
        label: What pictures call the row; no two rows of a result have the same.
        data: What pictures call the texts.
        processor: What it was measured on.
    """

    bundle: str
    method: str
    policy: str
    knobs: dict[str, bool | float | int | str | None] = {}
    precision: str
    threads: int
    mean_layers: float
    latency_quantiles_ms: list[float] | None = None
    private_mb: float | None = None
    name: str = ""
    label: str = ""
    data: str = ""
    processor: str = ""

    @property
    def knobs_text(self) -> str:
        """The knobs as a person writes them."""
        return ", ".join(f"{knob}={value}" for knob, value in self.knobs.items())

    @property
    def details(self) -> tuple[str, ...]:
        """What tells the row from others of the same bundle and policy, besides the number of threads."""
        return ()


class Evaluated(_Row, frozen=True, kw_only=True):
    """A row of `edgebert.eval/1`; see `edgebert.measure` and `edgebert.deployment` for what the fields mean."""

    rule: str
    n: int
    metric_name: str
    metric: float
    ci_low: float
    ci_high: float
    layers: _Layers
    flops_ratio: _Positive
    gmacs: _Positive
    exit_histogram: dict[str, list[int]]
    size_mb: float
    mean_ms: float | None = None
    texts_per_s: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    n_paths: int = 1
    mean_width: float | None = None
    energy_j: float | None = None
    energy_source: str | None = None
    agreement: float | None = None
    fp32_agreement: float | None = None
    decision_flips: float | None = None
    yardstick: str | None = None
    maps: Maps = Maps()

    @property
    def question(self) -> str:
        """What was measured on what: rows that differ in it do not compare."""
        return f"{self.metric_name} on {self.data}"

    @property
    def is_static(self) -> bool:
        """Whether it is a point of the static frontier: a static model, or an untrained subset of one's layers."""
        return self.method == "plain" and self.rule == "never"


class Timed(_Row, frozen=True, kw_only=True):
    """A row of `edgebert.bench/1`; see `edgebert.bench` for what the fields mean."""

    batch: int
    seq_len: int | None
    scenario: str | None
    mean_ms: float
    min_ms: float
    max_ms: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    texts_per_s: float
    first_ms: float
    tokenize_ms: float | None = None
    metric: float | None = None
    energy_j: float | None = None
    energy_source: str | None = None
    steps_ms: dict[str, float] = {}

    @property
    def details(self) -> tuple[str, ...]:
        """Batch, length and scenario, where they are not the usual ones."""
        batch = (f"batch {self.batch}",) if self.batch > 1 else ()
        length = (f"{self.seq_len} tokens",) if self.seq_len else ()
        return (*batch, *length, *(("offline",) if self.scenario == "offline" else ()))


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle's wall time over a rival's; see `edgebert.bench`."""

    bundle: str
    against: str
    threads: int
    batch: int
    against_batch: int
    seq_len: int | None
    scenario: str | None
    ratio: float
    ci_low: float | None
    ci_high: float | None
    pairs: list[float]
    winner: str | None


class Host(msgspec.Struct, frozen=True):
    """What a measurement was taken on; see `edgebert.host`."""

    cpu: str
    threads: int
    os: str
    python: str
    load_average: float | None = None
    versions: dict[str, str] = {}


class _Evaluation(msgspec.Struct, frozen=True):
    host: Host
    data: list[str]
    rows: list[Evaluated]


class _Bench(msgspec.Struct, frozen=True):
    host: Host
    rows: list[Timed]
    ratios: list[Ratio] = []


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that a report shows.

    Attributes:
        evaluated: The rows of evaluations.
        timed: The rows of benches.
        ratios: The comparisons of benches.
        hosts: Where each file's measurements were taken, by the file.
    """

    evaluated: Sequence[Evaluated]
    timed: Sequence[Timed]
    ratios: Sequence[Ratio]
    hosts: Mapping[str, Host]

    @property
    def methods(self) -> list[str]:
        """The methods that were evaluated."""
        return sorted({row.method for row in self.evaluated})

    @property
    def models(self) -> list[Evaluated]:
        """The evaluated rows without yardsticks, once each whatever the number of threads."""
        rows = {(row.bundle, row.policy, row.knobs_text, row.data): row for row in reversed(self._own)}
        return list(reversed(rows.values()))

    @property
    def _own(self) -> list[Evaluated]:
        return [row for row in self.evaluated if row.yardstick is None]

    @property
    def deployed(self) -> list[Evaluated]:
        """The evaluated rows whose texts were timed one by one."""
        return [row for row in self._own if row.p50_ms is not None]


def read_results(results: Sequence[str | Path | Mapping[str, Any]]) -> Results:
    """Reads result files, and results as they were returned.

    Raises:
        DataError: A file cannot be read, is not JSON, is no result of eval or bench, or lacks a field.
    """
    if not results:
        raise DataError("report: expected at least one result file, got none.")
    evaluated: list[Evaluated] = []
    timed: list[Timed] = []
    ratios: list[Ratio] = []
    hosts: dict[str, Host] = {}
    sources = [f"result {number}" if isinstance(r, Mapping) else str(r) for number, r in enumerate(results, 1)]
    for source, given in zip(sources, results, strict=True):
        data = _json(given, source) if isinstance(given, Mapping) else _file(Path(given))
        result = _read(data, source)
        hosts[source] = result.host
        if isinstance(result, _Evaluation):
            names = " + ".join(PurePath(name).name for name in result.data) or "its data"
            evaluated += [msgspec.structs.replace(row, data=names, processor=result.host.cpu) for row in result.rows]
        else:
            timed += result.rows
            ratios += result.ratios
    if not evaluated and not timed:
        raise DataError(f"{', '.join(sources)}: no rows to show.")
    short = _short_names({row.bundle for row in [*evaluated, *timed]})
    return Results(
        evaluated=_labelled(evaluated, short),
        timed=_labelled(timed, short),
        ratios=[_renamed(ratio, short) for ratio in ratios],
        hosts=hosts,
    )


def _file(path: Path) -> bytes:
    return read_file(path, largest_bytes=_LARGEST_BYTES, error=DataError)


def _json(result: Mapping[str, Any], source: str) -> str:
    """Returns a result as the command line would have printed it."""
    try:
        return json_text(result)
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: expected what evaluate_bundle or bench_bundles returned, got {error}.") from error


def _read(data: bytes | str, path: str) -> _Evaluation | _Bench:
    try:
        result = json.loads(data, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
        json.dumps(result, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: expected text, got a lone surrogate ({error.reason}); write it anew.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); write it with edgebert eval --json or bench --json.") from error
    schema = result.get("schema") if isinstance(result, dict) else None
    kinds: dict[str, type[_Evaluation | _Bench]] = {EVALUATED: _Evaluation, TIMED: _Bench}
    if not isinstance(schema, str) or schema not in kinds:
        got = f"the schema {schema!r}.{suggestion(str(schema), kinds)}" if schema else "no field `schema`."
        raise DataError(f"{path}: expected a result of edgebert eval --json or bench --json, got {got}")
    try:
        return msgspec.convert(result, kinds[schema])
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        where = place.rstrip("`").lstrip(".") or "the result"
        raise DataError(f"{path}: {where}: {text[0].lower()}{text[1:]}; write it again with this edgebert.") from error


def _finite(number: str) -> float | None:
    """Reads a number; one that no picture can show is none."""
    value = float(number)
    return value if math.isfinite(value) else None


def _whole(number: str) -> int:
    """Reads a whole number of no more digits than a machine's."""
    if len(number) > 18:
        raise ValueError(f"a number of {len(number)} digits")
    return int(number)


def _short_names(bundles: Iterable[str]) -> dict[str, str]:
    """Returns the last part of each bundle's path, without its ending; as much of the path as tells two apart."""
    names = {bundle: PurePath(bundle).name.removesuffix(".bundle") or bundle for bundle in bundles}
    counts = Counter(names.values())
    return {bundle: name if counts[name] == 1 else bundle for bundle, name in names.items()}


_R = TypeVar("_R", bound=_Row)


def _labelled(rows: Sequence[_R], names: Mapping[str, str]) -> list[_R]:
    """Gives every row a label of its own."""
    several = len({row.threads for row in rows}) > 1
    seen: Counter[str] = Counter()
    labelled = []
    for row in rows:
        threads = (f"{row.threads} threads",) if several else ()
        label = ", ".join([f"{names[row.bundle]} ({row.policy})", *row.details, *threads])
        seen[label] += 1
        number = f" #{seen[label]}" if seen[label] > 1 else ""
        labelled.append(msgspec.structs.replace(row, name=names[row.bundle], label=label + number))
    return labelled


def _renamed(ratio: Ratio, names: Mapping[str, str]) -> Ratio:
    bundle, against = names.get(ratio.bundle, ratio.bundle), names.get(ratio.against, ratio.against)
    winner = None if ratio.winner is None else names.get(ratio.winner, ratio.winner)
    return msgspec.structs.replace(ratio, bundle=bundle, against=against, winner=winner)


def as_row(row: _Row) -> dict[str, Any]:
    """Returns a row as plain data."""
    return msgspec.structs.asdict(row)
