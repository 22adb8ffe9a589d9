import numpy as np
import pytest

from edgebert.data import Example
from edgebert.errors import ConfigError, DataError
from edgebert.tasks import classification


def _examples(*labels: str | None) -> list[Example]:
    return [Example("a", None, label) for label in labels]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["positive", "negative", "positive"], ("negative", "positive")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["true", "false", None], ("false", "true")),
        (["1", "01", "0"], ("0", "01", "1")),
        (["²", "10", "9"], ("10", "9", "²")),
    ],
)
def test_label_names_sorted(labels: list[str | None], names: tuple[str, ...]) -> None:
    assert classification.label_names(_examples(*labels)) == names


@pytest.mark.parametrize(("labels", "got"), [(["yes", "yes"], "'yes'"), ([None], "none"), ([], "none")])
def test_label_names_too_few(labels: list[str | None], got: str) -> None:
    with pytest.raises(DataError) as raised:
        classification.label_names(_examples(*labels))

    assert str(raised.value) == (
        f"labels: expected at least 2 different ones in {len(labels)} examples, got {got}; "
        "check the label column and the split."
    )


def test_encode_targets_in_the_models_order() -> None:
    indices = classification.encode_targets(_examples("b", "a", "b"), ("b", "a"), where="dev.tsv")

    assert indices.dtype == np.int64
    assert indices.tolist() == [0, 1, 0]


@pytest.mark.parametrize(("label", "got"), [("c", "'c'"), (None, "no label")])
def test_encode_targets_unknown(label: str | None, got: str) -> None:
    with pytest.raises(DataError) as raised:
        classification.encode_targets(_examples("a", label, "d"), ("a", "b"), where="dev.tsv")

    assert str(raised.value) == (
        f"dev.tsv: example 2: expected one of the model's labels a, b, got {got}; correct it, or train a model with it."
    )


@pytest.mark.parametrize(
    ("predictions", "targets", "n_labels", "expected"),
    [
        # 2 true positives, 1 false positive, 1 false negative, 1 true negative.
        ([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 2, {"accuracy": 0.6, "f1": 2 / 3, "mcc": 1 / 6}),
        ([0, 1, 0, 1], [0, 1, 0, 1], 2, {"accuracy": 1.0, "f1": 1.0, "mcc": 1.0}),
        ([1, 0], [0, 1], 2, {"accuracy": 0.0, "f1": 0.0, "mcc": -1.0}),
        ([0, 0, 0], [0, 0, 0], 2, {"accuracy": 1.0, "f1": 0.0, "mcc": 0.0}),
        ([1, 1], [1, 1], 2, {"accuracy": 1.0, "f1": 1.0, "mcc": 0.0}),
        ([0, 0], [0, 1], 2, {"accuracy": 0.5, "f1": 0.0, "mcc": 0.0}),
        # F1 of labels 0, 1, 2: 1, 2/3, 0. The fourth label does not occur.
        ([0, 1, 1], [0, 1, 2], 4, {"accuracy": 2 / 3, "f1": 5 / 9, "mcc": 0.612372}),
    ],
)
def test_metrics_values(predictions: list[int], targets: list[int], n_labels: int, expected: dict[str, float]) -> None:
    scores = classification.metrics(np.array(predictions), np.array(targets), n_labels)

    assert scores == pytest.approx(expected, abs=1e-6)
    assert classification.METRIC in scores


@pytest.mark.parametrize(("n_predictions", "n_targets"), [(0, 0), (2, 3)])
def test_metrics_wrong_lengths(n_predictions: int, n_targets: int) -> None:
    with pytest.raises(DataError, match=f"got {n_predictions} predictions for {n_targets} targets"):
        classification.metrics(np.zeros(n_predictions, np.int64), np.zeros(n_targets, np.int64), 2)


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
    assert classification.softmax(np.array(logits)) == pytest.approx(np.array(expected), rel=1e-9)


def test_softmax_of_no_rows() -> None:
    assert classification.softmax(np.zeros((0, 2))).shape == (0, 2)


def test_ranked_gives_the_most_probable_labels() -> None:
    scores = np.array([[0.0, np.log(3), 0.0], [np.log(2), 0.0, 0.0]])

    ranked = classification.ranked(scores, (), ("a", "b", "c"), 2)

    assert [[candidate.text for candidate in best] for best in ranked] == [["b", "a"], ["a", "b"]]
    assert [[candidate.score for candidate in best] for best in ranked] == [
        pytest.approx([0.6, 0.2]),
        pytest.approx([0.5, 0.25]),
    ]


def test_predictions_are_numbers_of_labels_and_right_or_wrong() -> None:
    predictions = classification.predictions(np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 0.5]]))
    targets = np.array([1, 1, 1])

    assert predictions.dtype == np.int64
    assert predictions.tolist() == [1, 0, 1]
    assert classification.per_text(predictions, targets).tolist() == [True, False, True]
    assert classification.metric(predictions, targets) == classification.metrics(predictions, targets, 2)["accuracy"]
    assert classification.agreement(predictions, np.array([0, 0, 1])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("labels", "got"), [((), "none"), (("yes",), "'yes'")])
def test_check_labels_too_few(labels: tuple[str, ...], got: str) -> None:
    with pytest.raises(ConfigError) as raised:
        classification.check_labels(labels, where="train.labels")

    assert str(raised.value) == f"train.labels: expected at least 2 labels to choose between, got {got}."
