"""A signature of which bytes were changed is refused, or says what it said: that of one bundle by one key."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edgebert.bundle import open_bundle
from edgebert.errors import BundleError
from edgebert.signing import check_signature, sign_bundle


def test_changed_bytes(
    dact_bundle: Path,
    tmp_path: Path,
    rounds: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub.pem").write_bytes(public)
    bundle = shutil.copytree(dact_bundle, tmp_path / "bundle")
    signed = sign_bundle(bundle, tmp_path / "key.pem", signature=tmp_path / "right.sig")
    opened, right = open_bundle(bundle), (tmp_path / "right.sig").read_bytes()
    changes = random.Random(0)
    tried, refusals = rounds(500, 20_000), []

    for _ in range(tried):
        data = bytearray(right)
        start = changes.randrange(len(data))
        kind = changes.choice(["flip", "noise", "cut", "repeat"])
        if kind == "flip":
            data[start] ^= 1 << changes.randrange(8)
        elif kind == "noise":
            data[start : start + 8] = changes.randbytes(8)
        elif kind == "cut":
            del data[start : start + changes.randrange(1, 64)]
        else:
            data[start:start] = data[start : start + changes.randrange(1, 64)]
        (tmp_path / "wrong.sig").write_bytes(data)
        try:
            found = check_signature(opened, tmp_path / "key.pub.pem", signature=tmp_path / "wrong.sig")
        except BundleError as error:
            refusals.append(str(error))
        else:
            # Such as a changed name of the key, which is not part of what is signed.
            assert (found.key, found.files) == (signed.key, signed.files)
    record_property("signatures", f"{len(refusals)} of {tried} refused, the others say what they said")
    assert len(refusals) > 0.9 * tried
    assert all(message.startswith(f"{tmp_path / 'wrong.sig'}: ") for message in refusals)
