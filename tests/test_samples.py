"""Recorded samples: written with a bundle and all that is made of it, asked again, and missed where they differ."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgebert import quantize_bundle
from edgebert.bundle import SAMPLES_NAME, open_bundle
from edgebert.bundle.files import sha256
from edgebert.bundle.manifest import MANIFEST_NAME, FileFacts, encode_manifest
from edgebert.derive import derive
from edgebert.errors import BundleError, QualityError
from edgebert.runtime.model import EdgeModel
from edgebert.samples import FORMAT, ROWS, Samples, record_samples, replay_samples


def _samples(bundle: Path) -> Samples:
    return msgspec.json.decode((bundle / SAMPLES_NAME).read_bytes(), type=Samples)


@pytest.fixture
def with_samples(tmp_path: Path) -> Callable[[Path, bytes | None], Path]:
    """Makes a copy of a bundle with other bytes as its samples, or with none, and a manifest that agrees."""

    def make(source: Path, data: bytes | None) -> Path:
        bundle = shutil.copytree(source, tmp_path / "copy")
        manifest = open_bundle(source).manifest
        files = {name: facts for name, facts in manifest.files.items() if name != SAMPLES_NAME}
        if data is None:
            (bundle / SAMPLES_NAME).unlink()
        else:
            (bundle / SAMPLES_NAME).write_bytes(data)
            files[SAMPLES_NAME] = FileFacts(sha256=sha256(data), bytes=len(data))
        (bundle / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))
        return bundle

    return make


@pytest.mark.parametrize(
    "name", ["plain_bundle", "dact_bundle", "geep_bundle", "token_bundle", "width_bundle", "reader_bundle"]
)
def test_an_exported_bundle_answers_as_it_did(request: pytest.FixtureRequest, name: str) -> None:
    bundle = open_bundle(request.getfixturevalue(name))

    replay = replay_samples(bundle)

    assert (replay.samples, replay.within_margin, replay.tolerance) == (ROWS, 0, 1e-4)
    assert replay.max_difference <= 1e-6
    assert record_samples(bundle) == bundle.read(SAMPLES_NAME)


def test_samples_are_what_the_model_says_of_rows_of_several_lengths(dact_bundle: Path) -> None:
    samples = _samples(dact_bundle)
    rule = open_bundle(dact_bundle).manifest.rule

    assert samples.format == FORMAT
    assert [len(row.input_ids) for row in samples.rows] == [3, 7, 11, 15, 20, 24, 28, 32]
    with EdgeModel(open_bundle(dact_bundle), threads=1) as model:
        model.set_policy(rule.policy, **rule.knobs)
        for row in samples.rows:
            answer = model.forward(np.array([row.input_ids]), token_type_ids=np.array([row.token_type_ids]))
            assert row.exit_layer == answer.exit_layer[0]
            assert list(row.path) == answer.path[0].tolist()
            assert np.abs(np.exp(answer.logits[0]) - row.values).max() <= 1e-6
            assert row.is_clear


def test_a_quantized_bundle_has_its_own_samples(tmp_path: Path, dact_bundle: Path) -> None:
    made = quantize_bundle(dact_bundle, tmp_path / "int8")

    assert made.read(SAMPLES_NAME) != (dact_bundle / SAMPLES_NAME).read_bytes()
    assert replay_samples(made).max_difference <= 1e-6


def test_other_points_leave_the_samples_as_they_are(tmp_path: Path, dact_bundle: Path) -> None:
    source = open_bundle(dact_bundle)
    points = {**source.manifest.operating_points, "own": source.manifest.rule}

    made = derive(source, tmp_path / "made", changes={"operating_points": points})

    assert made.read(SAMPLES_NAME) == source.read(SAMPLES_NAME)


def _with_other_weights(bundle: Path) -> bytes:
    model = onnx.load_from_string((bundle / "graphs/layer_01.onnx").read_bytes())
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(-values, weight.name))
    return model.SerializeToString()


def test_other_weights_with_fitting_hashes_are_noticed(plain_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(plain_bundle, tmp_path / "copy")
    data = _with_other_weights(bundle)
    (bundle / "graphs/layer_01.onnx").write_bytes(data)
    manifest = open_bundle(plain_bundle).manifest
    facts = msgspec.structs.replace(manifest.files["graphs/layer_01.onnx"], sha256=sha256(data), bytes=len(data))
    files = {**manifest.files, "graphs/layer_01.onnx": facts}
    (bundle / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))

    with pytest.raises(QualityError) as raised:
        replay_samples(open_bundle(bundle))

    message = str(raised.value)
    assert message.startswith(f"{bundle}/samples.json: sample 0 of 3 tokens is answered otherwise than when the bundle")
    assert "after layer 3 (was 3), off by " in message
    assert "(tolerance 1e-04)" in message


def _changed(bundle: Path, **changes: Any) -> bytes:
    samples = _samples(bundle)
    rows = (*samples.rows[:2], msgspec.structs.replace(samples.rows[2], **changes), *samples.rows[3:])
    return msgspec.json.encode(msgspec.structs.replace(samples, rows=rows))


def test_a_row_decided_otherwise_is_missed_only_where_it_was_clear(
    dact_bundle: Path, with_samples: Callable[[Path, bytes | None], Path]
) -> None:
    exit_layer = _samples(dact_bundle).rows[2].exit_layer % 3 + 1
    unclear = with_samples(dact_bundle, _changed(dact_bundle, exit_layer=exit_layer, is_clear=False))
    assert replay_samples(open_bundle(unclear)).within_margin == 1
    shutil.rmtree(unclear)
    clear = with_samples(dact_bundle, _changed(dact_bundle, exit_layer=exit_layer))

    with pytest.raises(QualityError, match=r"samples\.json: sample 2 of 11 tokens is answered otherwise"):
        replay_samples(open_bundle(clear))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": (10**6,) * 11}, "sample 2 does not fit the bundle: input_ids: expected ids of 0 to"),
        ({"input_ids": ()}, "sample 2 does not fit the bundle"),
        ({"token_type_ids": (0,)}, "sample 2 does not fit the bundle"),
        ({"values": (0.5,)}, "sample 2 does not fit the bundle"),
        ({"path": (True,)}, "sample 2 does not fit the bundle"),
    ],
    ids=["vocabulary", "empty", "segments", "labels", "layers"],
)
def test_samples_of_another_model_are_refused(
    dact_bundle: Path, with_samples: Callable[[Path, bytes | None], Path], change: dict[str, Any], message: str
) -> None:
    bundle = with_samples(dact_bundle, _changed(dact_bundle, **change))

    with pytest.raises(BundleError, match=message):
        replay_samples(open_bundle(bundle))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"samples\.json: missing, so there is nothing to compare with"),
        (b"", r"samples\.json: no recorded samples"),
        (b"[" * 10_000, r"samples\.json: no recorded samples"),
        (b'{"format":"edgebert.samples/1","rows":[]}', r"samples\.json: no recorded samples"),
        (b'{"format":"edgebert.samples/1","rows":[1]}', r"samples\.json: no recorded samples"),
    ],
    ids=["none", "empty", "nested", "no rows", "no row"],
)
def test_no_samples(
    plain_bundle: Path, with_samples: Callable[[Path, bytes | None], Path], data: bytes | None, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        replay_samples(open_bundle(with_samples(plain_bundle, data)))


def test_samples_of_another_format(plain_bundle: Path, with_samples: Callable[[Path, bytes | None], Path]) -> None:
    data = (plain_bundle / SAMPLES_NAME).read_bytes().replace(FORMAT.encode(), b"edgebert.samples/9")

    with pytest.raises(BundleError, match=r"samples\.json: expected edgebert.samples/1, got 'edgebert.samples/9'"):
        replay_samples(open_bundle(with_samples(plain_bundle, data)))
