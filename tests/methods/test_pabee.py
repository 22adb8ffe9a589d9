"""The exits and the weighted loss against their equations by hand, and the rule in the engine, labels and values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgebert.config import TrainConfig, decode
from edgebert.encoders._blocks import Encoder
from edgebert.errors import ConfigError
from edgebert.methods import pabee
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference
from edgebert.policies import make_policy
from tests._replay import replay

MakeEncoder = Callable[..., Encoder]


def _model(encoder: Encoder, n_labels: int = 3, **settings: Any) -> pabee.Pabee:
    """A model whose classifiers have weights large enough that rows differ."""
    torch.manual_seed(5)
    model = pabee.build(encoder, pabee.Config(**settings), n_labels).eval()
    with torch.no_grad():
        for part in (model.poolers, model.classifiers):
            for parameter in part.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _answers(model: pabee.Pabee, batch: Batch) -> list[Tensor]:
    """Logits of every exit, each [rows, labels], row by row without padding."""
    answers: list[list[Tensor]] = [[] for _ in model.classifiers]
    for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
        ids = batch.input_ids[row : row + 1, :length]
        states = model.encoder(ids, torch.ones_like(ids))[1:]
        for layer, part in enumerate(model.classifiers):
            pooler = model.poolers[0] if len(model.poolers) == 1 else model.poolers[layer]
            pooled = states[layer][0, 0] if pooler.pooling.pool == "cls" else states[layer][0].mean(0)
            pooled = torch.tanh(pooler.dense.weight @ pooled + pooler.dense.bias)
            answers[layer].append(part.label.weight @ pooled + part.label.bias)
    return [torch.stack(rows) for rows in answers]


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("shared_pooler", [True, False])
def test_pabee_exits_equal_the_equations(
    make_encoder: MakeEncoder, batch: Batch, pool: str, shared_pooler: bool
) -> None:
    model = _model(make_encoder(), pool=pool, shared_pooler=shared_pooler)

    decisions, _ = run_reference(model.steps(), batch)
    exits = [{name: torch.from_numpy(value) for name, value in d.outputs.items()} for d in decisions]

    for given, expected in zip(exits, _answers(model, batch), strict=True):
        assert given["logits"].numpy() == pytest.approx(expected.detach().numpy(), abs=1e-4)
    with torch.no_grad():
        assert torch.equal(model(batch.input_ids, batch.attention_mask), exits[-1]["logits"])


@pytest.mark.parametrize(("shared_pooler", "poolers"), [(True, 1), (False, 3)])
def test_pabee_parameters(make_encoder: MakeEncoder, shared_pooler: bool, poolers: int) -> None:
    model = _model(make_encoder(), shared_pooler=shared_pooler)

    new = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("encoder."))

    assert new == poolers * (32 * 32 + 32) + 3 * (32 * 3 + 3)
    assert len({id(part.pooler) for part in model.exits()}) == poolers


def test_pabee_loss_weighs_every_exit_by_its_layer(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder())

    loss = model.stages(TrainConfig())[0].loss(batch)
    loss.backward()

    first, second, third = (functional.cross_entropy(logits, batch.labels) for logits in _answers(model, batch))
    assert loss.item() == pytest.approx(((first + 2 * second + 3 * third) / 6).item(), rel=1e-4)
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "word" not in name)


def test_pabee_loss_of_a_regression(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder(), n_labels=1)
    targets = torch.tensor([0.5, 4.25, 1.0, 2.0, 5.0, 0.0], dtype=torch.float64)
    batch = Batch(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=targets)

    loss = model.loss(batch)

    first, second, third = (((logits[:, 0] - targets) ** 2).mean() for logits in _answers(model, batch))
    assert loss.item() == pytest.approx(((first + 2 * second + 3 * third) / 6).item(), rel=1e-4)


def test_pabee_added_distillation(make_encoder: MakeEncoder, batch: Batch) -> None:
    encoder = make_encoder()
    base = _model(encoder).loss(batch).item()
    model = _model(encoder, distillation=0.5)

    loss = model.loss(batch)

    *others, last = (logits.log_softmax(-1) for logits in _answers(model, batch))
    divergences = [(last.exp() * (last - other)).sum(-1).mean() for other in others]
    assert loss.item() == pytest.approx(base + 0.5 * (sum(divergences) / 2).item(), rel=1e-4)


def test_pabee_stage_trains_everything(make_encoder: MakeEncoder) -> None:
    model = _model(make_encoder())

    (joint,) = model.stages(TrainConfig(learning_rate=1e-4, head_learning_rate_factor=5.0))

    assert {id(p) for group in joint.groups for p in group.parameters} == {id(p) for p in model.parameters()}
    assert [group.learning_rate for group in joint.groups] == pytest.approx([1e-4, 5e-4])
    assert (joint.name,) == pabee.STAGES


def test_pabee_training_changes_every_part(train_tiny: Callable[..., dict[str, Tensor]]) -> None:
    untrained = train_tiny({"name": "pabee"}, 0.0)

    trained = train_tiny({"name": "pabee"}, 0.2)

    changed = {name.split(".")[0] for name, weight in untrained.items() if not torch.equal(weight, trained[name])}
    assert changed == {"encoder", "poolers", "classifiers"}


def test_pabee_program_costs(make_encoder: MakeEncoder) -> None:
    steps = _model(make_encoder()).steps()

    exits = [step for step in steps if step.kind == "exit"]
    assert [step.kind for step in steps] == ["embed", *["layer", "exit"] * 3]
    assert [step.layer for step in exits] == [1, 2, 3]
    assert [step.macs.row for step in exits] == [32 * 32 + 32 * 3] * 3


@pytest.fixture(scope="module")
def ladder(make_exit_ladder: Callable[..., Any]) -> Any:
    return make_exit_ladder(
        {"name": "pabee"}, ("patience", {"patience": 1, "tolerance": 0.1}), lambda model: model.exits()
    )


@pytest.mark.parametrize(("patience", "found"), [(1, {2, 3}), (2, {3}), (6, {3})])
def test_pabee_engine_stops_where_a_row_alone_does(ladder: Any, patience: int, found: set[int]) -> None:
    def stops(seen: list[Any]) -> bool:
        labels = [int(np.argmax(probabilities)) for probabilities in seen]
        return len(labels) > patience and len(set(labels[-patience - 1 :])) == 1

    assert ladder.check("patience", {"patience": patience}, stops) == found


def test_pabee_engine_at_a_fixed_layer(ladder: Any) -> None:
    assert ladder.check("fixed", {"layer": 1}, lambda seen: len(seen) == 1) == {1}


def test_pabee_engine_never_equals_the_last_exit(ladder: Any) -> None:
    ladder.check_never()


def test_pabee_regression_stops_where_values_agree(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder(), n_labels=1)
    exits = [decision.outputs for decision in run_reference(model.steps(), batch)[0]]
    values = [logits[:, 0].tolist() for logits in _answers(model, batch)]
    tolerance = float(np.median(np.abs(np.subtract(values[1], values[0])))) + 1e-3

    policy = make_policy("patience", {"patience": 1, "tolerance": tolerance}, exit_layers=[1, 2, 3])
    scores, layers = replay(policy, exits, [1, 2, 3])

    expected = [2 if abs(second - first) < tolerance else 3 for first, second in zip(values[0], values[1], strict=True)]
    assert layers.tolist() == expected
    assert set(expected) == {2, 3}
    assert scores.shape == (6, 1)
    assert scores[:, 0] == pytest.approx([values[layer - 1][row] for row, layer in enumerate(expected)], abs=1e-4)


def test_pabee_rule_is_patience() -> None:
    assert pabee.rule(pabee.Config()) == ("patience", {"patience": 3, "tolerance": 0.1})


def test_pabee_distillation_of_a_regression_refused(make_encoder: MakeEncoder) -> None:
    with pytest.raises(ConfigError, match=r"^method\.distillation: expected 0 for regression, where an exit gives no"):
        pabee.build(make_encoder(), pabee.Config(distillation=1.0), 1)


def test_pabee_config_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        decode({"distillation": -0.5}, pabee.Config, where="config", prefix="method.")

    assert str(raised.value) == "config: method.distillation: expected 0 or more, got -0.5"
