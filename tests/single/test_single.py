"""The single file of every method: what the split runtime says, and what it is as a file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from edgebert import export_single, quantize_bundle, registry, tune_bundle
from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import SINGLE_NAME, OperatingPoint
from edgebert.config import QuantizeConfig
from edgebert.derive import derive
from edgebert.errors import ConfigError, EdgeBertError, QualityError
from edgebert.output import Reporter
from edgebert.runtime.model import EdgeModel
from edgebert.single import add_single, single_bytes
from edgebert.single._check import check_single
from edgebert.single._rule import Rule

DOUBLE, INT64 = np.float64, np.int64

# Method, its settings, the policy with the knobs the file is made with, and knobs given to it at run time.
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any], list[dict[str, Any]]]] = [
    ("plain", {}, "never", {}, [{}]),
    ("plain", {"pool": "attention"}, "never", {}, [{}]),
    ("dact_bert", {"halt_bias": 0.0}, "halting", {}, [{"slack": slack} for slack in (0.0, 0.1, 0.5, 2.0, 10.0)]),
    ("dact_bert", {"halt_bias": 0.0}, "halting", {"bound": "tight"}, [{"slack": slack} for slack in (0.0, 0.3)]),
    ("dact_bert", {}, "confidence", {}, [{"threshold": threshold} for threshold in (0.0, 0.6, 0.8, 0.95, 1.5)]),
    ("dact_bert", {}, "never", {}, [{}]),
    ("dact_bert", {}, "fixed", {}, [{"layer": layer} for layer in (1, 2, 3)]),
    ("fastbert", {}, "entropy", {}, [{"threshold": threshold} for threshold in (0.0, 0.2, 0.5, 0.8, 1.1)]),
    ("fastbert", {}, "confidence", {}, [{"threshold": threshold} for threshold in (0.55, 0.9)]),
    ("fastbert", {}, "never", {}, [{}]),
    ("deebert", {}, "entropy", {"scale": "nats"}, [{"threshold": threshold} for threshold in (0.0, 0.2, 0.5, 5.0)]),
    ("deebert", {}, "fixed", {}, [{"layer": layer} for layer in (1, 2, 3)]),
    ("pabee", {}, "patience", {}, [{"patience": patience} for patience in (1, 2, 3)]),
    ("pabee", {}, "never", {}, [{}]),
    ("geep", {}, "predicted_exit", {}, [{"offset": o, "gain": g} for o, g in ((0, 1), (-1, 1), (9, 1), (0.2, 8))]),
    ("geep", {}, "predicted_exit", {"prediction": "mode"}, [{"offset": offset} for offset in (-5.0, 0.0, 1.0)]),
    ("geep", {}, "predicted_exit", {"prediction": "quantile"}, [{"quantile": share} for share in (0.1, 0.5, 0.9, 1.0)]),
    ("geep", {}, "fixed", {}, [{"layer": layer} for layer in (1, 2, 3)]),
    ("geep", {}, "never", {}, [{}]),
    ("dpbert", {}, "bypass", {}, [{"delta": delta} for delta in (0.0, 0.3, 0.5, 0.7, 1.0)]),
    ("dpbert", {"planner": "upfront"}, "bypass", {}, [{"delta": delta} for delta in (0.0, 0.3, 0.5, 0.7, 1.0)]),
    ("dpbert", {}, "path", {"layers": "1,3"}, [{"layers": layers} for layers in ([1, 3], [2], [3], [1, 2, 3])]),
    ("dpbert", {"planner": "upfront"}, "path", {"layers": "1,3"}, [{"layers": layers} for layers in ([1, 3], [2])]),
    ("dpbert", {}, "fixed", {}, [{"layer": layer} for layer in (1, 2, 3)]),
    ("dpbert", {}, "never", {}, [{}]),
    ("tbert", {}, "width", {}, [{"width": width} for width in (0.01, 0.25, 0.5, 0.75, 1.0)]),
    ("tbert", {}, "width", {"exact_budget": True}, [{"width": width} for width in (0.1, 0.5, 0.75, 1.0)]),
    ("tbert", {"block_size": 1}, "width", {}, [{"width": width} for width in (0.25, 0.5)]),
    ("tbert", {}, "never", {}, [{}]),
    (
        "dynamic_tinybert",
        {},
        "lengths",
        {"lengths": "0.5,0.25"},
        [{"lengths": "0.5,0.25,0.25"}, {"lengths": "1.0,0.1"}],
    ),
    ("dynamic_tinybert", {}, "lengths", {"lengths": "9,4,2"}, [{"lengths": "9,4,2"}, {"lengths": "50,50,1"}]),
    ("dynamic_tinybert", {}, "lengths", {}, [{"lengths": "1.0"}]),
    ("dynamic_tinybert", {}, "never", {}, [{}]),
]
WHOLE = ("layer", "layers", "patience")


def _inputs(knobs: dict[str, Any], layers: int = 3) -> dict[str, Any]:
    """Returns knobs as the file's inputs take them."""
    if "lengths" in knobs:
        parts = knobs["lengths"].split(",")
        every_layer = [*parts, *[parts[-1]] * layers][:layers]
        is_share = "." in parts[0]
        return {"lengths": np.array(every_layer, DOUBLE if is_share else INT64)}
    return {name: np.atleast_1d(np.array(value, INT64 if name in WHOLE else DOUBLE)) for name, value in knobs.items()}


