"""Chooses named operating points of a bundle, for its own precision, on texts that are not the reported ones."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgebert import registry
from edgebert.arguments import check_name, one_or_more
from edgebert.bundle import CONFIG_NAME, Bundle
from edgebert.bundle.manifest import SINGLE_NAME, OperatingPoint
from edgebert.bundle.publish import check_target
from edgebert.candidates import pareto_front
from edgebert.config import TuneConfig, decode, parse_setting, read_settings_tree
from edgebert.data import texts_of
from edgebert.derive import derive, say_unsigned
from edgebert.errors import ConfigError, require, suggestion
from edgebert.host import host_facts
from edgebert.output import Reporter, markdown_table
from edgebert.printable import shown
from edgebert.runtime.hub import find_bundle
from edgebert.runtime.model import EdgeModel
from edgebert.tasks import Task, load_task
from edgebert.tune.budgets import Budget, named_drops, read_budget
from edgebert.tune.choices import Choice, choose_by_budget, choose_by_drop, choose_with_guarantee
from edgebert.tune.data import read_texts
from edgebert.tune.guarantees import Procedure, Risk, check_guarantee
from edgebert.tune.latency import Clock, Stopwatch
from edgebert.tune.trials import Trial, Trials

GUARANTEED = "guaranteed"


def tune_bundle(
    bundle: str | Path,
    data: str | Path,
    *,
    budget: str | None = None,
    guarantee: tuple[float, float | None] | None = None,
    procedure: Procedure = "learn_then_test",
    risk: Risk | None = None,
    name: str | None = None,
    default: str | None = None,
    target: str | Path | None = None,
    force: bool = False,
    policies: str | Sequence[str] | None = None,
    settings: TuneConfig | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    threads: int | None = None,
    max_length: int | None = None,
    provider: str = "cpu",
    clock: Clock = time.perf_counter,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Chooses operating points and writes them into the manifest; a point of the same name is replaced.

    Without a budget these are `accurate`, `balanced` and `fast`: the cheapest settings that lose at most 0.2, 1.0 and
    2.5 points (see `TuneConfig`) of full depth's metric on these texts. Cost is multiply-accumulates. `default` stays
    what it was unless told otherwise.

    Args:
        bundle: A bundle folder, of any precision, or the hub id of one.
        data: A file, folder or hub id of texts that neither trained the model nor are reported.
        budget: One point that meets `speedup=X` (wall time of full depth, the policy `never`, over that of the point),
            `latency-ms=X` (mean wall time of a text), both alone in the batch and measured taking turns, or `flops=X`
            (multiply-accumulates over those of all layers): the best metric that does. Or `min-metric=X` (0 to 1): the
            cheapest.
        guarantee: (EPS, DELTA): one point whose risk on texts like these is at most EPS, in all but a share DELTA of
            draws of the texts. DELTA is None for the conformal procedure. Void if the texts were trained on.
        procedure: `learn_then_test` or `conformal`.
        risk: What is bounded: `metric_drop` or `disagreement` with full depth, which needs no labels. None: the
            former where there are labels.
        name: What the one point is called; None names it after its budget, or `guaranteed`.
        default: The point, of those chosen, that becomes `default` too.
        target: Where the bundle goes; None replaces it in one step.
        force: Replace an existing target.
        policies: Policies to choose from, or one; None: all of the method, and for a guarantee its rule's own.
        settings: None takes those of the bundle's configuration.
        columns: Which column of the data is which field.
        split: Which split of a folder or hub id; it must be said.
        threads: Threads inside an operator; None takes what the process may use.
        max_length: Cut texts to this many tokens.
        provider: Execution provider.
        clock: Tells the time, in seconds.
        reporter: Where progress goes.

    Returns:
        `{"schema": "edgebert.tune/1", "host", "data", "full", "points", "candidates", "tests", ...}`; metrics are None
        where the texts have no labels, times where nothing was timed.

    Raises:
        BundleError: The bundle is refused.
        ConfigError: The bundle is static, or a name, budget, guarantee or policy makes no sense.
        DataError: The texts cannot be used.
        QualityError: No setting meets the budget; names the nearest. Nothing is written.
    """
    reporter = reporter or Reporter()
    policies = None if policies is None else one_or_more("policies", policies)
    opened = find_bundle(bundle)
    task = load_task(opened.manifest.task)
    wanted = read_budget(check_name("budget", budget)) if budget is not None else None
    if guarantee is None and (procedure != "learn_then_test" or risk is not None):
        raise ConfigError("procedure and risk: belong to a guarantee; give one (--guarantee 0.02,0.1).")
    if guarantee is not None:
        if not isinstance(guarantee, tuple | list) or len(guarantee) != 2:
            raise ConfigError(f"guarantee: expected two numbers (EPS, DELTA), got {shown(guarantee)}.")
        check_guarantee(*guarantee, procedure, risk, task)
        require("scipy.stats", extra="eval", purpose="a guarantee")
    config = settings or _settings_of(opened)
    name = None if name is None else check_name("name", name)
    names = _names(opened, wanted, guarantee is not None, name, default, config)
    place = _target(opened, bundle, target, force=force)
    needs_labels = guarantee is None or risk == "metric_drop"
    texts = read_texts(task, opened.manifest, data, split=split, columns=columns, require_labels=needs_labels)
    with EdgeModel.from_pretrained(bundle, threads=threads, provider=provider) as model:
        encoded = model.encode(texts_of(texts.examples), max_length=max_length)
        trials = Trials(model, encoded, texts.targets, reporter)
        stopwatch = Stopwatch(model, encoded, config, clock, reporter)
        if guarantee is not None:
            chosen = {names[0]: choose_with_guarantee(trials, policies, *guarantee, procedure, risk)}
        elif wanted is not None:
            chosen = {names[0]: choose_by_budget(trials, policies, wanted, config, stopwatch)}
        else:
            _say_few(len(texts.examples), task, config, reporter)
            chosen = choose_by_drop(trials, policies, config)
        stopwatch.take(list({id(t): t for t in [trials.full, *(choice.trial for choice in chosen.values())]}.values()))
        made_on = {"threads": model.threads, "provider": model.provider}
    limit = opened.manifest.encoder.max_length
    longest = limit if max_length is None else min(max_length, limit)
    where = texts.name if longest == limit else f"{texts.name}, cut to {longest} tokens"
    if texts.targets is not None:
        where += f"; full depth has {task.METRIC} {trials.full.metric:.4f}"
    points = {name: _point(choice, where, stopwatch) for name, choice in chosen.items()}
    if default is not None:
        points["default"] = points[default]
    manifest = opened.manifest
    say_unsigned(opened, reporter)
    made = derive(opened, place, changes={"operating_points": {**manifest.operating_points, **points}}, force=True)
    if opened.has(SINGLE_NAME) and not made.has(SINGLE_NAME):
        reporter.say(f"{SINGLE_NAME} held the default point and is left out: make it again with edgebert export")
    describe = _Describe(trials, stopwatch)
    return {
        "schema": "edgebert.tune/1",
        "host": host_facts(),
        "bundle": str(bundle),
        "target": str(place),
        "method": manifest.method,
        "task": manifest.task,
        "metric_name": task.METRIC,
        "precision": manifest.precision,
        "data": str(data),
        "chosen_on": where,
        "n": len(texts.examples),
        "max_length": longest,
        **made_on,
        "timed_texts": stopwatch.texts,
        "full": describe.row(trials.full),
        "points": [
            {
                "name": name,
                **describe.row(choice.trial),
                "budget": choice.budget,
                "guarantee": None if choice.guarantee is None else msgspec.to_builtins(choice.guarantee),
            }
            for name, choice in chosen.items()
        ],
        "default": default,
        "candidates": describe.rows(trials.tried),
        "tests": [test for choice in chosen.values() for test in choice.tests],
    }


