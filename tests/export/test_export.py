import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import edgebert.export as export
from edgebert import EdgeModel
from edgebert.bundle import Bundle, open_bundle
from edgebert.bundle.manifest import OperatingPoint
from edgebert.checkpoint import load_checkpoint
from edgebert.config import ExportConfig, decode_config
from edgebert.encoders._blocks import EncoderConfig
from edgebert.errors import ConfigError, EdgeBertError, QualityError
from edgebert.export import export_model
from edgebert.export.link import plan_graphs
from edgebert.export.shapes import SHAPES
from edgebert.output import Reporter

BUNDLES = {"plain_bundle": ("plain_checkpoint", True), "dact_bundle": ("dact_checkpoint", True)}
BUNDLES["dact_bundle_split"] = ("dact_checkpoint", False)


@pytest.fixture(scope="module")
def small_checkpoint(save_tiny_checkpoint: Callable[..., Path]) -> Path:
    """A `plain` checkpoint of one layer: two graphs, soon exported."""
    return save_tiny_checkpoint({"name": "plain", "layers": 1}, {"default": OperatingPoint(policy="never", knobs={})})


@pytest.fixture(params=BUNDLES)
def bundle(request: pytest.FixtureRequest) -> Iterator[Bundle]:
    return open_bundle(request.getfixturevalue(request.param))


def _content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _values(rows: int = 3, tokens: int = 11) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(tokens)[None, :] < torch.tensor([tokens, 4, 1])[:rows, None]).long()
    return {
        "input_ids": torch.randint(1, 50, mask.shape, generator=generator) * mask,
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 2, mask.shape, generator=generator) * mask,
        "hidden": torch.randn((rows, tokens, 32), generator=generator),
    }


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (3, 11), (2, 48)])
def test_every_graph_equals_its_torch_module(request: pytest.FixtureRequest, name: str, rows: int, tokens: int) -> None:
    checkpoint, link = BUNDLES[name]
    model = load_checkpoint(request.getfixturevalue(checkpoint)).model
    model.eval()  # type: ignore[attr-defined]
    folder: Path = request.getfixturevalue(name)
    values = _values(rows, tokens)
    real = values["attention_mask"].bool()

    differences = {}
    for plan in plan_graphs(model.steps(), link=link):
        with torch.no_grad():
            expected = plan.module(*(values[i] for i in plan.step.inputs))
        got = _session(folder / "graphs" / f"{plan.step.file}.onnx").run(
            None, {i: values[i].numpy() for i in plan.step.inputs}
        )
        for output, theirs, ours in zip(plan.outputs, expected if len(got) > 1 else (expected,), got, strict=True):
            gap = np.abs(theirs.numpy() - ours)
            differences[plan.step.file, output] = (gap[real.numpy()] if output == "hidden" else gap).max()

    assert max(differences.values()) <= 1e-5
    assert {file for file, _ in differences} == {path.stem for path in (folder / "graphs").iterdir()}


@pytest.mark.parametrize(
    ("name", "file", "inputs", "outputs"),
    [
        ("plain_bundle", "graphs/embed.onnx", ["input_ids", "token_type_ids"], ["hidden"]),
        ("plain_bundle", "graphs/layer_00.onnx", ["hidden", "attention_mask"], ["hidden_out"]),
        ("plain_bundle", "graphs/layer_02.onnx", ["hidden", "attention_mask"], ["hidden_out", "logits"]),
        ("plain_bundle", "onnx/model.onnx", ["input_ids", "attention_mask", "token_type_ids"], ["logits"]),
        (
            "dact_bundle",
            "graphs/layer_01.onnx",
            ["hidden", "attention_mask"],
            ["hidden_out", "probabilities", "halt"],
        ),
        ("dact_bundle_split", "graphs/layer_01.onnx", ["hidden", "attention_mask"], ["hidden_out"]),
        ("dact_bundle_split", "graphs/exit_01.onnx", ["hidden", "attention_mask"], ["probabilities", "halt"]),
    ],
)
def test_graph_inputs_and_outputs(
    request: pytest.FixtureRequest, name: str, file: str, inputs: list[str], outputs: list[str]
) -> None:
    bundle = open_bundle(request.getfixturevalue(name))

    session = _session(bundle.path / file)

    assert [value.name for value in session.get_inputs()] == inputs
    assert [value.name for value in session.get_outputs()] == outputs
    assert bundle.manifest.files[file].inputs == tuple(inputs)
    assert bundle.manifest.files[file].outputs == tuple(outputs)
    assert all(value.shape[:2] == ["batch", "tokens"] for value in session.get_inputs())


