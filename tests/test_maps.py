from pathlib import Path

import numpy as np
import pytest

from edgebert import EdgeModel
from edgebert.data import read_examples
from edgebert.evaluate import evaluate_bundle
from edgebert.measure import measure


def test_maps_tell_the_layers_of_the_first_texts(dact_bundle: Path, sentiment_data: Path) -> None:
    examples = read_examples(sentiment_data / "test.tsv")

    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        measured = measure(model, examples, maps=7)

    paths = measured.row["maps"]["paths"]
    assert paths == [("1" * layer).ljust(3, "0") for layer in measured.exit_layer[:7]]
    assert len(set(paths)) > 1
    assert set(measured.row["maps"]) == {"paths"}


@pytest.mark.parametrize("batch_size", [1, 32])
def test_maps_tell_how_far_each_token_went(token_bundle: Path, sentiment_data: Path, batch_size: int) -> None:
    examples = read_examples(sentiment_data / "test.tsv")

    with EdgeModel.from_pretrained(token_bundle, threads=1) as model:
        row = measure(model, examples, batch_size, maps=5).row

    assert len(row["maps"]["tokens"]) == 5
    for example, tokens in zip(examples, row["maps"]["tokens"], strict=False):
        assert " ".join(token for token, _ in tokens[1:-1]) == example.text
        went = np.array([layers for _, layers in tokens])
        # The first layer lets a share of 0.6 go on, the second 0.3.
        assert (went >= 1).sum() == pytest.approx(0.6 * len(tokens), abs=1)
        assert (went >= 2).sum() == pytest.approx(0.3 * len(tokens), abs=1)


def test_maps_tell_the_shares_of_the_pieces(width_bundle: Path, sentiment_data: Path) -> None:
    result = evaluate_bundle([width_bundle], [sentiment_data / "test.tsv"], maps=1, threads=1)

    (row,) = result["rows"]
    heads, blocks = (np.array(row["maps"]["keep_rates"][kind]) for kind in ("head", "block"))
    assert heads.shape == (3, 4)
    assert blocks.shape == (3, 8)
    assert heads.mean() == pytest.approx(row["mean_head_share"], abs=1e-3)
    assert blocks.mean() == pytest.approx(row["mean_block_share"], abs=1e-3)
    assert row["maps"]["paths"] == ["111"]


def test_no_maps_unless_asked(dact_bundle: Path, sentiment_data: Path) -> None:
    (row,) = evaluate_bundle([dact_bundle], [sentiment_data / "test.tsv"], threads=1)["rows"]

    assert "maps" not in row
