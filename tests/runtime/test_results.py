import json

from edgebert.runtime.results import LabelScore, Prediction

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


def test_prediction_to_dict_with_dropped_tokens() -> None:
    fields = {**PREDICTION.to_dict(), "layer_tokens": (4, 2)}

    assert Prediction(**fields).to_dict() == {**PREDICTION.to_dict(), "layer_tokens": (4, 2)}
