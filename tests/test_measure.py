from pathlib import Path

import numpy as np
import pytest

from edgebert import EdgeModel
from edgebert.data import read_examples
from edgebert.measure import _paths, measure


def test_paths_counted_by_hand() -> None:
    path = np.array([[1, 0, 1]] * 4 + [[1, 1, 1]] * 2 + [[0, 0, 1]] * 2, bool)

    # Shares 1/2, 1/4 and 1/4: 1.5 bits.
    assert _paths(path) == {"n_paths": 3, "path_entropy_bits": 1.5, "layer_share": [0.75, 0.25, 1.0]}


def test_paths_of_one_path_have_no_entropy() -> None:
    assert _paths(np.ones((5, 2), bool)) == {"n_paths": 1, "path_entropy_bits": 0.0, "layer_share": [1.0, 1.0]}


def test_measure_row_tells_the_paths(dact_bundle: Path, sentiment_data: Path) -> None:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        measured = measure(model, read_examples(sentiment_data / "test.tsv"))

    # Rows that only ever stop early take as many paths as there are exits used.
    shares = np.bincount(measured.exit_layer, minlength=4)[1:] / 40
    row = measured.row
    assert row["n_paths"] == (shares > 0).sum() > 1
    assert row["path_entropy_bits"] == pytest.approx(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    assert row["layer_share"] == pytest.approx(shares[::-1].cumsum()[::-1].tolist())
    assert sum(row["layer_share"]) == pytest.approx(row["mean_layers"])
