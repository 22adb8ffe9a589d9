"""Turns an fp32 bundle into a smaller and faster one of 8 or 4 bits: other graphs, the same program.

A backend is one file of this package; it rewrites one graph at a time. What is the same for all backends is here:
embedding tables, calibration by running the bundle itself, the look at what ONNX Runtime makes of every graph, mixed
precision found by measuring, and what the manifest says of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import msgspec

from edgebert import registry
from edgebert.arguments import one_or_more
from edgebert.bundle import CONFIG_NAME, WHOLE_MODEL_NAME, Bundle, open_bundle
from edgebert.bundle.manifest import SINGLE_NAME, OperatingPoint, Quantization, Trial
from edgebert.bundle.publish import check_target
from edgebert.config import QuantizeConfig, decode, read_settings_tree
from edgebert.data import Example, name_of, spread, texts_of
from edgebert.derive import derive, say_unsigned
from edgebert.errors import ConfigError, DataError, QualityError, require, suggestion
from edgebert.output import Reporter
from edgebert.processor import SATURATING, detect_target
from edgebert.quantize._recipe import Backend, Calibration, Goal, Recipe
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.points import find_point
from edgebert.tasks import load_task
from edgebert.yaml_tree import write_yaml


def quantize_bundle(
    source: str | Path,
    bundle: str | Path,
    *,
    settings: QuantizeConfig | None = None,
    overrides: Mapping[str, Any] | None = None,
    calibration: str | Path | None = None,
    evaluation: str | Path | Sequence[str | Path] = (),
    columns: Mapping[str, str] | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Bundle:
    """Quantizes a bundle and publishes the result.

    Args:
        source: The fp32 bundle.
        bundle: The bundle folder to make.
        settings: How to quantize; None takes those in the bundle's own configuration.
        overrides: Single keys of the settings to change, such as `{"mode": "static"}`.
        calibration: Texts for `static`: a file, or the train split of a folder. Labels are not read.
        evaluation: Labelled files, or one, to measure the drop on, for `max_drop`; a folder means its validation split.
        columns: Which column of the data is which field.
        force: Replace an existing bundle.
        reporter: Where progress goes.

    Raises:
        BundleError: The source is refused.
        ConfigError: A setting makes no sense, the source is quantized already, or it would be replaced.
        DataError: The data cannot be used.
        MissingExtraError: What the backend needs is not installed.
        QualityError: The drop is not met, or a graph would not run in integers; nothing is published.
        EdgeBertError: The bundle cannot be written; what was there is untouched.
    """
    reporter, evaluation = reporter or Reporter(), one_or_more("evaluation", evaluation)
    opened = open_bundle(source)
    check_target(Path(bundle), force=force, kind="bundle", sources=[source])
    settings = _settings(opened, settings, overrides or {})
    backend = cast(Backend, registry.load(__name__, settings.backend))
    _check_settings(opened, settings, backend, calibration, evaluation)
    backend.check()
    work = _Work(opened, settings, backend, reporter)
    calibrations = work.calibrate(calibration, columns)
    examples = work.read_evaluation(evaluation, columns)
    if examples:
        from edgebert.quantize._mixed import Judge

        with EdgeModel(opened, prepare=False) as model:
            judge = Judge(model, examples, reporter)
            work.quantize(calibrations, judge)
            work.keep_the_drop(judge)
    else:
        work.quantize(calibrations, None)
    return work.publish(Path(bundle), force=force)


def _settings(bundle: Bundle, settings: QuantizeConfig | None, overrides: Mapping[str, Any]) -> QuantizeConfig:
    """Returns the settings given, or those of the bundle's configuration, with single keys changed."""
    if settings is None:
        section = _configuration(bundle).get("quantize", {})
        settings = decode(section, QuantizeConfig, where=str(bundle.path / CONFIG_NAME), prefix="quantize.")
    tree = msgspec.to_builtins(settings)
    if overrides.get("precision") == "int4" and "mode" not in overrides:
        tree["mode"] = "weight-only"
    return decode({**tree, **overrides}, QuantizeConfig, where="options", prefix="quantize.")


def _configuration(bundle: Bundle) -> dict[str, Any]:
    if not bundle.has(CONFIG_NAME):
        return {}
    tree: dict[str, Any] = read_settings_tree(bundle.read(CONFIG_NAME), where=str(bundle.path / CONFIG_NAME)).value
    return tree


