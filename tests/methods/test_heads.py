"""The heads that methods share, for texts and for spans."""

from collections.abc import Callable

import pytest
import torch

from edgebert.checkpoint import build_model
from edgebert.config import RunConfig, TrainConfig
from edgebert.encoders._blocks import Encoder
from edgebert.errors import ConfigError
from edgebert.methods._heads import new_head
from edgebert.methods._program import PADDING_SCORE, Batch, HeadStep, head_step

MakeEncoder = Callable[..., Encoder]


@pytest.fixture
def questions() -> Batch:
    """Four rows of 3 to 9 tokens, with the first and last tokens of their answers."""
    lengths = torch.tensor([9, 4, 3, 7])
    mask = (torch.arange(9)[None, :] < lengths[:, None]).long()
    ids = torch.randint(1, 50, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    return Batch(input_ids=ids, attention_mask=mask, labels=torch.tensor([[2, 5], [0, 0], [1, 1], [6, 6]]))


def test_span_head_scores_every_token_and_no_padding(make_encoder: MakeEncoder, questions: Batch) -> None:
    shape = make_encoder().config
    pooling, head = new_head(shape, "mean", 2, per_token=True)
    hidden = torch.randn(4, 9, shape.hidden_size)

    logits = HeadStep(pooling, head)(hidden, questions.attention_mask)

    real = questions.attention_mask == 1
    assert logits.shape == (4, 9, 2)
    assert (logits[~real] == PADDING_SCORE).all()
    assert torch.allclose(logits[real], head(hidden)[real])
    assert not list(pooling.parameters())


def test_head_step_costs_in_closed_form(make_encoder: MakeEncoder) -> None:
    shape = make_encoder().config

    span = head_step(*new_head(shape, "cls", 2, per_token=True), shape, 2).macs
    text = head_step(*new_head(shape, "cls", 3, per_token=False), shape, 3).macs

    assert (span.row, span.token, span.token_pair) == (0, 32 * 2, 0)
    assert (text.row, text.token, text.token_pair) == (32 * 32 + 32 * 3, 0, 0)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "plain"},
        {"name": "dpbert"},
        {"name": "dpbert", "planner": "upfront"},
        {"name": "dpbert", "estimator": "reinforce", "shared_planner": True},
    ],
)
def test_every_stage_has_a_gradient_from_spans(
    make_encoder: MakeEncoder, questions: Batch, method: dict[str, str]
) -> None:
    config = RunConfig(method=method, train=TrainConfig(task="question_answering"))
    torch.manual_seed(0)
    model = build_model(make_encoder(standard_deviation=0.1), config, 2)

    for stage in model.stages(config.train):
        loss = stage.loss(questions)
        loss.backward()
        trained = [p for group in stage.groups for p in group.parameters if p.grad is not None]
        assert torch.isfinite(loss)
        assert any(p.grad.abs().max() > 0 for p in trained)
        model.zero_grad()


def test_dpbert_shows_a_planner_no_uncertainty_of_spans(make_encoder: MakeEncoder) -> None:
    train = TrainConfig(task="question_answering")

    model = build_model(make_encoder(), RunConfig(method={"name": "dpbert"}, train=train), 2)

    assert model.config.planner_input == "state"
    with pytest.raises(
        ConfigError, match=r"^method\.planner_input: a planner reads one vector a row, and a span's unc"
    ):
        build_model(
            make_encoder(), RunConfig(method={"name": "dpbert", "planner_input": "uncertainty"}, train=train), 2
        )
