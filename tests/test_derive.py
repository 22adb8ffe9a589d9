from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from edgebert.bundle import CARD_NAME, SAMPLES_NAME, open_bundle
from edgebert.bundle.manifest import OperatingPoint
from edgebert.derive import derive
from edgebert.errors import BundleError, EdgeBertError


@pytest.fixture
def source(dact_bundle, tmp_path):
    return derive(open_bundle(dact_bundle), tmp_path / "source.bundle")


@pytest.fixture
def other_embed(source):
    """The source's embeddings with other numbers in them."""
    model = onnx.load_from_string(source.read("graphs/embed.onnx"))
    weights = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights[::-1], model.graph.initializer[0].name))
    return model.SerializeToString()


def test_other_graphs_other_facts_and_the_rest_as_it_was(source, other_embed, tmp_path):
    path = "graphs/embed.onnx"
    point = OperatingPoint(policy="never", knobs={})
    made = derive(
        source,
        tmp_path / "made.bundle",
        graphs={path: other_embed},
        changes={"precision": "int8", "operating_points": {**source.manifest.operating_points, "slow": point}},
    )
    assert made.read(path) == other_embed
    assert made.manifest.files[path].inputs == source.manifest.files[path].inputs
    assert made.manifest.precision == "int8"
    assert made.manifest.operating_points["slow"] == point
    assert made.manifest.files[SAMPLES_NAME] != source.manifest.files[SAMPLES_NAME]
    same = set(source.manifest.files) - {path, CARD_NAME, SAMPLES_NAME}
    assert all(made.manifest.files[name] == source.manifest.files[name] for name in same)
    assert "| slow |" in made.read(CARD_NAME).decode()


def test_in_its_own_place_and_without_a_file(source):
    assert "config.yaml" in source.manifest.files
    made = derive(source, source.path, without=["config.yaml"], force=True)
    assert made.path == source.path
    assert "config.yaml" not in made.manifest.files
    assert not (source.path / "config.yaml").exists()
    with pytest.raises(EdgeBertError, match="--force"):
        derive(made, source.path)


def test_an_edited_card_stays(source, tmp_path):
    (source.path / CARD_NAME).write_text("# mine\n")
    made = derive(source, tmp_path / "made.bundle")
    assert made.read(CARD_NAME) == b"# mine\n"
    (source.path / CARD_NAME).unlink()
    again = derive(source, tmp_path / "again.bundle")
    assert again.read(CARD_NAME).startswith(b"---")


def test_a_damaged_source_makes_nothing(source, tmp_path):
    (source.path / "graphs/embed.onnx").write_bytes(b"cut")
    with pytest.raises(BundleError, match="expected"):
        derive(source, tmp_path / "made.bundle")
    assert not (tmp_path / "made.bundle").exists()
    assert Path(source.path).exists()
