import subprocess
import sys

import pytest

from edgebert import registry
from edgebert.errors import ConfigError


def test_names_sorted_without_shared_parts() -> None:
    names = registry.names("edgebert.methods")

    assert names == sorted(names)
    assert {"plain", "dact_bert"} <= set(names)
    assert not [name for name in names if name.startswith("_")]


def test_names_imports_no_variant() -> None:
    code = (
        "import sys; from edgebert import registry; registry.names('edgebert.methods'); "
        "print([m for m in sys.modules if m == 'torch' or m.startswith('edgebert.methods.')])"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"


def test_load_known() -> None:
    assert registry.load("edgebert.policies", "halting").__name__ == "edgebert.policies.halting"


@pytest.mark.parametrize(
    ("package", "name", "message"),
    [
        ("edgebert.methods", "dact-bert", "unknown method 'dact-bert'. Did you mean 'dact_bert'?"),
        ("edgebert.policies", "confidense", "unknown policy 'confidense'. Did you mean 'confidence'?"),
        ("edgebert.encoders", "berd", "unknown encoder 'berd'. Did you mean 'bert'?"),
        (
            "edgebert.encoders",
            "_blocks",
            "unknown encoder '_blocks'. Known: albert, bert, distilbert, electra, roberta, xlm_roberta.",
        ),
        ("edgebert.convert", "deebrt", "unknown naming 'deebrt'. Did you mean 'deebert'?"),
        ("edgebert.tasks", "classify", "unknown task 'classify'. Did you mean 'classification'?"),
    ],
)
def test_load_unknown(package: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        registry.load(package, name)

    assert str(raised.value) == message