def _check_settings(
    bundle: Bundle,
    settings: QuantizeConfig,
    backend: Backend,
    calibration: str | Path | None,
    evaluation: Sequence[str | Path],
) -> None:
    """Refuses what makes no sense before any work."""
    manifest = bundle.manifest
    if manifest.quantization is not None or manifest.precision != "fp32":
        raise ConfigError(f"{bundle.path}: is {manifest.precision} already; quantize the fp32 bundle it was made of.")
    if settings.mode == "static" and calibration is None:
        raise ConfigError("mode static needs texts to calibrate on: --calibration FILE, such as the training texts.")
    if settings.mode != "static" and calibration is not None:
        raise ConfigError(f"--calibration goes with mode static; {settings.mode} needs no texts.")
    if (settings.max_drop is None) != (not evaluation):
        raise ConfigError("--max-drop and --eval go together: the drop is measured on that file.")
    if settings.smooth_quant and not backend.SMOOTHS:
        raise ConfigError(f"backend {settings.backend} has no SmoothQuant; use --backend neural_compressor.")
    paths = _graph_paths(bundle)
    for pattern in settings.exclude:
        if not any(fnmatch(path, pattern) for path in paths):
            raise ConfigError(f"--exclude {pattern}: matches no graph.{suggestion(pattern, paths)}")
    if not set(_without(settings.exclude, paths)) - {WHOLE_MODEL_NAME}:
        raise ConfigError(f"--exclude {', '.join(settings.exclude)}: leaves no graph to quantize; exclude less.")


def _graph_paths(bundle: Bundle) -> list[str]:
    return [path for path in bundle.manifest.files if path.endswith(".onnx") and path != SINGLE_NAME]