@pytest.mark.parametrize(
    ("method", "settings", "policy", "knobs", "runs"), CASES, ids=lambda value: str(value)[:30].replace(" ", "")
)
def test_answers_as_the_split_runtime_does(
    bundle_of: Callable[..., Path],
    run_single: Callable[..., Any],
    rows: Any,
    method: str,
    settings: dict[str, Any],
    policy: str,
    knobs: dict[str, Any],
    runs: list[dict[str, Any]],
) -> None:
    bundle = open_bundle(bundle_of(method, settings))
    point = OperatingPoint(policy=policy, knobs=knobs)
    with_point = _with_point(bundle, point)
    data = single_bytes(with_point, "tried", samples=2)

    with EdgeModel(bundle, threads=1) as model:
        for run in runs:
            model.set_policy(policy, **{**knobs, **run, **_as_text(run)})
            made = run_single(data, rows, **_inputs(run))
            for row, got in zip(rows, made, strict=True):
                expected = model.forward(**row)
                assert got["exit_layer"].tolist() == expected.exit_layer.tolist()
                assert np.array_equal(got["path"], expected.path)
                assert got["logits"].dtype == np.float32
                assert np.abs(got["logits"] - expected.logits).max() <= 1e-4


def _with_point(bundle: Any, point: OperatingPoint) -> Any:
    """Returns a bundle that has an operating point named `tried` too, in memory."""
    points = {**bundle.manifest.operating_points, "tried": point}
    manifest = msgspec.structs.replace(bundle.manifest, operating_points=points)
    return type(bundle)(bundle.path, manifest)


def _as_text(run: dict[str, Any]) -> dict[str, Any]:
    return {"layers": ",".join(map(str, run["layers"]))} if "layers" in run else {}


def test_every_policy_is_there_with_a_rule() -> None:
    assert registry.names("edgebert.single") == registry.names("edgebert.policies")
    for name in registry.names("edgebert.single"):
        module = registry.load("edgebert.single", name)
        assert issubclass(module.Rule, Rule)
        assert module.__doc__.startswith(f"{name}: ")
    assert {policy for _, _, policy, _, _ in CASES} == set(registry.names("edgebert.policies"))
    assert {method for method, _, _, _, _ in CASES} == set(registry.names("edgebert.methods"))


FORMS: list[tuple[str, dict[str, Any]]] = [
    ("deebert", {"link": False}),  # exits as graphs of their own
    ("pabee", {"task": "regression"}),
    ("tbert", {"task": "regression"}),
    ("plain", {"task": "question_answering"}),
    ("dynamic_tinybert", {"task": "question_answering"}),
    ("fastbert", {"family": "albert", "activation": "gelu_new", "embedding_size": 16, "shared_layers": 3}),
    ("dact_bert", {"family": "distilbert", "token_types": 0}),
]


