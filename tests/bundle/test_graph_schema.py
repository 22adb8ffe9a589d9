"""The reduced schema: equal to `onnx` on graphs of every kind, and on protobuf's own terms."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert.bundle.graph_schema import parse_model
from edgebert.bundle.graph_weights import set_weights_aside
from edgebert.config import ExportConfig
from edgebert.errors import BundleError
from edgebert.export import export_model


def _graphs(bundle: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(bundle.rglob("*.onnx"))]


@pytest.mark.parametrize(
    "name", ["plain_bundle", "dact_bundle", "dact_bundle_split", "token_bundle", "width_bundle", "reader_bundle"]
)
def test_reads_like_onnx(request: pytest.FixtureRequest, read_like_onnx: Callable[[bytes], None], name: str) -> None:
    graphs = _graphs(request.getfixturevalue(name))

    assert graphs
    for data in graphs:
        read_like_onnx(data)


def test_reads_half_precision_like_onnx(
    tmp_path: Path, plain_checkpoint: Path, read_like_onnx: Callable[[bytes], None]
) -> None:
    settings = ExportConfig(verify_samples=1, precision="fp16", opset=18)

    for data in _graphs(export_model(plain_checkpoint, tmp_path / "half", settings=settings).path):
        read_like_onnx(data)


@pytest.mark.parametrize("data", [b"\xff", b"\x3a\x05abc", b"\x12\x02\xff\xfe", b"not a graph"])
def test_what_is_no_graph(data: bytes) -> None:
    if data == b"\x12\x02\xff\xfe":  # a field that is skipped, whatever is in it
        assert parse_model(data, where="x").ir_version == 0
        return
    with pytest.raises(BundleError, match=r"^x: not an ONNX graph \("):
        parse_model(data, where="x")


def test_text_that_is_no_text() -> None:
    with pytest.raises(BundleError, match=r"^x: not an ONNX graph \("):
        parse_model(b"\x42\x04\x0a\x02\xff\xfe", where="x")  # the domain of an operator set


def test_pure_python_protobuf_and_onnx_in_one_process(plain_bundle: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import onnx; from edgebert.bundle import open_bundle\n"
        "from google.protobuf.internal import api_implementation\n"
        f"bundle = open_bundle(Path({str(plain_bundle)!r}))\n"
        "sizes = [len(bundle.read(name)) for name in bundle.manifest.files if name.endswith('.onnx')]\n"
        "print(api_implementation.Type(), len(sizes), min(sizes) > 0)"
    )
    environment = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "PYTHONPATH": ":".join(filter(None, sys.path))}

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, "python 5 True\n"), done.stderr


def test_weights_are_taken_out(plain_bundle: Path) -> None:
    data = (plain_bundle / "graphs" / "embed.onnx").read_bytes()

    rest, weight_bytes = set_weights_aside(data)

    assert weight_bytes is not None
    assert len(rest) < len(data) - sum(n for n in weight_bytes.values() if n >= 1024) < len(rest) + 100
    assert set_weights_aside(rest).rest == rest


@pytest.mark.parametrize(
    "tail",
    [
        b"\x0b\x0c",  # a group
        b"\x92\x00\x00",  # a tag longer than it need be
        b"\x12\x80\x00",  # a length longer than it need be
        b"\x12\xff\xff\xff\xff\x7f",  # a length beyond 32 bits
        b"\x12\x05x",  # a length beyond the end
        b"\x02\x00",  # field 0
        b"\x0a",  # nothing after a tag
    ],
    ids=["group", "tag", "length", "large", "beyond", "zero", "cut"],
)
def test_unusual_encodings_are_left_alone(plain_bundle: Path, tail: bytes) -> None:
    data = (plain_bundle / "graphs" / "embed.onnx").read_bytes() + tail

    assert set_weights_aside(data) == (data, None)


def test_taking_weights_out_never_changes_what_is_read(plain_bundle: Path) -> None:
    whole = (plain_bundle / "graphs" / "embed.onnx").read_bytes()
    readable = 0
    for seed in range(400):
        rng = random.Random(seed)
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.choice([rng.randrange(len(data)), rng.randrange(1200)])] ^= 1 << rng.randrange(8)
        rest = set_weights_aside(bytes(data)).rest
        try:
            expected = parse_model(bytes(data), where="x")
        except BundleError:
            with pytest.raises(BundleError):
                parse_model(rest, where="x")
            continue
        readable += 1
        got = parse_model(rest, where="x")
        for tensor in (*expected.graph.initializer, *got.graph.initializer):
            tensor.raw_data = b""
        assert got == expected, seed
    assert 50 < readable < 400