def _without(patterns: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Returns the paths that no pattern matches."""
    return [path for path in paths if not any(fnmatch(path, pattern) for pattern in patterns)]


@dataclass
class _Work:
    """A bundle on its way to fewer bits.

    Attributes:
        bundle: The fp32 bundle.
        settings: How it is quantized.
        backend: What quantizes single graphs.
        reporter: Where progress goes.
        made: The quantized graphs, by path.
        trials: What was measured to choose between precisions.
        calibration: What is said of the data it was calibrated on.
        calibration_texts: How many texts of it were run.
        evaluation: What is said of the data the drop is measured on.
        is_tuned: Whether the backend gave a graph another form than the settings alone would have.
    """

    bundle: Bundle
    settings: QuantizeConfig
    backend: Backend
    reporter: Reporter
    made: dict[str, bytes] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    calibration: str = ""
    calibration_texts: int = 0
    evaluation: str = ""
    is_tuned: bool = False

    def __post_init__(self) -> None:
        asked = self.settings.target
        self.target = detect_target() if asked == "auto" else asked
        weighs_activations = self.settings.mode != "weight-only"
        self.recipe = Recipe(
            bits=4 if self.settings.precision == "int4" else 8,
            mode=self.settings.mode,
            per_channel=self.settings.per_channel,
            reduce_range=self.target in SATURATING and weighs_activations,
            block_size=self.settings.block_size,
            smooth_quant=self.settings.smooth_quant,
        )
        if self.recipe.reduce_range:
            self.reporter.say(f"target {self.target} would overflow with weights of 8 bits: they get 7")
        self.paths = _without(self.settings.exclude, _graph_paths(self.bundle))

    def read_evaluation(self, sources: Sequence[str | Path], columns: Mapping[str, str] | None) -> list[Example]:
        """Reads the labelled examples that the drop is measured on.

        Raises:
            DataError: There are none.
            MissingExtraError: What measures them is not installed.
        """
        if not sources:
            return []
        for module in ("scipy.stats", "sklearn.metrics"):
            require(module, extra="quantize", purpose="--eval")
        task, split = load_task(self.bundle.manifest.task), "validation"
        read = [task.read(source, split=split, columns=columns) for source in sources]
        if not any(read):
            raise DataError(f"{', '.join(map(str, sources))}: no examples.")
        for source, examples in zip(sources, read, strict=True):
            task.encode_targets(examples, self.bundle.manifest.labels, where=str(source))
        names = (name_of(source, examples, split=split) for source, examples in zip(sources, read, strict=True))
        self.evaluation = f"{'; '.join(names)} under {find_point(self.bundle.manifest, 'default').policy}"
        return [example for examples in read for example in examples]

    def calibrate(self, source: str | Path | None, columns: Mapping[str, str] | None) -> dict[str, Calibration]:
        """Runs texts through the bundle, where the mode needs it; says which graphs few rows reached."""
        if source is None:
            return {}
        from edgebert.quantize._observe import FEWEST_ROWS, observe

        task = load_task(self.bundle.manifest.task)
        examples = task.read(source, split="train", columns=columns, require_labels=False)
        texts = texts_of(spread(examples, self.settings.calibration_texts))
        if not texts:
            raise DataError(f"{source}: no texts to calibrate on.")
        self.calibration, self.calibration_texts = name_of(source, examples, split="train"), len(texts)
        seen, rare = observe(self.bundle, texts, self.paths, self.backend.NEEDS, self.reporter)
        if rare:
            self.reporter.say(
                f"fewer than {FEWEST_ROWS} of {len(texts)} texts reach {', '.join(rare)}: calibrated at full depth, or "
                "under another of its policies where that has no use for them"
            )
        return seen

    def quantize(self, calibrations: Mapping[str, Calibration], judge: Any) -> None:
        """Quantizes every graph that has something to quantize, and looks at what ONNX Runtime makes of it."""
        from edgebert.quantize._graphs import graph_bytes, has_fewer_bits, read_graph
        from edgebert.quantize._inspect import check_graph
        from edgebert.quantize._tables import quantize_tables

        with self.reporter.track("quantize", len(self.paths)) as advance:
            for path in self.paths:
                model = read_graph(self.bundle.read(path))
                seen = calibrations.get(path)
                if seen is not None and not seen.rows:
                    self.reporter.say(f"{path}: no text reaches it, so it stays fp32")
                    advance(1, path)
                    continue
                goal = self._goal(path, judge)
                quantized = self.backend.quantize_graph(model, self.recipe, seen, goal) or model
                if goal is not None and quantized is not model and WHOLE_MODEL_NAME in self.paths:
                    untuned = self.backend.quantize_graph(model, self.recipe, seen, None) or model
                    self.is_tuned |= graph_bytes(quantized) != graph_bytes(untuned)
                quantized = quantize_tables(quantized)
                if has_fewer_bits(quantized):
                    data = graph_bytes(quantized)
                    check_graph(quantized, data, name=path)
                    self.made[path] = data
                advance(1, path)
        if not set(self.made) - {WHOLE_MODEL_NAME}:
            raise QualityError(f"{self.bundle.path}: there is nothing left to quantize; exclude less.")

    def _goal(self, path: str, judge: Any) -> Goal | None:
        """Returns what a backend that tunes by itself has to meet with the next graph."""
        if judge is None or not self.backend.TUNES or path == WHOLE_MODEL_NAME:
            return None
        from edgebert.quantize._graphs import graph_bytes

        def metric(model: Any) -> float:
            return float(judge.measure({**self.made, path: graph_bytes(model)}, path).row["metric"])

        assert self.settings.max_drop is not None
        so_far = float(judge.measure(self.made, path).row["metric"]) if self.made else judge.metric
        return Goal(metric, max(self.settings.max_drop / 100 - (judge.metric - so_far), 0.0))

    def keep_the_drop(self, judge: Any) -> None:
        """Gives graphs back their fp32 form until the metric drops by no more than allowed.

        The whole model has one precision: it stays fp32 too, unless every graph of the split form is quantized as asked
        and so what was measured holds for it.
        """
        from edgebert.quantize._mixed import choose_graphs

        assert self.settings.max_drop is not None
        used = {path: data for path, data in self.made.items() if path != WHOLE_MODEL_NAME}
        kept = [path for path in _graph_paths(self.bundle) if path not in self.made]
        chosen = choose_graphs(judge, used, kept, self.settings.max_drop, self.reporter.say)
        if self.is_tuned or self._leaves_something(chosen.graphs):
            self.made.pop(WHOLE_MODEL_NAME, None)
        self.made = {path: data for path, data in self.made.items() if path in (*chosen.graphs, WHOLE_MODEL_NAME)}
        self.trials = chosen.trials

    def _leaves_something(self, quantized: Mapping[str, bytes]) -> bool:
        """Says whether the split form, with these graphs in it, has products or tables that are still float."""
        from edgebert.quantize._graphs import find_products, find_tables, read_graph

        split = [path for path in _graph_paths(self.bundle) if path != WHOLE_MODEL_NAME]
        models = (read_graph(quantized.get(path) or self.bundle.read(path)) for path in split)
        return any(find_products(model) or find_tables(model) for model in models)

    def publish(self, target: Path, *, force: bool) -> Bundle:
        """Writes the new bundle: the graphs, what the manifest says of them, the effective configuration."""
        manifest, precision = self.bundle.manifest, self.settings.precision
        effective = {**msgspec.to_builtins(self.settings), "target": self.target}
        configuration = {**_configuration(self.bundle), "quantize": msgspec.to_builtins(self.settings)}
        text = write_yaml(configuration)
        has_configuration = self.bundle.has(CONFIG_NAME)
        if self.bundle.has(SINGLE_NAME):
            self.reporter.say(f"{SINGLE_NAME} is {manifest.precision} and left out: make it again with edgebert export")
        say_unsigned(self.bundle, self.reporter)
        quantization = Quantization(
            source_digest=manifest.graphs_digest,
            backend=self.settings.backend,
            mode=self.settings.mode,
            settings={**effective, "reduce_range": self.recipe.reduce_range},
            graphs={path: precision if path in self.made else "fp32" for path in sorted(_graph_paths(self.bundle))},
            calibration=self.calibration,
            calibration_texts=self.calibration_texts,
            evaluation=self.evaluation,
            trials=tuple(self.trials),
        )
        return derive(
            self.bundle,
            target,
            graphs={**self.made, **({CONFIG_NAME: text.encode()} if has_configuration else {})},
            changes={
                "precision": precision,
                "parity": None,
                "quantization": quantization,
                "operating_points": {
                    name: of_other_precision(point, manifest.precision)
                    for name, point in manifest.operating_points.items()
                },
            },
            force=force,
        )


def of_other_precision(point: OperatingPoint, precision: str) -> OperatingPoint:
    """Returns an operating point for a model of other precision: the same knobs, and what still holds of them.

    Its metric and cost are those of the precision it was chosen in, and say so; times and guarantees are gone.
    """
    chosen_on = f"{point.chosen_on}, in {precision}" if point.chosen_on else ""
    return msgspec.structs.replace(point, chosen_on=chosen_on, latency_ms=None, guarantee=None)
