import re
from pathlib import Path

import pytest

from edgebert import errors
from edgebert.errors import EdgeBertError, MissingExtraError, require, suggestion


@pytest.mark.parametrize(
    ("name", "builtin", "exit_code"),
    [
        ("EdgeBertError", Exception, 1),
        ("ConfigError", ValueError, 2),
        ("DataError", ValueError, 2),
        ("BundleError", ValueError, 3),
        ("QualityError", Exception, 4),
        ("MissingExtraError", ImportError, 5),
    ],
)
def test_error_classes_exit_code_and_builtin(name: str, builtin: type[Exception], exit_code: int) -> None:
    kind = getattr(errors, name)

    assert issubclass(kind, EdgeBertError)
    assert issubclass(kind, builtin)
    assert kind.exit_code == exit_code


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("treshold", ["slack", "threshold"], " Did you mean 'threshold'?"),
        ("zzz", ["b", "a"], " Known: a, b."),
        ("zzz", ["b", "a", "b"], " Known: a, b."),
        ("zzz", [], " Known: none."),
    ],
)
def test_suggestion_nearest_or_all(name: str, known: list[str], text: str) -> None:
    assert suggestion(name, known) == text


def test_require_installed() -> None:
    assert require("json.decoder", extra="eval", purpose="reading").__name__ == "json.decoder"


def test_require_missing_names_the_extra() -> None:
    expected = "scoring needs no_such_package, which is not installed: pip install 'edgebert[eval]'"

    with pytest.raises(MissingExtraError, match=f"^{re.escape(expected)}$"):
        require("no_such_package.metrics", extra="eval", purpose="scoring")


def test_require_installed_but_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_package.py").write_text("raise ImportError('initialization failed')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    expected = "scoring needs broken_package, which cannot be imported (initialization failed): pip install"

    with pytest.raises(MissingExtraError, match=f"^{re.escape(expected)}"):
        require("broken_package", extra="eval", purpose="scoring")
