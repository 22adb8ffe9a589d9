"""Mixed precision: with outcomes made up, and on a bundle with a layer made sensitive on purpose."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgebert.bundle import WHOLE_MODEL_NAME, open_bundle
from edgebert.bundle.manifest import Trial
from edgebert.errors import QualityError
from edgebert.quantize import onnxruntime, quantize_bundle
from edgebert.quantize._graphs import find_products
from edgebert.quantize._mixed import choose_graphs
from edgebert.quantize._recipe import Recipe
from edgebert.verify import verify_bundle


class Points:
    """Says that every quantized graph costs its points, and those of two together, by default, more than their sum."""

    metric = 0.9
    source = SimpleNamespace(targets=np.zeros(100))

    def __init__(self, points: Mapping[str, float], together: float = 1.1) -> None:
        self.points, self.together = points, together

    def measure(self, graphs: Collection[str], title: str) -> Any:
        return SimpleNamespace(lost=sum(self.points[path] for path in graphs) * self.together ** (len(graphs) > 1))

    def disagreement(self, measured: Any) -> float:
        return float(measured.lost)

    def trial(self, kept: Collection[str], measured: Any) -> Trial:
        return Trial(kept=tuple(sorted(kept)), metric=0.9 - measured.lost / 100, drop_points=measured.lost)


GRAPHS = {"a": b"", "b": b"", "c": b""}


def _choose(points: Mapping[str, float], max_drop: float) -> Any:
    return choose_graphs(Points(points), GRAPHS, ["head"], max_drop, lambda line: None)  # type: ignore[arg-type]


def test_all_are_quantized_where_that_is_good_enough() -> None:
    chosen = _choose({"a": 0.1, "b": 0.2, "c": 0.1}, 0.5)

    assert list(chosen.graphs) == ["a", "b", "c"]
    assert [trial.kept for trial in chosen.trials] == [("head",)]


def test_the_most_sensitive_stays() -> None:
    chosen = _choose({"a": 0.1, "b": 3.0, "c": 0.2}, 0.5)

    assert list(chosen.graphs) == ["a", "c"]
    assert [trial.kept for trial in chosen.trials] == [
        ("head",),
        ("b", "c", "head"),
        ("a", "c", "head"),
        ("a", "b", "head"),
        ("b", "head"),
    ]
    assert chosen.trials[-1].drop_points == pytest.approx(0.33)


def test_the_two_most_sensitive_stay() -> None:
    assert list(_choose({"a": 0.1, "b": 3.0, "c": 2.0}, 0.5).graphs) == ["a"]


@pytest.mark.parametrize(
    "points",
    [
        {"a": 100 * (0.91 - 0.90), "b": 0.0, "c": 0.0},
        {"a": 3.0, "b": 100 * (0.91 - 0.90), "c": 0.0},
        {"a": 3.0, "b": 3.0, "c": 100 * (0.91 - 0.90)},
    ],
)
def test_a_rounding_error_refuses_nothing(points: Mapping[str, float]) -> None:
    exact = Points(points, together=1.0)

    chosen = choose_graphs(exact, GRAPHS, ["head"], 1.0, lambda line: None)  # type: ignore[arg-type]

    assert list(chosen.graphs) == [path for path, lost in points.items() if lost < 3]
    assert chosen.trials[-1].drop_points > 1.0


def test_with_nothing_left_it_fails() -> None:
    with pytest.raises(
        QualityError, match=r"a drop of at most 0\.5 points; with a single graph quantized it is still 1"
    ):
        _choose({"a": 1.0, "b": 3.0, "c": 2.0}, 0.5)


def test_a_sensitive_layer_stays_fp32(sensitive: tuple[Path, Path], tmp_path: Path) -> None:
    source, texts = sensitive

    careless = quantize_bundle(source, tmp_path / "careless")
    made = quantize_bundle(source, tmp_path / "made", overrides={"max_drop": 2.0}, evaluation=[texts])

    assert set(careless.manifest.quantization.graphs.values()) == {"int8"}
    facts = made.manifest.quantization
    assert [path for path, kind in facts.graphs.items() if kind == "fp32"] == ["graphs/layer_01.onnx"]
    assert facts.trials[0].kept == ()
    assert facts.trials[0].drop_points > 10
    assert facts.trials[-1].kept == ("graphs/layer_01.onnx",)
    assert facts.trials[-1].drop_points <= 2.0
    assert made.read("graphs/layer_01.onnx") == open_bundle(source).read("graphs/layer_01.onnx")
    assert verify_bundle(made.path)["parity"] is None


def test_a_drop_that_cannot_be_met(sensitive: tuple[Path, Path], tmp_path: Path) -> None:
    source, texts = sensitive

    with pytest.raises(QualityError, match=r"expected a drop of at most 1\.0 points; with a single graph quantized"):
        quantize_bundle(
            source,
            tmp_path / "made",
            overrides={"max_drop": 1.0, "exclude": ["*embed*", "*layer_00*", "*layer_02*"]},
            evaluation=[texts],
        )

    assert not (tmp_path / "made").exists()


def _gives_up(quantize: Any, model: Any, recipe: Recipe, *others: Any) -> Any:
    return None


def _leaves_a_product(quantize: Any, model: Any, recipe: Recipe, *others: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "find_products", lambda model: find_products(model)[1:])
        return quantize(model, recipe, *others)


def _takes_other_settings(quantize: Any, model: Any, recipe: Recipe, *others: Any) -> Any:
    return quantize(model, dataclasses.replace(recipe, per_channel=False), *others)


def _does_as_asked(quantize: Any, *others: Any) -> Any:
    return quantize(*others)


@pytest.mark.parametrize(
    ("tune", "exclude", "precision"),
    [
        (_does_as_asked, [], "int8"),
        (_gives_up, [], "fp32"),
        (_leaves_a_product, [], "fp32"),
        (_takes_other_settings, [], "fp32"),
        (_does_as_asked, ["*layer_01*"], "fp32"),
        (_does_as_asked, ["*embed*"], "fp32"),
    ],
)
def test_the_whole_model_is_int8_only_where_every_graph_is(
    tune: Any,
    exclude: list[str],
    precision: str,
    plain_bundle: Path,
    sentiment_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quantize, tuned = onnxruntime.quantize_graph, []

    def quantize_graph(model: Any, recipe: Recipe, calibration: Any, goal: Any) -> Any:
        if goal is None or not find_products(model) or tuned:
            return quantize(model, recipe, calibration, goal)
        tuned.append(goal)
        return tune(quantize, model, recipe, calibration, goal)

    monkeypatch.setattr(onnxruntime, "TUNES", True)
    monkeypatch.setattr(onnxruntime, "quantize_graph", quantize_graph)

    made = quantize_bundle(
        plain_bundle,
        tmp_path / "made",
        overrides={"max_drop": 90.0, "exclude": exclude},
        evaluation=[sentiment_data / "test.tsv"],
    )

    assert len(tuned) == 1
    assert made.manifest.quantization.graphs[WHOLE_MODEL_NAME] == precision
    is_as_it_was = made.read(WHOLE_MODEL_NAME) == open_bundle(plain_bundle).read(WHOLE_MODEL_NAME)
    assert is_as_it_was == (precision == "fp32")
