from pathlib import Path

from edgebert.bundle import open_bundle
from edgebert.bundle.card import write_card


def test_write_card_facts(dact_bundle: Path) -> None:
    manifest = open_bundle(dact_bundle).manifest
    assert manifest.parity is not None

    lines = write_card(manifest, "my-model").splitlines()

    assert lines[:5] == ["---", "library_name: edgebert", "pipeline_tag: text-classification", "---", "# my-model"]
    assert 'model = EdgeModel.from_pretrained("my-model")' in lines
    assert "| default | halting | bound=paper, slack=0.0 | - | - | - | - |" in lines
    assert "| confidence | confidence | threshold=0.75 | - | - | - | - |" in lines
    assert lines[-1].startswith("Compared with torch on 16 random inputs: ")


def test_bundle_has_its_card(dact_bundle: Path) -> None:
    text = (dact_bundle / "README.md").read_text(encoding="utf-8")

    assert "# dact\n" in text
    assert "differ by at most" in text
