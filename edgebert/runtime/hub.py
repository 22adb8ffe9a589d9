"""Finds a bundle: a folder, or the hub id of one."""

from __future__ import annotations

from pathlib import Path

from edgebert.arguments import check_path
from edgebert.bundle import Bundle, open_bundle
from edgebert.errors import BundleError, require
from edgebert.hub import may_be_hub_id
from edgebert.read import is_folder


def find_bundle(path: str | Path) -> Bundle:
    """Opens a bundle folder, or the bundle of a hub id, without loading its graphs.

    Raises:
        BundleError: There is none, or it is refused.
        MissingExtraError: What a hub id needs is not installed.
    """
    is_folder(check_path("bundle", path, error=BundleError), error=BundleError)
    return open_bundle(_download(str(path)) if _is_hub_id(path) else path)


def _is_hub_id(path: str | Path) -> bool:
    """Says whether a text that names no folder looks like `owner/name` rather than a mistyped path."""
    return isinstance(path, str) and path.count("/") == 1 and may_be_hub_id(path)


def _download(hub_id: str) -> Path:
    """Fetches a bundle from the hub.

    Raises:
        BundleError: There is no such bundle folder, and the hub has none either.
    """
    hub = require("huggingface_hub", extra="hub", purpose=f"{hub_id}: no such folder, and opening a hub id")
    try:
        return Path(hub.snapshot_download(hub_id))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(f"{hub_id}: no such bundle folder, and not to be had from the hub: {reason}") from error
