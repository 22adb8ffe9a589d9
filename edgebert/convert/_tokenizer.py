"""The tokenizer of a checkpoint trained elsewhere, which may be a bare vocabulary."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from edgebert.checkpoint import TOKENIZER_NAME, fetch_tokenizer
from edgebert.encoders._blocks import EncoderConfig
from edgebert.encoders._checkpoint import settings_of
from edgebert.errors import ConfigError, EdgeBertError

_SUFFIXES = (".txt", ".json", ".model")


def find_tokenizer(source: str, shape: EncoderConfig) -> dict[str, bytes]:
    """Returns the tokenizer files of a folder, hub id or WordPiece vocabulary file, `tokenizer.json` among them.

    A vocabulary alone does not say what it is of: it is read beside the settings of our encoder.

    Raises:
        ConfigError: There is none, it cannot be read, or it has ids that the encoder does not know.
    """
    path = Path(source)
    is_bare = path.is_file() or (path.is_dir() and not (path / TOKENIZER_NAME).is_file())
    files = _from_vocabulary(path, shape) if is_bare else fetch_tokenizer(source)
    try:
        largest = max(Tokenizer.from_buffer(files[TOKENIZER_NAME]).get_vocab().values())
    except Exception as error:
        raise ConfigError(f"{source}: its {TOKENIZER_NAME} cannot be read: {error}") from error
    if largest >= shape.vocabulary_size:
        raise ConfigError(
            f"{source}: its tokenizer has ids up to {largest}, but the model knows {shape.vocabulary_size} of them; "
            "name the tokenizer it was trained with, with --tokenizer."
        )
    return files


def _from_vocabulary(path: Path, shape: EncoderConfig) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        if path.is_file():
            shutil.copy(path, Path(folder) / "vocab.txt")
        else:
            for file in path.iterdir():
                if file.is_file() and file.suffix in _SUFFIXES:
                    shutil.copy(file, folder)
        (Path(folder) / "config.json").write_text(json.dumps(settings_of(shape)), encoding="utf-8")
        try:
            return fetch_tokenizer(folder)
        except EdgeBertError as error:
            message = f"{str(error).replace(folder, str(path))} Another tokenizer can be named with --tokenizer."
            raise type(error)(message) from error
