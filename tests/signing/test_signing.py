import base64
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_signing
import msgspec
import onnx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from edgebert import EdgeModel
from edgebert.bundle import SIGNATURE_NAME, open_bundle
from edgebert.bundle.manifest import MANIFEST_NAME, encode_manifest
from edgebert.derive import derive
from edgebert.errors import BundleError, ConfigError, EdgeBertError, MissingExtraError
from edgebert.signing import check_signature, sign_bundle
from edgebert.verify import verify_bundle

NAMES = [
    "README.md",
    "config.json",
    "config.yaml",
    "edgebert.json",
    "graphs/embed.onnx",
    "graphs/layer_00.onnx",
    "graphs/layer_01.onnx",
    "graphs/layer_02.onnx",
    "onnx/model.onnx",
    "samples.json",
    "tokenizer.json",
]
GARBAGE = b"not what it was"


def _of_another_producer(graph: Path) -> bytes:
    """Returns a graph that computes the same and has other bytes."""
    model = onnx.load(graph)
    model.producer_name = "somebody else"
    return model.SerializeToString()


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _statement(signature: Path) -> Any:
    """Returns what a signature signs, without the order of what it ignores, which model-signing leaves to chance."""
    envelope = json.loads(signature.read_text(encoding="utf-8"))["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["serialization"]["ignore_paths"].sort()
    return statement


def _sign_statement(statement: object, private_key: Path) -> dict[str, Any]:
    """Returns a signature of any content, by the rules of DSSE."""
    kind, payload = b"application/vnd.in-toto+json", json.dumps(statement).encode()
    key = load_pem_private_key(private_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    signature = base64.b64encode(key.sign(signed, ec.ECDSA(hashes.SHA256()))).decode()
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": kind.decode()}
    return {
        "verificationMaterial": {"publicKey": {"hint": None}},
        "dsseEnvelope": {**envelope, "signatures": [{"sig": signature}]},
    }


@pytest.fixture
def theirs(keys: Any) -> Callable[[Path], None]:
    """Returns a function that lets model_signing itself check a bundle."""

    def check(bundle: Path) -> None:
        verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=keys.public)
        verifier.verify(bundle, bundle / SIGNATURE_NAME)

    return check


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_sign_and_check(unsigned: Path, make_keys: Any, curve: ec.EllipticCurve) -> None:
    keys = make_keys(curve)

    made = sign_bundle(unsigned, keys.private)
    found = check_signature(open_bundle(unsigned), keys.public)

    assert found == made
    assert (made.path, made.files, len(made.key)) == (unsigned / "model.sig", 11, 64)
    assert [resource["name"] for resource in _statement(made.path)["predicate"]["resources"]] == NAMES
    assert keys.private.read_bytes() not in made.path.read_bytes()


def test_sign_with_a_password(tmp_path: Path, unsigned: Path, make_keys: Any) -> None:
    keys = make_keys(password=b"open sesame")
    (tmp_path / "password").write_bytes(b"open sesame\n")

    sign_bundle(unsigned, keys.private, password_file=tmp_path / "password")

    assert check_signature(open_bundle(unsigned), keys.public).files == 11


def test_sign_twice_signs_the_same(signed: Path, keys: Any) -> None:
    first = _statement(signed / SIGNATURE_NAME)

    sign_bundle(signed, keys.private, force=True)

    assert _statement(signed / SIGNATURE_NAME) == first


def test_a_signed_bundle_opens_everywhere(signed: Path, plain_bundle: Path, keys: Any, texts: list[str]) -> None:
    with (
        EdgeModel.from_pretrained(plain_bundle) as before,
        EdgeModel.from_pretrained(signed) as unasked,
        EdgeModel.from_pretrained(signed, public_key=keys.public) as asked,
    ):
        expected = before.predict_proba(texts[:4]).tolist()

        assert unasked.predict_proba(texts[:4]).tolist() == expected
        assert asked.predict_proba(texts[:4]).tolist() == expected


def test_verify_says_who_signed(signed: Path, keys: Any) -> None:
    report = verify_bundle(signed, public_key=keys.public)

    assert json.loads(json.dumps(report))["signature"] == {
        "path": str(signed / "model.sig"),
        "key": check_signature(open_bundle(signed), keys.public).key,
        "files": 11,
    }
    assert report["notes"] == []


def test_verify_without_a_key_says_that_it_did_not_check(signed: Path) -> None:
    (signed / SIGNATURE_NAME).write_text("nothing")

    report = verify_bundle(signed)

    assert report["signature"] is None
    assert report["notes"] == [f"{signed / 'model.sig'}: not checked; give --public-key."]


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_is_named(signed: Path, keys: Any, name: str) -> None:
    _flip(signed / name)

    with pytest.raises(BundleError, match=f"^{signed / name}: "):
        verify_bundle(signed, public_key=keys.public)


@pytest.mark.parametrize("name", NAMES)
def test_a_removed_file_is_named(signed: Path, keys: Any, name: str) -> None:
    (signed / name).unlink()

    with pytest.raises(BundleError, match=f"{signed}.*{name}"):
        verify_bundle(signed, public_key=keys.public)


@pytest.mark.parametrize("name", ["graphs/layer_03.onnx", "model.sig/inside", "onnx/model.onnx_data", "other.sig"])
def test_an_added_file_is_named(signed: Path, keys: Any, name: str) -> None:
    if name.startswith(SIGNATURE_NAME):
        (signed / SIGNATURE_NAME).unlink()
        (signed / SIGNATURE_NAME).mkdir()
    (signed / name).write_bytes(GARBAGE)

    with pytest.raises(BundleError, match=f"^{signed / name}: not listed in the manifest; remove it"):
        verify_bundle(signed, public_key=keys.public)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("README.md", "edgebert.json")])