def _say_few(texts: int, task: Task, config: TuneConfig, reporter: Reporter) -> None:
    """Says where a point may lose less than one text's worth of the metric, so that hardly anything can be told."""
    one, least = 100 / texts, min(named_drops(config).values())
    if task.per_text is not None and one > least > 0:
        reporter.say(
            f"{texts} texts are few: one of them is {one:.2g} points, and a point may lose {least:g}; give more"
        )


def tuning_table(result: Mapping[str, Any]) -> str:
    """Returns a result as a Markdown table and what it says in words."""
    metric, ends = result["metric_name"], ("ms/text", "speed-up", "agreement")
    headers = ("point", "policy", "knobs", metric, "points", "layers", "FLOPs", *ends)
    rows = [
        (
            row.get("name", "full depth"),
            row["policy"],
            ", ".join(f"{knob}={value}" for knob, value in row["knobs"].items()) or "-",
            "-" if row["metric"] is None else f"{row['metric']:.4f}",
            "-" if row["drop_points"] is None else f"{0.0 - round(row['drop_points'], 2):+.2f}",
            f"{row['mean_layers']:.2f}",
            f"{row['cost_ratio']:.3f}",
            f"{row['latency_ms']:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['agreement']:.4f}",
        )
        for row in [result["full"], *result["points"]]
    ]
    lines = [
        markdown_table(headers, rows),
        f"{result['precision']}, chosen on {result['chosen_on']}; speed-up is wall time of full depth over that of the "
        f"point, {result['timed_texts']} texts alone in their batch, taking turns, threads: {result['threads']}",
    ]
    promises = [(row["name"], row["guarantee"]) for row in result["points"] if row["guarantee"] is not None]
    return "\n".join([*lines, *(f"{name}: {_promise(guarantee)}" for name, guarantee in promises)])