@pytest.mark.parametrize(("method", "changes"), FORMS, ids=[f"{method}-{next(iter(given))}" for method, given in FORMS])
def test_other_forms_of_bundles(
    bundle_of: Callable[..., Path], run_single: Callable[..., Any], rows: Any, method: str, changes: dict[str, Any]
) -> None:
    bundle = open_bundle(bundle_of(method, **changes))

    data = single_bytes(bundle, "default", samples=4)

    with EdgeModel(bundle, threads=1) as model:
        for row, got in zip(rows, run_single(data, rows), strict=True):
            expected = model.forward(**row)
            assert got["exit_layer"].tolist() == expected.exit_layer.tolist()
            assert got["logits"].shape == expected.logits.shape
            assert np.abs(got["logits"] - expected.logits).max() <= 1e-4 * max(1.0, np.abs(expected.logits).max())


def test_weights_that_layers_share_are_stored_once(bundle_of: Callable[..., Path]) -> None:
    shared = {"family": "albert", "activation": "gelu_new", "embedding_size": 16, "shared_layers": 3}
    bundle = open_bundle(bundle_of("fastbert", link=True, **shared))

    data = single_bytes(bundle, "default", samples=1)

    layer = bundle.manifest.files["graphs/layer_00.onnx"].bytes
    assert len(data) < bundle.size_bytes + 2 * layer


def test_int8(bundle_of: Callable[..., Path], run_single: Callable[..., Any], rows: Any, tmp_path: Path) -> None:
    settings = QuantizeConfig(precision="int8", mode="dynamic")
    bundle = quantize_bundle(bundle_of("fastbert"), tmp_path / "int8", settings=settings)
    data = single_bytes(bundle, "default", samples=4)

    made = run_single(data, rows)

    nodes = [node for branch in _branches(onnx.load_from_string(data).graph) for node in branch.node]
    assert "MatMulInteger" in {node.op_type for node in nodes}
    assert _facts(data)["edgebert.precision"] == "int8"
    with EdgeModel(bundle, threads=1) as model:
        expected = [model.forward(**row) for row in rows]
    assert [got["exit_layer"].tolist() for got in made] == [forward.exit_layer.tolist() for forward in expected]
    assert [got["logits"].argmax() for got in made] == [forward.logits.argmax() for forward in expected]


def test_threshold_is_an_input(dact_bundle: Path, run_single: Callable[..., Any], rows: Any, tmp_path: Path) -> None:
    file = export_single(dact_bundle, tmp_path / "single.onnx", point="confidence")

    early, default, late = (
        {int(got["exit_layer"][0]) for got in run_single(file, rows, **given)}
        for given in ({"threshold": np.array([0.0])}, {}, {"threshold": np.array([1.1])})
    )

    assert (early, late) == ({1}, {3})
    assert len(default) > 1


def test_knobs_that_are_required(dact_bundle: Path, run_single: Callable[..., Any], rows: Any, tmp_path: Path) -> None:
    file = export_single(dact_bundle, tmp_path / "single.onnx", knobs="required")

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    assert [value.name for value in session.get_inputs()] == [
        *("input_ids", "attention_mask", "token_type_ids"),
        "slack",
    ]
    assert {int(got["exit_layer"][0]) for got in run_single(file, rows, slack=np.array([9.0]))} == {1}