def test_a_changed_file_under_a_rewritten_manifest_is_named(signed: Path, keys: Any, forge: Any, name: str) -> None:
    forge(signed, name, _of_another_producer(signed / name) if name.endswith(".onnx") else GARBAGE)
    assert open_bundle(signed).check_files() == []

    found = "edgebert.json, " + name if name > "edgebert.json" else f"{name}, edgebert.json"
    expected = rf"^{signed}: not as it was signed\. {found}: not what was signed\. Get it again"
    with pytest.raises(BundleError, match=expected):
        verify_bundle(signed, public_key=keys.public)
    with pytest.raises(BundleError, match=expected):
        EdgeModel.from_pretrained(signed, public_key=keys.public)


@pytest.mark.parametrize("name", ["config.json", "config.yaml", "onnx/model.onnx", "tokenizer.json"])
def test_a_removed_file_under_a_rewritten_manifest_is_named(signed: Path, keys: Any, forge: Any, name: str) -> None:
    forge(signed, name, None)
    assert open_bundle(signed).check_files() == []

    with pytest.raises(BundleError, match=rf"; {name}: signed, and missing\. Get it again"):
        verify_bundle(signed, public_key=keys.public)


def test_an_added_file_under_a_rewritten_manifest_is_named(signed: Path, keys: Any, forge: Any) -> None:
    forge(signed, "onnx/single.onnx", GARBAGE)

    with pytest.raises(BundleError, match=r"; onnx/single\.onnx: not signed\. Get it again"):
        verify_bundle(signed, public_key=keys.public)


def test_the_signature_of_another_bundle(signed: Path, dact_bundle: Path, tmp_path: Path, keys: Any) -> None:
    other = shutil.copytree(dact_bundle, tmp_path / "other")
    shutil.copyfile(signed / SIGNATURE_NAME, other / SIGNATURE_NAME)

    with pytest.raises(BundleError, match=r"README\.md, config\.yaml, edgebert\.json, .* and \d more: not what"):
        verify_bundle(other, public_key=keys.public)


def test_the_card_as_it_was_signed(unsigned: Path, keys: Any) -> None:
    (unsigned / "README.md").write_text("mine")
    sign_bundle(unsigned, keys.private)
    bundle = open_bundle(unsigned)
    assert check_signature(bundle, keys.public).files == 11

    (unsigned / "README.md").write_text("somebody else's")
    with pytest.raises(BundleError, match=r"README\.md: edited since the bundle was signed; put it back"):
        check_signature(bundle, keys.public)
    (unsigned / "README.md").unlink()
    with pytest.raises(BundleError, match=r"README\.md: removed since the bundle was signed"):
        check_signature(bundle, keys.public)
    sign_bundle(unsigned, keys.private, force=True)
    assert check_signature(bundle, keys.public).files == 10
    (unsigned / "README.md").write_text("mine again")
    with pytest.raises(BundleError, match=r"README\.md: added since the bundle was signed"):
        check_signature(bundle, keys.public)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_what_was_checked_is_what_is_loaded(signed: Path, keys: Any, forge: Any, late: bool) -> None:
    bundle = open_bundle(signed)
    check_signature(bundle, keys.public)
    model = EdgeModel(bundle, memory_budget_mb=100) if late else None
    forge(signed, "graphs/layer_01.onnx", (signed / "graphs/layer_00.onnx").read_bytes())

    with pytest.raises(BundleError, match=r"graphs/layer_01\.onnx: changed since"):
        (model or EdgeModel(bundle))("a film")
    if model is not None:
        model.close()