def test_graphs_are_clean(bundle: Bundle) -> None:
    models = [onnx.load_from_string(bundle.read(name)) for name in bundle.manifest.files if name.endswith(".onnx")]

    nodes = [node for model in models for node in model.graph.node]
    named = [part for model in models for part in (*model.graph.input, *model.graph.output, *model.graph.initializer)]
    assert {opset.domain for model in models for opset in model.opset_import} == {""}
    assert {opset.version for model in models for opset in model.opset_import} == {23}
    assert {node.domain for node in nodes} == {""}
    assert {tensor.data_location for model in models for tensor in model.graph.initializer} == {
        onnx.TensorProto.DEFAULT
    }
    assert not [part for part in (*nodes, *named) if part.doc_string or part.metadata_props]
    assert not [m for m in models if m.doc_string or m.metadata_props or m.graph.doc_string or m.graph.metadata_props]
    assert not [model for model in models if model.functions or model.producer_version]
    assert {model.producer_name for model in models} == {"edgebert"}


def test_bundle_says_nothing_about_the_machine(bundle: Bundle) -> None:
    content = b"".join(_content(bundle.path).values())

    places = {str(Path.home()), str(Path.cwd()), str(bundle.path.parent), sys.prefix, ".py"}
    assert not [place for place in places if place.encode() in content]


def test_whole_model_equals_the_split_runtime(plain_bundle: Path, texts: list[str]) -> None:
    session = _session(plain_bundle / "onnx" / "model.onnx")

    with EdgeModel.from_pretrained(plain_bundle, threads=1) as model:
        values = model.pad(model.encode(texts))
        split = model.forward(**values).logits
    (whole,) = session.run(None, values)

    assert np.abs(whole - split).max() <= 1e-5


def test_manifest_facts(dact_bundle: Path) -> None:
    manifest = open_bundle(dact_bundle).manifest

    assert (manifest.method, manifest.task, manifest.labels) == (
        "dact_bert",
        "classification",
        ("negative", "positive"),
    )
    assert (manifest.precision, manifest.opset, manifest.exit_layers) == ("fp32", 23, (1, 2, 3))
    assert manifest.rule == OperatingPoint(policy="halting", knobs={"slack": 0.0, "bound": "paper"})
    assert sorted(manifest.operating_points) == ["confidence", "default"]
    assert (manifest.encoder.layers, manifest.encoder.max_length) == (3, 48)
    assert manifest.method_settings["trunk"] == 16
    assert manifest.provenance.seed == 3
    assert {"torch", "onnx", "onnxruntime", "edgebert"} <= set(manifest.provenance.versions)


def test_manifest_parity(bundle: Bundle) -> None:
    parity = bundle.manifest.parity

    assert parity is not None
    assert parity.samples == 16
    assert max(parity.max_difference, parity.graph_max_difference) <= 1e-5
    assert parity.decisions == 16
    assert parity.differing_decisions == 0


def test_effective_config_travels(dact_bundle_split: Path) -> None:
    import yaml

    config = decode_config(yaml.safe_load((dact_bundle_split / "config.yaml").read_text()), where="x")

    assert config.export == ExportConfig(verify_samples=16, link=False)
    assert config.method["trunk"] == 16


