"""Reads keys in PEM, and says what is wrong with one.

Three curves, those of model-signing: P-256, P-384 and P-521.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgebert.errors import DataError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAX_KEY_BYTES = 64 * 1024
_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_WANTED = "an elliptic curve key (P-256, P-384 or P-521) in PEM"


def read_public_key(path: Path) -> EllipticCurvePublicKey:
    """Returns a public key.

    Raises:
        DataError: It is missing or no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(path)
    label = _label(data, path)
    if label.endswith("PRIVATE KEY"):
        raise DataError(
            f"{path}: is a private key, which is for signing alone; checking takes its public half: "
            f"openssl pkey -in {path} -pubout -out KEY.pub.pem"
        )
    if label != "PUBLIC KEY":
        raise DataError(f"{path}: expected {_WANTED}, BEGIN PUBLIC KEY, got {label}.")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DataError(f"{path}: expected {_WANTED}; it cannot be read: {error}") from error
    return _on_known_curve(key, path)


def public_half(path: Path, password: bytes | None) -> EllipticCurvePublicKey:
    """Returns the public half of a private key, so that all is known to be well with it.

    Raises:
        DataError: It is missing, no such key, or its password does not fit.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if path.exists() and not path.is_file():
        raise DataError(f"{path}: expected a regular file, since it is read twice.")
    data = _read(path)
    label = _label(data, path)
    if label == "PUBLIC KEY":
        raise DataError(f"{path}: is a public key, which is for checking alone; signing takes the private one.")
    if not label.endswith(("PRIVATE KEY", "EC PARAMETERS")):
        raise DataError(f"{path}: expected {_WANTED}, BEGIN PRIVATE KEY, got {label}.")
    try:
        private = load_pem_private_key(data, password)
    except TypeError as error:
        has, cure = ("a", "give --password-file") if password is None else ("no", "leave out --password-file")
        raise DataError(f"{path}: has {has} password; {cure}.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "it cannot be read" if password is None else "it cannot be read, or the password is wrong"
        raise DataError(f"{path}: expected {_WANTED}; {what}: {error}") from error
    return _on_known_curve(private.public_key(), path)


def read_password(path: Path) -> bytes:
    """Returns the password in a file, without the end of its line.

    Raises:
        DataError: The file is missing or empty.
    """
    password = _read(path).rstrip(b"\r\n")
    if not password:
        raise DataError(f"{path}: expected a password, is empty.")
    return password


def fingerprint(key: EllipticCurvePublicKey) -> str:
    """Returns the sha256 of a public key's PEM, in hexadecimal: what model-signing calls a key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.") from error
    if len(data) > _MAX_KEY_BYTES:
        raise DataError(f"{path}: expected at most {_MAX_KEY_BYTES} bytes.")
    return data


def _label(data: bytes, path: Path) -> str:
    """Returns what a PEM file says it is, such as PUBLIC KEY."""
    found = _LABEL.search(data)
    if found is None:
        raise DataError(f"{path}: expected {_WANTED}, got no PEM at all.")
    return found.group(1).decode()


def _on_known_curve(key: object, path: Path) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    if not isinstance(key, EllipticCurvePublicKey):
        kind = type(key).__name__.removesuffix("PublicKey").lstrip("_")
        raise DataError(f"{path}: expected {_WANTED}, got a key for {kind}.")
    if key.curve.name not in _CURVES:
        raise DataError(f"{path}: expected {_WANTED}, got the curve {key.curve.name}.")
    return key
