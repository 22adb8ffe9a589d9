import json

import numpy as np
import pytest

from edgebert.runtime.results import LabelScore, Prediction, softmax

PREDICTION = Prediction(label="good", score=0.75, exit_layer=2, layers_run=2, cost_ratio=0.5, tokens=4, truncated=False)


def test_prediction_to_dict_without_top() -> None:
    assert json.loads(json.dumps(PREDICTION.to_dict())) == {
        "label": "good",
        "score": 0.75,
        "exit_layer": 2,
        "layers_run": 2,
        "cost_ratio": 0.5,
        "tokens": 4,
        "truncated": False,
    }


def test_prediction_to_dict_with_top() -> None:
    fields = {**PREDICTION.to_dict(), "top": (LabelScore("good", 0.75), LabelScore("bad", 0.25))}

    top = Prediction(**fields).to_dict()["top"]

    assert top == [{"label": "good", "score": 0.75}, {"label": "bad", "score": 0.25}]


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([[0.0, 0.0]], [[0.5, 0.5]]),
        ([[1000.0, 1000.0 + np.log(3)]], [[0.25, 0.75]]),
        ([[np.log(0.2), np.log(0.8)]], [[0.2, 0.8]]),
        ([[np.log(1e-30), 0.0]], [[1e-30, 1.0]]),
    ],
)
def test_softmax_of_logits_and_log_probabilities(logits: list[list[float]], expected: list[list[float]]) -> None:
    assert softmax(np.array(logits)) == pytest.approx(np.array(expected), rel=1e-9)


def test_softmax_of_no_rows() -> None:
    assert softmax(np.zeros((0, 2))).shape == (0, 2)
