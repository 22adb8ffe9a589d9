"""Reading a checkpoint of another project: settings and tensors, never code."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgebert.errors import ConfigError
from edgebert.read import LARGEST_DATA_BYTES, is_folder, open_file, read_object

_FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_MARK = "edgebert.yaml"


@dataclass(frozen=True)
class Source:
    """A checkpoint as it was found.

    Attributes:
        settings: The content of its configuration file.
        settings_path: That file.
        weights: Its tensors by name.
        folder: Where it lies.
    """

    settings: dict[str, Any]
    settings_path: Path
    weights: dict[str, Tensor]
    folder: Path


def read_source(path: Path, config: Path | None) -> Source:
    """Reads a folder with `config.json` and weights, or a single file of weights.

    Args:
        path: The folder, or a file of `torch.save` or safetensors.
        config: The configuration file; None is `config.json` in the folder.

    Raises:
        ConfigError: A file is missing, damaged, or holds more than tensors.
    """
    is_there = is_folder(path, error=ConfigError)
    if is_there is None:
        raise ConfigError(f"{path}: no such folder or file.")
    folder = path if is_there else path.parent
    if path.is_dir() and (path / _MARK).is_file():
        raise ConfigError(f"{path}: is a checkpoint of edgebert already; edgebert export takes it as it is.")
    weights_path = _weights_in(path) if path.is_dir() else path
    settings_path = config or folder / "config.json"
    settings = _read_settings(settings_path)
    return Source(settings, settings_path, _read_weights(weights_path), folder)


def _weights_in(folder: Path) -> Path:
    for name in _FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{folder}: has none of {', '.join(_FOLDER_WEIGHTS)}; name the file of weights itself.")


def _read_settings(path: Path) -> dict[str, Any]:
    if is_folder(path, error=ConfigError) is None:
        raise ConfigError(f"{path}: no such configuration file; name the model's own with --config.")
    return read_object(path, error=ConfigError)


def _read_weights(path: Path) -> dict[str, Tensor]:
    with open_file(path, largest_bytes=LARGEST_DATA_BYTES, error=ConfigError):
        pass  # a pipe or device is refused before a library waits for it
    weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(weights, dict) or not weights:
        raise ConfigError(f"{path}: expected tensors by name, as state_dict() gives them, got {_kind(weights)}.")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ConfigError(
                f"{path}: expected tensors by name, as state_dict() gives them, got {_kind(tensor)} for {name!r}."
            )
    return {name: tensor.detach().float() for name, tensor in weights.items()}


def _kind(value: object) -> str:
    return "nothing" if value == {} else type(value).__name__


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read, is it complete? {error}") from error


def _read_pickle(path: Path) -> Any:
    """Opens a file of `torch.save` without running anything that is in it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file can fail anywhere in the reader.
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        wanted = re.search(r"GLOBAL (\S+\w) (was|whose)", reason)
        if wanted:
            raise ConfigError(
                f"{path}: refused: to read it, {wanted.group(1)} would have to be run; only files of plain tensors are "
                "opened. Save the model's state_dict() alone, best as safetensors."
            ) from error
        # torch's own text advises to run what is in the file.
        reason = reason.partition("WeightsUnpickler error: ")[2] or reason.partition("Weights only load failed")[0]
        raise ConfigError(f"{path}: cannot be read as tensors, is it complete? {reason[:200]}".rstrip()) from error
