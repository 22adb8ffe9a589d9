"""Signs a bundle with a key, and says which file is not as it was signed.

The manifest's hashes notice damage; whoever rewrites the manifest too is noticed by a signature alone. It is one file,
`model.sig`, in the format of OpenSSF Model Signing: model-signing writes it, so that `model_signing verify key` reads
it, and what `model_signing sign key` wrote is read here. It signs the sha256 of every file, the manifest and the model
card included. Hidden files are no part of a bundle and are not signed.

Checking reads the format itself (`_format.py`), since the bytes that are checked must be those that are loaded: the
signed sha256 of the manifest is compared with that of the manifest in memory, whose own sha256 the bundle compares
with every byte it reads, now or later.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgebert.bundle import CARD_NAME, MAX_CARD_BYTES, SIGNATURE_NAME, Bundle, open_bundle
from edgebert.bundle.files import read_regular, sha256
from edgebert.bundle.manifest import MANIFEST_NAME, encode_manifest
from edgebert.errors import BundleError, ConfigError, require
from edgebert.signing._format import MAX_SIGNATURE_BYTES, read_signed
from edgebert.signing._keys import fingerprint, public_half, read_password, read_public_key
from edgebert.write import check_file, write_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

_MOST_NAMES = 5
"""How many files a message lists."""


@dataclass(frozen=True)
class Signed:
    """A signature that fits a bundle.

    Attributes:
        path: The signature.
        key: sha256 of the public key, in hexadecimal.
        files: How many files it signs.
    """

    path: Path
    key: str
    files: int


def sign_bundle(
    path: str | Path,
    private_key: str | Path,
    *,
    password_file: str | Path | None = None,
    signature: str | Path | None = None,
    force: bool = False,
) -> Signed:
    """Signs a bundle: every file is checked first, and the signature is checked before it is written.

    Args:
        path: The bundle folder.
        private_key: The private key in PEM, on the curve P-256, P-384 or P-521.
        password_file: A file with the key's password, where it has one.
        signature: Where the signature goes; None is `model.sig` in the bundle, which then travels with it.
        force: Replace a signature.

    Raises:
        BundleError: The bundle is refused.
        ConfigError: The signature would be an alien file in the bundle.
        DataError: The key, or its password, cannot be used.
        EdgeBertError: The signature cannot be written.
        MissingExtraError: model-signing is not installed.
    """
    require("model_signing", extra="sign", purpose="edgebert sign")
    bundle = open_bundle(path)
    place = _place(bundle, signature)
    check_file(place, force=force, sources=[private_key, *([] if password_file is None else [password_file])])
    password = None if password_file is None else read_password(Path(password_file))
    key = public_half(Path(private_key), password)
    bundle.check_files()
    data = _sign(bundle, Path(private_key), password)
    signed = _check(bundle, data, place, key, Path(private_key))
    write_file(place, data, force=force)
    return signed


def check_signature(bundle: Bundle, public_key: str | Path, *, signature: str | Path | None = None) -> Signed:
    """Checks that a bundle, as it was opened, is what the owner of a key signed.

    Afterwards whatever the bundle reads, but for the model card, is what was signed, or it is refused.

    Args:
        bundle: The opened bundle.
        public_key: The public key in PEM.
        signature: The signature; None is `model.sig` in the bundle.

    Raises:
        BundleError: It is not signed, or not by this key, or a file is not as it was signed.
        DataError: The key cannot be used.
        MissingExtraError: cryptography is not installed.
    """
    require("cryptography", extra="sign", purpose="checking a signature")
    key = read_public_key(Path(public_key))
    place = _place(bundle, signature)
    return _check(bundle, _read(bundle, place), place, key, Path(public_key))


def _place(bundle: Bundle, signature: str | Path | None) -> Path:
    """Returns where the signature is, which in the bundle's folder can only be `model.sig`."""
    own = bundle.path / SIGNATURE_NAME
    if signature is None:
        return own
    place = Path(os.path.realpath(signature))
    root = Path(os.path.realpath(bundle.path))
    if place.is_relative_to(root) and place != root / SIGNATURE_NAME:
        raise ConfigError(f"--signature {signature}: in the bundle's folder a signature is {own}, or it is elsewhere.")
    return Path(signature)


