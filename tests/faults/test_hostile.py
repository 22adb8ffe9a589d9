"""Bundles made to do harm, whose hashes are right: each is refused before ONNX Runtime sees any of its bytes."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgebert import EdgeModel
from edgebert.bundle.files import read_regular
from edgebert.bundle.graph_check import MAX_DEPTH, MAX_NODES, MAX_REST_BYTES
from edgebert.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES
from edgebert.errors import BundleError
from edgebert.verify import verify_bundle

EMBED = "graphs/embed.onnx"
FIRST = 0
Copy = Callable[[Path], Path]


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What ONNX Runtime was given."""
    given: list[bytes] = []
    real = onnxruntime.InferenceSession

    def session(source: Any, *arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        given.append(bytes(source) if isinstance(source, bytes) else str(source).encode())
        return real(source, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return given


def _refusal(bundle: Path, seen: list[bytes]) -> str:
    """Returns why a bundle is refused, on one line, with nothing given to ONNX Runtime."""
    with pytest.raises(BundleError) as raised:
        EdgeModel.from_pretrained(bundle, prepare=False)
    assert seen == []
    assert raised.value.exit_code == 3
    message = str(raised.value)
    assert message.startswith(f"{bundle}/")
    assert "\n" not in message
    return message


def _outside(tensor: TensorProto, location: str = "/etc/passwd") -> TensorProto:
    """Makes a constant one whose numbers lie in another file."""
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=location)
    tensor.ClearField("raw_data")
    return tensor


def _tensor(dims: tuple[int, ...] = (1,), kind: int = TensorProto.FLOAT) -> TensorProto:
    return helper.make_tensor("t", kind, dims, [0] * (dims[0] if dims else 1))


def _sparse(values: TensorProto, indices: TensorProto) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(values, indices, [4])


def _node(model: onnx.ModelProto, op_type: str = "Identity", domain: str = "", **attributes: Any) -> None:
    """Puts a node at the end of a graph."""
    model.graph.node.append(helper.make_node(op_type, [], ["unread"], domain=domain, **attributes))


def _nested(inner: Callable[[onnx.GraphProto], object], depth: int = 1) -> onnx.GraphProto:
    """Returns a graph inside as many others as asked for, the innermost changed."""
    graph = helper.make_graph([], "g", [], [])
    inner(graph)
    for _ in range(depth - 1):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "g", [], [])
    return graph


def _deep_initializer(model: onnx.ModelProto) -> None:
    graph = _nested(lambda graph: graph.initializer.append(_outside(_tensor())), depth=4)
    _node(model, "If", then_branch=graph)


def _graphs_attribute(model: onnx.ModelProto) -> None:
    _node(model, "If", branches=[_nested(lambda graph: graph.initializer.append(_outside(_tensor())))])


def _attribute_in_a_subgraph(model: onnx.ModelProto) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=_outside(_tensor()))
    _node(model, "If", then_branch=_nested(lambda graph: graph.node.append(constant), depth=2))


def _location_alone(model: onnx.ModelProto) -> None:
    model.graph.initializer[FIRST].data_location = TensorProto.EXTERNAL


def _entries_alone(model: onnx.ModelProto) -> None:
    model.graph.initializer[FIRST].external_data.add(key="location", value="weights.bin")


def _function(model: onnx.ModelProto) -> None:
    constant = helper.make_node("Constant", [], ["y"], value=_outside(_tensor()))
    opset = [helper.make_opsetid("", 23)]
    model.functions.append(helper.make_function("com.microsoft", "MatMulNBits", [], ["y"], [constant], opset))


EXTERNAL: dict[str, Callable[[onnx.ModelProto], object]] = {
    "initializer": lambda model: _outside(model.graph.initializer[FIRST]),
    "address in memory": lambda model: _outside(model.graph.initializer[FIRST], "*/_ORT_MEM_ADDR_/*"),
    "absolute": lambda model: _outside(model.graph.initializer[FIRST], "/proc/self/mem"),
    "location alone": _location_alone,
    "entries alone": _entries_alone,
    "sparse values": lambda model: model.graph.sparse_initializer.append(
        _sparse(_outside(_tensor()), _tensor((1,), TensorProto.INT64))
    ),
    "sparse indices": lambda model: model.graph.sparse_initializer.append(
        _sparse(_tensor(), _outside(_tensor((1,), TensorProto.INT64)))
    ),
    "attribute": lambda model: _node(model, "Constant", value=_outside(_tensor())),
    "attribute of many": lambda model: _node(model, "Constant", values=[_tensor(), _outside(_tensor())]),
    "sparse attribute": lambda model: _node(
        model, "Constant", sparse_value=_sparse(_outside(_tensor()), _tensor((1,), TensorProto.INT64))
    ),
    "sparse attribute of many": lambda model: _node(
        model, "Constant", values=[_sparse(_tensor(), _outside(_tensor((1,), TensorProto.INT64)))]
    ),
    "subgraph": _deep_initializer,
    "one of many subgraphs": _graphs_attribute,
    "attribute in a subgraph": _attribute_in_a_subgraph,
}


