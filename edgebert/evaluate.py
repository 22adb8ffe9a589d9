"""How good bundles are and what they cost, on labelled texts; records only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebert import frontier, registry
from edgebert.arguments import check_count, one_or_more, one_or_more_counts
from edgebert.bundle import Bundle
from edgebert.bundle.manifest import Manifest, Quantization
from edgebert.candidates import check_comparable
from edgebert.data import Example, spread, texts_of
from edgebert.deployment import add_deployment
from edgebert.errors import ConfigError, DataError, require, suggestion
from edgebert.host import host_facts
from edgebert.measure import Measured, measure, metric_difference
from edgebert.output import Reporter
from edgebert.policies import knob_names
from edgebert.runtime.hub import find_bundle
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.points import TUNED, find_point
from edgebert.runtime.threads import available_threads
from edgebert.statistics import mcnemar_p
from edgebert.tasks import Task, load_task

SCHEMA = "edgebert.eval/1"
STATIC_FRONTIER = "static-frontier"
FIXED_EXITS = "fixed-exits"


def evaluate_bundle(
    bundles: str | Path | Sequence[str | Path],
    data: str | Path | Sequence[str | Path],
    *,
    policies: str | Sequence[str] = ("default",),
    settings: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "validation",
    against: str | Sequence[str] = (),
    threads: int | Sequence[int] | None = None,
    batch_size: int = 32,
    timed_texts: int = 0,
    maps: int = 0,
    max_length: int | None = None,
    provider: str = "cpu",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Evaluates bundles under policies and compares them.

    Args:
        bundles: Bundle folders, or one.
        data: Files of labelled texts, evaluated together, or one; a folder or hub id means its `split`.
        policies: Operating points or policies; one that a bundle does not have is an error, but for `plain`
            bundles, which are static.
        settings: Knobs set on top of every policy that has them; one that none has is an error.
        columns: Which column of the data is which field.
        split: Which split of a folder or hub id.
        against: `static-frontier` (the `plain` bundles given, and untrained subsets of their layers), `fixed-exits`
            (each model stopped after the same layer for all texts) and bundles to compare with, text by text.
        threads: Threads inside an operator; None takes what the process may use. Several numbers give a row each,
            timed as `timed_texts` says.
        batch_size: Most texts in a batch; 1 also gives latency percentiles.
        timed_texts: Time this many of the texts in processes of their own that take turns, for `p50_ms`, `p90_ms`,
            `p99_ms`, `mean_ms` (one by one), `texts_per_s` (in batches), `private_mb` and energy. 0: none; `mean_ms`
            and `texts_per_s` are then those of the evaluation itself, in batches. Rows that `against` adds are not
            timed so, and have no times then.
        maps: Let rows say what ran on this many of the first texts (of questions: windows), for pictures; see
            `edgebert.maps`.
        max_length: Cut texts to this many tokens.
        provider: Execution provider.
        reporter: Where progress goes.

    Returns:
        `{"schema": "edgebert.eval/1", "host", "data", "rows"}`. `agreement` is the share of texts answered as the
        bundle's own full depth does; of a regression, within a tenth of the standard deviation of its answers. Rows
        of a task whose answers are right or wrong have `n_correct` and their exits apart for both; only they have
        `mcnemar_p`. The row of a quantized bundle, given together with the one it was made of, has
        `fp32_agreement`, the share of texts that both answer alike under that policy, and `decision_flips`, the share
        that got another exit or another amount of work; where both have the same knobs there. Rows that `against` adds
        name it as their `yardstick`.

    Raises:
        BundleError: A bundle is refused.
        ConfigError: A policy, knob or comparison makes no sense, or the bundles are of different tasks.
        DataError: The data cannot be used.
    """
    reporter = reporter or Reporter()
    bundles, data = one_or_more("bundles", bundles), one_or_more("data", data)
    policies, against = one_or_more("policies", policies), one_or_more("against", against)
    timed_texts, maps = check_count("timed_texts", timed_texts, least=0), check_count("maps", maps, least=0)
    counts = _thread_counts(threads, timed_texts)
    if not data:
        raise ConfigError("data: expected at least one source of labelled texts, got none.")
    for module in ("scipy.stats", "sklearn.metrics"):
        require(module, extra="eval", purpose="evaluation")
    task = _common_task(bundles, against)
    _check_rivals(against, bundles, task)
    _check_policies(bundles, policies)
    _check_settings(settings or {}, bundles, policies)
    read = [(str(source), task.read(source, split=split, columns=columns)) for source in data]
    examples = [example for _, part in read for example in part]
    if not examples:
        raise DataError(f"{', '.join(map(str, data))}: no examples.")
    _check_targets(read, [*bundles, *_folders(against)], task)
    how = _How(examples, task, batch_size, max_length, counts[0], provider, maps, reporter)
    measured: list[Measured] = []
    yardsticks: dict[str, list[Measured]] = {STATIC_FRONTIER: [], FIXED_EXITS: []}
    for path in bundles:
        measured += _measure_bundle(str(path), policies, settings or {}, against, how, yardsticks)
    for name in against:
        if name == STATIC_FRONTIER:
            frontier.compare(measured, yardsticks[STATIC_FRONTIER])
        elif name != FIXED_EXITS:
            _compare_with(measured, name, how)
    _compare_precisions(measured, task, reporter)
    rows = [entry.row for entry in measured]
    if timed_texts:
        rows = add_deployment(
            measured,
            spread(texts_of(examples), timed_texts),
            threads=[count or available_threads() for count in counts],
            batch_size=batch_size,
            max_length=max_length,
            provider=provider,
            reporter=reporter,
        )
    times = {"mean_ms": None, "texts_per_s": None} if timed_texts else {}  # of other texts, batches and processes
    added = [{**entry.row, "yardstick": name, **times} for name, group in yardsticks.items() for entry in group]
    return {
        "schema": SCHEMA,
        "host": host_facts(),
        "data": [str(source) for source in data],
        "rows": [*rows, *added],
    }


