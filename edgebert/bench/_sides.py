"""Whom a bench times: the bundles, then their rivals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgebert import registry
from edgebert.bundle import open_bundle
from edgebert.errors import ConfigError, suggestion
from edgebert.rivals._protocol import Spec
from edgebert.rivals._turns import TimedSide


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
    against: str | Path | None,
    batch: int | None,
    policy: str,
    reference: str | None,
) -> list[tuple[int, int]]:
    """Appends the rivals, one for each bundle or one for all; returns (bundle, rival) as places in `sides`."""
    if against is None:
        if batch is not None or reference is not None:
            raise ConfigError("against_batch and reference: belong to a rival; name one with --against.")
        return []
    ours, name = len(sides), str(against)
    if name in rival_names():
        for side in sides[:ours]:
            spec = msgspec.structs.replace(side.spec, side=name, reference=reference)
            sides.append(TimedSide(label=name, rival_of=side.label, spec=spec, bundle=side.bundle, batch=batch))
        return [(number, ours + number) for number in range(ours)]
    if not Path(name).is_dir():
        raise ConfigError(
            f"--against {name}: no such bundle folder, and no such rival.{suggestion(name, rival_names())}"
        )
    if reference is not None:
        raise ConfigError(f"--reference: goes with the rivals torch and optimum, not with the bundle {name}.")
    spec = msgspec.structs.replace(sides[0].spec, bundle=name, policy=policy, knobs={})
    sides.append(TimedSide(label=name, rival_of=None, spec=spec, bundle=open_bundle(name), batch=batch))
    return [(number, ours) for number in range(ours)]


def rival_names() -> list[str]:
    """Returns what `--against` takes besides bundles."""
    return [name for name in registry.names("edgebert.rivals") if name != "bundle"]