def test_file_says_what_it_is_and_nothing_else(dact_bundle: Path, tmp_path: Path) -> None:
    first = export_single(dact_bundle, tmp_path / "first.onnx")
    second = export_single(dact_bundle, tmp_path / "second.onnx")

    model = onnx.load(first)
    onnx.checker.check_model(model, full_check=True)
    assert first.read_bytes() == second.read_bytes()
    assert _facts(first.read_bytes()) == {
        "edgebert.format": "single/1",
        "edgebert.knobs": json.dumps({"bound": "paper", "slack": 0.0}),
        "edgebert.labels": json.dumps(["negative", "positive"]),
        "edgebert.layers": "3",
        "edgebert.max_length": "48",
        "edgebert.method": "dact_bert",
        "edgebert.policy": "halting",
        "edgebert.precision": "fp32",
        "edgebert.task": "classification",
    }
    assert model.producer_name == "edgebert"
    for branch in _branches(model.graph):
        assert not branch.doc_string
        assert not any(node.doc_string or node.name for node in branch.node)
    assert all(not branch.initializer for branch in _branches(model.graph)[1:])
    assert str(tmp_path).encode() not in first.read_bytes()


def test_stock_onnxruntime_runs_it_without_edgebert(dact_bundle: Path, tmp_path: Path) -> None:
    file = export_single(dact_bundle, tmp_path / "single.onnx")
    code = """
import sys, json, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
ids = numpy.array([[2, 40, 50, 3]])
row = {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "token_type_ids": numpy.zeros_like(ids)}
logits, layer, path = session.run(None, row)
labels = json.loads(session.get_modelmeta().custom_metadata_map["edgebert.labels"])
assert not any(name.partition(".")[0] == "edgebert" for name in sys.modules)
print(labels[logits[0].argmax()], layer[0], path[0].sum())
"""
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)

    ids = np.array([[2, 40, 50, 3]])
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        forward = model.forward(ids)
        label = model.labels[int(forward.logits[0].argmax())]
    layer = forward.exit_layer[0]
    assert done.stdout.split() == [label, str(layer), str(layer)]


