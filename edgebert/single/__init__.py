"""The single-file form: a bundle's graphs and its rule as one ONNX file for stock ONNX Runtime, one row at a time.

What the engine decides is decided inside, by `If` nodes; nothing of edgebert is needed. A policy is one file of this
package, named like the policy, with a `Rule`; `_compose.py` walks through the program.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from edgebert.bundle import Bundle, open_bundle
from edgebert.bundle.manifest import SINGLE_NAME, OperatingPoint
from edgebert.bundle.publish import check_target
from edgebert.derive import derive, say_unsigned
from edgebert.errors import ConfigError
from edgebert.output import Reporter
from edgebert.runtime.points import find_point, make_point
from edgebert.single._check import check_single
from edgebert.single._compose import compose
from edgebert.write import check_file, write_file

KNOBS = ("defaults", "required")
SAMPLES, TOLERANCE = 64, 1.0e-4


def export_single(
    bundle: str | Path,
    target: str | Path,
    *,
    point: str = "default",
    knobs: Literal["defaults", "required"] = "defaults",
    samples: int = SAMPLES,
    tolerance: float = TOLERANCE,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Writes a bundle's single-file form once it agrees with the bundle.

    Its inputs are `input_ids`, `attention_mask` and, where the encoder reads it, `token_type_ids`, int64 [1, tokens],
    and the policy's numbers, such as `threshold`. Its outputs are `logits`, float32 [1, labels] (in question answering
    [1, tokens, 2]), logits or log-probabilities as `EdgeModel.forward` gives them; `exit_layer`, int64 [1], counted
    from 1; and `path`, which layers ran, bool [1, layers].

    Args:
        bundle: The bundle, of any precision.
        target: The file to write, `*.onnx`.
        point: The operating point or policy that it holds; its knobs are the inputs' defaults.
        knobs: `required` gives the policy's inputs no default: onnxruntime-web sets no input that has one.
        samples: Random rows on which the file and the bundle are compared.
        tolerance: Largest difference of a probability or a value that the comparison allows.
        force: Replace an existing file.
        reporter: Where progress goes.

    Raises:
        BundleError: The bundle is refused.
        ConfigError: A name is unknown, or the file is not called `*.onnx`.
        QualityError: The file differs from the bundle; nothing is written.
        EdgeBertError: The file cannot be written; what was there is untouched.
    """
    opened, target = open_bundle(bundle), Path(target)
    check_single_target(target, force=force)
    data = single_bytes(opened, point, knobs=knobs, samples=samples, tolerance=tolerance, reporter=reporter)
    write_file(target, data, force=force)
    return target


def check_single_target(target: Path, *, force: bool) -> None:
    """Checks, before any work, that a single file may be written there.

    Raises:
        ConfigError: It is not called `*.onnx`.
        EdgeBertError: Its folder is missing or not writable, or something is there that may not be replaced.
    """
    if target.suffix != ".onnx":
        raise ConfigError(f"{target}: a single file is called something.onnx, such as {target.name}.onnx.")
    check_file(target, force=force)


def add_single(
    bundle: str | Path,
    target: str | Path,
    *,
    samples: int = SAMPLES,
    tolerance: float = TOLERANCE,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Bundle:
    """Publishes a bundle with its single-file form in it, as `onnx/single.onnx`; see `export_single`.

    It holds the operating point `default`. The target may be the bundle itself.
    """
    opened = open_bundle(bundle)
    check_target(Path(target), force=force, kind="bundle")
    data = single_bytes(opened, "default", samples=samples, tolerance=tolerance, reporter=reporter)
    say_unsigned(opened, reporter or Reporter())
    return derive(opened, target, graphs={SINGLE_NAME: data}, force=force)


def single_bytes(
    bundle: Bundle,
    point: str,
    *,
    knobs: str = "defaults",
    samples: int = SAMPLES,
    tolerance: float = TOLERANCE,
    reporter: Reporter | None = None,
) -> bytes:
    """Returns the bytes of the single-file form, compared with the bundle; see `export_single`."""
    if knobs not in KNOBS:
        raise ConfigError(f"knobs: expected {' or '.join(KNOBS)}, got {knobs!r}.")
    if samples < 1:
        raise ConfigError(f"samples: expected 1 or more, got {samples}.")
    found = find_point(bundle.manifest, point, where=str(bundle.path))
    _, chosen = make_point(bundle.manifest, found, {})
    made = compose(bundle, chosen.policy, chosen.knobs, _facts(bundle, chosen), requires_knobs=knobs == "required")
    given = {name: np.asarray(value) for name, value in made.knobs.items()} if knobs == "required" else {}
    name = f"{bundle.path.name}: single file"
    check_single(made.data, bundle, point, given, samples=samples, tolerance=tolerance, name=name)
    if reporter is not None:
        inputs = ", ".join(f"{knob}={value.tolist()}" for knob, value in made.knobs.items()) or "none"
        reporter.say(f"single file: agrees with the bundle on {samples} inputs; policy {chosen.policy}, knobs {inputs}")
    return made.data


def _facts(bundle: Bundle, point: OperatingPoint) -> dict[str, str]:
    """Returns what the file says of itself, as text; lists and knobs are JSON."""
    manifest = bundle.manifest
    return {
        "edgebert.format": "single/1",
        "edgebert.knobs": json.dumps(point.knobs, sort_keys=True),
        "edgebert.labels": json.dumps(manifest.labels, ensure_ascii=False),
        "edgebert.layers": str(manifest.encoder.layers),
        "edgebert.max_length": str(manifest.encoder.max_length),
        "edgebert.method": manifest.method,
        "edgebert.policy": point.policy,
        "edgebert.precision": manifest.precision,
        "edgebert.task": manifest.task,
    }