@pytest.mark.parametrize("case", EXTERNAL)
def test_external_data(plain_bundle: Path, copy_of: Copy, edit_graph: Any, seen: list[bytes], case: str) -> None:
    bundle = copy_of(plain_bundle)
    edit_graph(bundle, EMBED, EXTERNAL[case])

    message = _refusal(bundle, seen)

    assert message.startswith(f"{bundle}/{EMBED}: ")
    assert "has external data; expected all of a graph's numbers in its own file" in message


def _truncated(model: onnx.ModelProto) -> None:
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = weight.raw_data[:-4]


def _renamed_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "other"


def _domain_in_a_subgraph(model: onnx.ModelProto) -> None:
    node = helper.make_node("Run", [], [], domain="evil.ops")
    _node(model, "If", then_branch=_nested(lambda graph: graph.node.append(node), depth=3))


def _width(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 31


def _more_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


GRAPHS: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "custom operator": (lambda m: _node(m, domain="evil.ops"), "got the domain 'evil.ops'"),
    "custom operator in a subgraph": (_domain_in_a_subgraph, "got the domain 'evil.ops'"),
    "almost a known domain": (lambda m: _node(m, domain="ai.onnxx"), "got the domain 'ai.onnxx'"),
    "extensions": (lambda m: _node(m, domain="ai.onnx.contrib"), "got the domain 'ai.onnx.contrib'"),
    "custom operator set": (lambda m: m.opset_import.add(domain="evil.ops", version=1), "got the domain 'evil.ops'"),
    "function": (_function, "expected no functions of its own"),
    "training": (lambda m: m.training_info.add(), "expected no graphs for training"),
    "settings": (lambda m: m.metadata_props.add(key="ort_config", value="{}"), "expected no settings"),
    "compiled code": (lambda m: _node(m, "EPContext", "com.microsoft"), "got EPContext"),
    "other operator set": (lambda m: m.opset_import[0].__setattr__("version", 22), r"expected opset 23"),
    "two operator sets": (lambda m: m.opset_import.add(domain="ai.onnx", version=7), r"expected opset 23"),
    "no operator set": (lambda m: m.ClearField("opset_import"), r"expected opset 23"),
    "new IR version": (lambda m: m.__setattr__("ir_version", 99), "expected ir_version 8 to 13, got 99"),
    "truncated weight": (_truncated, "bytes; expected "),
    "unknown type": (lambda m: m.graph.initializer[0].__setattr__("data_type", 77), "is of the unknown type 77"),
    "huge shape": (lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**62), "bytes; expected "),
    "negative shape": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -1), "has the shape [-1"),
    "other input": (
        _renamed_input,
        "expected the inputs (input_ids, token_type_ids), as the manifest says, got (other",
    ),
    "more inputs": (_more_inputs, "expected the inputs (input_ids, token_type_ids), as the manifest says"),
    "other width": (_width, "hidden: expected a last axis of 32, as the manifest says, got 31"),
    "other type": (
        lambda m: m.graph.output[0].type.tensor_type.__setattr__("elem_type", TensorProto.DOUBLE),
        "hidden: expected numbers of ONNX type 1, got 11",
    ),
    "deep": (lambda m: _node(m, "If", b=_nested(lambda g: None, MAX_DEPTH)), "graphs inside each other"),
    "many nodes": (lambda m: [_node(m) for _ in range(MAX_NODES)], f"expected at most {MAX_NODES} nodes"),
    "much besides weights": (lambda m: m.__setattr__("doc_string", "x" * MAX_REST_BYTES), "bytes besides its weights"),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_graph(plain_bundle: Path, copy_of: Copy, edit_graph: Any, seen: list[bytes], case: str) -> None:
    bundle = copy_of(plain_bundle)
    edit, expected = GRAPHS[case]
    edit_graph(bundle, EMBED, edit)

    message = _refusal(bundle, seen)

    assert message.startswith(f"{bundle}/{EMBED}: ")
    assert expected in message