@dataclass(frozen=True)
class _How:
    """How everything is measured."""

    examples: Sequence[Example]
    task: Task
    batch_size: int
    max_length: int | None
    threads: int | None
    provider: str
    maps: int
    reporter: Reporter

    def open(self, path: str) -> EdgeModel:
        return EdgeModel.from_pretrained(path, threads=self.threads, provider=self.provider)

    def measure(self, model: EdgeModel, name: str, policy: str) -> Measured:
        common = (self.examples, self.batch_size, self.max_length, self.reporter)
        return measure(model, *common, name=name, policy=policy, maps=self.maps)


def _measure_bundle(
    path: str,
    policies: Sequence[str],
    settings: Mapping[str, Any],
    against: Sequence[str],
    how: _How,
    yardsticks: Mapping[str, list[Measured]],
) -> list[Measured]:
    """Measures a bundle under each policy; adds the static models and fixed exits made of it to the yardsticks."""
    measured = []
    common = (how.examples, how.batch_size, how.max_length, path, how.reporter)
    with how.open(path) as model:
        is_static = model.manifest.rule.policy == "never"
        for policy in ("default",) if is_static else policies:
            model.set_policy(policy, **_knobs_for(model.bundle, policy, settings, len(policies)))
            measured.append(how.measure(model, path, policy))
        _add_agreement(measured, model, how)
        if STATIC_FRONTIER in against and is_static:
            yardsticks[STATIC_FRONTIER] += frontier.measure_subsets(model, *common)
        if FIXED_EXITS in against and "fixed" in model.manifest.policies:
            exits = frontier.measure_fixed_exits(model, *common)
            frontier.compare_with_fixed_exits(measured, exits)
            yardsticks[FIXED_EXITS] += exits
    return measured


def _thread_counts(threads: int | Sequence[int] | None, timed_texts: int) -> list[int | None]:
    """Returns the numbers of threads to use; None is what the process may use."""
    if threads is None:
        return [None]
    counts = one_or_more_counts("threads", threads)
    if len(counts) > 1 and not timed_texts:
        got = ", ".join(map(str, counts))
        raise ConfigError(f"threads {got}: only times depend on them; say how many texts to time (--timed-texts 200).")
    return list(counts)


