"""Makes a bundle of another one: other graphs, other facts in its manifest, everything else as it was."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgebert.bundle import (
    CARD_NAME,
    GRAPH_SUFFIX,
    MAX_CARD_BYTES,
    SAMPLES_NAME,
    SIGNATURE_NAME,
    Bundle,
    open_bundle,
)
from edgebert.bundle.card import write_card
from edgebert.bundle.files import read_regular, sha256
from edgebert.bundle.graph_check import graph_names
from edgebert.bundle.manifest import MANIFEST_NAME, SINGLE_NAME, FileFacts, encode_manifest
from edgebert.bundle.publish import publish
from edgebert.errors import BundleError, EdgeBertError
from edgebert.output import Reporter
from edgebert.samples import record_samples
from edgebert.tasks import load_task


def derive(
    source: Bundle,
    target: str | Path,
    *,
    graphs: Mapping[str, bytes] | None = None,
    without: Collection[str] = (),
    changes: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Bundle:
    """Publishes a bundle made of another one. The target may be the source itself, which is then replaced in one step.

    A model card that somebody edited is kept as it is; else it is written anew. The single-file form holds the
    graphs and the operating point `default`, and is left out where one of them is replaced and it is not. Where graphs
    of the program are replaced, samples are recorded anew. A signature is left out always, as the bundle is another
    one: see `say_unsigned`.

    Args:
        source: The bundle to start from.
        target: The bundle folder to make.
        graphs: New bytes of files, by path; of new ones too, which are given after those that are there.
        without: Paths of files to leave out.
        changes: Fields of the manifest to replace, but for `files`.
        force: Replace an existing bundle.

    Raises:
        BundleError: A file of the source is missing or changed.
        EdgeBertError: The target cannot be written; what was there is untouched.
    """
    target = Path(target)
    graphs, changes = graphs or {}, changes or {}
    if SINGLE_NAME not in graphs and _changes_answers(source, graphs, changes):
        without = {*without, SINGLE_NAME}
    paths = [*source.manifest.files, *(path for path in graphs if path not in source.manifest.files)]
    with publish(target, force=force) as folder:
        files: dict[str, FileFacts] = {}
        for path in paths:
            if path in without or path == CARD_NAME:
                continue
            data = graphs[path] if path in graphs else source.read(path)
            facts = source.manifest.files.get(path) or _facts_of_new(path, data)
            files[path] = _write(folder, path, data, facts)
        manifest = msgspec.structs.replace(source.manifest, **{**changes, "files": files})
        if any(step.graph in graphs for step in manifest.program):
            samples = record_samples(Bundle(folder, manifest))
            files[SAMPLES_NAME] = _write(folder, SAMPLES_NAME, samples, FileFacts(sha256="", bytes=0))
        card = _edited_card(source)
        if card is None:
            task = load_task(manifest.task)
            card = write_card(manifest, target.name, tag=task.PIPELINE_TAG, call=task.CALL).encode()
        (folder / CARD_NAME).write_bytes(card)
        files[CARD_NAME] = FileFacts(sha256=sha256(card), bytes=len(card))
        (folder / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))
        _check_unchanged(source, target)
    return open_bundle(target)


def say_unsigned(source: Bundle, reporter: Reporter) -> None:
    """Says, where a bundle is signed, that what is made of it is not."""
    if source.is_signed:
        reporter.say(
            f"{SIGNATURE_NAME} signs the bundle as it was and is left out: sign the new one with edgebert sign"
        )


def _check_unchanged(source: Bundle, target: Path) -> None:
    """Refuses to replace a bundle by what was made of an earlier state of it: another process may have changed it.

    Raises:
        EdgeBertError: It is another one now.
    """
    if target.exists() and target.samefile(source.path) and open_bundle(target).manifest != source.manifest:
        raise EdgeBertError(f"{target}: another process has changed it meanwhile; nothing is written, run this again.")


def _write(folder: Path, path: str, data: bytes, facts: FileFacts) -> FileFacts:
    """Writes a file and returns its facts with its size and hash."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data)
    return msgspec.structs.replace(facts, sha256=sha256(data), bytes=len(data))


def _facts_of_new(path: str, data: bytes) -> FileFacts:
    """Returns the facts of a file that the source does not have: of a graph what it takes and gives."""
    inputs, outputs = graph_names(data, where=path) if path.endswith(GRAPH_SUFFIX) else ((), ())
    return FileFacts(sha256="", bytes=0, inputs=inputs, outputs=outputs)


def _changes_answers(source: Bundle, graphs: Mapping[str, bytes], changes: Mapping[str, Any]) -> bool:
    """Says whether the default operating point or a graph is replaced."""
    points = source.manifest.operating_points
    before, after = points["default"], changes.get("operating_points", points)["default"]
    is_same_point = (before.policy, before.knobs) == (after.policy, after.knobs)
    return not is_same_point or any(path.endswith(".onnx") for path in graphs)


def _edited_card(source: Bundle) -> bytes | None:
    """Returns the card that somebody wrote in the place of ours, or None."""
    if not source.has(CARD_NAME) or not (source.path / CARD_NAME).exists():
        return None
    try:
        source.read(CARD_NAME)
    except BundleError:
        return read_regular(source.path, CARD_NAME, limit=MAX_CARD_BYTES)
    return None
