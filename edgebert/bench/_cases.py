"""What a bench times its sides on: texts, or random token ids of given lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edgebert.bundle import TOKENIZER_NAME
from edgebert.data import Example, texts_of
from edgebert.errors import ConfigError
from edgebert.rivals._protocol import Case
from edgebert.rivals._turns import TimedSide
from edgebert.tasks import load_task

DEFAULT_LENGTHS = (16, 32, 128)


def check_tokenizers(sides: Sequence[TimedSide], *, cure: str) -> None:
    """Refuses bundles that cannot be asked texts.

    Raises:
        ConfigError: One has no tokenizer.
    """
    for side in sides:
        if not side.bundle.has(TOKENIZER_NAME):
            raise ConfigError(f"{side.bundle.path}: has no tokenizer, so texts cannot be timed; {cure}.")


def read_data(
    sides: Sequence[TimedSide], data: str | Path | None, columns: Mapping[str, str] | None, limit: int
) -> Sequence[Example]:
    """Returns the examples whose texts to time, none without data.

    Raises:
        ConfigError: A bundle has no tokenizer, or the bundles are not asked alike.
        DataError: The data cannot be read.
    """
    if data is None:
        return ()
    check_tokenizers(sides, cure="leave --data out")
    names = {side.bundle.manifest.task for side in sides}
    tasks = [load_task(name) for name in sorted(names)]
    if len({task.ASKED for task in tasks}) > 1:
        raise ConfigError(f"data: expected bundles that are asked alike, got {' and '.join(sorted(names))}.")
    return tasks[0].read(data, split="validation", columns=columns, require_labels=False)[:limit]


def make_cases(
    sides: Sequence[TimedSide],
    batches: Sequence[int],
    lengths: Sequence[int] | None,
    examples: Sequence[Example],
    scenario: Literal["single-stream", "offline"],
    max_length: int | None,
) -> list[Case]:
    """Returns every batch with every length, or with the texts."""
    if examples:
        texts = tuple(texts_of(examples))
        return [Case(batch=batch, texts=texts, scenario=scenario, max_length=max_length) for batch in batches]
    for side in sides:
        longest = side.bundle.manifest.encoder.max_length
        if lengths and max(lengths) > longest:
            raise ConfigError(f"lengths: {side.bundle.path} takes at most {longest} tokens, got {max(lengths)}.")
    if not lengths:
        longest = min(side.bundle.manifest.encoder.max_length for side in sides)
        lengths = [length for length in DEFAULT_LENGTHS if length <= longest] or [longest]
    vocabulary = min(side.bundle.manifest.encoder.vocabulary_size for side in sides)
    return [Case(batch=batch, length=length, vocabulary_size=vocabulary) for batch in batches for length in lengths]


def make_ladders(side: TimedSide, cases: Sequence[Case]) -> list[list[Case]]:
    """Returns, for each case, the same case stopped after each of the bundle's exit layers."""
    manifest = side.bundle.manifest
    if "fixed" not in manifest.policies or len(manifest.exit_layers) < 2:
        raise ConfigError(
            f"per-layer: {side.bundle.path} ({manifest.method}) has no exits to stop at; it works for bundles with the "
            "policy `fixed`, such as those of dact_bert."
        )
    return [
        [msgspec.structs.replace(case, policy="fixed", knobs={"layer": layer}) for layer in manifest.exit_layers]
        for case in cases
    ]
