import datetime
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from edgebert.bundle import SIGNATURE_NAME, open_bundle
from edgebert.errors import DataError
from edgebert.signing import check_signature, sign_bundle

PRIVATE_KEYS: dict[str, Callable[[], Any]] = {
    "RSA": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}


def _pem(key: Any) -> tuple[bytes, bytes]:
    """Returns a private key and its public half."""
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


def _certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    start = datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _cut(pem: bytes) -> bytes:
    """Returns a PEM whose middle is gone."""
    lines = pem.splitlines()
    return b"\n".join([lines[0], lines[1][:20], lines[-1]])


@pytest.fixture
def refused(tmp_path: Path, signed: Path) -> Callable[..., str]:
    """Returns a function that gives why bytes are no key to check with, or no key to sign with."""

    def reason(data: bytes, *, signs: bool, password: bytes | None = None) -> str:
        key = tmp_path / "a.pem"
        key.write_bytes(data)
        before = (signed / SIGNATURE_NAME).read_bytes()
        given = None if password is None else tmp_path / "password"
        if given is not None:
            given.write_bytes(password or b"")
        use: Callable[[], object] = partial(check_signature, open_bundle(signed), key)
        if signs:
            use = partial(sign_bundle, signed, key, password_file=given, force=True)
        with pytest.raises(DataError) as raised:
            use()
        assert (signed / SIGNATURE_NAME).read_bytes() == before
        message = str(raised.value)
        assert message.startswith(f"{key}: ")
        return message.removeprefix(f"{key}: ")

    return reason


@pytest.mark.parametrize("signs", [True, False], ids=["private", "public"])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "got no PEM at all"),
        (b"\x00\xff" * 40, "got no PEM at all"),
        (b" " * 65537, "expected at most 65536 bytes"),
        (_certificate(), "got CERTIFICATE"),
    ],
    ids=["empty", "binary", "large", "certificate"],
)
def test_no_key(refused: Callable[..., str], data: bytes, signs: bool, expected: str) -> None:
    assert expected in refused(data, signs=signs)


@pytest.mark.parametrize("kind", PRIVATE_KEYS)
def test_a_key_of_another_kind(refused: Callable[..., str], kind: str) -> None:
    private, public = _pem(PRIVATE_KEYS[kind]())
    what = f"got {'the curve' if kind == 'secp256k1' else 'a key for'} {kind}"
    expected = f"expected an elliptic curve key (P-256, P-384 or P-521) in PEM, {what}."

    assert refused(private, signs=True) == refused(public, signs=False) == expected


def test_the_other_half(refused: Callable[..., str], keys: Any) -> None:
    assert refused(keys.public.read_bytes(), signs=True).startswith("is a public key, which is for checking alone")
    message = refused(keys.private.read_bytes(), signs=False)
    assert message.startswith("is a private key, which is for signing alone")
    assert message.endswith("a.pem -pubout -out KEY.pub.pem")


def test_a_truncated_key(refused: Callable[..., str], keys: Any) -> None:
    assert "it cannot be read: " in refused(_cut(keys.private.read_bytes()), signs=True)
    assert "it cannot be read: " in refused(_cut(keys.public.read_bytes()), signs=False)


def test_passwords(refused: Callable[..., str], keys: Any, make_keys: Any) -> None:
    locked = make_keys(password=b"right").private.read_bytes()

    assert refused(locked, signs=True) == "has a password; give --password-file."
    assert "the password is wrong: " in refused(locked, signs=True, password=b"wrong")
    assert refused(keys.private.read_bytes(), signs=True, password=b"any") == (
        "has no password; leave out --password-file."
    )


def test_missing_files(tmp_path: Path, unsigned: Path, keys: Any) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path / 'none.pem'}: No such file or directory\.$"):
        sign_bundle(unsigned, tmp_path / "none.pem")
    with pytest.raises(DataError, match=rf"^{tmp_path / 'none'}: No such file or directory\.$"):
        sign_bundle(unsigned, keys.private, password_file=tmp_path / "none")
    (tmp_path / "password").write_bytes(b"\n")
    with pytest.raises(DataError, match=rf"^{tmp_path / 'password'}: expected a password, is empty"):
        sign_bundle(unsigned, keys.private, password_file=tmp_path / "password")
    sign_bundle(unsigned, keys.private)
    with pytest.raises(DataError, match=rf"^{tmp_path / 'none.pem'}: No such file or directory\.$"):
        check_signature(open_bundle(unsigned), tmp_path / "none.pem")


def test_a_pipe_is_no_private_key(tmp_path: Path, unsigned: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(DataError, match=rf"^{tmp_path / 'pipe'}: expected a regular file, since it is read twice"):
        sign_bundle(unsigned, tmp_path / "pipe")


PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"


@pytest.mark.parametrize("before", [b"", PARAMETERS], ids=["ecparam -genkey -noout", "ecparam -genkey"])
def test_keys_as_openssl_writes_them(tmp_path: Path, unsigned: Path, before: bytes) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert private.startswith(b"-----BEGIN EC PRIVATE KEY-----")
    (tmp_path / "key.pem").write_bytes(before + private)
    (tmp_path / "key.pub.pem").write_bytes(_pem(key)[1])

    sign_bundle(unsigned, tmp_path / "key.pem")

    assert check_signature(open_bundle(unsigned), tmp_path / "key.pub.pem").files == 11


def test_parameters_without_a_key(refused: Callable[..., str]) -> None:
    assert "it cannot be read: " in refused(PARAMETERS, signs=True)