def _sign(bundle: Bundle, private_key: Path, password: bytes | None) -> bytes:
    """Returns the bytes of a signature.

    Raises:
        BundleError: Something in the folder is no regular file.
    """
    import model_signing

    for path in sorted(bundle.path.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleError(
                f"{path}: expected a regular file, got a link or a special one; sign a copy of the bundle, such as "
                "EdgeModel.from_pretrained(...).save_pretrained(FOLDER) makes."
            )
    ignored = [SIGNATURE_NAME, *_hidden(bundle.path)]
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=ignored)
    # model-signing hands the password to cryptography as it is, which takes bytes and refuses str.
    signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=private_key, password=password)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / SIGNATURE_NAME
        try:
            signer.set_hashing_config(hashing).sign(bundle.path, made)
        except (ValueError, OSError) as error:
            raise BundleError(f"{bundle.path}: cannot be signed: {error}") from error
        return made.read_bytes()


def _hidden(root: Path) -> list[str]:
    """Returns the paths of what is hidden in a folder, without what is inside."""
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        relative = Path(folder).relative_to(root)
        found += [(relative / name).as_posix() for name in (*folders, *names) if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found)


def _read(bundle: Bundle, place: Path) -> bytes:
    if not place.exists():
        raise BundleError(
            f"{bundle.path}: not signed: there is no {place}; make it with: "
            f"edgebert sign {bundle.path} --private-key KEY.pem"
        )
    if place == bundle.path / SIGNATURE_NAME:
        return read_regular(bundle.path, SIGNATURE_NAME, limit=MAX_SIGNATURE_BYTES)
    try:
        with open(place, "rb") as file:
            data = file.read(MAX_SIGNATURE_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{place}: {error.strerror}.") from error
    if len(data) > MAX_SIGNATURE_BYTES:
        raise BundleError(f"{place}: not a signature: more than {MAX_SIGNATURE_BYTES} bytes.")
    return data


def _check(bundle: Bundle, data: bytes, place: Path, key: EllipticCurvePublicKey, key_path: Path) -> Signed:
    """Checks the bytes of a signature, then the bundle against what they sign."""
    every = read_signed(data, key, where=place, key_path=key_path, key_hash=fingerprint(key))
    signed = {name: digest for name, digest in every.items() if _is_of_bundle(name)}
    _compare(bundle, signed, _present(bundle))
    return Signed(path=place, key=fingerprint(key), files=len(signed))


def _is_of_bundle(name: str) -> bool:
    """Says whether a file counts: model-signing signs hidden files too, and a signature that was there before."""
    return name != SIGNATURE_NAME and not any(part.startswith(".") for part in name.split("/"))


def _present(bundle: Bundle) -> dict[str, str]:
    """Returns the sha256 of every file of a bundle.

    Those that the manifest lists stand for the bytes, for no others are read. The manifest is its own canonical text.
    The model card may have been edited: it counts as it is.
    """
    present = {name: facts.sha256 for name, facts in bundle.manifest.files.items() if name != CARD_NAME}
    present[MANIFEST_NAME] = sha256(encode_manifest(bundle.manifest))
    if (bundle.path / CARD_NAME).exists():
        present[CARD_NAME] = sha256(read_regular(bundle.path, CARD_NAME, limit=MAX_CARD_BYTES))
    return present


def _compare(bundle: Bundle, signed: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Refuses a bundle with files that are not as they were signed, and names them."""
    differing = sorted(name for name in signed.keys() & present.keys() if signed[name] != present[name])
    missing = sorted(signed.keys() - present.keys())
    unsigned = sorted(present.keys() - signed.keys())
    if [*differing, *missing, *unsigned] == [CARD_NAME]:
        change = "edited" if differing else "removed" if missing else "added"
        raise BundleError(
            f"{bundle.path / CARD_NAME}: {change} since the bundle was signed; put it back as it was, or sign again."
        )
    reasons = {"not what was signed": differing, "signed, and missing": missing, "not signed": unsigned}
    found = [f"{_names(names)}: {reason}" for reason, names in reasons.items() if names]
    if found:
        raise BundleError(
            f"{bundle.path}: not as it was signed. {'; '.join(found)}. Get it again from whoever signed it, or sign it "
            "again if the change is yours."
        )


def _names(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