def test_the_manifest_that_was_opened_is_checked(signed: Path, keys: Any) -> None:
    right = (signed / MANIFEST_NAME).read_bytes()
    manifest = open_bundle(signed).manifest
    wrong = msgspec.structs.replace(manifest, labels=manifest.labels[::-1])
    (signed / MANIFEST_NAME).write_bytes(encode_manifest(wrong))
    bundle = open_bundle(signed)
    (signed / MANIFEST_NAME).write_bytes(right)

    with pytest.raises(BundleError, match=r"^.*/bundle: not as it was signed\. edgebert\.json: not what was signed\."):
        check_signature(bundle, keys.public)


def test_another_key(signed: Path, keys: Any, other_keys: Any) -> None:
    of_ours = check_signature(open_bundle(signed), keys.public).key

    with pytest.raises(
        BundleError,
        match=rf"model\.sig: signed by another key: one with sha256 {of_ours}; expected {other_keys.public}",
    ):
        check_signature(open_bundle(signed), other_keys.public)


def test_not_signed(unsigned: Path, tmp_path: Path, keys: Any) -> None:
    with pytest.raises(BundleError, match=rf"^{unsigned}: not signed: there is no {unsigned / 'model.sig'}; make it"):
        verify_bundle(unsigned, public_key=keys.public)
    with pytest.raises(BundleError, match=rf"^{unsigned}: not signed: there is no {tmp_path / 'none.sig'}; make it"):
        verify_bundle(unsigned, public_key=keys.public, signature=tmp_path / "none.sig")


def test_a_signature_beside_the_bundle_and_one_of_somebody_else_in_it(
    signed: Path, tmp_path: Path, keys: Any, other_keys: Any
) -> None:
    sign_bundle(signed, other_keys.private, signature=tmp_path / "bundle.sig")
    bundle = open_bundle(signed)

    assert check_signature(bundle, other_keys.public, signature=tmp_path / "bundle.sig").files == 11
    assert check_signature(bundle, keys.public).files == 11
    with pytest.raises(BundleError, match=r"bundle\.sig: signed by another key"):
        check_signature(bundle, keys.public, signature=tmp_path / "bundle.sig")
    (tmp_path / "bundle.sig").write_bytes(b" " * (4 * 1024 * 1024 + 1))
    with pytest.raises(BundleError, match=r"bundle\.sig: not a signature: more than 4194304 bytes"):
        check_signature(bundle, keys.public, signature=tmp_path / "bundle.sig")
    with pytest.raises(BundleError, match=rf"^{tmp_path}: Is a directory"):
        check_signature(bundle, keys.public, signature=tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.99])
def test_a_truncated_signature(signed: Path, keys: Any, share: float) -> None:
    data = (signed / SIGNATURE_NAME).read_bytes()
    (signed / SIGNATURE_NAME).write_bytes(data[: int(share * len(data))])

    with pytest.raises(BundleError, match=rf"^{signed / 'model.sig'}: not a signature by edgebert sign or .* damaged"):
        verify_bundle(signed, public_key=keys.public)


