"""Every method's bundle through every mode, and what a quantized bundle says of itself."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from edgebert import registry
from edgebert.bundle import CONFIG_NAME, WHOLE_MODEL_NAME, Bundle, open_bundle
from edgebert.bundle.manifest import Guarantee, OperatingPoint
from edgebert.config import QuantizeConfig
from edgebert.derive import derive
from edgebert.errors import BundleError, ConfigError, DataError, EdgeBertError, QualityError
from edgebert.output import Reporter
from edgebert.quantize import quantize_bundle
from edgebert.quantize._graphs import find_products, read_graph
from edgebert.runtime.sessions import make_graph
from edgebert.verify import verify_bundle

BundleOf = Callable[..., Path]
METHODS = registry.names("edgebert.methods")
MODES: list[dict[str, Any]] = [
    {"mode": "dynamic"},
    {"mode": "static"},
    {"mode": "weight-only"},
    {"precision": "int4"},
]
LEAST_ALIKE = 0.8
"""Share of 60 texts that tiny models with random, large weights, nearly all near a border, answer in int8 as in fp32.

In 4 bits nothing is left of their answers; there each product is held against what its weights are worth."""


class Heard(Reporter):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("overrides", MODES, ids=lambda mode: "-".join(mode.values()))
@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_every_mode(
    method: str,
    overrides: dict[str, Any],
    bundle_of: BundleOf,
    calibration: Path,
    texts: list[str],
    tmp_path: Path,
    answers: Callable[..., Any],
    read_like_onnx: Callable[[bytes], None],
) -> None:
    source = open_bundle(bundle_of(method))
    given = calibration if overrides.get("mode") == "static" else None

    made = quantize_bundle(source.path, tmp_path / "made", overrides=overrides, calibration=given)

    fp32, less = answers(source, texts[:60]), answers(made, texts[:60])
    same = float(np.mean(fp32.scores.argmax(axis=1) == less.scores.argmax(axis=1)))
    assert same >= LEAST_ALIKE or made.manifest.precision == "int4"
    assert np.abs(fp32.scores - less.scores).max() > 0
    assert made.size_bytes < 0.7 * source.size_bytes  # the tiny graphs are half structure
    kinds = made.manifest.quantization.graphs
    assert set(kinds) == {path for path in source.manifest.files if path.endswith(".onnx")}
    fp32_paths = {path for path, kind in kinds.items() if kind == "fp32"}
    assert fp32_paths == {path for path in kinds if made.read(path) == source.read(path)}
    deciding = {"graphs/plan.onnx", "graphs/head.onnx", *(f"graphs/gate_0{layer}.onnx" for layer in range(3))}
    assert fp32_paths <= deciding
    for path in set(kinds) - fp32_paths:
        model = onnx.load_from_string(made.read(path))
        assert {node.domain for node in model.graph.node} <= {"", "com.microsoft"}
        assert all(not tensor.external_data for tensor in model.graph.initializer)
        read_like_onnx(made.read(path))


@pytest.fixture
def answers() -> Callable[..., Any]:
    from edgebert.runtime.model import EdgeModel

    def run(bundle: Bundle, texts: list[str], policy: str = "default", **how: Any) -> Any:
        with EdgeModel(bundle, policy=policy, threads=1) as model:
            outcome = model.run_encoded(model.encode(texts), **how)
            assert model.layer_rows(outcome.calls) == outcome.path.sum()
        return outcome

    return run


@pytest.mark.parametrize("path", ["attention_00", "feed_forward_01"])
def test_pieces_are_really_int8(path: str, bundle_of: BundleOf, tmp_path: Path) -> None:
    source = bundle_of("tbert")

    made = quantize_bundle(source, tmp_path / "made")

    before = read_graph(open_bundle(source).read(f"graphs/{path}.onnx"))
    assert _count(made, f"graphs/{path}.onnx")["MatMulInteger"] == len(find_products(before)) >= 8


def _count(bundle: Bundle, path: str) -> dict[str, int]:
    kinds = [node.op_type for node in onnx.load_from_string(bundle.read(path)).graph.node]
    return {kind: kinds.count(kind) for kind in [*kinds, "MatMulInteger"]}


def test_one_shared_layer_of_albert(bundle_of: BundleOf, texts: list[str], tmp_path: Path, answers: Any) -> None:
    family = {"activation": "gelu_new", "embedding_size": 16, "shared_layers": 2}
    source = open_bundle(bundle_of("plain", family="albert", **family))

    made = quantize_bundle(source.path, tmp_path / "made")

    assert [path for path in made.manifest.files if "layer_" in path] == ["graphs/layer_00.onnx"]
    fp32, less = answers(source, texts[:40]), answers(made, texts[:40])
    assert np.mean(fp32.scores.argmax(axis=1) == less.scores.argmax(axis=1)) >= 0.9


def test_exits_of_their_own(dact_bundle_split: Path, texts: list[str], tmp_path: Path, answers: Any) -> None:
    made = quantize_bundle(dact_bundle_split, tmp_path / "made")

    outcome = answers(made, texts)
    assert set(outcome.exit_layer) == {1, 2, 3}
    assert _count(made, "graphs/layer_00.onnx")["MatMulInteger"] == 6


def test_the_whole_model_agrees_with_the_layers(plain_bundle: Path, tmp_path: Path, texts: list[str]) -> None:
    from edgebert.runtime.model import EdgeModel

    made = quantize_bundle(plain_bundle, tmp_path / "made")

    with EdgeModel(made, threads=1) as model:
        row = model.encode(texts[:1])
        values = model.pad(row)
        expected = model.run_encoded(row).scores
    whole = make_graph(made.read(WHOLE_MODEL_NAME), name="whole", threads=1).run(values, ("logits",))
    assert np.abs(whole["logits"] - expected).max() <= 1e-4


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_the_same_bytes_twice(mode: str, dact_bundle: Path, calibration: Path, tmp_path: Path) -> None:
    given = calibration if mode == "static" else None

    first, second = (
        quantize_bundle(dact_bundle, tmp_path / name, overrides={"mode": mode}, calibration=given) for name in "ab"
    )

    assert {n: f for n, f in first.manifest.files.items() if n != "README.md"} == {
        n: f for n, f in second.manifest.files.items() if n != "README.md"
    }


def test_static_does_not_depend_on_batch_mates(
    dact_bundle: Path, calibration: Path, texts: list[str], tmp_path: Path, answers: Any
) -> None:
    """Rounding to 8 bits magnifies the last digit of a float where it lies on a border, so that a row may differ."""
    static = quantize_bundle(dact_bundle, tmp_path / "s", overrides={"mode": "static"}, calibration=calibration)
    dynamic = quantize_bundle(dact_bundle, tmp_path / "d")

    def spread(bundle: Bundle) -> float:
        alone = answers(bundle, texts, "never", batch_size=1)
        together = answers(bundle, texts, "never", batch_size=32, sort=False)
        return float(np.mean(np.abs(np.exp(alone.scores) - np.exp(together.scores)).max(axis=1) > 1e-5))

    assert spread(static) <= 0.05
    assert spread(dynamic) > 0.5


def test_graphs_are_calibrated_on_the_rows_that_reach_them(bundle_of: BundleOf, texts: list[str]) -> None:
    from edgebert.quantize._observe import observe

    bundle = open_bundle(bundle_of("dact_bert"))
    paths = [f"graphs/layer_0{layer}.onnx" for layer in range(3)]

    seen, rare = observe(bundle, texts, paths, "ranges", Reporter())

    rows = [seen[path].rows for path in paths]
    assert rows[0] == len(texts)
    assert rows[0] > rows[1] > rows[2]
    assert rare == []
    assert {"hidden"} < set(seen[paths[0]].ranges)


def test_padding_does_not_widen_ranges(plain_bundle: Path, texts: list[str]) -> None:
    from edgebert.quantize._observe import observe

    bundle, paths = open_bundle(plain_bundle), ["graphs/layer_01.onnx"]

    (alone, _), (together, _) = (
        observe(bundle, given, paths, "ranges", Reporter()) for given in ([texts[3]], [texts[3], texts[3] * 4])
    )
    longer, _ = observe(bundle, [texts[3] * 4], paths, "ranges", Reporter())

    for name, seen in together[paths[0]].ranges.items():
        low = min(alone[paths[0]].ranges[name].low, longer[paths[0]].ranges[name].low)
        assert seen.low == pytest.approx(low, abs=1e-4)


def test_what_the_manifest_says(dact_bundle: Path, calibration: Path, tmp_path: Path) -> None:
    point = OperatingPoint(
        policy="halting",
        knobs={"slack": 1.0, "bound": "paper"},
        chosen_on="train, 40 rows",
        metric=0.9,
        cost_ratio=0.5,
        latency_ms=2.0,
        guarantee=Guarantee(procedure="learn_then_test", risk="metric_drop", epsilon=0.1, delta=0.1, texts=40),
    )
    points = {**open_bundle(dact_bundle).manifest.operating_points, "fast": point}
    source = derive(open_bundle(dact_bundle), tmp_path / "source", changes={"operating_points": points})

    made = quantize_bundle(
        source.path,
        tmp_path / "made",
        overrides={"mode": "static", "calibration_texts": 50, "target": "avx2", "exclude": ["*layer_01*"]},
        calibration=calibration,
    )

    manifest = made.manifest
    assert (manifest.precision, manifest.parity) == ("int8", None)
    assert manifest.quantization.source_digest == source.manifest.graphs_digest
    assert manifest.quantization.graphs["graphs/layer_01.onnx"] == "fp32"
    sha256 = hashlib.sha256(calibration.read_bytes()).hexdigest()[:12]
    assert manifest.quantization.calibration == f"train.tsv, 200 rows, sha256 {sha256}"
    assert (manifest.quantization.calibration_texts, manifest.quantization.evaluation) == (50, "")
    settings = manifest.quantization.settings
    assert (settings["target"], settings["reduce_range"], settings["per_channel"]) == ("avx2", True, True)
    fast = manifest.operating_points["fast"]
    assert (fast.knobs, fast.metric, fast.cost_ratio) == (point.knobs, 0.9, 0.5)
    assert (fast.chosen_on, fast.latency_ms, fast.guarantee) == ("train, 40 rows, in fp32", None, None)
    effective = yaml.safe_load(made.read(CONFIG_NAME))["quantize"]
    assert (effective["mode"], effective["exclude"]) == ("static", ["*layer_01*"])
    assert "Compared with torch" not in made.read("README.md").decode()
    assert "Precision int8" in made.read("README.md").decode()


def test_the_manifest_says_how_many_texts_it_was_calibrated_on(
    plain_bundle: Path, texts: list[str], tmp_path: Path
) -> None:
    one = tmp_path / "one.txt"
    one.write_text(f"{texts[0]}\n", encoding="utf-8")

    made = quantize_bundle(plain_bundle, tmp_path / "made", overrides={"mode": "static"}, calibration=one)

    assert made.manifest.quantization.calibration.startswith("one.txt, 1 rows, sha256 ")
    assert made.manifest.quantization.calibration_texts == 1


def test_the_manifest_says_what_the_drop_was_measured_on(
    plain_bundle: Path, sentiment_data: Path, tmp_path: Path
) -> None:
    files = [sentiment_data, sentiment_data / "test.tsv"]

    made = quantize_bundle(plain_bundle, tmp_path / "made", overrides={"max_drop": 50.0}, evaluation=files)

    first, second = made.manifest.quantization.evaluation.split("; ")
    assert first.startswith(f"{sentiment_data.name} (validation), ")
    rows = len((sentiment_data / "test.tsv").read_text(encoding="utf-8").splitlines()) - 1
    sha256 = hashlib.sha256((sentiment_data / "test.tsv").read_bytes()).hexdigest()[:12]
    assert second == f"test.tsv, {rows} rows, sha256 {sha256} under never"


def test_settings_travel_in_the_configuration(dact_bundle: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(open_bundle(dact_bundle).read(CONFIG_NAME))
    text = yaml.safe_dump({**tree, "quantize": {"per_channel": False}}).encode()
    source = derive(open_bundle(dact_bundle), tmp_path / "source", graphs={CONFIG_NAME: text})

    own = quantize_bundle(source.path, tmp_path / "own")
    given = quantize_bundle(source.path, tmp_path / "given", settings=QuantizeConfig())

    assert own.manifest.quantization.settings["per_channel"] is False
    assert given.manifest.quantization.settings["per_channel"] is True


def test_says_which_graphs_few_texts_reach(bundle_of: BundleOf, calibration: Path, tmp_path: Path) -> None:
    heard = Heard()

    made = quantize_bundle(
        bundle_of("tbert"),
        tmp_path / "made",
        overrides={"mode": "static", "calibration_texts": 20},
        calibration=calibration,
        reporter=heard,
    )

    assert "of 20 texts reach graphs/layer_00.onnx, graphs/layer_01.onnx: calibrated at full depth" in heard.lines[0]
    assert made.manifest.quantization.graphs["graphs/layer_00.onnx"] == "int8"


@pytest.mark.parametrize(("method", "part"), [("tbert", "attention"), ("dynamic_tinybert", "feed_forward")])
def test_parts_that_the_default_never_runs_are_calibrated_too(
    method: str, part: str, bundle_of: BundleOf, calibration: Path, tmp_path: Path
) -> None:
    everything = {
        "tbert": OperatingPoint(policy="width", knobs={"width": 1.0}),
        "dynamic_tinybert": OperatingPoint(policy="lengths", knobs={"lengths": "1.0,1.0"}),
    }
    points = {"default": everything[method]}
    if method == "dynamic_tinybert":
        points["lengths_60"] = OperatingPoint(policy="lengths", knobs={"lengths": "0.6,0.4"})
    source = derive(open_bundle(bundle_of(method)), tmp_path / "source", changes={"operating_points": points})

    made = quantize_bundle(
        source.path,
        tmp_path / "made",
        overrides={"mode": "static", "calibration_texts": 20},
        calibration=calibration,
    )

    assert made.manifest.quantization is not None
    graphs = made.manifest.quantization.graphs
    assert {graphs[f"graphs/{part}_00.onnx"], graphs["graphs/layer_00.onnx"]} == {"int8"}


def test_padding_is_cut_from_states_of_tokens_alone() -> None:
    from edgebert.quantize._observe import _without_padding

    mask = np.array([[1, 1, 0, 0]])
    pooled, states = np.arange(4.0)[None], np.arange(8.0).reshape(1, 4, 2)

    assert _without_padding(pooled, mask).tolist() == pooled.tolist()  # as many features as tokens
    assert _without_padding(states, mask).tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_a_graph_that_a_backend_leaves_as_it_was_is_not_called_quantized(
    dact_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgebert.quantize import onnxruntime as backend

    really, asked = backend.quantize_graph, []

    def but_for_the_first(model: onnx.ModelProto, *rest: Any) -> onnx.ModelProto | None:
        asked.append(model)
        return _copy(model) if len(asked) == 1 else really(model, *rest)

    overrides = {"exclude": ["*embed*"]}
    monkeypatch.setattr(backend, "quantize_graph", but_for_the_first)
    made = quantize_bundle(dact_bundle, tmp_path / "made", overrides=overrides)
    monkeypatch.setattr(backend, "quantize_graph", lambda model, *_: _copy(model))
    with pytest.raises(QualityError, match="there is nothing left to quantize"):
        quantize_bundle(dact_bundle, tmp_path / "none", overrides=overrides)

    assert made.manifest.quantization is not None
    graphs = made.manifest.quantization.graphs
    assert [graphs[f"graphs/layer_0{layer}.onnx"] for layer in range(3)] == ["fp32", "int8", "int8"]
    assert made.read("graphs/layer_00.onnx") == open_bundle(dact_bundle).read("graphs/layer_00.onnx")


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


@pytest.mark.parametrize("target", ["avx2", "avx512"])
def test_saturating_targets_get_seven_bits(target: str, plain_bundle: Path, tmp_path: Path) -> None:
    heard = Heard()

    made = quantize_bundle(plain_bundle, tmp_path / "made", overrides={"target": target}, reporter=heard)

    weights = _weights(made, "graphs/layer_00.onnx")
    assert len(weights) == 6
    assert max(np.abs(weight).max() for weight in weights) == 63
    assert heard.lines == [f"target {target} would overflow with weights of 8 bits: they get 7"]


def test_other_targets_get_eight_bits(plain_bundle: Path, tmp_path: Path) -> None:
    made = quantize_bundle(plain_bundle, tmp_path / "made", overrides={"target": "arm64"})

    assert {int(np.abs(weight).max()) for weight in _weights(made, "graphs/layer_00.onnx")} == {127}


def _weights(bundle: Bundle, path: str) -> list[Any]:
    graph = onnx.load_from_string(bundle.read(path)).graph
    return [
        onnx.numpy_helper.to_array(tensor).astype(int)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
    ]


def test_int4_takes_weight_only_by_itself(plain_bundle: Path, tmp_path: Path) -> None:
    made = quantize_bundle(plain_bundle, tmp_path / "made", overrides={"precision": "int4"})

    assert (made.manifest.quantization.mode, made.manifest.precision) == ("weight-only", "int4")
    (kind,) = {
        (node.attribute[0].name, *sorted((a.name, a.i) for a in node.attribute if a.name in ("bits", "accuracy_level")))
        for node in onnx.load_from_string(made.read("graphs/layer_00.onnx")).graph.node
        if node.op_type == "MatMulNBits"
    }
    assert kind[1:] == (("accuracy_level", 4), ("bits", 4))


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"overrides": {"mode": "static"}}, ConfigError, "mode static needs texts to calibrate on"),
        ({"calibration": "x.tsv"}, ConfigError, "--calibration goes with mode static"),
        ({"overrides": {"max_drop": 1.0}}, ConfigError, "--max-drop and --eval go together"),
        ({"evaluation": ["x.tsv"]}, ConfigError, "--max-drop and --eval go together"),
        ({"overrides": {"precision": "int4", "mode": "static"}}, ConfigError, "mode: expected weight-only with"),
        ({"overrides": {"mode": "dynamc"}}, ConfigError, "quantize.mode: invalid enum value 'dynamc'"),
        ({"overrides": {"backend": "onnxrutime"}}, ConfigError, "unknown backend 'onnxrutime'. Did you mean 'onnxr"),
        ({"overrides": {"exclude": ["*layr*"]}}, ConfigError, "--exclude *layr*: matches no graph"),
        ({"overrides": {"exclude": ["*"]}}, ConfigError, "leaves no graph to quantize; exclude less"),
        ({"overrides": {"block_size": 48}}, ConfigError, "block_size: expected one of"),
        (
            {"overrides": {"smooth_quant": True, "mode": "static"}, "calibration": "x"},
            ConfigError,
            "has no SmoothQuant",
        ),
        ({"overrides": {"smooth_quant": True}}, ConfigError, "smooth_quant: expected mode static"),
        ({"overrides": {"mode": "static"}, "calibration": "no.tsv"}, DataError, "no.tsv"),
    ],
)
def test_mistakes(
    how: dict[str, Any], error: type[Exception], message: str, plain_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(error) as raised:
        quantize_bundle(plain_bundle, tmp_path / "made", **how)

    assert message in str(raised.value)
    assert not (tmp_path / "made").exists()


def test_quantized_already(plain_bundle: Path, tmp_path: Path) -> None:
    made = quantize_bundle(plain_bundle, tmp_path / "made")

    with pytest.raises(ConfigError, match=r"is int8 already; quantize the fp32 bundle it was made of\.$"):
        quantize_bundle(made.path, tmp_path / "again")


def test_no_source_and_a_target_that_is_there(plain_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle folder"):
        quantize_bundle(tmp_path / "nothing", tmp_path / "made")
    there = shutil.copytree(plain_bundle, tmp_path / "there")
    with pytest.raises(EdgeBertError, match="use --force to replace it"):
        quantize_bundle(plain_bundle, there)

    assert quantize_bundle(plain_bundle, there, force=True).manifest.precision == "int8"


def test_verify_says_agreement_and_no_parity(plain_bundle: Path, plain_checkpoint: Path, tmp_path: Path) -> None:
    made = quantize_bundle(plain_bundle, tmp_path / "made")

    result = verify_bundle(made.path, reference=str(plain_bundle), samples=20)

    assert result["parity"] is None
    assert result["agreement"]["samples"] == 20
    assert result["agreement"]["same_answer"] >= 0.9
    assert result["agreement"]["same_path"] == 1.0
    assert 0 < result["agreement"]["max_difference"] < 0.2
    with pytest.raises(DataError, match=r"give the fp32 bundle that this int8 one is of"):
        verify_bundle(made.path, reference=str(plain_checkpoint))


def test_verify_refuses_another_source(plain_bundle: Path, dact_bundle: Path, tmp_path: Path) -> None:
    made = quantize_bundle(plain_bundle, tmp_path / "made")

    with pytest.raises(DataError, match=r"was made of another bundle \(its graphs differ\)"):
        verify_bundle(made.path, reference=str(dact_bundle))


def test_verify_takes_a_source_that_was_tuned_since(plain_bundle: Path, tmp_path: Path) -> None:
    source = derive(open_bundle(plain_bundle), tmp_path / "source")
    made = quantize_bundle(source.path, tmp_path / "made", overrides={"exclude": ["*layer*", "onnx/*"]})
    points = {"fast": source.manifest.operating_points["default"], **source.manifest.operating_points}

    tuned = derive(source, source.path, changes={"operating_points": points}, force=True)

    assert tuned.manifest.digest != source.manifest.digest
    assert verify_bundle(made.path, reference=str(tuned.path), samples=4)["agreement"]["samples"] == 4
