"""The shared classifier, its loss, the exit labels and the token table against plain transcriptions of METHODS 4.3."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgebert.checkpoint import load_checkpoint
from edgebert.config import TrainConfig, decode, read_config
from edgebert.encoders._blocks import Encoder
from edgebert.errors import ConfigError
from edgebert.methods import geep
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference
from edgebert.methods._student import Student
from edgebert.methods._token_table import TokenTable
from edgebert.policies import make_policy

MakeEncoder = Callable[..., Encoder]
LAYERS = 4
SPECIAL = frozenset({0, 2, 3})


def _model(encoder: Encoder, **settings: Any) -> geep.Geep:
    """A model whose classifier has weights large enough that rows differ."""
    torch.manual_seed(5)
    model = geep.build(encoder, geep.Config(**settings), 3).eval()
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _answers(model: geep.Geep, batch: Batch) -> list[torch.Tensor]:
    states = model.encoder(batch.input_ids, batch.attention_mask)[1:]
    return [model.classifier(state, batch.attention_mask) for state in states]


def test_geep_has_one_classifier_for_all_layers(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    model = geep.build(encoder, geep.Config(), 3)

    own = {id(p) for p in model.parameters()} - {id(p) for p in encoder.parameters()}

    assert len(own) == len(list(Student(encoder.config, "mean", 3).parameters()))
    assert {step.module for step in model.steps() if step.kind == "head"} == {model.classifier}


@pytest.mark.parametrize(("weights", "shares"), [("uniform", [1 / 3] * 3), ("linear", [1 / 6, 2 / 6, 3 / 6])])
def test_geep_loss_is_the_weighted_mean_over_layers(
    make_encoder: MakeEncoder, batch: Batch, weights: str, shares: list[float]
) -> None:
    model = _model(make_encoder(), weights=weights)
    assert batch.labels is not None

    loss = model.loss(batch)

    losses = []
    for logits in _answers(model, batch):
        chosen = logits.log_softmax(-1)[torch.arange(6), batch.labels]
        losses.append(-chosen.mean().item())
    assert loss.item() == pytest.approx(sum(s * x for s, x in zip(shares, losses, strict=True)), rel=1e-5)


def test_geep_distillation_is_added(make_encoder: MakeEncoder, batch: Batch) -> None:
    encoder = make_encoder()
    base = _model(encoder).loss(batch).item()
    model = _model(encoder, distillation=0.5)

    loss = model.loss(batch)

    *others, last = [logits.softmax(-1).detach().numpy().astype(float) for logits in _answers(model, batch)]
    divergence = np.mean([(last * np.log(last / other)).sum(1).mean() for other in others])
    assert loss.item() == pytest.approx(base + 0.5 * divergence, rel=1e-4)


@pytest.mark.parametrize("weights", ["uniform", "linear"])
def test_geep_gradient_is_the_sum_over_layers(make_encoder: MakeEncoder, batch: Batch, weights: str) -> None:
    model = _model(make_encoder(), weights=weights).double()
    parameters = list(model.classifier.parameters())
    states = [state.detach() for state in model.encoder(batch.input_ids, batch.attention_mask)[1:]]
    shares = [1 / 3] * 3 if weights == "uniform" else [1 / 6, 2 / 6, 3 / 6]
    expected = [torch.zeros_like(parameter) for parameter in parameters]
    for state, share in zip(states, shares, strict=True):
        loss = functional.cross_entropy(model.classifier(state, batch.attention_mask), batch.labels)
        for total, part in zip(expected, torch.autograd.grad(share * loss, parameters), strict=True):
            total += part
        assert total.abs().sum() > 0

    model.loss(batch).backward()

    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        # The loss is a float32 value, which the double-precision gradients pass through.
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-8)


def test_geep_one_stage_trains_everything(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder())

    (stage,) = model.stages(TrainConfig(learning_rate=1e-4, head_learning_rate_factor=5.0))
    stage.loss(batch).backward()

    assert {id(p) for group in stage.groups for p in group.parameters} == {id(p) for p in model.parameters()}
    assert [group.learning_rate for group in stage.groups] == pytest.approx([1e-4, 5e-4])
    assert (stage.name,) == geep.STAGES
    assert all(layer.attention.query.weight.grad.abs().sum() > 0 for layer in model.encoder.layers)


@pytest.mark.parametrize("pool", ["mean", "attention", "cls"])
def test_geep_padding_has_no_influence(make_encoder: MakeEncoder, batch: Batch, pool: str) -> None:
    model = _model(make_encoder(), pool=pool)

    with torch.no_grad():
        together = model(batch.input_ids, batch.attention_mask)
        alone = [
            model(batch.input_ids[i : i + 1, :n], batch.attention_mask[i : i + 1, :n])
            for i, n in enumerate(batch.attention_mask.sum(dim=1).tolist())
        ]

    assert (together.softmax(-1) - torch.cat(alone).softmax(-1)).abs().max() <= 1e-5


def test_geep_answers_with_the_last_state(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder())

    with torch.no_grad():
        answer, expected = model(batch.input_ids, batch.attention_mask), _answers(model, batch)[-1]

    assert torch.equal(answer, expected)


def _random_logits() -> torch.Tensor:
    return 3 * torch.randn((LAYERS, 300, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("speed", [0.0, 0.1, 0.3, 0.5, 1.1])
def test_exit_labels_by_entropy(speed: float) -> None:
    logits = _random_logits()
    expected = []
    for row in range(300):
        layer = 1
        while layer < LAYERS:
            exponentials = np.exp(logits[layer - 1, row].numpy().astype(float))
            p = exponentials / exponentials.sum()
            if -(p * np.log(p)).sum() / math.log(3) < speed:
                break
            layer += 1
        expected.append(layer)

    labels = geep.exit_labels(logits, geep.Config(speed=speed))

    assert labels.tolist() == expected
    assert set(expected) == {0.0: {LAYERS}, 1.1: {1}}.get(speed, set(range(1, LAYERS + 1)))


def test_exit_labels_exactly_at_the_speed_carry_on() -> None:
    even = torch.zeros((LAYERS, 2, 2))

    assert geep.exit_labels(even, geep.Config(speed=1.0)).tolist() == [LAYERS, LAYERS]


def test_exit_labels_by_the_final_answer() -> None:
    logits = _random_logits()
    best = logits.argmax(-1).tolist()
    expected = []
    for row in range(300):
        layer = LAYERS
        while layer > 1 and best[layer - 2][row] == best[-1][row]:
            layer -= 1
        expected.append(layer)

    labels = geep.exit_labels(logits, geep.Config(exit_label="correct"))

    assert labels.tolist() == expected
    assert set(expected) == set(range(1, LAYERS + 1))


def _random_rows(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids of 30 tokens, the special ones among them, real padding and junk under it, and exit layers."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 30, (rows, 50), generator=generator)
    mask = (torch.arange(50)[None, :] < torch.randint(1, 51, (rows, 1), generator=generator)).long()
    return ids, mask, torch.randint(1, LAYERS + 1, (rows,), generator=generator)


@pytest.mark.parametrize("once", [False, True])
def test_table_equals_a_count_by_hand(once: bool) -> None:
    ids, mask, exits = _random_rows(2000)
    expected = np.zeros((30, LAYERS))
    for row, real, layer in zip(ids.tolist(), mask.tolist(), exits.tolist(), strict=True):
        seen = set()
        for token, is_real in zip(row, real, strict=True):
            if is_real and token not in SPECIAL and not (once and token in seen):
                expected[token, layer - 1] += 1
                seen.add(token)
    table = TokenTable(30, LAYERS, 1.0)
    table.reset(SPECIAL)

    for start in range(0, 2000, 64):
        part = slice(start, start + 64)
        table.count(ids[part], mask[part], exits[part], once=once)

    assert ids.numel() == 100_000
    assert np.array_equal(table.counts.numpy(), expected)
    assert not expected[sorted(SPECIAL)].any()
    assert table.rows.tolist() == [(exits == layer).sum().item() for layer in range(1, LAYERS + 1)]


@pytest.mark.parametrize("smoothing", [1.0, 0.2])
def test_table_look_up_by_hand(smoothing: float) -> None:
    ids, mask, exits = _random_rows(40)
    table = TokenTable(40, LAYERS, smoothing)
    table.reset(SPECIAL)
    table.count(ids, mask, exits)
    counts = table.counts.numpy().astype(float)
    prior = np.bincount(exits.numpy(), minlength=LAYERS + 1)[1:] / 40
    asked = torch.tensor([[2, 7, 7, 12, 3, 9], [2, 35, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0], [2, 35, 7, 3, 8, 8]])
    real = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]])

    share, log_share = table(asked, real)

    def of(token: int) -> NDArray[np.float64]:
        return np.asarray((counts[token] + smoothing * prior) / (counts[token].sum() + smoothing), np.float64)

    tokens = [[7, 7, 12], [35], [], [35, 7]]
    means = [np.mean([of(t) for t in row], axis=0) if row else prior for row in tokens]
    log_means = [np.mean([np.log(of(t)) for t in row], axis=0) if row else np.log(prior) for row in tokens]
    assert of(35) == pytest.approx(prior)
    assert share.numpy() == pytest.approx(np.stack(means), abs=1e-6)
    assert log_share.numpy() == pytest.approx(np.stack(log_means), abs=1e-5)


def test_table_layer_without_rows_has_a_finite_logarithm() -> None:
    table = TokenTable(10, LAYERS, 1.0)
    table.reset(SPECIAL)
    table.count(torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.int64), torch.tensor([2]))

    share, log_share = table(torch.tensor([[5, 7]]), torch.ones(1, 2, dtype=torch.int64))

    assert share.tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert log_share.isfinite().all()


def test_table_counted_anew_forgets() -> None:
    ids, mask, exits = _random_rows(20)
    table = TokenTable(30, LAYERS, 1.0)
    table.reset({5})
    table.count(ids, mask, exits)
    table.reset(SPECIAL)

    table.count(ids[:1], mask[:1], exits[:1])

    assert table.rows.sum() == 1
    assert table.counts.sum() == sum(token not in SPECIAL for token in ids[0][mask[0] == 1].tolist())


def test_geep_untrained_table_runs_every_layer(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder())

    share, _ = model.table(batch.input_ids, batch.attention_mask)

    assert torch.equal(share, torch.tensor([0.0, 0.0, 1.0]).expand(6, 3))


@pytest.mark.parametrize("settings", [{"speed": 0.6}, {"exit_label": "correct"}, {"speed": 0.6, "count_once": True}])
def test_geep_calibration_counts_what_the_model_does(
    make_encoder: MakeEncoder, batch: Batch, settings: dict[str, Any]
) -> None:
    model = _model(make_encoder(), **settings)
    halves = [
        Batch(input_ids=batch.input_ids[part], attention_mask=batch.attention_mask[part])
        for part in (slice(0, 3), slice(3, 6))
    ]

    with torch.no_grad():
        model.calibrate(iter(halves), SPECIAL)
        exits = geep.exit_labels(torch.stack(_answers(model, batch)), model.config)

    expected = TokenTable(model.encoder.config.vocabulary_size, 3, 1.0)
    expected.reset(SPECIAL)
    expected.count(batch.input_ids, batch.attention_mask, exits, once=model.config.count_once)
    assert torch.equal(model.table.counts, expected.counts)
    assert torch.equal(model.table.rows, expected.rows)
    assert model.table.counts.sum() > 0


@pytest.mark.parametrize(("speed", "layer"), [(0.0, 3), (1.1, 1)])
@pytest.mark.parametrize("prediction", ["expect", "mode", "quantile"])
def test_geep_speed_extremes(
    make_encoder: MakeEncoder, batch: Batch, speed: float, layer: int, prediction: str
) -> None:
    model = _model(make_encoder(), speed=speed)
    with torch.no_grad():
        model.calibrate([batch], SPECIAL)
    policy = make_policy("predicted_exit", {"prediction": prediction}, exit_layers=[1, 2, 3])

    _, followed = run_reference(model.steps(), batch, policy)

    assert followed is not None
    assert followed.exit_layer.tolist() == [layer] * 6
    with torch.no_grad():
        assert followed.scores == pytest.approx(_answers(model, batch)[layer - 1].numpy(), abs=1e-6)


def test_geep_checkpoint_keeps_the_table(geep_checkpoint: Path) -> None:
    from safetensors.torch import load_file

    model = load_checkpoint(geep_checkpoint).model
    stored = load_file(geep_checkpoint / "model.safetensors")

    assert isinstance(model, geep.Geep)
    assert model.table.rows.sum() == 100
    assert model.table.counts.sum() > 500
    assert torch.equal(stored["table.counts"], model.table.counts)
    assert (model.table.ordinary == 0).nonzero().flatten().tolist() == sorted(SPECIAL)


def test_geep_program_and_costs(make_encoder: MakeEncoder) -> None:
    steps = _model(make_encoder()).steps()

    heads = [step for step in steps if step.kind == "head"]
    # METHODS 4.2 at width 32: tanh linear and four projections per token, two attention products, two linears per row.
    assert [step.kind for step in steps] == ["embed", "plan", *["layer", "head"] * 3]
    assert [(step.layer, step.file, step.may_link) for step in heads] == [(n, "head", False) for n in (1, 2, 3)]
    assert {(h.macs.row, h.macs.token, h.macs.token_pair) for h in heads} == {
        (128 * 128 + 128 * 3, 32 * 128 + 4 * 128 * 128, 2 * 128)
    }


def test_geep_rule_is_the_published_aggregation() -> None:
    name, knobs = geep.rule(geep.Config())

    assert (name, knobs["prediction"], knobs["offset"], knobs["gain"]) == ("predicted_exit", "expect", 0.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed": -0.1}, "method.speed: expected 0 or more, got -0.1"),
        ({"speed": float("nan")}, "method.speed: expected 0 or more, got nan"),
        ({"distillation": -1.0}, "method.distillation: expected 0 or more, got -1.0"),
        ({"smoothing": 0.0}, "method.smoothing: expected more than 0, got 0.0"),
        ({"exit_label": "margin"}, "method.exit_label: invalid enum value 'margin'"),
        ({"weights": "square"}, "method.weights: invalid enum value 'square'"),
    ],
)
def test_geep_config_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        decode(settings, geep.Config, where="config", prefix="method.")

    assert str(raised.value) == f"config: {message}"


def test_geep_configuration_holds_rows_out_for_the_table() -> None:
    config = read_config(Path(__file__).parents[2] / "export_configs" / "geep_sst2.yaml")

    assert config.train.calibration_rows >= 1000
