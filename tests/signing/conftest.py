"""Keys made on the spot, bundles signed with them, and what an attacker makes of one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from edgebert.bundle import open_bundle
from edgebert.bundle.files import sha256
from edgebert.bundle.manifest import MANIFEST_NAME, FileFacts, encode_manifest
from edgebert.signing import sign_bundle


class Keys(NamedTuple):
    """The two halves of a key, as files."""

    private: Path
    public: Path


MakeKeys = Callable[..., Keys]
Forge = Callable[..., None]


@pytest.fixture(scope="session")
def make_keys(tmp_path_factory: pytest.TempPathFactory) -> MakeKeys:
    """Returns a function that makes a key, with a password when one is given."""

    def make(curve: ec.EllipticCurve | None = None, password: bytes | None = None) -> Keys:
        folder = tmp_path_factory.mktemp("keys")
        key = ec.generate_private_key(curve or ec.SECP256R1())
        encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
        made = Keys(folder / "key.pem", folder / "key.pub.pem")
        made.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        made.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return made

    return make


@pytest.fixture(scope="session")
def keys(make_keys: MakeKeys) -> Keys:
    return make_keys()


@pytest.fixture(scope="session")
def other_keys(make_keys: MakeKeys) -> Keys:
    return make_keys()


@pytest.fixture
def unsigned(tmp_path: Path, plain_bundle: Path) -> Path:
    """A bundle of one's own, which nobody signed."""
    return shutil.copytree(plain_bundle, tmp_path / "bundle")


@pytest.fixture
def signed(unsigned: Path, keys: Keys) -> Path:
    """A bundle of one's own, signed."""
    sign_bundle(unsigned, keys.private)
    return unsigned


@pytest.fixture
def forge() -> Forge:
    """Returns a function that changes, adds or (None) removes a file, and rewrites the manifest so that it fits."""

    def change(bundle: Path, name: str, data: bytes | None) -> None:
        manifest = open_bundle(bundle).manifest
        files = {path: facts for path, facts in manifest.files.items() if path != name}
        if data is None:
            (bundle / name).unlink()
        else:
            (bundle / name).write_bytes(data)
            before = manifest.files.get(name, FileFacts(sha256="", bytes=0))
            files[name] = msgspec.structs.replace(before, sha256=sha256(data), bytes=len(data))
        rewritten = encode_manifest(msgspec.structs.replace(manifest, files=files))
        (bundle / MANIFEST_NAME).write_bytes(rewritten)

    return change
