import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import MANIFEST_NAME, OperatingPoint, encode_manifest
from edgebert.checkpoint import Checkpoint, CheckpointFacts, build_model, load_checkpoint, save_checkpoint
from edgebert.config import RunConfig, TrainConfig
from edgebert.decisions import Decision
from edgebert.encoders._blocks import Encoder
from edgebert.errors import BundleError, ConfigError, DataError, QualityError
from edgebert.export import export_model
from edgebert.policies import make_policy
from edgebert.single import add_single
from edgebert.verify import compare, random_inputs, verify_bundle, within_margin

NEVER = {"default": OperatingPoint(policy="never", knobs={})}


@pytest.mark.parametrize(
    ("bundle", "checkpoint", "decisions"),
    [
        ("plain_bundle", "plain_checkpoint", 20),
        ("dact_bundle", "dact_checkpoint", 20),
        ("dact_bundle_split", "dact_checkpoint", 20),
    ],
)
def test_compare_agrees(request: pytest.FixtureRequest, bundle: str, checkpoint: str, decisions: int) -> None:
    opened = open_bundle(request.getfixturevalue(bundle))
    model = load_checkpoint(request.getfixturevalue(checkpoint)).model

    parity = compare(model, opened, samples=20, tolerance=1e-5, seed=5)

    assert (parity.samples, parity.decisions, parity.differing_decisions) == (20, decisions, 0)
    assert 0 < parity.max_difference <= 1e-5
    assert 0 < parity.graph_max_difference <= 1e-5


@pytest.mark.parametrize("samples", [0, -1, 1.5])
def test_nothing_to_compare_is_no_agreement(plain_bundle: Path, plain_checkpoint: Path, samples: int) -> None:
    with pytest.raises(ConfigError, match=r"^samples: expected .*1 or more, got "):
        compare(load_checkpoint(plain_checkpoint).model, open_bundle(plain_bundle), samples=samples, tolerance=1e-4)
    with pytest.raises(ConfigError, match=r"^samples: expected .*1 or more, got "):
        verify_bundle(plain_bundle, reference="nothing", samples=samples)


def test_compare_other_weights(dact_bundle: Path, save_tiny_checkpoint: Callable[..., Path]) -> None:
    other = save_tiny_checkpoint({"name": "dact_bert", "trunk": 16, "halt_bias": 0.0}, NEVER, seed=11)

    with pytest.raises(QualityError, match=r"dact: differs from torch: answers by up to .* of 8 decisions\.$"):
        compare(load_checkpoint(other).model, open_bundle(dact_bundle), samples=8, tolerance=1e-4)


@pytest.mark.parametrize(
    ("bundle", "checkpoint"), [("plain_bundle", "plain_checkpoint"), ("dact_bundle", "dact_checkpoint")]
)
def test_compare_nan_is_no_agreement(request: pytest.FixtureRequest, bundle: str, checkpoint: str) -> None:
    opened = open_bundle(request.getfixturevalue(bundle))
    model = load_checkpoint(request.getfixturevalue(checkpoint)).model
    with torch.no_grad():
        model.encoder.layers[0].feed_forward.norm.weight.fill_(float("nan"))

    with pytest.raises(QualityError, match="differs from torch: answers by up to nan"):
        compare(model, opened, samples=8, tolerance=1e9)


def test_compare_other_shape(dact_bundle: Path, save_tiny_checkpoint: Callable[..., Path]) -> None:
    other = save_tiny_checkpoint({"name": "dact_bert"}, NEVER, layers=2)

    with pytest.raises(
        DataError, match=r"dact: has 3 layers of width 32, .*; the reference has 2 layers of width 32, "
    ):
        compare(load_checkpoint(other).model, open_bundle(dact_bundle), samples=8, tolerance=1e-4)


def test_compare_other_method(dact_bundle: Path, plain_checkpoint: Path) -> None:
    with pytest.raises(DataError, match="dact: the reference is of another method"):
        compare(load_checkpoint(plain_checkpoint).model, open_bundle(dact_bundle), samples=8, tolerance=1e-4)


