import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import edgebert

HEAVY = [
    "torch",
    "transformers",
    "onnx",
    "datasets",
    "scipy",
    "sklearn",
    "safetensors",
    "accelerate",
    "huggingface_hub",
    "rich",
    "altair",
    "vl_convert",
    "cryptography",
    "model_signing",
]
MODULES = ["edgebert", *(module.name for module in pkgutil.walk_packages(edgebert.__path__, "edgebert."))]
TORCH_SIDE = (
    "checkpoint",
    "convert",
    "demo",
    "encoders",
    "export",
    "losses",
    "methods",
    "quantize",
    "rivals",
    "single",
    "training",
)
LIGHT = [name for name in MODULES if not f"{name}.".startswith(tuple(f"edgebert.{part}." for part in TORCH_SIDE))]


def test_all_is_exactly_what_is_public() -> None:
    assert sorted(edgebert.__all__) == [
        "Answer",
        "EdgeBertError",
        "EdgeModel",
        "Prediction",
        "__version__",
        "bench_bundles",
        "evaluate_bundle",
        "export_model",
        "export_single",
        "quantize_bundle",
        "read_config",
        "train_model",
        "tune_bundle",
        "verify_bundle",
        "write_report",
    ]
    assert dir(edgebert) == sorted(edgebert.__all__)


@pytest.mark.parametrize("name", edgebert.__all__)
def test_public_name_is_importable(name: str) -> None:
    value = getattr(edgebert, name)

    assert not isinstance(value, ModuleType)
    assert name == "__version__" or value.__module__.startswith("edgebert.")


def test_public_name_unknown() -> None:
    with pytest.raises(AttributeError, match=r"^module 'edgebert' has no attribute 'EdgeModle'$"):
        _ = edgebert.EdgeModle  # type: ignore[attr-defined]


def test_version_is_the_packages() -> None:
    metadata = importlib.import_module("importlib.metadata")

    assert edgebert.__version__ == metadata.version("edgebert")


def test_light_modules_import_nothing_heavy() -> None:
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {LIGHT!r}]; "
        f"print(sorted(set(sys.modules) & set({HEAVY!r})))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_import_edgebert_imports_nothing_that_is_not_needed() -> None:
    code = (
        f"import sys, edgebert; print(sorted(set(sys.modules) & {{'numpy', 'onnxruntime', 'tokenizers', *{HEAVY!r}}}))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)

    assert (module.__doc__ or "").strip()
