"""How good a bundle is and what it costs, on labelled texts; records only, the command prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgebert import frontier
from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import Manifest
from edgebert.data import Example
from edgebert.errors import ConfigError, DataError, require, suggestion
from edgebert.host import host_facts
from edgebert.measure import Measured, measure, metric_difference
from edgebert.output import Reporter, markdown_table
from edgebert.policies import knob_names
from edgebert.runtime.hub import find_bundle
from edgebert.runtime.model import EdgeModel
from edgebert.statistics import mcnemar_p
from edgebert.tasks import Task, load_task

STATIC_FRONTIER = "static-frontier"
FIXED_EXITS = "fixed-exits"


def evaluate_bundle(
    bundles: Sequence[str | Path],
    data: Sequence[str | Path],
    *,
    policies: Sequence[str] = ("default",),
    settings: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "validation",
    against: Sequence[str] = (),
    threads: int | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    provider: str = "cpu",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Evaluates bundles under policies and compares them.

    Args:
        bundles: Bundle folders.
        data: Files of labelled texts, evaluated together; a folder or hub id means its `split`.
        policies: Operating points or policies; one that a bundle does not have is an error, but for `plain`
            bundles, which are static.
        settings: Knobs set on top of every policy that has them; one that none has is an error.
        columns: Which column of the data is which field.
        split: Which split of a folder or hub id.
        against: `static-frontier` (the `plain` bundles given, and untrained subsets of their layers), `fixed-exits`
            (each model stopped after the same layer for all texts) and bundles to compare with, text by text.
        threads: Threads inside an operator; None takes what the process may use.
        batch_size: Most texts in a batch; 1 also gives latency percentiles.
        max_length: Cut texts to this many tokens.
        provider: Execution provider.
        reporter: Where progress goes.

    Returns:
        `{"schema": "edgebert.eval/1", "host", "data", "rows"}`. `agreement` is the share of texts answered as the
        bundle's own full depth does; of a regression, within a tenth of the standard deviation of its answers. Rows
        of a task whose answers are right or wrong have `n_correct` and their exits apart for both; only they have
        `mcnemar_p`.

    Raises:
        BundleError: A bundle is refused.
        ConfigError: A policy, knob or comparison makes no sense, or the bundles are of different tasks.
        DataError: The data cannot be used.
    """
    reporter = reporter or Reporter()
    for module in ("scipy.stats", "sklearn.metrics"):
        require(module, extra="eval", purpose="evaluation")
    task = _common_task(bundles, against)
    _check_rivals(against, bundles, task)
    _check_settings(settings or {}, bundles, policies)
    examples = [example for source in data for example in task.read(source, split=split, columns=columns)]
    if not examples:
        raise DataError(f"{', '.join(map(str, data))}: no examples.")
    measured: list[Measured] = []
    subsets: list[Measured] = []
    exits: list[Measured] = []
    for path in bundles:
        with EdgeModel.from_pretrained(path, threads=threads, provider=provider) as model:
            is_static = model.manifest.rule.policy == "never"
            for policy in ("default",) if is_static else policies:
                model.set_policy(policy)
                model.set_policy(policy, **_knobs_for(model.manifest, policy, settings or {}, len(policies)))
                measured.append(
                    measure(model, examples, batch_size, max_length, reporter, name=str(path), policy=policy)
                )
            _add_agreement(measured, model, task, examples, batch_size, max_length, str(path))
            if STATIC_FRONTIER in against and is_static:
                subsets += frontier.measure_subsets(model, examples, batch_size, max_length, str(path), reporter)
            if FIXED_EXITS in against and "fixed" in model.manifest.policies:
                own = frontier.measure_fixed_exits(model, examples, batch_size, max_length, str(path), reporter)
                frontier.compare_with_fixed_exits([m for m in measured if m.row["bundle"] == str(path)], own)
                exits += own
    for name in against:
        if name == STATIC_FRONTIER:
            frontier.compare(measured, subsets)
        elif name != FIXED_EXITS:
            _compare_with(measured, name, task, examples, batch_size, max_length, threads, provider, reporter)
    return {
        "schema": "edgebert.eval/1",
        "host": host_facts(),
        "data": [str(source) for source in data],
        "rows": [entry.row for entry in [*measured, *subsets, *exits]],
    }


def _check_settings(settings: Mapping[str, Any], bundles: Sequence[str | Path], policies: Sequence[str]) -> None:
    """Refuses a knob that none of the policies asked for has, in none of the bundles."""
    manifests = [find_bundle(path).manifest for path in bundles]
    known = {knob for m in manifests for policy in policies for knob in _knobs_of(m, policy, len(policies))}
    for knob in settings:
        if knob not in known:
            raise ConfigError(f"unknown knob {knob!r} for these bundles and policies.{suggestion(knob, known)}")


def _knobs_for(manifest: Manifest, policy: str, settings: Mapping[str, Any], n_policies: int) -> dict[str, Any]:
    """Returns the knobs a policy gets: of those given, the ones it has."""
    known = _knobs_of(manifest, policy, n_policies)
    return {knob: value for knob, value in settings.items() if knob in known}


