"""What names no folder may be a hub id: which names may, and whether the hub can be asked, by one request."""

from __future__ import annotations

import difflib
import functools
import os
import re
from pathlib import Path
from typing import Any, Literal

from edgebert.errors import ConfigError, require

_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_TIMEOUT_S = 10.0


def may_be_hub_id(source: str) -> bool:
    """Says whether a text that names nothing on this machine looks like `name` or `owner/name`, not a mistyped path."""
    is_path = "/" in source and Path(source).parent.exists()
    return _ID.fullmatch(source) is not None and not is_path and not Path(source).exists()


def model_options(source: str) -> dict[str, Any]:
    """Returns what to open a checkpoint folder or hub id with, so that a hub out of reach is tried once.

    Raises:
        ConfigError: There is no such folder, and it is no hub id.
    """
    if Path(source).is_dir():
        return {}
    if not may_be_hub_id(source):
        raise ConfigError(f"{source}: no such checkpoint folder.{similar(source)}")
    return {} if is_reached(source, "model") else {"local_files_only": True}


@functools.cache
def is_reached(name: str, kind: Literal["model", "dataset"]) -> bool:
    """Asks the hub once about a name; says whether it answered, whatever that was."""
    hub = require("huggingface_hub", extra="hub", purpose=f"{name}: no such folder, and opening a hub id")
    asked = hub.HfApi()
    try:
        (asked.model_info if kind == "model" else asked.dataset_info)(name, timeout=_TIMEOUT_S)
    except (hub.errors.HfHubHTTPError, ValueError):
        return True
    except Exception:  # noqa: BLE001  # what says so is of requests or httpx, as the version of the hub's library is
        return False
    return True


def similar(path: str | Path) -> str:
    """Returns ' Did you mean ...?' for files and folders whose names are like that of what is not there."""
    path = Path(path)
    while not path.parent.is_dir():
        path = path.parent
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    near = [repr(str(path.parent / name)) for name in difflib.get_close_matches(path.name, names, cutoff=0.6)]
    return f" Did you mean {' or '.join(near)}?" if near else ""
