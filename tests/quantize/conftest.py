"""What the tests of quantization share: a tiny fp32 bundle of every method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from edgebert import registry
from edgebert.bundle import WHOLE_MODEL_NAME, open_bundle
from edgebert.bundle.manifest import OperatingPoint
from edgebert.config import ExportConfig
from edgebert.derive import derive
from edgebert.export import export_model
from edgebert.quantize._graphs import find_products, graph_bytes, read_graph
from edgebert.runtime.model import EdgeModel


@pytest.fixture(scope="session")
def bundle_of(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    save_tiny_checkpoint: Callable[..., Path],
) -> Callable[..., Path]:
    """Returns a method's tiny fp32 bundle with random weights, made once; its default is the method's own rule."""
    made: dict[str, Path] = {}

    def make(method: str, **changes: object) -> Path:
        shared = {"plain": "plain_bundle", "dact_bert": "dact_bundle", "geep": "geep_bundle"}
        if method in shared and not changes:
            path: Path = request.getfixturevalue(shared[method])
            return path
        key = f"{method} {sorted(changes)}"
        if key not in made:
            module = registry.load("edgebert.methods", method)
            policy, knobs = module.rule(module.Config())
            points = {"default": OperatingPoint(policy=policy, knobs=knobs)}
            checkpoint = save_tiny_checkpoint({"name": method}, points, **{"layers": 2, **changes})
            folder = tmp_path_factory.mktemp("fp32") / method
            made[key] = export_model(checkpoint, folder, settings=ExportConfig(verify_samples=1)).path
        return made[key]

    return make


@pytest.fixture(scope="session")
def calibration(sentiment_data: Path) -> Path:
    """200 texts."""
    return sentiment_data / "train.tsv"


@pytest.fixture(scope="session")
def sensitive(tmp_path_factory: pytest.TempPathFactory, plain_bundle: Path, texts: list[str]) -> tuple[Path, Path]:
    """A bundle whose second layer int8 destroys, and a file of texts labelled with what it answers in fp32.

    It is what the layer's attention reads that int8 cannot hold.
    """
    return _spoiled(plain_bundle, tmp_path_factory.mktemp("sensitive"), texts, slice(0, 3))


@pytest.fixture(scope="session")
def one_bad_product(
    tmp_path_factory: pytest.TempPathFactory, plain_bundle: Path, texts: list[str]
) -> tuple[Path, Path]:
    """The same, of a bundle in whose second layer int8 destroys the fourth of six products: that after attention."""
    return _spoiled(plain_bundle, tmp_path_factory.mktemp("one_bad_product"), texts, slice(3, 4))


def _spoiled(bundle: Path, folder: Path, texts: list[str], which: slice) -> tuple[Path, Path]:
    """Makes a bundle in whose second layer int8 destroys some products that read the same, and labels texts with it.

    What they read gets one number far from all others, which their matrices do not look at: in float nothing comes of
    it, in 8 bits all other numbers are rounded to the same one. The texts are those with the clearest answers, so that
    what is lost elsewhere changes none.
    """
    source, path = open_bundle(bundle), "graphs/layer_01.onnx"
    model = read_graph(source.read(path))
    products = find_products(model)[which]
    (read,) = {product.activation for product in products}
    for product in products:
        values = product.values.copy()
        values[0] = 0
        constant = next(c for c in model.graph.initializer if c.name == product.weight)
        constant.CopyFrom(numpy_helper.from_array(values, product.weight))
        product.node.input[0] = "far"
    far = np.zeros(len(products[0].values), np.float32)
    far[0] = 1e5
    model.graph.initializer.append(numpy_helper.from_array(far, "far_number"))
    outputs = [node.output[0] for node in model.graph.node]
    first = min(outputs.index(product.node.output[0]) for product in products)
    model.graph.node.insert(first, helper.make_node("Add", [read, "far_number"], ["far"]))
    made = derive(
        source,
        folder / "bundle",
        graphs={path: graph_bytes(model)},
        without=[WHOLE_MODEL_NAME],
        changes={"parity": None},
    )
    with EdgeModel(made, threads=1) as runtime:
        answers = runtime(texts)
    clearest = sorted(zip(texts, answers, strict=True), key=lambda pair: -pair[1].score)[:60]
    lines = ["text\tlabel", *(f"{text}\t{answer.label}" for text, answer in clearest)]
    (folder / "eval.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return made.path, folder / "eval.tsv"