def _folders(against: Sequence[str]) -> list[str]:
    """Returns the bundles among what is compared with."""
    return [name for name in against if Path(name).is_dir()]


def _check_targets(read: Sequence[tuple[str, Sequence[Example]]], bundles: Sequence[str | Path], task: Task) -> None:
    """Refuses a label that a model cannot give, before anything is measured, and names the file it is in."""
    for labels in {find_bundle(path).manifest.labels for path in bundles}:
        for source, examples in read:
            task.encode_targets(examples, labels, where=source)
        targets = task.encode_targets([example for _, part in read for example in part], labels, where=read[0][0])
        check_comparable(task, targets, ", ".join(source for source, _ in read))


def _check_policies(bundles: Sequence[str | Path], policies: Sequence[str]) -> None:
    """Refuses a name that no bundle knows and that is neither a policy nor what `edgebert tune` calls a point.

    A static bundle is measured once, whatever is asked of others; a misspelt name must not pass for that.
    """
    manifests = [find_bundle(path).manifest for path in bundles]
    known = {"default", *TUNED, *registry.names("edgebert.policies")}
    known.update(name for manifest in manifests for name in manifest.operating_points)
    for policy in policies:
        if policy not in known:
            raise ConfigError(f"no bundle has a point or policy {policy!r}.{suggestion(policy, known)}")


def _check_settings(settings: Mapping[str, Any], bundles: Sequence[str | Path], policies: Sequence[str]) -> None:
    """Refuses a knob that none of the policies asked for has, in none of the bundles."""
    opened = [find_bundle(path) for path in bundles]
    known = {knob for bundle in opened for policy in policies for knob in _knobs_of(bundle, policy, len(policies))}
    for knob in settings:
        if knob not in known:
            others = {name for bundle in opened for name in bundle.manifest.policies if knob in knob_names(name)}
            cure = f" It is one of {' and '.join(sorted(others))}: measure under that." if others else ""
            raise ConfigError(f"unknown knob {knob!r} for these bundles and policies.{cure or suggestion(knob, known)}")


def _knobs_for(bundle: Bundle, policy: str, settings: Mapping[str, Any], n_policies: int) -> dict[str, Any]:
    """Returns the knobs a policy gets: of those given, the ones it has."""
    known = _knobs_of(bundle, policy, n_policies)
    return {knob: value for knob, value in settings.items() if knob in known}


def _knobs_of(bundle: Bundle, policy: str, n_policies: int) -> set[str]:
    """Returns the knobs that can be set; a static bundle has none.

    `default` asked for alone has those of every policy of the method, as a knob then chooses its policy.
    """
    manifest = bundle.manifest
    if manifest.rule.policy == "never":
        return set()
    names = {find_point(manifest, policy, where=str(bundle.path)).policy}
    if policy == "default" and n_policies == 1:
        names.update(manifest.policies)
    return {knob for name in names for knob in knob_names(name)}


def _common_task(bundles: Sequence[str | Path], against: Sequence[str]) -> Task:
    """Returns the one task of all bundles and rivals."""
    if not bundles:
        raise ConfigError("evaluation: expected at least one bundle, got none.")
    paths = [*bundles, *_folders(against)]
    tasks = {find_bundle(path).manifest.task: str(path) for path in paths}
    if len(tasks) > 1:
        got = " and ".join(f"{task} ({path})" for task, path in tasks.items())
        raise ConfigError(f"evaluation: expected bundles of one task, got {got}; evaluate each task on its own.")
    return load_task(next(iter(tasks)))


def _check_rivals(against: Sequence[str], bundles: Sequence[str | Path], task: Task) -> None:
    """Refuses comparisons that cannot be made, before anything is measured."""
    for name in against:
        if name in (STATIC_FRONTIER, FIXED_EXITS) and task.per_text is None:
            raise ConfigError(frontier.needs_a_mean(name, task.METRIC))
        if name == STATIC_FRONTIER:
            if all(find_bundle(path).manifest.method != "plain" for path in bundles):
                raise ConfigError(frontier.NO_STATIC_BUNDLE)
        elif name != FIXED_EXITS and not Path(name).is_dir():
            raise ConfigError(f"--against {name}: expected {STATIC_FRONTIER}, {FIXED_EXITS} or a bundle folder.")


