"""Says how a bundle's cost grows with layers, width, length, batch and data size, and what two numbers foretell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgebert.bundle import TOKENIZER_NAME
from edgebert.data import texts_of
from edgebert.errors import ConfigError
from edgebert.host import host_facts
from edgebert.output import Reporter
from edgebert.runtime.model import EdgeModel
from edgebert.scale._fit import choose_form
from edgebert.scale._grid import time_grid
from edgebert.scale._stream import WINDOW, measure_stream

SCHEMA = "edgebert.scale/1"
DEFAULT_LENGTHS = (16, 32, 64, 128)


def scale_bundle(
    bundle: str | Path,
    *,
    data: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    texts: int = 100_000,
    batch_size: int = 32,
    max_length: int | None = None,
    policy: str = "default",
    lengths: Sequence[int] | None = None,
    batches: Sequence[int] = (1, 8, 32),
    threads: int = 1,
    repeats: int = 3,
    provider: str = "cpu",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Streams texts through a bundle in bounded memory, then times a grid of calls and fits two numbers to it.

    The stream: the texts of `data`, over and over, one at a time from a generator through `EdgeModel.stream`, with the
    private memory read at about 20 checkpoints. Then some of them as a stream and as a list, taking turns.

    The grid: random token ids of every length in every batch size, at every depth the bundle can be stopped at (a few
    of them) or at several widths; all points take turns. `model` is time = fixed x unit + rate x multiply-accumulates,
    whose unit (a call, a row, a layer's call, a token's way through a layer) is the one of four with the smallest
    median relative error on lengths that were left out of the fit; `forms` has all four.

    Args:
        bundle: Bundle folder.
        data: What is streamed: a file or hub id that the bundle's task reads. None streams nothing.
        columns: The data's column for a field.
        texts: How many texts are streamed.
        batch_size: Most texts in a batch of the stream.
        max_length: Cut its texts to this many tokens.
        policy: Operating point or policy of the stream.
        lengths: Tokens of the grid's rows; None: 16, 32, 64 and 128, as far as the bundle takes them.
        batches: Rows of the grid's calls.
        threads: Threads inside an operator.
        repeats: Turns of each point of the grid.
        provider: Where the bundles' graphs run: a file in `edgebert/runtime/providers`.
        reporter: Where progress goes.

    Returns:
        Plain data: `schema`, `host`, what was measured, `stream` (None without data), `grid` and `model`.

    Raises:
        ConfigError: An option makes no sense, or the bundle has no tokenizer for the texts.
        DataError: The data cannot be read.
        BundleError: The bundle is refused.
        MissingExtraError: psutil is not installed, which reads the memory of the stream.
    """
    for name, values in {"batches": batches, "texts": [texts], "repeats": [repeats], "threads": [threads]}.items():
        if min(values, default=0) < 1:
            raise ConfigError(f"{name}: expected whole numbers of 1 or more.")
    reporter = reporter or Reporter()
    with EdgeModel.from_pretrained(bundle, policy=policy, threads=threads, provider=provider) as model:
        manifest = model.manifest
        lengths = _lengths(lengths, manifest.encoder.max_length)
        stream = None
        if data is not None:
            if not model.bundle.has(TOKENIZER_NAME):
                raise ConfigError(f"{bundle}: has no tokenizer, so texts cannot be streamed; leave --data out.")
            examples = model.task.read(data, split="validation", columns=columns, require_labels=False)
            stream = measure_stream(
                model, texts_of(examples), texts, batch_size=batch_size, max_length=max_length, reporter=reporter
            )
        stream_policy = model.policy
        points = time_grid(model, lengths, batches, repeats, reporter)
    return {
        "schema": SCHEMA,
        "host": host_facts(),
        "bundle": str(bundle),
        "method": manifest.method,
        "precision": manifest.precision,
        "provider": provider,
        "threads": threads,
        "policy": stream_policy.policy,
        "knobs": dict(stream_policy.knobs),
        "window": WINDOW,
        "stream": stream,
        "grid": [point.row() for point in points],
        "model": choose_form(points),
    }


def _lengths(lengths: Sequence[int] | None, longest: int) -> Sequence[int]:
    if lengths is None:
        return [length for length in DEFAULT_LENGTHS if length <= longest] or [longest]
    if min(lengths, default=0) < 1 or max(lengths) > longest:
        got = ", ".join(map(str, lengths)) or "nothing"
        raise ConfigError(f"lengths: expected 1 to {longest} tokens, as the bundle takes them, got {got}.")
    return lengths