def _promise(guarantee: Mapping[str, Any]) -> str:
    risk, epsilon, texts = guarantee["risk"].replace("_", " "), guarantee["epsilon"], guarantee["texts"]
    if guarantee["delta"] is None:
        return f"{risk} of at most {epsilon:g} on average over draws of {texts} texts like these, and of the text asked"
    return f"{risk} of at most {epsilon:g} with a probability of {1 - guarantee['delta']:g} over draws of {texts} texts"


def tune_settings(bundle: str | Path, given: TuneConfig | None = None, overrides: Sequence[str] = ()) -> TuneConfig:
    """Returns settings with `key=value` texts on top; None starts from the configuration the bundle was made with.

    Raises:
        ConfigError: A key is unknown, or a value makes no sense.
    """
    tree = msgspec.to_builtins(given or _settings_of(find_bundle(bundle)))
    tree.update(parse_setting(text.removeprefix("tune.")) for text in overrides)
    return decode(tree, TuneConfig, where="--set")


def _settings_of(bundle: Bundle) -> TuneConfig:
    where = str(bundle.path / CONFIG_NAME)
    tree = read_settings_tree(bundle.read(CONFIG_NAME), where=where).value if bundle.has(CONFIG_NAME) else {}
    return decode(tree.get("tune", {}), TuneConfig, where=where, prefix="tune.")


def _names(
    bundle: Bundle, budget: Budget | None, guaranteed: bool, name: str | None, default: str | None, config: TuneConfig
) -> list[str]:
    """Returns what the points will be called.

    Raises:
        ConfigError: The bundle is static, two things are asked for at once, or a name makes no sense.
    """
    if bundle.manifest.rule.policy == "never":
        raise ConfigError(f"{bundle.path}: {bundle.manifest.method} is static and has nothing to tune.")
    if budget is not None and guaranteed:
        raise ConfigError("expected a budget or a guarantee, got both; tune once for each.")
    if budget is None and not guaranteed:
        if name is not None:
            raise ConfigError(f"name {name}: three points are chosen without a budget; give a budget or leave it out.")
        names = list(named_drops(config))
    else:
        names = [name or (GUARANTEED if budget is None else budget.point_name)]
    reserved = ["default", *registry.names("edgebert.policies")]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", names[0]) or names[0] in reserved:
        raise ConfigError(
            f"name {names[0]}: expected letters, digits, _, . and -, and neither a policy's name nor `default` "
            "(which --default sets)."
        )
    if default is not None and default not in names:
        raise ConfigError(f"default {default!r}: expected a point that is chosen here.{suggestion(default, names)}")
    return names


def _target(bundle: Bundle, given: str | Path, target: str | Path | None, *, force: bool) -> Path:
    """Returns where the bundle goes, after checking that it may.

    Raises:
        ConfigError: A bundle from the hub would be replaced in its cache.
        EdgeBertError: It cannot be written there.
    """
    if target is None and not Path(given).is_dir():
        raise ConfigError(f"{given}: comes from the hub; say where the tuned bundle goes (-o).")
    place = bundle.path if target is None else Path(target)
    check_target(place, force=force or target is None, kind="bundle")
    return place


def _point(choice: Choice, where: str, stopwatch: Stopwatch) -> OperatingPoint:
    trial = choice.trial
    return OperatingPoint(
        policy=trial.policy,
        knobs=trial.knobs,
        chosen_on=where,
        metric=_known(trial.metric),
        mean_layers=trial.mean_layers,
        cost_ratio=trial.cost_ratio,
        latency_ms=_known(stopwatch.known_ms(trial)),
        budget=choice.budget,
        guarantee=choice.guarantee,
    )


class _Describe:
    """Turns settings that were tried into plain data."""

    def __init__(self, trials: Trials, stopwatch: Stopwatch) -> None:
        self.trials, self.stopwatch = trials, stopwatch

    def row(self, trial: Trial) -> dict[str, Any]:
        full = self.trials.full
        latency = self.stopwatch.known_ms(trial)
        return {
            "policy": trial.policy,
            "knobs": dict(trial.knobs),
            "metric": _known(trial.metric),
            "drop_points": _known(100 * (full.metric - trial.metric)),
            "mean_layers": trial.mean_layers,
            "cost_ratio": trial.cost_ratio,
            "agreement": self.trials.model.task.agreement(trial.predictions, full.predictions),
            "latency_ms": _known(latency),
            "speedup": _known(self.stopwatch.known_ms(full) / latency),
        }

    def rows(self, tried: Sequence[Trial]) -> list[dict[str, Any]]:
        front = {id(trial) for trial in pareto_front(tried)} if self.trials.targets is not None else set()
        return [{**self.row(trial), "on_front": id(trial) in front} for trial in tried]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