def _knobs_of(manifest: Manifest, policy: str, n_policies: int) -> set[str]:
    """Returns the knobs that can be set; a static bundle has none.

    `default` asked for alone has those of every policy of the method, as a knob then chooses its policy.
    """
    if manifest.rule.policy == "never":
        return set()
    points = manifest.operating_points
    names = {points[policy].policy if policy in points else policy}
    if policy == "default" and n_policies == 1:
        names.update(manifest.policies)
    return {knob for name in names for knob in knob_names(name)}


def _common_task(bundles: Sequence[str | Path], against: Sequence[str]) -> Task:
    """Returns the one task of all bundles and rivals."""
    if not bundles:
        raise ConfigError("evaluation: expected at least one bundle, got none.")
    paths = [*bundles, *(name for name in against if Path(name).is_dir())]
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
            if all(open_bundle(path).manifest.method != "plain" for path in bundles if Path(path).is_dir()):
                raise ConfigError(frontier.NO_STATIC_BUNDLE)
        elif name != FIXED_EXITS and not Path(name).is_dir():
            raise ConfigError(f"--against {name}: expected {STATIC_FRONTIER}, {FIXED_EXITS} or a bundle folder.")


def _add_agreement(
    measured: Sequence[Measured],
    model: EdgeModel,
    task: Task,
    examples: Sequence[Example],
    batch_size: int,
    max_length: int | None,
    name: str,
) -> None:
    """Adds to a bundle's rows how often the answer is that of its own full depth."""
    own = [entry for entry in measured if entry.row["bundle"] == name]
    if all(entry.row["rule"] == "never" for entry in own):
        full = own[0]
    else:
        model.set_policy("never")
        full = measure(model, examples, max(batch_size, 32), max_length, name=name, policy="never")
    for entry in own:
        entry.row["agreement"] = task.agreement(entry.predictions, full.predictions)


def _compare_with(
    measured: Sequence[Measured],
    name: str,
    task: Task,
    examples: Sequence[Example],
    batch_size: int,
    max_length: int | None,
    threads: int | None,
    provider: str,
    reporter: Reporter,
) -> None:
    """Adds to every row its paired difference from another bundle."""
    rival = next((m for m in measured if m.row["bundle"] == name and m.row["policy"] == "default"), None)
    if rival is None:
        with EdgeModel.from_pretrained(name, threads=threads, provider=provider) as model:
            rival = measure(model, examples, batch_size, max_length, reporter, name=name, policy="default")
    for entry in measured:
        difference = metric_difference(entry, rival, task)
        entry.row["against"] = {
            "bundle": name,
            "metric": rival.row["metric"],
            "difference": difference.value,
            "ci_low": difference.low,
            "ci_high": difference.high,
        }
        if entry.correct is not None and rival.correct is not None:
            entry.row["against"]["mcnemar_p"] = mcnemar_p(entry.correct, rival.correct)


def evaluation_table(result: Mapping[str, Any]) -> str:
    """Returns a result as a Markdown table, with a line for every comparison."""
    headers = ("bundle", "policy", "knobs", "n", "metric", "95 %", "layers", "FLOPs", "ms/text", "agreement")
    rows = [
        (
            row["bundle"],
            row["policy"],
            ", ".join(f"{knob}={value}" for knob, value in row["knobs"].items()) or "-",
            row["n"],
            f"{row['metric']:.4f}",
            f"{row['ci_low']:.4f}-{row['ci_high']:.4f}",
            f"{row['mean_layers']:.2f} of {row['layers']}",
            f"{row['flops_ratio']:.3f}",
            f"{row['mean_ms']:.2f}",
            f"{row['agreement']:.4f}" if "agreement" in row else "-",
        )
        for row in result["rows"]
    ]
    lines = [markdown_table(headers, rows)]
    for row in result["rows"]:
        name = f"{row['bundle']} ({row['policy']})"
        lines += [f"{name} {_against_line(row['against'])}"] if "against" in row else []
        lines += (
            [f"{name} {_mixture_line(row['frontier'], 'the static frontier', 'cost')}"] if "frontier" in row else []
        )
        if "fixed_exits" in row:
            lines.append(f"{name} {_mixture_line(row['fixed_exits'], 'its own fixed exits', 'depth')}")
        if row.get("n_paths", 1) > 1:
            shares = " ".join(f"{share:.2f}" for share in row["layer_share"])
            lines.append(
                f"{name} took {row['n_paths']} paths ({row['path_entropy_bits']:.2f} bits); layers run: {shares}"
            )
    return "\n".join(lines)


def _points(entry: Mapping[str, float]) -> str:
    return (
        f"{100 * entry['difference']:+.2f} points (95 %: {100 * entry['ci_low']:+.2f} to {100 * entry['ci_high']:+.2f})"
    )


def _against_line(entry: Mapping[str, Any]) -> str:
    test = f", McNemar p {entry['mcnemar_p']:.3g}" if "mcnemar_p" in entry else ""
    return f"against {entry['bundle']} at {entry['metric']:.4f}: {_points(entry)}{test}"


def _mixture_line(entry: Mapping[str, Any], rival: str, equal: str) -> str:
    verdict = "above" if entry["ci_low"] > 0 else "below" if entry["ci_high"] < 0 else "not distinguishable from"
    return (
        f"is {verdict} {rival} at equal {equal}, {entry['metric']:.4f}: {_points(entry)}; "
        f"between {' and '.join(entry['between'])}"
    )
