from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from edgebert import hub
from edgebert.errors import ConfigError

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    hub.is_reached.cache_clear()
    yield
    hub.is_reached.cache_clear()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets nobody answer, and returns what the hub was asked about."""
    asked: list[str] = []

    def refuse(_: object, name: str, **__: object) -> None:
        asked.append(name)
        raise ConnectionError("there is no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub.utils._http, "http_backoff", lambda *_, **__: pytest.fail("was tried again"))
    return asked


@pytest.mark.parametrize("name", ["bert-base-uncased", "owner/name"])
def test_may_be_hub_id(name: str) -> None:
    assert hub.may_be_hub_id(name)


@pytest.mark.parametrize("name", ["./name", "/name", "~/name", "a/b/c", "random:tiny", "folder", "folder/name", ""])
def test_may_be_hub_id_of_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)

    assert not hub.may_be_hub_id(name)


def test_model_options_asks_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, requests: list[str]) -> None:
    monkeypatch.chdir(tmp_path)

    assert hub.model_options("nope") == hub.model_options("nope") == {"local_files_only": True}
    assert hub.model_options(str(tmp_path)) == {}
    assert requests == ["nope"]


def test_is_reached_by_any_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: object, name: str, **__: object) -> None:
        raise ValueError("no such model")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)

    assert hub.is_reached("nope", "model")


def test_model_options_of_a_path_name_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()

    with pytest.raises(ConfigError, match=r"plian: no such checkpoint folder\. Did you mean '.*/plain'\?$"):
        hub.model_options(f"{tmp_path}/plian")


def test_export_misspelt(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, requests: list[str]) -> None:
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path)

    code, _, err = invoke("export", "plian", "out")

    assert code == 2
    first, last = err.splitlines()
    assert first == "plian: no such folder; trying the hub"
    assert last.startswith("error: plian: cannot be opened as a checkpoint folder or hub id: ")
    assert last.endswith(" Did you mean 'plain'?")
    assert requests == ["plian"]