@pytest.mark.parametrize(
    "data",
    [b"{}", b"[]", b"\xff\xfe", b"-----BEGIN PGP SIGNATURE-----", b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"],
    ids=["empty", "list", "binary", "pgp", "nested"],
)
def test_a_foreign_signature(signed: Path, keys: Any, data: bytes) -> None:
    (signed / SIGNATURE_NAME).write_bytes(data)

    with pytest.raises(BundleError, match=rf"^{signed / 'model.sig'}: not a signature by edgebert sign"):
        verify_bundle(signed, public_key=keys.public)


def test_a_forged_signature(signed: Path, keys: Any) -> None:
    file = json.loads((signed / SIGNATURE_NAME).read_bytes())
    payload = base64.b64decode(file["dsseEnvelope"]["payload"])
    file["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(b"onnx/", b"ONNX/")).decode()
    (signed / SIGNATURE_NAME).write_text(json.dumps(file))

    with pytest.raises(BundleError, match=rf"model\.sig: damaged or forged: it names the key {keys.public}"):
        verify_bundle(signed, public_key=keys.public)


def test_a_signature_without_the_name_of_its_key(signed: Path, keys: Any, other_keys: Any) -> None:
    file = json.loads((signed / SIGNATURE_NAME).read_bytes())
    del file["verificationMaterial"]["publicKey"]["hint"]
    (signed / SIGNATURE_NAME).write_text(json.dumps(file))

    assert check_signature(open_bundle(signed), keys.public).files == 11
    with pytest.raises(BundleError, match="signed by another key: it does not say which; expected"):
        check_signature(open_bundle(signed), other_keys.public)


def test_one_signature_of_several_is_enough(signed: Path, keys: Any, other_keys: Any) -> None:
    statement = _statement(signed / SIGNATURE_NAME)
    files = [_sign_statement(statement, pair.private) for pair in (other_keys, keys)]
    file = files[0]
    file["dsseEnvelope"]["signatures"] = [
        {"sig": base64.b64encode(GARBAGE).decode()},
        *(signature for each in files for signature in each["dsseEnvelope"]["signatures"]),
    ]
    (signed / SIGNATURE_NAME).write_text(json.dumps(file))

    assert check_signature(open_bundle(signed), keys.public).files == 11
    file["dsseEnvelope"]["signatures"].pop()
    (signed / SIGNATURE_NAME).write_text(json.dumps(file))
    with pytest.raises(BundleError, match="signed by another key"):
        check_signature(open_bundle(signed), keys.public)


def test_a_signature_by_certificate(signed: Path, other_keys: Any) -> None:
    file = json.loads((signed / SIGNATURE_NAME).read_bytes())
    file["verificationMaterial"] = {"x509CertificateChain": {"certificates": []}}
    (signed / SIGNATURE_NAME).write_text(json.dumps(file))

    with pytest.raises(
        BundleError, match="made with a certificate or by Sigstore, not with a key: check it with model_"
    ):
        check_signature(open_bundle(signed), other_keys.public)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"predicateType": "https://slsa.dev/provenance/v1"}, "signs something else than a model, .*slsa"),
        ({"predicate": {"serialization": {}}}, "not a signature by edgebert sign .*resources"),
        (
            {"predicate": {"resources": [{"name": "a", "algorithm": "sha256", "digest": d} for d in "ab"]}},
            "expected one sha256 for each file, got several for one file",
        ),
    ],
    ids=["kind", "content", "twice"],
)
def test_the_right_key_on_something_else(signed: Path, keys: Any, change: dict[str, Any], expected: str) -> None:
    statement = {**_statement(signed / SIGNATURE_NAME), **change}
    (signed / SIGNATURE_NAME).write_text(json.dumps(_sign_statement(statement, keys.private)))

    with pytest.raises(BundleError, match=rf"^{signed / 'model.sig'}: {expected}"):
        check_signature(open_bundle(signed), keys.public)


def test_model_signing_checks_ours(signed: Path, theirs: Callable[[Path], None], forge: Any) -> None:
    theirs(signed)

    forge(signed, "graphs/layer_01.onnx", GARBAGE)
    with pytest.raises(ValueError, match=r"Hash mismatch for .*graphs/layer_01\.onnx"):
        theirs(signed)


def test_we_check_what_model_signing_signed(unsigned: Path, keys: Any, theirs: Callable[[Path], None]) -> None:
    (unsigned / ".hidden").write_text("no part of a bundle")
    signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=keys.private)
    signer.sign(unsigned, unsigned / SIGNATURE_NAME)
    names = [resource["name"] for resource in _statement(unsigned / SIGNATURE_NAME)["predicate"]["resources"]]
    assert names == [".hidden", *NAMES]

    assert check_signature(open_bundle(unsigned), keys.public).files == 11
    _flip(unsigned / "README.md")
    with pytest.raises(BundleError, match=r"README\.md: edited since the bundle was signed"):
        check_signature(open_bundle(unsigned), keys.public)


def test_what_model_signing_was_told_to_ignore_is_not_signed(unsigned: Path, keys: Any) -> None:
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=["graphs"])
    signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=keys.private)
    signer.set_hashing_config(hashing).sign(unsigned, unsigned / SIGNATURE_NAME)

    with pytest.raises(BundleError, match=r"graphs/embed\.onnx, graphs/layer_00\.onnx, .*: not signed"):
        check_signature(open_bundle(unsigned), keys.public)


def test_hashes_of_another_kind(unsigned: Path, keys: Any) -> None:
    hashing = model_signing.hashing.Config().use_file_serialization(hashing_algorithm="blake2")
    signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=keys.private)
    signer.set_hashing_config(hashing).sign(unsigned, unsigned / SIGNATURE_NAME)

    with pytest.raises(
        BundleError, match=r"model\.sig: expected one sha256 for each file, got blake2b; sign with model"
    ):
        check_signature(open_bundle(unsigned), keys.public)