def _field(number: int, content: bytes) -> bytes:
    """Returns a field of a protobuf message with its length."""
    length = len(content)
    header = bytearray([number << 3 | 2])
    while length > 0x7F:
        header.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*header, length]) + content


def _deeper_than_protobuf() -> bytes:
    graph = b""
    for _ in range(2000):
        graph = _field(1, _field(5, _field(6, graph)))
    return _field(7, graph)


@pytest.mark.parametrize(
    "data",
    [
        _deeper_than_protobuf(),
        b"",
        b"\x00" * 100,
        b"PK\x03\x04 not a graph",
        b"\x08\x0aORTM" + b"\x00" * 64,
        b"\x3a\xff\xff\xff\xff\x0f",
    ],
    ids=["nested", "empty", "zeros", "archive", "ONNX Runtime's own format", "length beyond the end"],
)
def test_no_graph_at_all(plain_bundle: Path, copy_of: Copy, reseal: Any, seen: list[bytes], data: bytes) -> None:
    bundle = copy_of(plain_bundle)
    (bundle / EMBED).write_bytes(data)
    reseal(bundle)

    assert _refusal(bundle, seen).startswith(f"{bundle}/{EMBED}: ")


def test_onnx_that_is_runtime_format_too(plain_bundle: Path, copy_of: Copy, reseal: Any, seen: list[bytes]) -> None:
    bundle = copy_of(plain_bundle)
    data = (bundle / EMBED).read_bytes()
    # A producer_name before everything else: still the same ONNX file.
    polyglot = _field(2, b"xxORTM") + data
    assert onnx.load_from_string(polyglot).graph == onnx.load_from_string(data).graph
    (bundle / EMBED).write_bytes(polyglot)
    reseal(bundle)

    assert "got one in ONNX Runtime's own format" in _refusal(bundle, seen)


@pytest.mark.parametrize("name", ["graphs/layer_02.onnx", "onnx/model.onnx"])
def test_a_hostile_graph_is_never_given_to_onnx_runtime(
    plain_bundle: Path, copy_of: Copy, edit_graph: Any, seen: list[bytes], name: str
) -> None:
    bundle = copy_of(plain_bundle)
    edit_graph(bundle, name, lambda model: _outside(model.graph.initializer[FIRST]))

    with pytest.raises(BundleError, match=f"{name}: initializer .* has external data"):
        verify_bundle(bundle)

    assert (bundle / name).read_bytes() not in seen


def test_a_hostile_graph_that_would_load_late(
    token_bundle: Path, copy_of: Copy, edit_graph: Any, seen: list[bytes]
) -> None:
    bundle = copy_of(token_bundle)
    edit_graph(bundle, "graphs/attention_02.onnx", lambda model: _outside(model.graph.initializer[FIRST]))

    with pytest.raises(BundleError, match=r"graphs/attention_02\.onnx: initializer .* has external data"):
        EdgeModel.from_pretrained(bundle, prepare=False)

    assert (bundle / "graphs/attention_02.onnx").read_bytes() not in seen