def _add_agreement(measured: Sequence[Measured], model: EdgeModel, how: _How) -> None:
    """Adds to a bundle's rows how often the answer is that of its own full depth."""
    full = next((entry for entry in measured if entry.row["rule"] == "never"), None)
    if full is None:
        model.set_policy("never")
        full = measure(model, how.examples, how.batch_size, how.max_length, policy="never")
    for entry in measured:
        entry.row["agreement"] = how.task.agreement(entry.predictions, full.predictions)


def _compare_precisions(measured: Sequence[Measured], task: Task, reporter: Reporter) -> None:
    """Adds to the rows of quantized bundles how they differ from the bundle they were made of, where that is there.

    Says so where only an fp32 bundle of the same method is there that is not the one.
    """
    manifests = {name: find_bundle(name).manifest for name in dict.fromkeys(entry.row["bundle"] for entry in measured)}
    for name, manifest in manifests.items():
        if manifest.quantization is not None:
            _say_other_source(name, manifests, reporter)
    for entry in measured:
        quantization = manifests[entry.row["bundle"]].quantization
        if quantization is None:
            continue
        sources = [
            other
            for other in measured
            if other.row["policy"] == entry.row["policy"] and _is_source(manifests[other.row["bundle"]], quantization)
        ]
        other = next((other for other in sources if _rule_of(other) == _rule_of(entry)), None)
        if other is not None:
            same_work = (entry.exit_layer == other.exit_layer) & (entry.macs == other.macs)
            entry.row["fp32_agreement"] = task.agreement(entry.predictions, other.predictions)
            entry.row["decision_flips"] = float(1 - same_work.mean())
        elif sources:
            reporter.say(
                f"{entry.row['bundle']}: its {entry.row['policy']} is another setting than that of "
                f"{sources[0].row['bundle']}: no fp32_agreement, no decision_flips"
            )


def _rule_of(measured: Measured) -> tuple[Any, Any]:
    """Returns what a bundle was measured under: the policy and its knobs."""
    return measured.row["rule"], measured.row["knobs"]


def _is_source(manifest: Manifest, quantization: Quantization) -> bool:
    return manifest.quantization is None and manifest.graphs_digest == quantization.source_digest


def _say_other_source(name: str, manifests: Mapping[str, Manifest], reporter: Reporter) -> None:
    """Says where none of the fp32 bundles of the same method is what a quantized bundle was made of."""
    manifest = manifests[name]
    assert manifest.quantization is not None
    alike = [
        other
        for other, its in manifests.items()
        if its.quantization is None and its.precision == "fp32" and its.method == manifest.method
    ]
    if alike and not any(_is_source(manifests[other], manifest.quantization) for other in alike):
        reporter.say(
            f"{name}: was made of another bundle than {', '.join(alike)} (the graphs differ): no fp32_agreement, "
            "no decision_flips"
        )


def _compare_with(measured: Sequence[Measured], name: str, how: _How) -> None:
    """Adds to every row its paired difference from another bundle."""
    manifest = find_bundle(name).manifest
    default = find_point(manifest, "default", where=name)
    as_it_is = default.policy, dict(default.knobs)  # a row has what was set on top, too
    rival = next((m for m in measured if m.row["bundle"] == name and _rule_of(m) == as_it_is), None)
    if rival is None:
        with how.open(name) as model:
            rival = how.measure(model, name, "default")
    for entry in measured:
        difference = metric_difference(entry, rival, how.task)
        entry.row["against"] = {
            "bundle": name,
            "metric": rival.row["metric"],
            "difference": difference.value,
            "ci_low": difference.low,
            "ci_high": difference.high,
        }
        if entry.correct is not None and rival.correct is not None:
            entry.row["against"]["mcnemar_p"] = mcnemar_p(entry.correct, rival.correct)