def test_hidden_files_are_not_signed(unsigned: Path, keys: Any, theirs: Callable[[Path], None]) -> None:
    (unsigned / ".cache").mkdir()
    (unsigned / ".cache" / "download").write_text("where it came from")
    (unsigned / "graphs" / ".DS_Store").write_bytes(GARBAGE)

    assert sign_bundle(unsigned, keys.private).files == 11

    resources = _statement(unsigned / SIGNATURE_NAME)["predicate"]["resources"]
    assert [resource["name"] for resource in resources] == NAMES
    theirs(unsigned)
    shutil.rmtree(unsigned / ".cache")
    assert check_signature(open_bundle(unsigned), keys.public).files == 11


def test_a_snapshot_of_a_hub_cache(signed: Path, tmp_path: Path, keys: Any) -> None:
    snapshot = tmp_path / "models--someone--model" / "snapshots" / "revision"
    blobs = tmp_path / "models--someone--model" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(path for path in sorted(signed.rglob("*")) if path.is_file()):
        link = snapshot / path.relative_to(signed)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blobs / str(number))
        link.symlink_to(blobs / str(number))

    assert check_signature(open_bundle(snapshot), keys.public).files == 11
    with pytest.raises(
        BundleError, match=r"README\.md: expected a regular file, got a link or a special one; sign a copy"
    ):
        sign_bundle(snapshot, keys.private, force=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "README.md"])
def test_a_damaged_bundle_is_not_signed(unsigned: Path, keys: Any, name: str) -> None:
    _flip(unsigned / name)

    with pytest.raises(BundleError, match=f"^{unsigned / name}: "):
        sign_bundle(unsigned, keys.private)

    assert not (unsigned / SIGNATURE_NAME).exists()


def test_what_changes_while_it_is_signed_is_not_signed(
    unsigned: Path, keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = model_signing.signing.Config.sign

    def change_and_sign(config: object, bundle: Path, signature: Path) -> None:
        _flip(unsigned / "tokenizer.json")
        sign(config, bundle, signature)

    monkeypatch.setattr(model_signing.signing.Config, "sign", change_and_sign)
    with pytest.raises(BundleError, match=r"tokenizer\.json: not what was signed"):
        sign_bundle(unsigned, keys.private)

    assert not (unsigned / SIGNATURE_NAME).exists()


def test_sign_replaces_only_by_force(signed: Path, keys: Any, other_keys: Any) -> None:
    before = (signed / SIGNATURE_NAME).read_bytes()
    with pytest.raises(EdgeBertError, match=r"model\.sig: exists already; use --force to replace it"):
        sign_bundle(signed, other_keys.private)
    assert (signed / SIGNATURE_NAME).read_bytes() == before

    sign_bundle(signed, other_keys.private, force=True)

    check_signature(open_bundle(signed), other_keys.public)


def test_a_signature_under_another_name_in_the_bundle(unsigned: Path, tmp_path: Path, keys: Any) -> None:
    (tmp_path / "link").symlink_to(unsigned)
    for place in (unsigned / "other.sig", unsigned / "graphs" / "model.sig", tmp_path / "link" / "other.sig"):
        with pytest.raises(ConfigError, match=rf"--signature {place}: in the bundle's folder a signature is"):
            sign_bundle(unsigned, keys.private, signature=place)

    assert sign_bundle(unsigned, keys.private, signature=tmp_path / "link" / "model.sig").files == 11
    assert check_signature(open_bundle(unsigned), keys.public).files == 11


def test_what_is_derived_is_not_signed(signed: Path, tmp_path: Path) -> None:
    made = derive(open_bundle(signed), tmp_path / "made")
    assert not made.is_signed

    replaced = derive(open_bundle(signed), signed, force=True)
    assert not replaced.is_signed
    assert not (signed / SIGNATURE_NAME).exists()


def test_a_copy_is_signed(signed: Path, tmp_path: Path, keys: Any) -> None:
    with EdgeModel.from_pretrained(signed) as model:
        copy = model.save_pretrained(tmp_path / "copy")

    assert check_signature(open_bundle(copy), keys.public).files == 11


def test_signature_without_a_key(signed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--signature .*x\.sig: goes with --public-key"):
        verify_bundle(signed, signature=tmp_path / "x.sig")


def test_missing_extra(signed: Path, keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(signed)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingExtraError, match=r"^edgebert sign needs model_signing, .* 'edgebert\[sign\]'"):
        sign_bundle(signed, keys.private, force=True)
    check_signature(bundle, keys.public)  # needs no model_signing

    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtraError, match=r"^checking a signature needs cryptography, .* 'edgebert\[sign\]'"):
        check_signature(bundle, keys.public)
    with EdgeModel.from_pretrained(signed) as model:
        assert model("a film").label in model.labels