def test_export_existing_target_without_force(dact_checkpoint: Path, plain_bundle: Path) -> None:
    before = _content(plain_bundle)

    with pytest.raises(EdgeBertError, match="plain: exists already; use --force to replace it"):
        export_model(dact_checkpoint, plain_bundle)

    assert _content(plain_bundle) == before


def test_export_missed_tolerance_leaves_the_old_bundle(tmp_path: Path, small_checkpoint: Path) -> None:
    target = tmp_path / "bundle"
    export_model(small_checkpoint, target, settings=ExportConfig(verify_samples=2, whole_model=False))
    before = _content(target)

    with pytest.raises(QualityError, match=r"^bundle: differs from torch: .*\(tolerance 1e-12\)"):
        export_model(small_checkpoint, target, settings=ExportConfig(tolerance=1e-12, whole_model=False), force=True)

    assert _content(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_export_interrupted_leaves_the_old_bundle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_checkpoint: Path, error: BaseException
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "old").write_text("old")
    write = export._write_file

    def write_then_fail(path: Path, data: bytes) -> Any:
        write(path, data)
        raise error

    monkeypatch.setattr(export, "_write_file", write_then_fail)

    with pytest.raises((KeyboardInterrupt, EdgeBertError)):
        export_model(small_checkpoint, tmp_path / "bundle", force=True)

    assert _content(tmp_path / "bundle") == {"old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_whole_model_too_large_for_one_graph_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_checkpoint: Path
) -> None:
    said = []

    class Recorder(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    monkeypatch.setattr(export, "MOST_WHOLE_BYTES", 20_000)

    bundle = export_model(
        small_checkpoint, tmp_path / "bundle", settings=ExportConfig(verify_samples=2), reporter=Recorder()
    )

    assert not bundle.has("onnx/model.onnx")
    assert not bundle.has("config.json")
    assert said[0].startswith("whole model: left out: one graph holds 0.00 GB of weights, it has 0.00; ")


def test_export_older_operator_set(tmp_path: Path, small_checkpoint: Path) -> None:
    settings = ExportConfig(opset=18, whole_model=False, verify_samples=4)

    bundle = export_model(small_checkpoint, tmp_path / "bundle", settings=settings)

    model = onnx.load_from_string(bundle.read("graphs/layer_00.onnx"))
    assert [opset.version for opset in model.opset_import] == [bundle.manifest.opset] == [18]
    assert "Attention" not in {node.op_type for node in model.graph.node}


def test_export_random_shape(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_encoder_config: EncoderConfig
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", EncoderConfig(**{**vars(tiny_encoder_config), "layers": 1}))
    settings = ExportConfig(verify_samples=2, whole_model=False)

    bundle = export_model("random:tiny", tmp_path / "bundle", method="dact_bert", settings=settings)

    assert (bundle.manifest.labels, bundle.manifest.encoder.max_length) == (("label_0", "label_1"), 64)
    with EdgeModel.from_pretrained(bundle.path, threads=1) as model:
        assert model.forward(input_ids=np.ones((1, 64), np.int64)).logits.shape == (1, 2)
        with pytest.raises(EdgeBertError, match="this bundle has no tokenizer"):
            model("a")


@pytest.mark.parametrize(
    ("source", "method", "message"),
    [
        ("random:bert-bass", "plain", "random:bert-bass: unknown shape 'bert-bass'. Did you mean 'bert-base'?"),
        ("random:bert-base", None, "random:bert-base: say which method with --method."),
        ("random:bert-base", "dact", "unknown method 'dact'. Did you mean 'dact_bert'?"),
        ("./nothing", None, "./nothing: no such checkpoint folder."),
    ],
)
def test_export_refused(tmp_path: Path, source: str, method: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        export_model(source, tmp_path / "bundle", method=method)

    assert list(tmp_path.iterdir()) == []


def test_export_checkpoint_with_a_method(tmp_path: Path, small_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="--method goes with random:SHAPE only"):
        export_model(small_checkpoint, tmp_path / "bundle", method="plain")
