import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgebert.bundle.manifest import (
    ADVICE,
    FORMAT_VERSION,
    EncoderFacts,
    FileFacts,
    Macs,
    Manifest,
    OperatingPoint,
    Provenance,
    Step,
    encode_manifest,
    exit_layers_of,
)
from edgebert.bundle.manifest_check import decode_manifest
from edgebert.errors import BundleError

FACTS = FileFacts(sha256="0" * 64, bytes=3)
EMBED = FileFacts(sha256="0" * 64, bytes=3, inputs=("input_ids",), outputs=("hidden",))
LAYER = FileFacts(
    sha256="1" * 64, bytes=3, inputs=("hidden", "attention_mask"), outputs=("hidden_out", "probabilities", "halt")
)


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        method="dact_bert",
        method_settings={"tau": 2.0, "pool": "mean", "ü": None},
        task="classification",
        task_settings={},
        labels=("no", "日"),
        encoder=EncoderFacts(
            family="bert",
            layers=1,
            hidden_size=4,
            heads=2,
            feed_forward_size=8,
            vocabulary_size=9,
            token_types=2,
            pad_token_id=0,
            max_length=16,
        ),
        program=(
            Step(kind="embed", layer=0, graph="graphs/embed.onnx", inputs=("input_ids",), outputs=("hidden",)),
            Step(
                kind="layer",
                layer=1,
                graph="graphs/layer_00.onnx",
                inputs=("hidden", "attention_mask"),
                outputs=("hidden", "probabilities", "halt"),
                macs=Macs(token=3, token_pair=2),
            ),
            Step(kind="exit", layer=1, graph=None, inputs=("probabilities", "halt"), outputs=(), macs=Macs(row=5)),
        ),
        rule=OperatingPoint(policy="halting", knobs={"slack": 0.0}),
        policies=("halting", "never"),
        operating_points={"default": OperatingPoint(policy="halting", knobs={"slack": 0.1}, metric=0.9)},
        precision="fp32",
        opset=23,
        files={"graphs/embed.onnx": EMBED, "graphs/layer_00.onnx": LAYER},
        provenance=Provenance(versions={"onnx": "1.18"}, seed=1),
    )


def _refusal(manifest: Manifest, **changes: object) -> str:
    data = encode_manifest(msgspec.structs.replace(manifest, **changes))
    with pytest.raises(BundleError) as raised:
        decode_manifest(data, where="b")
    return str(raised.value)


def test_decode_manifest_round_trip(manifest: Manifest) -> None:
    data = encode_manifest(manifest)

    decoded = decode_manifest(data, where="b")

    assert msgspec.structs.replace(decoded, digest="") == manifest
    assert encode_manifest(decoded) == data
    assert decoded.exit_layers == (1,)


def test_macs_of_lengths() -> None:
    macs = Macs(row=5, token=3, token_pair=2)

    assert macs.of(np.array([0, 1, 10])).tolist() == [5, 10, 235]


def test_macs_of_several_pieces() -> None:
    assert Macs(row=5, token=3, token_pair=2).times(4) == Macs(row=20, token=12, token_pair=8)


def test_encode_manifest_ignores_an_old_digest(manifest: Manifest) -> None:
    assert encode_manifest(msgspec.structs.replace(manifest, digest="x")) == encode_manifest(manifest)


@pytest.mark.parametrize("seed", range(40))
def test_decode_manifest_flipped_byte(manifest: Manifest, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(encode_manifest(manifest))
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)

    with pytest.raises(BundleError, match=r"^b/edgebert\.json: "):
        decode_manifest(bytes(data), where="b")


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data + b"\n",
        lambda data: data[:-1],
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b'"opset": 23', b'"opset": 22'),
        lambda data: data.replace(b'"opset": 23', b'"opset": 23,\n "opset": 23'),
        lambda data: data.replace(b"{", b'{"extra": 1,', 1),
        lambda data: b"",
        lambda data: b"[]",
        lambda data: b"\xff",
    ],
)
def test_decode_manifest_edited(manifest: Manifest, edit: object) -> None:
    with pytest.raises(BundleError, match=r"^b/edgebert\.json: "):
        decode_manifest(edit(encode_manifest(manifest)), where="b")  # type: ignore[operator]


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 6])
def test_decode_manifest_other_version(manifest: Manifest, version: int) -> None:
    assert _refusal(manifest, format_version=version) == (
        f"b/edgebert.json: expected format_version 5, got {version}; "
        "export the bundle again or use a matching edgebert."
    )


