"""Bundles that were damaged on the way, or damaged and given fitting hashes: every one is refused, the cause named."""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgebert import EdgeModel, quantize_bundle
from edgebert.bundle import CARD_NAME, TOKENIZER_NAME, open_bundle
from edgebert.bundle.manifest import MANIFEST_NAME
from edgebert.errors import BundleError
from edgebert.text import TextEncoder

Damage = Callable[[Path, random.Random, "Tools"], str]
"""Damages a bundle and returns the name that the refusal must have."""


class Tools:
    """How damage is given fitting hashes; see the fixtures of the same names."""

    def __init__(self, reseal: Any, edit_graph: Any) -> None:
        self.reseal, self.edit_graph = reseal, edit_graph


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, dact_bundle: Path, plain_bundle: Path) -> list[Path]:
    """Bundles of two methods in fp32 and in int8."""
    folder = tmp_path_factory.mktemp("int8")
    int8 = [quantize_bundle(bundle, folder / bundle.name).path for bundle in (dact_bundle, plain_bundle)]
    return [dact_bundle, plain_bundle, *int8]


def _names(bundle: Path, *, graphs: bool = False) -> list[str]:
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    return [name for name in names if (name.endswith(".onnx") if graphs else name != CARD_NAME)]


def _change(bundle: Path, rng: random.Random, change: Callable[[bytearray], object]) -> str:
    name = rng.choice(_names(bundle))
    data = bytearray((bundle / name).read_bytes())
    before = bytes(data)
    change(data)
    if data == before:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    (bundle / name).write_bytes(data)
    return name


def _truncate(bundle: Path, rng: random.Random, tools: Tools) -> str:
    return _change(bundle, rng, lambda data: data.__delitem__(slice(rng.randrange(len(data)), None)))


def _flip_a_bit(bundle: Path, rng: random.Random, tools: Tools) -> str:
    return _change(bundle, rng, lambda data: None)


def _noise(bundle: Path, rng: random.Random, tools: Tools) -> str:
    def change(data: bytearray) -> None:
        start = rng.randrange(len(data))
        stop = min(len(data), start + rng.randrange(1, 4096))
        data[start:stop] = rng.randbytes(stop - start)

    return _change(bundle, rng, change)


def _zeros(bundle: Path, rng: random.Random, tools: Tools) -> str:
    def change(data: bytearray) -> None:
        start = rng.randrange(len(data)) // 512 * 512
        data[start : start + 512] = bytes(len(data[start : start + 512]))

    return _change(bundle, rng, change)


def _longer(bundle: Path, rng: random.Random, tools: Tools) -> str:
    return _change(bundle, rng, lambda data: data.extend(rng.randbytes(rng.randrange(1, 64))))


def _swap_graphs(bundle: Path, rng: random.Random, tools: Tools) -> str:
    first, second = rng.sample(_names(bundle, graphs=True), 2)
    one, other = (bundle / first).read_bytes(), (bundle / second).read_bytes()
    (bundle / first).write_bytes(other)
    (bundle / second).write_bytes(one)
    return min(first, second)


def _remove(bundle: Path, rng: random.Random, tools: Tools) -> str:
    name = rng.choice(_names(bundle))
    (bundle / name).unlink()
    return name


def _add(bundle: Path, rng: random.Random, tools: Tools) -> str:
    name = rng.choice(["x", "graphs/layer_99.onnx", "onnx/other.onnx", "more/x"])
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(rng.randbytes(9))
    return name


def _bad_json(bundle: Path, rng: random.Random, tools: Tools) -> str:
    path = bundle / MANIFEST_NAME
    lines = path.read_text().splitlines()
    del lines[rng.randrange(len(lines))]
    path.write_text("\n".join(lines) + "\n")
    return MANIFEST_NAME


def _other_version(bundle: Path, rng: random.Random, tools: Tools) -> str:
    tools.reseal(bundle, lambda tree: tree.update(format_version=rng.choice([0, 1, 2, 3, 4, 6, 7, 1000])))
    return MANIFEST_NAME


def _truncated_weight(bundle: Path, rng: random.Random, tools: Tools) -> str:
    """Takes numbers off a constant, which onnx.checker does not mind."""
    name = rng.choice(_names(bundle, graphs=True))

    def edit(model: onnx.ModelProto) -> None:
        weight = rng.choice([tensor for tensor in model.graph.initializer if tensor.raw_data])
        weight.raw_data = weight.raw_data[: rng.randrange(len(weight.raw_data))]

    tools.edit_graph(bundle, name, edit)
    return name


