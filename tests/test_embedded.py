from pathlib import Path

import pytest

from edgebert.embedded import resolve_source
from edgebert.errors import ConfigError


def test_resolve_source_embedded() -> None:
    assert (Path(resolve_source("embedded:minilm-l6")) / "model.safetensors").is_file()


def test_resolve_source_other_is_left_alone() -> None:
    assert resolve_source("owner/name") == "owner/name"


def test_resolve_source_unknown() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'minilm-l6'"):
        resolve_source("embedded:minilm-l12")