@pytest.mark.parametrize("version", [1, 4])
def test_decode_manifest_of_an_old_version(version: int) -> None:
    data = (Path(__file__).parent / f"manifest_version_{version}.json").read_bytes()

    with pytest.raises(BundleError) as raised:
        decode_manifest(data, where="b")

    assert str(raised.value) == (
        f"b/edgebert.json: expected format_version 5, got {version}; "
        "export the bundle again or use a matching edgebert."
    )


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "a/",
        ".hidden",
        "a/.b",
        "a\\b",
        "",
        "a..b",
        "c:x",
        "a\nb",
        "A",
        "a/b/c",
    ],
)
def test_decode_manifest_path_outside(manifest: Manifest, path: str) -> None:
    message = _refusal(manifest, files={**manifest.files, path: FACTS})

    assert message == f"b/edgebert.json: {path!r} is not an allowed path inside a bundle; {ADVICE}"


def test_decode_manifest_graph_outside(manifest: Manifest) -> None:
    program = (msgspec.structs.replace(manifest.program[0], graph="../x.onnx"), *manifest.program[1:])

    assert "its graph ../x.onnx is not among the files" in _refusal(manifest, program=program)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda program: program[1:], "program step 0 (layer of layer 1): no step before it makes hidden"),
        (lambda program: program[:2], "the program must end with an exit or a head"),
        (lambda program: (), "the program must end with an exit or a head"),
        (
            lambda program: (*program[:2], msgspec.structs.replace(program[2], layer=2)),
            "program step 2 (exit of layer 2): expected a layer of 0 to 1",
        ),
    ],
)
def test_decode_manifest_program_that_does_not_fit(manifest: Manifest, change: object, message: str) -> None:
    program = change(manifest.program)  # type: ignore[operator]

    assert _refusal(manifest, program=program) == f"b/edgebert.json: {message}; {ADVICE}"


def _replaced(number: int, **changes: object) -> Callable[[tuple[Step, ...]], tuple[Step, ...]]:
    """Returns a change of a program: one of its steps with other fields."""
    return lambda program: (
        *program[:number],
        msgspec.structs.replace(program[number], **changes),
        *program[number + 1 :],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _replaced(2, inputs=("probabilities",)),
            "program step 1 (layer of layer 1): no step reads the halt that it makes",
        ),
        (
            lambda program: (program[0], program[1], program[1], program[2]),
            "program step 1 (layer of layer 1): no step reads the halt that it makes",
        ),
        (_replaced(1, choice="head_choice"), "program step 1 (layer of layer 1): no step before it makes head_choice"),
        (
            _replaced(1, choices=4),
            "program step 1 (layer of layer 1): a choice and the number of its pieces go together",
        ),
        (
            _replaced(1, part="fused"),
            "program step 1 (layer of layer 1): a fused layer stands in for parts that drop tokens or have pieces",
        ),
        (_replaced(1, part="attention"), "layer 1 of 1 cannot be run as layer, exit"),
        (
            _replaced(2, kind="head"),
            "program step 2 (head of layer 1): expected it to make logits",
        ),
        (
            _replaced(0, kind="gate"),
            "program step 0 (gate of layer 0): expected it to make include",
        ),
        (
            _replaced(2, inputs=("probabilities", "halt", "attention_mask")),
            "program step 2 (exit of layer 1): the graph it is linked into does not give attention_mask",
        ),
        (
            _replaced(0, kind="drop"),
            "program step 0 (drop of layer 0): the runtime does this by itself; expected no graph",
        ),
    ],
)
def test_decode_manifest_steps_that_make_no_program(manifest: Manifest, change: object, message: str) -> None:
    program = change(manifest.program)  # type: ignore[operator]

    assert _refusal(manifest, program=program) == f"b/edgebert.json: {message}; {ADVICE}"


def test_decode_manifest_parts_of_a_layer_that_may_be_left_out(manifest: Manifest) -> None:
    embed, layer, answer = manifest.program
    attention = msgspec.structs.replace(layer, part="attention")
    files = {**manifest.files, "graphs/gate_00.onnx": GATE_FACTS}

    message = _refusal(manifest, program=(embed, GATE, attention, answer), files=files)

    assert message == (
        "b/edgebert.json: program step 2 (layer of layer 1): a program that leaves layers out must have them whole; "
        f"{ADVICE}"
    )


def test_encode_manifest_of_what_is_too_long(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match=r"^edgebert\.json: a manifest cannot hold this: .*length <= 4000"):
        encode_manifest(msgspec.structs.replace(manifest, labels=("x" * 4001,)))


