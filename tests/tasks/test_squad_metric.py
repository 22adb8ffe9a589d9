"""The metric of SQuAD v1.1 against hand-counted values and torchmetrics."""

import numpy as np
import pytest
from torchmetrics.text import SQuAD

from edgebert.tasks import question_answering
from edgebert.tasks._squad import exact_match, f1, normalise

WORDS = ["the", "a", "An", "tower", "Tower,", "of", "London.", "1066", "(sic)", "-", "naïve", "U.S."]


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("The Tower", "tower"),
        ("  a  an the  ", ""),
        ("Theatre of the absurd", "theatre of absurd"),
        ("U.S. Army!", "us army"),
        ("well-known", "wellknown"),
        ("x\ty\nz", "x y z"),
        ("“quoted”", "“quoted”"),
    ],
)
def test_normalise(answer: str, normalised: str) -> None:
    assert normalise(answer) == normalised


@pytest.mark.parametrize(
    ("answer", "gold", "f1_score", "match"),
    [
        ("the tower", "Tower.", 1.0, 1.0),
        ("the tower of London", "tower", 0.5, 0.0),
        ("x x y", "x y y", 2 / 3, 0.0),
        ("x", "y", 0.0, 0.0),
        ("", "", 0.0, 1.0),
        ("the", "a", 0.0, 1.0),
        ("", "x", 0.0, 0.0),
    ],
)
def test_f1_and_exact_match(answer: str, gold: str, f1_score: float, match: float) -> None:
    assert f1(answer, gold) == pytest.approx(f1_score)
    assert exact_match(answer, gold) == match


def test_metrics_are_those_of_torchmetrics() -> None:
    """Where a right answer has words: of two empty ones torchmetrics gives the F1 of SQuAD v2, 1, and v1.1 has 0."""
    rng = np.random.default_rng(0)

    def words() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(0, 5)))

    answers = [words() for _ in range(300)]
    golds = [tuple(f"{words()} king" for _ in range(rng.integers(1, 4))) for _ in answers]
    answers = [answer + " King" * (number % 2) for number, answer in enumerate(answers)]
    theirs = SQuAD()
    theirs.update(
        [{"prediction_text": answer, "id": str(n)} for n, answer in enumerate(answers)],
        [{"answers": {"answer_start": [0] * len(g), "text": list(g)}, "id": str(n)} for n, g in enumerate(golds)],
    )
    targets = np.empty(len(golds), object)
    targets[:] = golds

    ours = question_answering.metrics(np.array(answers, object), targets)

    expected = {name: float(value) / 100 for name, value in theirs.compute().items()}
    assert ours == {"f1": pytest.approx(expected["f1"]), "exact_match": pytest.approx(expected["exact_match"])}
    assert 0.05 < ours["exact_match"] < ours["f1"] < 0.95