@pytest.mark.parametrize("method", [{"name": "plain"}, {"name": "pabee"}], ids=["plain", "pabee"])
def test_compare_large_single_values(
    tmp_path: Path, make_encoder: Callable[..., Encoder], method: dict[str, str]
) -> None:
    config = RunConfig(method=method, train=TrainConfig(task="regression"))
    torch.manual_seed(0)
    model = build_model(make_encoder(), config, 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():  # type: ignore[attr-defined]
            if len(weight) == 1 and not name.startswith("encoder."):
                weight.mul_(10_000.0) if weight.ndim > 1 else weight.fill_(5_000.0)
    facts = CheckpointFacts(labels=("price",), seed=None, config=config, operating_points=NEVER)
    save_checkpoint(Checkpoint(model, facts, {}), tmp_path / "checkpoint", force=False)

    bundle = export_model(tmp_path / "checkpoint", tmp_path / "bundle", overrides={"verify_samples": 16})

    parity = compare(model, bundle, samples=16, tolerance=1e-5)
    assert 0 < parity.max_difference <= 1e-5
    with torch.no_grad():
        model.encoder.layers[-1].feed_forward.norm.bias.add_(0.01)
    with pytest.raises(QualityError, match="differs from torch: answers by up to "):
        compare(model, bundle, samples=16, tolerance=1e-4)


def test_within_margin_of_large_single_values() -> None:
    answers = [[1000.0, 900.0], [1000.101, 900.0], [1000.0, 900.0]]
    exits = [Decision("exit", layer, {"logits": np.array([row]).T}) for layer, row in enumerate(answers, start=1)]
    policy = make_policy("patience", {"patience": 1, "tolerance": 0.1}, exit_layers=[1, 2, 3])

    near = within_margin(policy, exits, 3, np.random.default_rng(0))

    assert near.tolist() == [True, False]


def test_within_margin_finds_rows_near_the_border() -> None:
    exit = {"probabilities": np.array([[p, 1 - p] for p in (0.9, 0.8 + 2e-6, 0.8 - 2e-6, 0.7)])}
    exits = [Decision("exit", layer, exit) for layer in (1, 2)]
    policy = make_policy("confidence", {"threshold": 0.8}, exit_layers=[1, 2])

    near = within_margin(policy, exits, 2, np.random.default_rng(0))

    assert near.tolist() == [False, True, True, False]


def test_within_margin_finds_near_ties_of_labels() -> None:
    exits = [Decision("exit", 1, {"probabilities": np.array([[0.5 + 1e-6, 0.5 - 1e-6], [0.6, 0.4]])})]

    near = within_margin(make_policy("never", {}, exit_layers=[1]), exits, 1, np.random.default_rng(0))

    assert near.tolist() == [True, False]


def test_random_inputs_are_padded_rows_of_allowed_ids(dact_bundle: Path) -> None:
    bundle = open_bundle(dact_bundle)

    inputs = random_inputs(np.random.default_rng(0), 50, 500, bundle)

    ids, mask, types = inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"]
    lengths = mask.sum(axis=1)
    assert ids.shape == mask.shape == types.shape == (50, lengths.max())
    assert 3 <= lengths.min() < lengths.max() <= 48
    assert (mask == (np.arange(lengths.max()) < lengths[:, None])).all()
    assert (ids[mask == 0] == 0).all()
    assert 1 <= ids[mask == 1].min() <= ids.max() < bundle.manifest.encoder.vocabulary_size
    assert set(np.unique(types)) == {0, 1}


def test_verify_bundle_without_a_reference(plain_bundle: Path) -> None:
    report = verify_bundle(plain_bundle)

    assert json.loads(json.dumps(report)) == {
        "schema": "edgebert.verify/1",
        "bundle": str(plain_bundle),
        "files": 10,
        "graphs": 5,
        "notes": [],
        "parity": None,
        "agreement": None,
        "signature": None,
        "replay": None,
    }


def test_verify_bundle_with_its_reference(dact_bundle: Path, dact_checkpoint: Path) -> None:
    parity = verify_bundle(dact_bundle, reference=str(dact_checkpoint), samples=8)["parity"]

    assert (parity["samples"], parity["decisions"], parity["differing_decisions"]) == (8, 8, 0)
    assert parity["max_difference"] <= 1e-5


def test_verify_bundle_with_another_reference(dact_bundle: Path, save_tiny_checkpoint: Callable[..., Path]) -> None:
    other = save_tiny_checkpoint({"name": "dact_bert", "trunk": 16}, NEVER, seed=12)

    with pytest.raises(QualityError, match="dact: differs from torch"):
        verify_bundle(dact_bundle, reference=str(other), samples=8)


def test_verify_bundle_missing_reference(dact_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="no such checkpoint folder"):
        verify_bundle(dact_bundle, reference="./nothing")


def test_verify_bundle_notes_an_edited_card(tmp_path: Path, plain_bundle: Path) -> None:
    copy = shutil.copytree(plain_bundle, tmp_path / "copy")
    (copy / "README.md").write_text("mine")

    assert verify_bundle(copy)["notes"] == [f"{copy / 'README.md'}: edited or removed since the bundle was made."]


@pytest.mark.parametrize("name", ["graphs/layer_01.onnx", "onnx/model.onnx", "config.yaml"])
def test_verify_bundle_damaged(tmp_path: Path, plain_bundle: Path, name: str) -> None:
    copy = shutil.copytree(plain_bundle, tmp_path / "copy")
    (copy / name).write_bytes((copy / name).read_bytes()[:-1] + b"!")

    with pytest.raises(BundleError, match=f"copy/{name}: changed since the bundle was made"):
        verify_bundle(copy)


def test_verify_bundle_deep(plain_bundle: Path, tmp_path: Path) -> None:
    both = add_single(plain_bundle, tmp_path / "both", samples=1)

    report = verify_bundle(both.path, deep=True)

    assert report["graphs"] == 6
    assert report["replay"]["samples"] == 8
    assert report["replay"]["max_difference"] <= 1e-6


def test_verify_command_deep(invoke: Callable[..., tuple[int, str, str]], plain_bundle: Path) -> None:
    code, out, _ = invoke("verify", plain_bundle, "--deep")

    assert code == 0
    assert "answers 8 recorded samples as when made: largest difference " in out


def test_verify_command_deep_where_a_graph_was_changed(
    invoke: Callable[..., tuple[int, str, str]], plain_bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(plain_bundle, tmp_path / "copy")
    opened = open_bundle(plain_bundle)
    other = opened.read("graphs/layer_00.onnx")
    (copy / "graphs/layer_01.onnx").write_bytes(other)
    facts = {**opened.manifest.files, "graphs/layer_01.onnx": opened.manifest.files["graphs/layer_00.onnx"]}
    (copy / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(opened.manifest, files=facts)))

    assert invoke("verify", copy)[0] == 0
    code, _, err = invoke("verify", copy, "--deep")

    assert code == 4
    assert "samples.json: sample 0 of 3 tokens is answered otherwise than when the bundle was made" in err