def test_manifest_of_more_pieces_than_any_layer_has(manifest: Manifest) -> None:
    embed, layer, answer = manifest.program
    layer = msgspec.structs.replace(layer, choice="head_choice", choices=2**31 - 1)

    with pytest.raises(BundleError, match=r"a manifest cannot hold this: Expected `int` <= 65536 - at .*choices"):
        encode_manifest(msgspec.structs.replace(manifest, program=(embed, layer, answer)))


def test_decode_manifest_without_default(manifest: Manifest) -> None:
    message = _refusal(manifest, operating_points={"fast": manifest.rule})

    assert message == f"b/edgebert.json: there is no operating point named default; {ADVICE}"


@pytest.mark.parametrize(
    ("program", "layers"),
    [
        ("embed0 layer1 layer2 head2", ()),
        ("embed0 layer1 exit1 layer2 layer3 exit3", (1, 3)),
        ("embed0 plan0 layer1 layer2 layer3 head3", (1, 2, 3)),
        ("embed0 gate1 layer1 gate2 layer2 head2", (1, 2)),
        ("plan0 embed0 layer1 head1 layer2 layer3 head3", (1, 3)),
    ],
)
def test_exit_layers_of_a_program(program: str, layers: tuple[int, ...]) -> None:
    steps = [(step[:-1], int(step[-1])) for step in program.split()]

    assert exit_layers_of(steps) == layers  # type: ignore[arg-type]


GATE_FACTS = FileFacts(sha256="2" * 64, bytes=3, inputs=("hidden",), outputs=("include",))
GATE = Step(kind="gate", layer=1, graph="graphs/gate_00.onnx", inputs=("hidden",), outputs=("include",))
PLAN = Step(kind="plan", layer=0, graph="graphs/plan.onnx", inputs=("hidden",), outputs=("include",))


@pytest.mark.parametrize("decides", [GATE, PLAN], ids=["gate", "plan"])
def test_decode_manifest_linked_behind_a_layer_that_may_be_left_out(manifest: Manifest, decides: Step) -> None:
    embed, layer, answer = manifest.program
    files = {**manifest.files, "graphs/gate_00.onnx": GATE_FACTS, "graphs/plan.onnx": GATE_FACTS}

    message = _refusal(manifest, program=(embed, decides, layer, answer), files=files)

    assert message == (
        f"b/edgebert.json: program step 3 (exit of layer 1): linked into a graph that not every row runs; {ADVICE}"
    )


def test_decode_manifest_linked_behind_what_every_row_runs(manifest: Manifest) -> None:
    embed, layer, _ = manifest.program
    embed = msgspec.structs.replace(embed, outputs=("hidden", "include"))
    layer = msgspec.structs.replace(layer, outputs=("hidden",))
    plan = msgspec.structs.replace(PLAN, graph=None, inputs=("include",), outputs=())
    head = Step(kind="head", layer=1, graph="graphs/head.onnx", inputs=("hidden",), outputs=("logits",))
    files = {
        "graphs/embed.onnx": msgspec.structs.replace(EMBED, outputs=("hidden", "include")),
        "graphs/layer_00.onnx": msgspec.structs.replace(LAYER, outputs=("hidden_out",)),
        "graphs/head.onnx": msgspec.structs.replace(EMBED, inputs=("hidden",), outputs=("logits",)),
    }
    planned = msgspec.structs.replace(manifest, program=(embed, plan, layer, head), files=files)

    assert decode_manifest(encode_manifest(planned), where="b").program == planned.program


def test_decode_manifest_linked_behind_nothing(manifest: Manifest) -> None:
    embed, *others = manifest.program

    message = _refusal(manifest, program=(msgspec.structs.replace(embed, graph=None), *others))

    assert message == (
        f"b/edgebert.json: program step 0 (embed of layer 0): linked into a graph that not every row runs; {ADVICE}"
    )


def test_graphs_digest_is_of_graphs_alone(manifest: Manifest) -> None:
    other_graph = {**manifest.files, "graphs/embed.onnx": msgspec.structs.replace(FACTS, sha256="1" * 64)}
    fewer = {path: facts for path, facts in manifest.files.items() if path != "graphs/embed.onnx"}
    other_file = {**manifest.files, "config.yaml": FACTS}

    def digest(files: dict[str, FileFacts]) -> str:
        return msgspec.structs.replace(manifest, files=files).graphs_digest

    assert digest(dict(reversed(manifest.files.items()))) == digest(other_file) == manifest.graphs_digest
    assert len({manifest.graphs_digest, digest(other_graph), digest(fewer)}) == 3