def test_refuses_a_batch(dact_bundle: Path, run_single: Callable[..., Any], tmp_path: Path) -> None:
    file = export_single(dact_bundle, tmp_path / "single.onnx")
    ids = np.ones((2, 4), np.int64)

    with pytest.raises(Exception, match="Got invalid dimensions for input"):
        run_single(file, [{"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}])


def test_another_bundles_answers_are_noticed(bundle_of: Callable[..., Path]) -> None:
    one, other = (open_bundle(bundle_of("fastbert", seed=seed)) for seed in (3, 8))
    data = single_bytes(one, "default", samples=2)

    with pytest.raises(QualityError, match=r"it: differs from .* on random row \d+ by .*tolerance 1e-04"):
        check_single(data, other, "default", {}, samples=8, tolerance=1e-4, name="it")


def test_another_bundles_answers_are_noticed_in_8_bits_at_once(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    settings = QuantizeConfig(mode="dynamic")
    one, other = (
        quantize_bundle(bundle_of("plain", seed=seed), tmp_path / str(seed), settings=settings) for seed in (3, 8)
    )
    data = single_bytes(one, "default", samples=8)

    with pytest.raises(QualityError, match=r"it: differs from .* on random row 0 by"):
        check_single(data, other, "default", {}, samples=1, tolerance=1e-4, name="it")


def test_border_of_a_decision_is_no_difference(dact_bundle: Path, rows: Any) -> None:
    bundle = open_bundle(dact_bundle)
    with EdgeModel(bundle, policy="confidence", threads=1) as model:
        from edgebert.single._check import _MOST_TOKENS
        from edgebert.verify import random_inputs

        row = random_inputs(np.random.default_rng(0), 1, _MOST_TOKENS, bundle)
        model.set_policy("fixed", layer=1)
        largest = float(np.exp(model.forward(**row).logits).max())
    above, below = (
        _with_point(bundle, OperatingPoint(policy="confidence", knobs={"threshold": largest + step}))
        for step in (4e-6, -4e-6)
    )
    data = single_bytes(above, "tried", samples=1)

    check_single(data, below, "tried", {}, samples=1, tolerance=1e-4, name="it")


def test_wrong_names_and_numbers(dact_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_bytes(b"mine")

    with pytest.raises(ConfigError, match=r"single: a single file is called something.onnx, such as single.onnx"):
        export_single(dact_bundle, tmp_path / "single")
    with pytest.raises(ConfigError, match=r"has no point or policy 'confidance'; it has .*confidence"):
        export_single(dact_bundle, tmp_path / "single.onnx", point="confidance")
    with pytest.raises(ConfigError, match="knobs: expected defaults or required, got 'none'"):
        export_single(dact_bundle, tmp_path / "single.onnx", knobs="none")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="samples: expected 1 or more, got 0"):
        export_single(dact_bundle, tmp_path / "single.onnx", samples=0)
    with pytest.raises(EdgeBertError, match="exists already; use --force"):
        export_single(dact_bundle, tmp_path / "there.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"


def test_a_policy_that_the_model_has_no_layers_for(plain_bundle: Path) -> None:
    bundle = open_bundle(plain_bundle)
    manifest = msgspec.structs.replace(bundle.manifest, policies=("never", "fixed"))

    with pytest.raises(ConfigError, match=r"^policy fixed: the model has no layer that it can stop after"):
        single_bytes(type(bundle)(bundle.path, manifest), "fixed")


def test_bundle_with_the_file_in_it(dact_bundle: Path, tmp_path: Path) -> None:
    plain = open_bundle(dact_bundle)

    made = add_single(dact_bundle, tmp_path / "both")

    assert made.read(SINGLE_NAME) == single_bytes(plain, "default", samples=1)
    assert made.check_files() == []
    assert (made.size_bytes, made.manifest.graphs_digest) == (plain.size_bytes, plain.manifest.graphs_digest)
    with EdgeModel(made, threads=1) as model:
        assert open_bundle(model.save_pretrained(tmp_path / "copy")).has(SINGLE_NAME)
    renamed = derive(made, tmp_path / "described", changes={"parity": None})
    assert renamed.has(SINGLE_NAME)


def test_no_stale_file_is_left(dact_bundle: Path, tmp_path: Path, sentiment_data: Path) -> None:
    made = add_single(dact_bundle, tmp_path / "both")
    heard: list[str] = []
    reporter = Reporter()
    reporter.say = heard.append  # type: ignore[method-assign]

    int8 = quantize_bundle(made.path, tmp_path / "int8", settings=QuantizeConfig(mode="dynamic"), reporter=reporter)
    options = {"budget": "flops=0.6", "threads": 1, "reporter": reporter}
    tune_bundle(made.path, sentiment_data / "validation.tsv", target=tmp_path / "tuned", **options)
    tune_bundle(
        made.path, sentiment_data / "validation.tsv", target=tmp_path / "new", name="low", default="low", **options
    )

    assert not int8.has(SINGLE_NAME)
    assert int8.manifest.quantization is not None
    assert SINGLE_NAME not in int8.manifest.quantization.graphs
    assert open_bundle(tmp_path / "tuned").has(SINGLE_NAME)
    assert not open_bundle(tmp_path / "new").has(SINGLE_NAME)
    assert made.has(SINGLE_NAME)
    assert [message for message in heard if SINGLE_NAME in message] == [
        "onnx/single.onnx is fp32 and left out: make it again with edgebert export",
        "onnx/single.onnx held the default point and is left out: make it again with edgebert export",
    ]


def _branches(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Returns a graph and all branches in it."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [graph, *(branch for part in inner for branch in _branches(part))]


def _facts(data: bytes) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props}


@pytest.mark.parametrize("method", registry.names("edgebert.methods"))
def test_single_file_is_read_like_onnx_reads_it(
    tmp_path: Path, bundle_of: Callable[..., Path], read_like_onnx: Callable[[bytes], None], method: str
) -> None:
    made = add_single(bundle_of(method), tmp_path / "both", samples=1)

    for path in made.path.rglob("*.onnx"):
        read_like_onnx(path.read_bytes())
    assert made.read(SINGLE_NAME)
    assert made.manifest.files[SINGLE_NAME].outputs == ("logits", "exit_layer", "path")
