"""Whom a bench times: the bundles, then their rivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from edgebert import registry
from edgebert.bundle import TOKENIZER_NAME, open_bundle
from edgebert.errors import ConfigError, suggestion
from edgebert.rivals._protocol import Spec
from edgebert.rivals._turns import TimedSide
from edgebert.runtime.sessions import runs_on_processor


def bundle_sides(bundles: Sequence[str | Path], spec: Spec) -> list[TimedSide]:
    """Returns the bundles as sides; `spec` says all but the folder."""
    if not bundles:
        raise ConfigError("bench: expected at least one bundle, got none; name a bundle folder.")
    return [
        TimedSide(
            label=str(path),
            rival_of=None,
            spec=msgspec.structs.replace(spec, bundle=str(path)),
            bundle=open_bundle(path),
        )
        for path in bundles
    ]


def add_rivals(
    sides: list[TimedSide],
    against: Sequence[str],
    batch: int | None,
    policy: str,
    reference: str | None,
) -> list[tuple[int, int]]:
    """Appends the rivals of the bundles in `sides`; returns (bundle, rival) as places in `sides`.

    A rival that is a bundle serves all, one with the bundle's own weights that bundle alone, and a static model all
    bundles of the same task, encoder shape and tokenizer.

    Raises:
        ConfigError: A rival is unknown, or an option goes with none of them.
    """
    if not against and (batch is not None or reference is not None):
        raise ConfigError("against_batch and reference: belong to a rival; name one with --against.")
    if reference is not None and not any(map(_takes_reference, against)):
        static = ", ".join(filter(_takes_reference, rival_names()))
        raise ConfigError(f"--reference: goes with the rivals {static}, not with {', '.join(against)}.")
    bundles, pairs = list(enumerate(sides)), []
    for name in dict.fromkeys(against):
        places: dict[Any, int] = {}
        for number, side in bundles:
            rival = _make_rival(name, side, policy, reference)
            if batch is not None:
                rival = replace(rival, batch=batch)
            key = _sharing_key(name, side)
            if key not in places:
                places[key] = len(sides)
                sides.append(rival)
            pairs.append((number, places[key]))
    return pairs


def _make_rival(name: str, side: TimedSide, policy: str, reference: str | None) -> TimedSide:
    if name in rival_names():
        is_static = _takes_reference(name)
        # A static model of another library has no provider; it refuses to be timed beside a GPU.
        provider = "cpu" if is_static and runs_on_processor(side.spec.provider) else side.spec.provider
        reference = reference if is_static else None
        spec = msgspec.structs.replace(side.spec, side=name, reference=reference, provider=provider)
        return replace(side, label=name, rival_of=side.label, spec=spec, is_static=is_static)
    if not Path(name).is_dir():
        raise ConfigError(
            f"--against {name}: no such bundle folder, and no such rival.{suggestion(name, rival_names())}"
        )
    spec = msgspec.structs.replace(side.spec, bundle=name, policy=policy, knobs={})
    return TimedSide(label=name, rival_of=None, spec=spec, bundle=open_bundle(name))


def _sharing_key(name: str, side: TimedSide) -> Any:
    """Returns what bundles have in common that share a rival."""
    if name not in rival_names():
        return name
    if not _takes_reference(name):
        return side.label
    manifest = side.bundle.manifest
    tokenizer = manifest.files.get(TOKENIZER_NAME)
    return (manifest.task, str(manifest.task_settings), manifest.encoder, manifest.labels, tokenizer)


def _takes_reference(name: str) -> bool:
    """Whether a rival is a static model that may have another checkpoint's weights."""
    return name in rival_names() and bool(registry.load("edgebert.rivals", name).TAKES_REFERENCE)


def rival_names() -> list[str]:
    """Returns what `--against` takes besides bundles."""
    return [name for name in registry.names("edgebert.rivals") if name != "bundle"]
