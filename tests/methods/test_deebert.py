"""The exits against their equations in torch by hand, and the stages, the program and the engine."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Encoder, EncoderConfig
from edgebert.errors import ConfigError
from edgebert.methods import deebert
from edgebert.methods._pooled import PooledExit
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference

MakeEncoder = Callable[..., Encoder]


def _model(encoder: Encoder, **settings: Any) -> deebert.DeeBert:
    """A model whose classifiers have weights large enough that rows differ."""
    torch.manual_seed(5)
    model = deebert.build(encoder, deebert.Config(**settings), 3).eval()
    with torch.no_grad():
        for part in (model.exits, model.final):
            for parameter in part.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _answers(model: deebert.DeeBert, batch: Batch) -> list[Tensor]:
    """Logits of every exit and of the final classifier, each [rows, labels], row by row without padding."""
    exits: list[PooledExit] = [*model.exits, model.final]
    answers: list[list[Tensor]] = [[] for _ in exits]
    for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
        ids = batch.input_ids[row : row + 1, :length]
        states = model.encoder(ids, torch.ones_like(ids))[1:]
        for layer, part in enumerate(exits):
            dense, label = part.pooler.dense, part.classifier.label
            pooled = states[layer][0, 0] if part.pooler.pooling.pool == "cls" else states[layer][0].mean(0)
            answers[layer].append(label.weight @ torch.tanh(dense.weight @ pooled + dense.bias) + label.bias)
    return [torch.stack(rows) for rows in answers]


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_deebert_exits_equal_the_equations(make_encoder: MakeEncoder, batch: Batch, pool: str) -> None:
    model = _model(make_encoder(), pool=pool)

    decisions, _ = run_reference(model.steps(), batch)
    exits = [{name: torch.from_numpy(value) for name, value in d.outputs.items()} for d in decisions]

    for given, expected in zip(exits, _answers(model, batch), strict=True):
        assert given["logits"].numpy() == pytest.approx(expected.detach().numpy(), abs=1e-4)
    with torch.no_grad():
        assert torch.equal(model(batch.input_ids, batch.attention_mask), exits[-1]["logits"])


def test_deebert_last_layer_answers_with_the_final_classifier(make_encoder: MakeEncoder) -> None:
    model = _model(make_encoder())

    exits = [step for step in model.steps() if step.kind == "exit"]

    assert [step.layer for step in exits] == [1, 2, 3]
    assert [step.module for step in exits] == [*model.exits, model.final]
    assert len(model.exits) == 2
    assert {step.macs.row for step in exits} == {32 * 32 + 32 * 3}


def test_deebert_first_stage_is_the_final_cross_entropy(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder())

    loss = model.stages(TrainConfig())[0].loss(batch)
    loss.backward()

    expected = functional.cross_entropy(_answers(model, batch)[-1], batch.labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert all(parameter.grad is None for parameter in model.exits.parameters())
    assert model.encoder.layers[0].attention.query.weight.grad.abs().sum() > 0


def test_deebert_second_stage_sums_the_exits_without_the_final_one(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder())

    loss = model.stages(TrainConfig())[1].loss(batch)
    loss.backward()

    first, second, _ = (functional.cross_entropy(logits, batch.labels) for logits in _answers(model, batch))
    assert loss.item() == pytest.approx((first + second).item(), rel=1e-4)
    assert all(parameter.grad is None for part in (model.encoder, model.final) for parameter in part.parameters())
    assert all(part.pooler.dense.weight.grad.abs().sum() > 0 for part in model.exits)


def test_deebert_stages_train_what_they_say(make_encoder: MakeEncoder) -> None:
    model = _model(make_encoder())

    fine_tune, exits = model.stages(TrainConfig(learning_rate=1e-4, head_learning_rate_factor=5.0))

    theirs = {id(p) for p in model.exits.parameters()}
    everything = {id(p) for p in model.parameters()}
    assert {id(p) for group in fine_tune.groups for p in group.parameters} == everything - theirs
    assert {id(p) for group in exits.groups for p in group.parameters} == theirs
    assert [group.learning_rate for group in exits.groups if group.parameters] == pytest.approx([5e-4])
    assert (fine_tune.name, exits.name) == deebert.STAGES


def test_deebert_exits_start_from_the_trained_pooler(train_tiny: Callable[..., dict[str, Tensor]]) -> None:
    untrained = train_tiny({"name": "deebert", "pool": "attention"}, 0.0, 0.0)

    tuned = train_tiny({"name": "deebert", "pool": "attention"}, 0.2, 0.0)

    poolers = [name.removeprefix("final.") for name in tuned if name.startswith("final.pooler.")]
    assert len(poolers) == 4
    for name in poolers:
        assert not torch.equal(tuned[f"final.{name}"], untrained[f"final.{name}"])
        assert torch.equal(tuned[f"exits.0.{name}"], tuned[f"final.{name}"])
        assert torch.equal(tuned[f"exits.1.{name}"], tuned[f"final.{name}"])
    label = "classifier.label.weight"
    assert torch.equal(tuned[f"exits.0.{label}"], untrained[f"exits.0.{label}"])
    assert not torch.equal(tuned[f"exits.0.{label}"], tuned[f"final.{label}"])


def test_deebert_training_keeps_the_frozen_weights(train_tiny: Callable[..., dict[str, Tensor]]) -> None:
    tuned = train_tiny({"name": "deebert"}, 0.2, 0.0)

    trained = train_tiny({"name": "deebert"}, 0.2, 0.5)

    assert {name.split(".")[0] for name, w in tuned.items() if not torch.equal(w, trained[name])} == {"exits"}


@pytest.fixture(scope="module")
def ladder(make_exit_ladder: Callable[..., Any]) -> Any:
    return make_exit_ladder(
        {"name": "deebert", "pool": "attention"},
        ("entropy", {"threshold": 0.3, "scale": "nats"}),
        lambda model: [*model.exits, model.final],
    )


def _entropy(probabilities: Any) -> float:
    return -sum(float(p) * math.log(p) for p in probabilities)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_deebert_engine_stops_where_a_row_alone_does(ladder: Any, threshold: float) -> None:
    knobs = {"threshold": threshold, "scale": "nats"}

    layers = ladder.check("entropy", knobs, lambda seen: _entropy(seen[-1]) < threshold)

    assert layers == ({1, 2, 3} if threshold else {3})


def test_deebert_engine_with_the_rule_confidence(ladder: Any) -> None:
    assert ladder.check("confidence", {"threshold": 0.9}, lambda seen: np.max(seen[-1]) >= 0.9) == {1, 2, 3}


def test_deebert_engine_at_a_fixed_layer(ladder: Any) -> None:
    assert ladder.check("fixed", {"layer": 1}, lambda seen: len(seen) == 1) == {1}


def test_deebert_engine_never_equals_the_final_classifier(ladder: Any) -> None:
    ladder.check_never()


def test_deebert_rule_measures_in_nats() -> None:
    assert deebert.rule(deebert.Config()) == ("entropy", {"threshold": 0.3, "scale": "nats"})


def test_deebert_of_one_layer_refused(tiny_encoder_config: EncoderConfig) -> None:
    encoder = Encoder(EncoderConfig(**{**vars(tiny_encoder_config), "layers": 1}))

    with pytest.raises(ConfigError, match=r"^deebert: expected an encoder of 2 or more layers, got 1; it would have"):
        deebert.build(encoder, deebert.Config(), 2)