def _sealed_truncation(bundle: Path, rng: random.Random, tools: Tools) -> str:
    name = rng.choice(_names(bundle, graphs=True))
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[: rng.randrange(len(data))])
    tools.reseal(bundle)
    return name


def _sealed_external_data(bundle: Path, rng: random.Random, tools: Tools) -> str:
    name = rng.choice(_names(bundle, graphs=True))

    def edit(model: onnx.ModelProto) -> None:
        weight = rng.choice(model.graph.initializer)
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="weights.bin")

    tools.edit_graph(bundle, name, edit)
    return name


def _sealed_other_graph(bundle: Path, rng: random.Random, tools: Tools) -> str:
    """Puts a layer where the embeddings belong, or the other way round."""
    layers = [name for name in _names(bundle, graphs=True) if name.startswith("graphs/layer")]
    pair = [rng.choice(layers), "graphs/embed.onnx"]
    rng.shuffle(pair)
    shutil.copyfile(bundle / pair[0], bundle / pair[1])
    tools.reseal(bundle)
    return pair[1]


def _sealed_program(bundle: Path, rng: random.Random, tools: Tools) -> str:
    def edit(tree: dict[str, Any]) -> None:
        del tree["program"][rng.randrange(len(tree["program"]))]

    tools.reseal(bundle, edit)
    return MANIFEST_NAME


DAMAGES: list[Damage] = [
    _truncate,
    _flip_a_bit,
    _noise,
    _zeros,
    _longer,
    _swap_graphs,
    _remove,
    _add,
    _bad_json,
    _other_version,
    _truncated_weight,
    _sealed_truncation,
    _sealed_external_data,
    _sealed_other_graph,
    _sealed_program,
]


def _load(path: Path) -> None:
    """Does what `edgebert verify` does first: opens a bundle, loads its graphs, and reads what those do not need."""
    bundle = open_bundle(path)
    with EdgeModel(bundle, threads=1, prepare=False):
        bundle.check_files()


def test_every_damaged_bundle_is_refused(
    bundles: list[Path],
    tmp_path: Path,
    reseal: Any,
    edit_graph: Any,
    rounds: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    tools = Tools(reseal, edit_graph)
    count, slowest = rounds(120, 1500), (0.0, "")
    for seed in range(count):
        rng = random.Random(seed)
        source, damage = bundles[seed % len(bundles)], DAMAGES[seed // len(bundles) % len(DAMAGES)]
        bundle = shutil.copytree(source, tmp_path / "bundle", dirs_exist_ok=False)
        name = damage(bundle, rng, tools)
        start = time.process_time()
        with pytest.raises(BundleError) as raised:
            _load(bundle)
        slowest = max(slowest, (time.process_time() - start, f"{damage.__name__.strip('_')}, seed {seed}"))
        message = str(raised.value)
        assert message.startswith(str(bundle)), (seed, damage.__name__, message)
        assert name in message, (seed, damage.__name__, message)
        assert "\n" not in message
        shutil.rmtree(bundle)
    record_property("refused", f"{count} of {count} damaged bundles, the slowest in {slowest[0]:.2f} s ({slowest[1]})")
    assert slowest[0] < 1.0, slowest


@pytest.mark.parametrize("damage", [_flip_a_bit, _truncated_weight, _sealed_external_data, _bad_json, _remove])
def test_command_line_refuses_on_one_line(
    bundles: list[Path], tmp_path: Path, reseal: Any, edit_graph: Any, damage: Damage
) -> None:
    bundle = shutil.copytree(bundles[0], tmp_path / "bundle")
    name = damage(bundle, random.Random(1), Tools(reseal, edit_graph))

    done = subprocess.run(
        [sys.executable, "-m", "edgebert.cli", "verify", bundle], capture_output=True, text=True, check=False
    )

    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert str(bundle) in done.stderr
    assert name in done.stderr


def test_tokenizer_with_fitting_hashes_is_read_or_refused(
    plain_bundle: Path, rounds: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    whole = (plain_bundle / TOKENIZER_NAME).read_bytes()
    count, refused = rounds(300, 3000), 0
    for seed in range(count):
        rng = random.Random(seed)
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(data))
            data[place : place + rng.randrange(1, 9)] = rng.choice([b"", b"0", b"null", b"[]", rng.randbytes(3)])
        try:
            TextEncoder(bytes(data), max_length=48, pad_token_id=0).encode(["a good film"])
        except BundleError:
            refused += 1
    record_property("tokenizers", f"{refused} of {count} damaged ones refused, the others read")
    assert refused > count // 2
