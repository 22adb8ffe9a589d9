from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Encoder
from edgebert.errors import ConfigError
from edgebert.methods import plain
from edgebert.methods._program import Batch, Pooling
from edgebert.methods._reference import run_reference

MakeEncoder = Callable[..., Encoder]
POOLS = ["mean", "attention", "cls"]


def _batch(lengths: list[int], *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, 50, mask.shape, generator=generator) * mask
    return Batch(input_ids=ids, attention_mask=mask, labels=torch.arange(len(lengths)) % 2)


def _model(encoder: Encoder, **settings: object) -> plain.Plain:
    torch.manual_seed(1)
    return plain.build(encoder, plain.Config(**settings), 2).eval()


@pytest.mark.parametrize(
    ("pool", "expected"),
    [("mean", [2.0, 3.0]), ("cls", [1.0, 2.0]), ("attention", [2.5, 3.5])],
)
def test_pooling_values(pool: str, expected: list[float]) -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, -99.0]]])
    pooling = Pooling(pool, 2)
    if pool == "attention":
        # Scores 0 and ln 3, so weights 1/4 and 3/4; the padded token would win without the mask.
        with torch.no_grad():
            pooling.score.weight.copy_(torch.log(torch.tensor([[3.0, 1.0]])) / 2)
            pooling.score.bias.zero_()

    pooled = pooling(hidden, torch.tensor([[1, 1, 0]]))

    assert pooled[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("pool", POOLS)
def test_plain_padding_has_no_influence(make_encoder: MakeEncoder, pool: str) -> None:
    model = _model(make_encoder(), pool=pool)
    batch = _batch([16, 5, 1, 9])

    with torch.no_grad():
        together = model(batch.input_ids, batch.attention_mask)
        alone = [
            model(batch.input_ids[i : i + 1, :n], batch.attention_mask[i : i + 1, :n])
            for i, n in enumerate(batch.attention_mask.sum(dim=1).tolist())
        ]

    assert (together - torch.cat(alone)).abs().max() <= 1e-5


@pytest.mark.parametrize("layers", [1, 2, 3, None])
@pytest.mark.parametrize("pool", POOLS)
def test_plain_reads_the_last_of_its_layers(make_encoder: MakeEncoder, layers: int | None, pool: str) -> None:
    encoder = make_encoder()
    model = _model(encoder, layers=layers, pool=pool)
    batch = _batch([6, 4])

    with torch.no_grad():
        logits = model(batch.input_ids, batch.attention_mask)
        state = encoder(batch.input_ids, batch.attention_mask)[layers or 3]
        expected = model.head(model.pooling(state, batch.attention_mask))

    assert model.encoder.config.layers == (layers or 3)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("layers", [0, -1, 4])
def test_plain_bad_layers(make_encoder: MakeEncoder, layers: int) -> None:
    with pytest.raises(ConfigError, match=rf"^method\.layers: expected 1 to 3, got {layers}\.$"):
        plain.build(make_encoder(), plain.Config(layers=layers), 2)


@pytest.mark.parametrize("layers", [2, None])
def test_plain_program_gives_the_models_answer(make_encoder: MakeEncoder, layers: int | None) -> None:
    model = _model(make_encoder(), layers=layers)
    batch = _batch([6, 4])
    steps = model.steps()

    decisions, _ = run_reference(steps, batch)
    answers = [{name: torch.from_numpy(value) for name, value in d.outputs.items()} for d in decisions]

    expected = model(batch.input_ids, batch.attention_mask)
    assert [step.kind for step in steps] == ["embed", *["layer"] * (layers or 3), "head"]
    assert [step.layer for step in steps] == [0, *range(1, (layers or 3) + 1), layers or 3]
    assert torch.equal(answers[0]["logits"], expected)


def test_plain_costs_in_closed_form(make_encoder: MakeEncoder) -> None:
    steps = _model(make_encoder()).steps()

    # One layer of width d = 32 with feed-forward f = 64: (4 d^2 + 2 d f) T + 2 d T^2 (METHODS 1.1).
    layer, head = steps[1].macs, steps[-1].macs
    assert (layer.row, layer.token, layer.token_pair) == (0, 4 * 32**2 + 2 * 32 * 64, 2 * 32)
    assert (head.row, head.token, head.token_pair) == (32 * 32 + 32 * 2, 0, 0)


def test_plain_stage_trains_everything_with_a_faster_head(make_encoder: MakeEncoder) -> None:
    model = _model(make_encoder(), pool="attention")

    (stage,) = model.stages(TrainConfig(learning_rate=1e-4, head_learning_rate_factor=5.0))

    encoder, new = stage.groups
    assert {id(p) for p in encoder.parameters} == {id(p) for p in model.encoder.parameters()}
    assert {id(p) for p in (*encoder.parameters, *new.parameters)} == {id(p) for p in model.parameters()}
    assert (encoder.learning_rate, new.learning_rate) == pytest.approx((1e-4, 5e-4))


def test_plain_loss_is_the_cross_entropy(make_encoder: MakeEncoder) -> None:
    model = _model(make_encoder())
    batch = _batch([6, 4])
    (stage,) = model.stages(TrainConfig())

    loss = stage.loss(batch)

    logits: Tensor = model(batch.input_ids, batch.attention_mask).detach()
    assert loss.item() == pytest.approx(-logits.log_softmax(1)[[0, 1], [0, 1]].mean().item(), rel=1e-5)


def test_plain_rule() -> None:
    assert plain.rule(plain.Config()) == ("never", {})
