"""Reads a signature: which key made it, and the sha256 of every file it signs.

The format is that of OpenSSF Model Signing 1.0, made of public ones: a Sigstore bundle in JSON, in it a DSSE
envelope (secure-systems-lab/dsse, protocol 1.0.0), whose payload, the part that is signed, is an in-toto statement.
Nothing is read out of the payload before its signature was checked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from edgebert.errors import BundleError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

MAX_SIGNATURE_BYTES = 4 * 1024 * 1024

_PREDICATE = "https://model_signing/signature/v1.0"
_AGAIN = "get bundle and signature again from whoever signed them, or sign the bundle again"
_SHA256 = re.compile("[0-9a-f]{64}")
_T = TypeVar("_T")


class _PublicKey(msgspec.Struct):
    hint: str | None = None


class _Material(msgspec.Struct, rename="camel"):
    public_key: _PublicKey | None = None


class _OneSignature(msgspec.Struct):
    sig: bytes


class _Envelope(msgspec.Struct, rename="camel"):
    payload: bytes
    payload_type: str
    signatures: list[_OneSignature]


class _SignatureFile(msgspec.Struct, rename="camel"):
    verification_material: _Material
    dsse_envelope: _Envelope


class _Kind(msgspec.Struct, rename="camel"):
    predicate_type: str


class _Resource(msgspec.Struct):
    name: str
    algorithm: str
    digest: str


class _Predicate(msgspec.Struct):
    resources: list[_Resource]


class _Statement(msgspec.Struct):
    predicate: _Predicate


def read_signed(
    data: bytes, key: EllipticCurvePublicKey, *, where: Path, key_path: Path, key_hash: str
) -> dict[str, str]:
    """Returns what a signature signs: the sha256 of each file, in hexadecimal, by path.

    Args:
        data: The bytes of the signature.
        key: The public key that has to fit.
        where: The signature, for messages.
        key_path: The file of the key, for messages.
        key_hash: What the signature calls the key.

    Raises:
        BundleError: It is no signature, or not by this key, or of something else.
    """
    file = _decode(data, _SignatureFile, where)
    if not _is_by(key, file.dsse_envelope):
        raise BundleError(f"{where}: {_why(file.verification_material.public_key, key_path, key_hash)}")
    payload = file.dsse_envelope.payload
    kind = _decode(payload, _Kind, where).predicate_type
    if kind != _PREDICATE:
        raise BundleError(f"{where}: signs something else than a model, or in another version of the format: {kind}.")
    resources = _decode(payload, _Statement, where).predicate.resources
    signed = {resource.name: resource.digest for resource in resources}
    other = sorted({resource.algorithm for resource in resources} - {"sha256"})
    if other or len(signed) != len(resources):
        hashes = ", ".join(other) or "several for one file"
        raise BundleError(
            f"{where}: expected one sha256 for each file, got {hashes}; sign with model-signing's defaults."
        )
    return signed


def _decode(data: bytes, kind: type[_T], where: Path) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"{where}: not a signature by edgebert sign or model_signing, or damaged ({error}); {_AGAIN}."
        ) from error


def _is_by(key: EllipticCurvePublicKey, envelope: _Envelope) -> bool:
    """Says whether a key made one of the envelope's signatures."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    of_curve: dict[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    kind = envelope.payload_type.encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(envelope.payload), envelope.payload)
    for signature in envelope.signatures:
        try:
            key.verify(signature.sig, signed, ec.ECDSA(of_curve[key.curve.key_size]))
        except InvalidSignature:
            continue
        return True
    return False


def _why(named: _PublicKey | None, key_path: Path, key_hash: str) -> str:
    """Says why a key does not fit, as far as the signature tells."""
    if named is None:
        return "made with a certificate or by Sigstore, not with a key: check it with model_signing verify."
    if named.hint == key_hash:
        return f"damaged or forged: it names the key {key_path}, which did not sign this; {_AGAIN}."
    is_hash = named.hint is not None and _SHA256.fullmatch(named.hint)
    made_by = f"one with sha256 {named.hint}" if is_hash else "it does not say which"
    return f"signed by another key: {made_by}; expected {key_path}, which has sha256 {key_hash}."
