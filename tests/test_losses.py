import math

import pytest
import torch

from edgebert.losses import (
    is_right,
    mean_cross_entropy,
    mean_distillation,
    normalised_entropy,
    probability_nll,
    task_loss,
)

LOGITS = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [
        (LOGITS, torch.tensor([0, 1]), -(math.log(1 / 2) + math.log(3 / 4)) / 2),
        (torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 2.0], dtype=torch.float64), 2.5),
        (torch.tensor([[1.0]]), torch.tensor([3.0]), 4.0),
    ],
)
def test_task_loss_goes_by_the_kind_of_label(logits: torch.Tensor, labels: torch.Tensor, expected: float) -> None:
    loss = task_loss(logits.requires_grad_(), labels)

    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected)
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_mean_cross_entropy_value() -> None:
    exits = [torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])]

    loss = mean_cross_entropy(exits, torch.tensor([0, 1]))

    # Probabilities of the labels: 1/2 and 3/4, then 3/4 and 1/2.
    assert loss.item() == pytest.approx(-(math.log(1 / 2) + math.log(3 / 4)) / 2)


def test_mean_distillation_value() -> None:
    teacher = torch.tensor([[math.log(3), 0.0]])
    students = [torch.zeros(1, 2), teacher.clone()]

    loss = mean_distillation(students, teacher)

    # KL((3/4, 1/4) || (1/2, 1/2)), and 0 for the student that agrees.
    assert loss.item() == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2, rel=1e-5)


def test_mean_distillation_trains_the_students_only() -> None:
    teacher = torch.tensor([[1.0, 0.0]], requires_grad=True)
    student = torch.tensor([[0.0, 1.0]], requires_grad=True)

    mean_distillation([student], teacher).backward()

    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_mean_distillation_of_one_output_is_the_squared_difference() -> None:
    teacher = torch.tensor([[1.0], [2.0]], requires_grad=True)
    student = torch.tensor([[1.5], [0.0]], requires_grad=True)

    loss = mean_distillation([student, teacher.detach()], teacher)
    loss.backward()

    assert loss.item() == pytest.approx((0.25 + 4.0) / 2 / 2)
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.tolist() == [[0.25], [-1.0]]


def test_task_loss_of_classes_and_of_numbers() -> None:
    classes = task_loss(torch.tensor([[0.0, math.log(3)]]), torch.tensor([1]))
    numbers = task_loss(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 2.0]))

    assert classes.item() == pytest.approx(-math.log(3 / 4))
    assert numbers.item() == pytest.approx(2.0)


def test_normalised_entropy_of_even_and_sure_answers() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0], [math.log(2), math.log(1), math.log(1)]])

    assert normalised_entropy(logits).tolist() == pytest.approx([1.0, 0.0, 1.5 * math.log(2) / math.log(3)], abs=1e-6)


def test_probability_nll_value() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.9, 0.1]])

    loss = probability_nll(probabilities, torch.tensor([1, 0]))

    # Not a cross-entropy over the probabilities once more.
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.9)) / 2)


def test_probability_nll_of_zero_is_finite() -> None:
    loss = probability_nll(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))

    assert loss.item() == pytest.approx(-math.log(1e-8))


def _spans(*lengths: int) -> torch.Tensor:
    """Logits of spans of rows of so many tokens, padding at its score."""
    tokens = max(lengths)
    logits = torch.randn(len(lengths), tokens, 2, generator=torch.Generator().manual_seed(0))
    return logits.masked_fill((torch.arange(tokens) >= torch.tensor(lengths)[:, None])[:, :, None], -1e4)


def test_task_loss_of_spans_is_the_mean_of_both_ends_over_real_tokens() -> None:
    logits, labels = _spans(4, 2), torch.tensor([[1, 3], [0, 0]])

    loss = task_loss(logits, labels)

    terms = [-logits[r, :n, end].log_softmax(0)[labels[r, end]] for r, n in ((0, 4), (1, 2)) for end in (0, 1)]
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_mean_distillation_of_spans_is_the_mean_of_both_ends_over_real_tokens() -> None:
    teacher, student = _spans(4, 2), _spans(4, 2).roll(1, dims=2) * 0.5

    loss = mean_distillation([student, teacher], teacher)

    terms = []
    for row, tokens in ((0, 4), (1, 2)):
        for end in (0, 1):
            p, q = (x[row, :tokens, end].double().log_softmax(0) for x in (teacher, student))
            terms.append((p.exp() * (p - q)).sum())
    # The teacher itself, the second student, is at distance 0.
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item() / 2, rel=1e-5)


def test_is_right_needs_both_ends() -> None:
    logits = torch.zeros(3, 4, 2)
    logits[:, 1, 0] = logits[:, 2, 1] = 1.0

    assert is_right(logits, torch.tensor([[1, 2], [1, 1], [0, 2]])).tolist() == [True, False, False]
    assert is_right(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1])).tolist() == [True, False]
