import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgebert.bundle import SIGNATURE_NAME, open_bundle

Invoke = Callable[..., tuple[int, str, str]]


def test_sign_and_verify(invoke: Invoke, unsigned: Path, keys: Any) -> None:
    code, out, err = invoke("sign", unsigned, "--private-key", keys.private)

    made = re.fullmatch(
        rf"{unsigned}/model\.sig: signs the 11 files of {unsigned} by the key with sha256 (\w{{64}})\n", out
    )
    assert made is not None
    assert (code, err) == (0, f"next: edgebert verify {unsigned} --public-key KEY.pub.pem\n")
    code, out, err = invoke("verify", unsigned, "--public-key", keys.public)
    assert (code, err) == (0, "")
    assert out == (
        f"{unsigned}: 10 files and 5 graphs are as they were made\n"
        f"signed by {keys.public} (sha256 {made[1]}), every file of it\n"
    )
    code, _, err = invoke("verify", unsigned)
    assert (code, err) == (0, f"note: {unsigned}/model.sig: not checked; give --public-key.\n")


def test_sign_and_verify_as_json_with_the_signature_elsewhere(
    invoke: Invoke, unsigned: Path, tmp_path: Path, keys: Any
) -> None:
    place = tmp_path / "a.sig"

    code, out, err = invoke("sign", unsigned, "--private-key", keys.private, "--signature", place, "--json")

    made = json.loads(out)
    assert (code, err) == (0, f"next: edgebert verify {unsigned} --public-key KEY.pub.pem --signature {place}\n")
    assert made == {
        "schema": "edgebert.sign/1",
        "bundle": str(unsigned),
        "signature": str(place),
        "key": made["key"],
        "files": 11,
    }
    code, out, _ = invoke("verify", unsigned, "--public-key", keys.public, "--signature", place, "--json")
    assert code == 0
    assert json.loads(out)["signature"] == {"path": str(place), "key": made["key"], "files": 11}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda bundle, forge: forge(bundle, "graphs/layer_01.onnx", b"mine"),
            r"edgebert\.json, graphs/layer_01\.onnx",
        ),
        (lambda bundle, forge: (bundle / "README.md").write_text("mine"), r"README\.md: edited since the bundle was"),
        (lambda bundle, forge: (bundle / "tokenizer.json").unlink(), r"tokenizer\.json: missing"),
        (lambda bundle, forge: (bundle / "extra.py").write_text("import os"), r"extra\.py: not listed"),
        (lambda bundle, forge: (bundle / "model.sig").unlink(), "not signed: there is no"),
        (lambda bundle, forge: (bundle / "model.sig").write_text("{"), r"model\.sig: not a signature"),
    ],
    ids=["graph", "card", "missing", "extra", "unsigned", "truncated"],
)
def test_verify_refuses(
    invoke: Invoke, signed: Path, keys: Any, forge: Any, change: Callable[..., object], expected: str
) -> None:
    change(signed, forge)

    code, out, err = invoke("verify", signed, "--public-key", keys.public)

    assert (code, out, err.count("\n")) == (3, "", 1)
    assert re.search(rf"^error: {signed}.*{expected}", err)


def test_wrong_keys(invoke: Invoke, signed: Path, keys: Any, other_keys: Any, make_keys: Any) -> None:
    code, _, err = invoke("verify", signed, "--public-key", other_keys.public)
    assert (code, "signed by another key" in err) == (3, True)
    code, _, err = invoke("verify", signed, "--public-key", keys.private)
    assert (code, "is a private key" in err) == (2, True)
    code, _, err = invoke("verify", signed, "--signature", signed / SIGNATURE_NAME)
    assert (code, "goes with --public-key" in err) == (2, True)
    code, _, err = invoke("sign", signed, "--private-key", keys.public, "--force")
    assert (code, "is a public key" in err) == (2, True)
    code, _, err = invoke("sign", signed, "--private-key", make_keys(password=b"x").private, "--force")
    assert (code, "give --password-file" in err) == (2, True)
    code, _, err = invoke("sign", signed, "--private-key", keys.private)
    assert (code, "use --force" in err) == (1, True)


def test_missing_extra(invoke: Invoke, signed: Path, keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    monkeypatch.setitem(sys.modules, "cryptography", None)

    for command in (("sign", signed, "--private-key", keys.private), ("verify", signed, "--public-key", keys.public)):
        code, _, err = invoke(*command)
        assert code == 5
        assert "pip install 'edgebert[sign]'" in err


def test_a_tuned_or_quantized_bundle_is_not_signed(
    invoke: Invoke, dact_bundle: Path, tmp_path: Path, keys: Any, sentiment_data: Path
) -> None:
    bundle = shutil.copytree(dact_bundle, tmp_path / "bundle")
    note = "model.sig signs the bundle as it was and is left out: sign the new one with edgebert sign\n"
    assert invoke("sign", bundle, "--private-key", keys.private)[0] == 0

    code, _, err = invoke("quantize", bundle, tmp_path / "int8")
    assert (code, note in err) == (0, True)
    assert not open_bundle(tmp_path / "int8").is_signed
    assert open_bundle(bundle).is_signed
    code, _, err = invoke("export", bundle, tmp_path / "both", "--layout", "both")
    assert (code, note in err) == (0, True)
    assert not open_bundle(tmp_path / "both").is_signed
    code, _, err = invoke("tune", bundle, "--data", sentiment_data / "validation.tsv", "--policy", "confidence")
    assert (code, note in err) == (0, True)
    code, _, err = invoke("verify", bundle, "--public-key", keys.public)
    assert (code, "not signed" in err) == (3, True)
    code, _, err = invoke("tune", bundle, "--data", sentiment_data / "validation.tsv", "--policy", "confidence")
    assert (code, note in err) == (0, False)


def test_checking_needs_nothing_heavy(signed: Path, keys: Any) -> None:
    code = (
        "import sys; from edgebert import EdgeModel; "
        f"EdgeModel.from_pretrained({str(signed)!r}, public_key={str(keys.public)!r}); "
        "print(sorted({'torch', 'model_signing', 'pydantic', 'sigstore', 'cryptography'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "['cryptography']\n"
