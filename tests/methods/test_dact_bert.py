"""The units, the mixture and the loss against transcriptions of METHODS 5.1 and 5.2 that share no code with them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgebert.config import TrainConfig, decode
from edgebert.encoders._blocks import Encoder
from edgebert.errors import ConfigError
from edgebert.methods import dact_bert
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference

MakeEncoder = Callable[..., Encoder]
PUBLISHED = {"pool": "cls", "halt_input": "trunk", "exit_loss": 0.0, "distillation": 0.0}


def _model(encoder: Encoder, **settings: Any) -> dact_bert.DactBert:
    """A model whose units have weights large enough that rows differ."""
    torch.manual_seed(5)
    model = dact_bert.build(encoder, dact_bert.Config(**{"trunk": 16, **settings}), 3).eval()
    with torch.no_grad():
        for parameter in model.units.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _array(tensor: torch.Tensor | None) -> NDArray[np.float64]:
    assert tensor is not None
    return tensor.detach().numpy().astype(np.float64)


def _reference_unit(
    unit: dact_bert.Unit, hidden: NDArray[Any], mask: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """y and h of one unit in numpy; pools mean and cls only."""
    if unit.pooling.pool == "cls":
        pooled = hidden[:, 0]
    else:
        pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    trunk = np.maximum(pooled @ _array(unit.trunk.weight).T + _array(unit.trunk.bias), 0)
    logits = trunk @ _array(unit.label.weight).T + _array(unit.label.bias)
    y = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    halt = (trunk @ _array(unit.halt.weight).T + _array(unit.halt.bias))[:, 0]
    if unit.halt_slope is not None:
        entropy = -(y * np.log(y)).sum(1) / math.log(y.shape[1])
        halt = halt + float(_array(unit.halt_slope)) * (entropy - 0.5)
    return y, 1 / (1 + np.exp(-halt))


def _reference(model: dact_bert.DactBert, batch: Batch) -> dict[str, NDArray[np.float64]]:
    """All y [N, rows, labels], h and p [N, rows], and a_N [rows, labels], row by row and step by step."""
    with torch.no_grad():
        states = model.encoder(batch.input_ids, batch.attention_mask)[1:]
    mask = batch.attention_mask.numpy()
    units = [_reference_unit(unit, _array(state), mask) for unit, state in zip(model.units, states, strict=True)]
    y, h = np.stack([u[0] for u in units]), np.stack([u[1] for u in units])
    p, answer = np.zeros_like(h), np.zeros_like(y[0])
    for row in range(y.shape[1]):
        before = 1.0
        for n in range(y.shape[0]):
            answer[row] = y[n, row] * before + answer[row] * (1 - before)
            before = h[n, row] * before
            p[n, row] = before
    return {"y": y, "h": h, "p": p, "answer": answer}


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("halt_input", ["uncertainty", "trunk"])
def test_dact_units_and_mixture_equal_the_equations(
    make_encoder: MakeEncoder, batch: Batch, pool: str, halt_input: str
) -> None:
    model = _model(make_encoder(), pool=pool, halt_input=halt_input)
    reference = _reference(model, batch)

    with torch.no_grad():
        answer = model(batch.input_ids, batch.attention_mask)
    decisions, _ = run_reference(model.steps(), batch)
    exits = [{name: torch.from_numpy(value) for name, value in d.outputs.items()} for d in decisions]

    assert np.exp(_array(answer)) == pytest.approx(reference["answer"], abs=1e-5)
    assert np.stack([_array(e["probabilities"]) for e in exits]) == pytest.approx(reference["y"], abs=1e-5)
    assert np.stack([_array(e["halt"]) for e in exits]) == pytest.approx(reference["h"], abs=1e-5)
    assert np.exp(_array(answer)).sum(1) == pytest.approx(np.ones(6), abs=1e-5)


@pytest.mark.parametrize("ponder", ["h_sum", "p_sum"])
@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_dact_published_loss(make_encoder: MakeEncoder, batch: Batch, ponder: str, tau: float) -> None:
    model = _model(make_encoder(), ponder=ponder, tau=tau, **PUBLISHED)
    reference = _reference(model, batch)

    loss = model.loss(batch)

    labels = _array(batch.labels).astype(int)
    nll = -np.log(reference["answer"][np.arange(6), labels]).mean()
    expected = nll + tau * reference["h" if ponder == "h_sum" else "p"].sum(0).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_dact_added_terms(make_encoder: MakeEncoder, batch: Batch) -> None:
    encoder = make_encoder()
    settings = {**PUBLISHED, "tau": 0.0}
    base = _model(encoder, **settings).loss(batch).item()
    model = _model(encoder, **{**settings, "exit_loss": 0.5, "distillation": 0.25})
    y = _reference(model, batch)["y"]

    loss = model.loss(batch)

    labels = _array(batch.labels).astype(int)
    cross_entropy = -np.log(y[:, np.arange(6), labels]).mean()
    distillation = (y[-1] * (np.log(y[-1]) - np.log(y[:-1]))).sum(-1).mean()
    assert loss.item() == pytest.approx(base + 0.5 * cross_entropy + 0.25 * distillation, rel=1e-5)


@pytest.mark.parametrize("halt_input", ["uncertainty", "trunk"])
def test_dact_halting_gradient_flows_through_the_shared_trunk(
    make_encoder: MakeEncoder, batch: Batch, halt_input: str
) -> None:
    model = _model(make_encoder(), halt_input=halt_input)
    unit = model.units[0]
    state = model.encoder(batch.input_ids, batch.attention_mask)[1].detach()

    unit(state, batch.attention_mask)[1].sum().backward()

    assert unit.trunk.weight.grad is not None
    assert unit.trunk.weight.grad.abs().sum() > 0
    assert unit.label.weight.grad is None


def test_dact_accumulate_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = [torch.rand(2, 3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(4)]
    halts = [torch.rand(2, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(4)]

    def mixture(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer, trajectory = dact_bert.accumulate(list(values[:4]), list(values[4:]))
        return (answer, *trajectory)

    assert torch.autograd.gradcheck(mixture, (*labels, *halts))


@pytest.mark.parametrize(
    ("halts", "expected"),
    [([1.0, 1.0, 1.0], [0.2, 0.8]), ([0.0, 1.0, 1.0], [0.9, 0.1]), ([1.0, 0.0, 1.0], [0.5, 0.5])],
)
def test_dact_accumulate_extremes(halts: list[float], expected: list[float]) -> None:
    labels = [torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]]), torch.tensor([[0.2, 0.8]])]

    answer, _ = dact_bert.accumulate(labels, [torch.tensor([halt]) for halt in halts])

    assert answer[0].tolist() == pytest.approx(expected)


def test_dact_training_runs_every_layer_on_every_row(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder()).train()
    with torch.no_grad():
        for unit in model.units:
            unit.halt.bias.fill_(-50.0)
    rows: list[int] = []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda module, arguments, output: rows.append(len(output)))

    model.loss(batch).backward()

    # Every halting value is 0, so that at run time all rows would stop after layer 1.
    assert rows == [6, 6, 6]
    assert all(unit.label.weight.grad.abs().sum() > 0 for unit in model.units)


def test_dact_stages_train_what_they_say(make_encoder: MakeEncoder) -> None:
    model = _model(make_encoder())

    fine_tune, joint = model.stages(TrainConfig(learning_rate=1e-4, head_learning_rate_factor=5.0))

    everything = {id(p) for p in model.parameters()}
    others = {id(p) for unit in model.units[:-1] for p in unit.parameters()}
    assert {id(p) for group in joint.groups for p in group.parameters} == everything
    assert {id(p) for group in fine_tune.groups for p in group.parameters} == everything - others
    assert [group.learning_rate for group in fine_tune.groups] == pytest.approx([1e-4, 5e-4])
    assert [group.learning_rate for group in joint.groups] == pytest.approx([1e-4, 5e-4])
    assert (fine_tune.name, joint.name) == dact_bert.STAGES


def test_dact_first_stage_gives_other_units_no_gradient(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder())
    fine_tune, _ = model.stages(TrainConfig())

    fine_tune.loss(batch).backward()

    assert all(parameter.grad is None for unit in model.units[:-1] for parameter in unit.parameters())
    assert model.units[-1].label.weight.grad is not None
    assert model.encoder.layers[0].attention.query.weight.grad is not None


def test_dact_first_stage_is_the_last_units_cross_entropy(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder())
    fine_tune, _ = model.stages(TrainConfig())

    loss = fine_tune.loss(batch)

    last = _reference(model, batch)["y"][-1]
    assert loss.item() == pytest.approx(-np.log(last[np.arange(6), _array(batch.labels).astype(int)]).mean(), rel=1e-5)


@pytest.mark.parametrize("pool", ["mean", "attention", "cls"])
def test_dact_padding_has_no_influence(make_encoder: MakeEncoder, batch: Batch, pool: str) -> None:
    model = _model(make_encoder(), pool=pool)

    with torch.no_grad():
        together = model(batch.input_ids, batch.attention_mask)
        alone = [
            model(batch.input_ids[i : i + 1, :n], batch.attention_mask[i : i + 1, :n])
            for i, n in enumerate(batch.attention_mask.sum(dim=1).tolist())
        ]

    assert (together.exp() - torch.cat(alone).exp()).abs().max() <= 1e-5


def test_dact_fresh_units_let_undecided_rows_carry_on(make_encoder: MakeEncoder, batch: Batch) -> None:
    torch.manual_seed(0)
    model = dact_bert.build(make_encoder(), dact_bert.Config(), 3).eval()

    decisions, _ = run_reference(model.steps(), batch)
    exits = [{name: torch.from_numpy(value) for name, value in d.outputs.items()} for d in decisions]

    # New units answer almost evenly, so that the halting logit is near halt_bias + slope / 2 = 8.
    assert all((e["halt"] > 0.99).all() for e in exits)


def test_dact_program_costs(make_encoder: MakeEncoder) -> None:
    steps = _model(make_encoder()).steps()

    exits = [step for step in steps if step.kind == "exit"]
    assert [step.kind for step in steps] == ["embed", *["layer", "exit"] * 3]
    assert [step.layer for step in exits] == [1, 2, 3]
    assert [step.macs.row for step in exits] == [32 * 16 + 16 * (3 + 1)] * 3


@pytest.mark.parametrize("bound", ["paper", "tight"])
def test_dact_rule_is_the_sound_bound(bound: str) -> None:
    assert dact_bert.rule(dact_bert.Config(bound=bound)) == ("halting", {"slack": 0.0, "bound": bound})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": -1.0}, "method.tau: expected 0 or more, got -1.0"),
        ({"exit_loss": -0.5}, "method.exit_loss: expected 0 or more, got -0.5"),
        ({"distillation": -0.5}, "method.distillation: expected 0 or more, got -0.5"),
        ({"trunk": 0}, "method.trunk: expected 1 or more, got 0"),
        ({"pool": "max"}, "method.pool: invalid enum value 'max'"),
        ({"ponder": "sum"}, "method.ponder: invalid enum value 'sum'"),
    ],
)
def test_dact_config_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        decode(settings, dact_bert.Config, where="config", prefix="method.")

    assert str(raised.value) == f"config: {message}"
