"""The bundle: a folder with a manifest, graphs, a tokenizer and a model card. Reading one checks every byte it gives.

edgebert.json    the manifest      tokenizer.json   config.yaml   samples.json   README.md (may be edited)
graphs/*.onnx    the split graphs  onnx/model.onnx  the whole model, for methods that have one
                                   onnx/single.onnx the program as one file, when that was asked for
model.sig        a signature of all of these, when somebody signed it: the one file that the manifest does not list
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgebert.bundle.files import list_files, read_regular, sha256
from edgebert.bundle.graph_check import check_graph
from edgebert.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from edgebert.bundle.manifest_check import (
    CARD_NAME,
    CONFIG_NAME,
    HUGGING_FACE_NAME,
    MAX_CARD_BYTES,
    SAMPLES_NAME,
    TOKENIZER_NAME,
    WHOLE_MODEL_NAME,
    decode_manifest,
)
from edgebert.errors import BundleError

__all__ = [
    "CARD_NAME",
    "CONFIG_NAME",
    "GRAPH_SUFFIX",
    "HUGGING_FACE_NAME",
    "MAX_CARD_BYTES",
    "SAMPLES_NAME",
    "SIGNATURE_NAME",
    "TOKENIZER_NAME",
    "WHOLE_MODEL_NAME",
    "Bundle",
    "open_bundle",
]

GRAPH_SUFFIX = ".onnx"
SIGNATURE_NAME = "model.sig"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, absolute since a process may go elsewhere, and its checked manifest."""

    path: Path
    manifest: Manifest
    _sound: set[str] = field(default_factory=set, compare=False, repr=False)
    """The graphs whose rules were checked; their hashes say that they are still the same."""

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file, which are the bytes that were hashed, and of a graph those that were checked.

        Whoever loads a graph gets it from here.

        Raises:
            BundleError: The file is not in the manifest, missing, or changed, or a graph that breaks a rule.
        """
        facts = self.manifest.files.get(name)
        if facts is None:
            raise BundleError(f"{self.path}: there is no {name} in this bundle.")
        data = read_regular(self.path, name, limit=facts.bytes)
        if len(data) != facts.bytes:
            raise BundleError(f"{self.path / name}: expected {facts.bytes} bytes, got {len(data)}; copy it again.")
        if sha256(data) != facts.sha256:
            raise BundleError(f"{self.path / name}: changed since the bundle was made (sha256 differs); copy it again.")
        if name.endswith(GRAPH_SUFFIX) and name not in self._sound:
            check_graph(data, name, self.manifest, where=str(self.path / name))
            self._sound.add(name)
        return data

    def has(self, name: str) -> bool:
        """Says whether the manifest lists a file."""
        return name in self.manifest.files

    def check_files(self) -> list[str]:
        """Reads every file and returns notes on what is allowed but worth knowing.

        Raises:
            BundleError: A file is missing or changed.
        """
        for name in sorted(set(self.manifest.files) - {CARD_NAME}):
            self.read(name)
        try:
            if self.has(CARD_NAME):
                self.read(CARD_NAME)
        except BundleError:
            return [f"{self.path / CARD_NAME}: edited or removed since the bundle was made."]
        return []

    @property
    def is_signed(self) -> bool:
        """Says whether a signature is there, of whatever worth."""
        return (self.path / SIGNATURE_NAME).exists()

    @property
    def size_bytes(self) -> int:
        """Bytes of all graphs of the split form."""
        return sum(f.bytes for name, f in self.manifest.files.items() if name.startswith("graphs/"))


def open_bundle(path: str | Path) -> Bundle:
    """Opens a bundle and checks its manifest and that no file is missing or extra.

    Raises:
        BundleError: There is none, or it is refused.
    """
    root = Path(path)
    if not root.is_dir():
        raise BundleError(f"{root}: no such bundle folder; make one with: edgebert export CHECKPOINT {root}")
    if not (root / MANIFEST_NAME).exists():
        raise BundleError(f"{root}: no {MANIFEST_NAME} in it, so it is not a bundle; make one with edgebert export.")
    manifest = decode_manifest(read_regular(root, MANIFEST_NAME, limit=MAX_MANIFEST_BYTES), where=str(root))
    present = list_files(root) - {MANIFEST_NAME, SIGNATURE_NAME}
    listed = set(manifest.files)
    if missing := sorted(listed - present - {CARD_NAME}):
        raise BundleError(f"{root / missing[0]}: missing; the bundle is incomplete.")
    if extra := sorted(present - listed):
        raise BundleError(f"{root / extra[0]}: not listed in the manifest; remove it.")
    return Bundle(root.absolute(), manifest)