def _path(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda tree: tree["files"].__setitem__(name, tree["files"]["config.yaml"])


def _step(number: int, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda tree: tree["program"][number].update(changes)


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "absolute path": (_path("/etc/passwd"), "'/etc/passwd' is not an allowed path"),
    "path above": (_path("../../x"), "'../../x' is not an allowed path"),
    "path above inside": (_path("graphs/../x"), "'graphs/../x' is not an allowed path"),
    "backslashes": (_path("graphs\\x"), "is not an allowed path"),
    "NUL": (_path("a\x00b"), "is not an allowed path"),
    "hidden file": (_path(".x"), "'.x' is not an allowed path"),
    "long path": (_path("x" * 5000), "length <= 200"),
    "unused file": (_path("graphs/more.onnx"), "graphs/more.onnx is used by no step of the program"),
    "library": (_path("custom_ops.so"), "custom_ops.so is used by no step of the program"),
    "tokenizer as a graph": (_step(0, graph="tokenizer.json"), "expected a graph called graphs/NAME.onnx"),
    "graph elsewhere": (_step(0, graph="/tmp/x.onnx"), "its graph /tmp/x.onnx is not among the files"),
    "negative size": (lambda t: t["files"][EMBED].update(bytes=-1), ">= 0"),
    "huge size": (lambda t: t["files"][EMBED].update(bytes=2**31), "<= 2147483647"),
    "size of many digits": (lambda t: t["files"][EMBED].update(bytes=10**30), "<= 2147483647"),
    "size as text": (lambda t: t["files"][EMBED].update(bytes="3"), "got `str`"),
    "size as a fraction": (lambda t: t["files"][EMBED].update(bytes=3.5), "got `float`"),
    "large configuration": (lambda t: t["files"]["config.yaml"].update(bytes=2**30), "config.yaml: expected at most"),
    "no hash": (lambda t: t["files"][EMBED].update(sha256="0"), "expected a sha256 of 64"),
    "unknown key": (lambda t: t.update(custom_op_library="x.so"), "unknown field `custom_op_library`"),
    "custom library in a step": (_step(0, library="x.so"), "unknown field `library`"),
    "unknown kind": (_step(1, kind="shell"), "Invalid enum value 'shell'"),
    "many steps": (lambda t: t.update(program=t["program"] * 2100), "length <= 10000"),
    "many files": (
        lambda t: t["files"].update({f"graphs/x{i}.onnx": t["files"][EMBED] for i in range(4001)}),
        "length <= 4000",
    ),
    "another layer": (_step(1, layer=7), "expected a layer of 0 to 3"),
    "layers out of order": (lambda t: t["program"].insert(1, t["program"].pop(2)), "the layers of the program's steps"),
    "a layer twice": (lambda t: t["program"].insert(1, t["program"][1]), "layer 1 of 3 cannot be run as layer, layer"),
    "a layer less": (lambda t: t["program"].pop(2), "layer 2 of 3 cannot be run as no step"),
    "no beginning": (lambda t: t["program"].pop(0), "no step before it makes hidden"),
    "no end": (lambda t: t["program"].pop(), "the program must end with an exit or a head"),
    "input of nobody": (_step(2, inputs=["hidden", "x"]), "takes or gives other values than the step"),
    "answer of nobody": (_step(4, inputs=["hidden"]), "expected it to make logits"),
    "more layers": (lambda t: t["encoder"].update(layers=4), "the program must end after layer 4, ends after 3"),
    "other width": (lambda t: t["encoder"].update(hidden_size=64), "expected a last axis of 64, as the manifest says"),
    "no vocabulary": (lambda t: t["encoder"].update(vocabulary_size=0), ">= 1"),
    "padding beyond": (lambda t: t["encoder"].update(pad_token_id=10**6), "expected a pad_token_id below"),
    "small vocabulary": (lambda t: t["encoder"].update(vocabulary_size=9), "the model knows 9 of them"),
    "fewer labels": (lambda t: t.update(labels=["one"]), "expected at least 2 labels"),
    "other opset": (lambda t: t.update(opset=99), "expected an opset of 18 to 23, got 99"),
    "opset of other graphs": (lambda t: t.update(opset=22), "expected opset 22, as the manifest says, got [23]"),
    "precision": (lambda t: t.update(precision="fp8"), "expected a precision of fp32, fp16, int8, int4, got 'fp8'"),
    "task": (lambda t: t.update(task="os.system"), "unknown task 'os.system'"),
    "task setting": (lambda t: t["task_settings"].update(shell=1), "shell"),
    "policy": (lambda t: t["policies"].append("__init__"), "unknown policy '__init__'"),
    "point of another policy": (
        lambda t: t["operating_points"]["default"].update(policy="entropy"),
        "default has the policy 'entropy', which is not among its policies",
    ),
    "knob": (lambda t: t["operating_points"]["default"].update(knobs={"x": 1}), "policy never: unknown key 'x'"),
    "no default": (lambda t: t["operating_points"].pop("default"), "there is no operating point named default"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifest(plain_bundle: Path, copy_of: Copy, reseal: Any, seen: list[bytes], case: str) -> None:
    bundle = copy_of(plain_bundle)
    edit, expected = MANIFESTS[case]
    reseal(bundle, edit)

    message = _refusal(bundle, seen) if case != "small vocabulary" else _refusal_after_loading(bundle)

    assert expected in message


def test_policy_that_reads_what_no_exit_gives(dact_bundle: Path, copy_of: Copy, reseal: Any, seen: list[bytes]) -> None:
    bundle = copy_of(dact_bundle)
    reseal(bundle, lambda tree: tree["policies"].append("bypass"))

    assert "the policy bypass reads include, which no step makes" in _refusal(bundle, seen)


def _refusal_after_loading(bundle: Path) -> str:
    with pytest.raises(BundleError) as raised:
        EdgeModel.from_pretrained(bundle, prepare=False)
    return str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 1_000_000,
        b'{"format_version":5,' * 2,
        b'{"format_version":5,"format_version":5}',
        b'{"format_version":NaN}',
        b'{"format_version":1e999}',
        b'{"format_version":' + b"9" * 5000 + b"}",
        b'{"format_version":5,"task":"\\ud800"}',
        b"\xef\xbb\xbf{}",
        b" " * (MAX_MANIFEST_BYTES + 1),
        b"",
    ],
    ids=["nested", "cut", "twice", "NaN", "infinite", "digits", "surrogate", "BOM", "too large", "empty"],
)
def test_manifest_text(plain_bundle: Path, copy_of: Copy, seen: list[bytes], text: bytes) -> None:
    bundle = copy_of(plain_bundle)
    (bundle / MANIFEST_NAME).write_bytes(text)

    assert _refusal(bundle, seen).startswith(f"{bundle}/{MANIFEST_NAME}: ")


def _linked_file(bundle: Path) -> None:
    (bundle / EMBED).rename(bundle.parent / "elsewhere.onnx")
    (bundle / EMBED).symlink_to(bundle.parent / "elsewhere.onnx")


def _linked_inside(bundle: Path) -> None:
    (bundle / EMBED).unlink()
    (bundle / EMBED).symlink_to("layer_01.onnx")


def _linked_folder(bundle: Path) -> None:
    shutil.rmtree(bundle.parent / "elsewhere", ignore_errors=True)
    (bundle / "graphs").rename(bundle.parent / "elsewhere")
    (bundle / "graphs").symlink_to(bundle.parent / "elsewhere")


def _linked_manifest(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).rename(bundle.parent / "elsewhere.json")
    (bundle / MANIFEST_NAME).symlink_to(bundle.parent / "elsewhere.json")


def _linked_extra_folder(bundle: Path) -> None:
    (bundle / "more").symlink_to("/")


def _pipe(bundle: Path) -> None:
    (bundle / EMBED).unlink()
    os.mkfifo(bundle / EMBED)


def _pipe_for_a_manifest(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).unlink()
    os.mkfifo(bundle / MANIFEST_NAME)


def _socket(bundle: Path) -> None:
    (bundle / EMBED).unlink()
    here = Path.cwd()
    os.chdir(bundle)  # a socket's path may have about a hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(EMBED)
    finally:
        os.chdir(here)


def _folder(bundle: Path) -> None:
    (bundle / EMBED).unlink()
    (bundle / EMBED).mkdir()


def _deep_folder(bundle: Path) -> None:
    (bundle / "graphs" / "a" / "b").mkdir(parents=True)


def _grown(bundle: Path) -> None:
    with (bundle / EMBED).open("r+b") as file:
        file.truncate(2**40)  # takes no space: nothing is written


@pytest.mark.parametrize(
    "make",
    [
        _linked_file,
        _linked_inside,
        _linked_folder,
        _linked_manifest,
        _linked_extra_folder,
        _pipe,
        _pipe_for_a_manifest,
        _socket,
        _folder,
        _deep_folder,
        _grown,
    ],
    ids=lambda make: make.__name__.strip("_"),
)
def test_file_system(plain_bundle: Path, copy_of: Copy, seen: list[bytes], make: Callable[[Path], None]) -> None:
    bundle = copy_of(plain_bundle)
    make(bundle)

    _refusal(bundle, seen)


def test_device() -> None:
    with pytest.raises(BundleError, match="/dev/zero: expected a regular file"):
        read_regular(Path("/dev"), "zero", limit=1 << 20)


def test_blobs_that_lead_elsewhere(plain_bundle: Path, tmp_path: Path, seen: list[bytes]) -> None:
    elsewhere = shutil.copytree(plain_bundle / "graphs", tmp_path / "elsewhere")
    snapshot = shutil.copytree(plain_bundle, tmp_path / "models--a--b" / "snapshots" / "rev")
    (tmp_path / "models--a--b" / "blobs").symlink_to(elsewhere)
    (snapshot / EMBED).unlink()
    (snapshot / EMBED).symlink_to("../../../blobs/embed.onnx")

    assert f"{EMBED}: expected a file of the bundle itself, got a symbolic link" in _refusal(snapshot, seen)


def test_a_linked_bundle_is_the_users_choice(plain_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(plain_bundle)

    with EdgeModel.from_pretrained(tmp_path / "current", prepare=False) as model:
        assert model("a good film").label
