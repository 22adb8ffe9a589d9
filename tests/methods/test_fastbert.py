"""The classifier against a transcription of its equations in numpy, and the stages, the program and the engine."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgebert.config import TrainConfig, decode
from edgebert.encoders._blocks import Encoder, EncoderConfig
from edgebert.errors import ConfigError
from edgebert.export.shapes import SHAPES
from edgebert.methods import fastbert
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference
from edgebert.methods._student import Student

MakeEncoder = Callable[..., Encoder]


def _model(encoder: Encoder, **settings: Any) -> fastbert.FastBert:
    """A model whose classifiers have weights large enough that rows differ."""
    torch.manual_seed(5)
    model = fastbert.build(encoder, fastbert.Config(**settings), 3).eval()
    with torch.no_grad():
        for part in (model.students, model.teacher):
            for parameter in part.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _reference(student: Student, hidden: Tensor) -> NDArray[np.float64]:
    """Log-probabilities of one row without padding, hidden [tokens, hidden]."""

    def linear(part: torch.nn.Linear, x: NDArray[Any]) -> NDArray[np.float64]:
        return x @ part.weight.detach().double().numpy().T + part.bias.detach().double().numpy()

    def softmax(x: NDArray[Any]) -> NDArray[np.float64]:
        return np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)

    narrow = np.tanh(linear(student.narrow, hidden.detach().double().numpy()))
    query, key, value = (linear(part, narrow) for part in (student.query, student.key, student.value))
    heads = [
        softmax(query[:, head] @ key[:, head].T / math.sqrt(64)) @ value[:, head]
        for head in (slice(0, 64), slice(64, 128))
    ]
    attended = linear(student.output, np.concatenate(heads, axis=1))
    if student.pooling.pool == "cls":
        pooled = attended[0]
    elif student.pooling.pool == "mean":
        pooled = attended.mean(0)
    else:
        pooled = softmax(linear(student.pooling.score, attended)[:, 0]) @ attended
    logits = linear(student.label, np.tanh(linear(student.dense, pooled)))
    return np.log(softmax(logits))


def _answers(model: fastbert.FastBert, batch: Batch) -> NDArray[np.float64]:
    """Log-probabilities of every classifier, [layers, rows, labels], row by row without padding."""
    answers = np.zeros((3, 6, 3))
    for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
        ids = batch.input_ids[row : row + 1, :length]
        states = model.encoder(ids, torch.ones_like(ids))[1:]
        for layer, part in enumerate([*model.students, model.teacher]):
            answers[layer, row] = _reference(part, states[layer][0])
    return answers


@pytest.mark.parametrize("pool", ["mean", "attention", "cls"])
def test_fastbert_classifiers_equal_the_equations(make_encoder: MakeEncoder, batch: Batch, pool: str) -> None:
    model = _model(make_encoder(), pool=pool)

    decisions, _ = run_reference(model.steps(), batch)
    exits = [{name: torch.from_numpy(value) for name, value in d.outputs.items()} for d in decisions]

    given = np.stack([exit["logits"].log_softmax(-1).numpy() for exit in exits])
    assert given == pytest.approx(_answers(model, batch), rel=1e-5, abs=1e-5)
    with torch.no_grad():
        assert torch.equal(model(batch.input_ids, batch.attention_mask), exits[-1]["logits"])


def test_fastbert_classifier_has_the_published_size() -> None:
    with torch.device("meta"):
        student = Student(SHAPES["bert-base"], "cls", 3)

    assert sum(parameter.numel() for parameter in student.parameters()) == 181_379


def test_fastbert_new_classifier_lets_the_text_through_to_its_answer() -> None:
    torch.manual_seed(0)
    student = Student(SHAPES["minilm-l6"], "mean", 150).eval()
    hidden = torch.randn(8, 16, SHAPES["minilm-l6"].hidden_size)

    with torch.no_grad():
        logits = student(hidden, torch.ones(8, 16, dtype=torch.int64))

    assert logits.std(dim=0).mean() > 0.005  # with BERT's normal(0, 0.02) 0.0002, and no learning with 150 labels


def test_fastbert_costs_count_every_linear_layer(make_encoder: MakeEncoder) -> None:
    steps = _model(make_encoder()).steps()

    exits = [step for step in steps if step.kind == "exit"]
    assert [step.kind for step in steps] == ["embed", *["layer", "exit"] * 3]
    assert [step.layer for step in exits] == [1, 2, 3]
    for step in exits:
        assert step.macs.token == sum(
            part.weight.numel() for part in step.module.modules() if isinstance(part, torch.nn.Linear)
        ) - (step.macs.row)
        assert (step.macs.row, step.macs.token_pair) == (128 * 128 + 128 * 3, 2 * 128)


def test_fastbert_first_stage_is_the_teachers_cross_entropy(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder())

    loss = model.stages(TrainConfig())[0].loss(batch)
    loss.backward()

    assert batch.labels is not None
    assert loss.item() == pytest.approx(-_answers(model, batch)[-1, np.arange(6), batch.labels].mean(), rel=1e-4)
    assert all(parameter.grad is None for parameter in model.students.parameters())
    assert model.encoder.layers[0].attention.query.weight.grad.abs().sum() > 0


def test_fastbert_distillation_teaches_the_students_alone(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder())
    answers = _answers(model, batch)

    loss = model.stages(TrainConfig())[1].loss(batch)
    loss.backward()

    # KL(teacher || student): what the teacher says is the outer weight.
    divergence = (np.exp(answers[-1]) * (answers[-1] - answers[:-1])).sum(-1)
    assert loss.item() == pytest.approx(divergence.mean(1).sum(), rel=1e-4)
    assert all(parameter.grad is None for part in (model.encoder, model.teacher) for parameter in part.parameters())
    assert all(student.narrow.weight.grad.abs().sum() > 0 for student in model.students)


def test_fastbert_distillation_reads_no_labels(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder())
    unlabelled = Batch(input_ids=batch.input_ids, attention_mask=batch.attention_mask)

    assert torch.equal(model.distillation_loss(unlabelled), model.distillation_loss(batch))


def test_fastbert_joint_stage_trains_everything(make_encoder: MakeEncoder, batch: Batch) -> None:
    model = _model(make_encoder(), joint=True)
    answers = _answers(model, batch)

    stage = model.stages(TrainConfig())[1]
    loss = stage.loss(batch)
    loss.backward()

    assert batch.labels is not None
    divergence = (np.exp(answers[-1]) * (answers[-1] - answers[:-1])).sum(-1).mean()
    cross_entropy = -answers[:, np.arange(6), batch.labels].mean()
    assert loss.item() == pytest.approx(divergence + cross_entropy, rel=1e-4)
    assert {id(p) for group in stage.groups for p in group.parameters} == {id(p) for p in model.parameters()}
    assert model.encoder.layers[0].attention.query.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("teacher_eval", "differs"), [(True, False), (False, True)])
def test_fastbert_teacher_has_dropout_only_when_asked(
    make_encoder: MakeEncoder, batch: Batch, teacher_eval: bool, differs: bool
) -> None:
    # The students' own dropout is off, so that only the frozen part can make a difference.
    model = _model(make_encoder(hidden_dropout=0.5), teacher_eval=teacher_eval).train()
    for student in model.students:
        student.attention_dropout = 0.0

    losses = {model.distillation_loss(batch).item() for _ in range(3)}

    assert (len(losses) > 1) == differs
    assert all(module.training for module in model.modules())


def test_fastbert_stages_train_what_they_say(make_encoder: MakeEncoder) -> None:
    model = _model(make_encoder())

    fine_tune, distil = model.stages(TrainConfig(learning_rate=1e-4, head_learning_rate_factor=10.0))

    students = {id(p) for p in model.students.parameters()}
    everything = {id(p) for p in model.parameters()}
    assert {id(p) for group in fine_tune.groups for p in group.parameters} == everything - students
    assert {id(p) for group in distil.groups for p in group.parameters} == students
    assert [group.learning_rate for group in distil.groups if group.parameters] == pytest.approx([1e-3])
    assert (fine_tune.name, distil.name) == fastbert.STAGES


def test_fastbert_training_keeps_the_frozen_weights(train_tiny: Callable[..., dict[str, Tensor]]) -> None:
    tuned = train_tiny({"name": "fastbert"}, 0.2, 0.0)

    distilled = train_tiny({"name": "fastbert"}, 0.2, 0.5)

    changed = {name.split(".")[0] for name, weight in tuned.items() if not torch.equal(weight, distilled[name])}
    assert changed == {"students"}


@pytest.fixture(scope="module")
def ladder(make_exit_ladder: Callable[..., Any]) -> Any:
    return make_exit_ladder(
        {"name": "fastbert"},
        ("entropy", {"threshold": 0.5, "scale": "normalised"}),
        lambda model: [*model.students, model.teacher],
    )


def _uncertainty(probabilities: NDArray[Any]) -> float:
    return -sum(float(p) * math.log(p) for p in probabilities) / math.log(len(probabilities))


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.6])
def test_fastbert_engine_stops_where_a_row_alone_does(ladder: Any, threshold: float) -> None:
    layers = ladder.check("entropy", {"threshold": threshold}, lambda seen: _uncertainty(seen[-1]) < threshold)

    assert layers == ({1, 2, 3} if threshold else {3})


@pytest.mark.parametrize("threshold", [0.9, 0.95])
def test_fastbert_engine_with_the_rule_confidence(ladder: Any, threshold: float) -> None:
    assert ladder.check("confidence", {"threshold": threshold}, lambda seen: seen[-1].max() >= threshold) == {1, 2, 3}


def test_fastbert_engine_at_a_fixed_layer(ladder: Any) -> None:
    assert ladder.check("fixed", {"layer": 2}, lambda seen: len(seen) == 2) == {2}


def test_fastbert_engine_never_equals_the_teacher(ladder: Any) -> None:
    ladder.check_never()


def test_fastbert_rule_is_the_published_one() -> None:
    assert fastbert.rule(fastbert.Config()) == ("entropy", {"threshold": 0.5, "scale": "normalised"})


def test_fastbert_of_one_layer_refused(tiny_encoder_config: EncoderConfig) -> None:
    encoder = Encoder(EncoderConfig(**{**vars(tiny_encoder_config), "layers": 1}))

    with pytest.raises(ConfigError, match=r"^fastbert: expected an encoder of 2 or more layers, got 1; it would have"):
        fastbert.build(encoder, fastbert.Config(), 2)


def test_fastbert_config_refused() -> None:
    with pytest.raises(ConfigError, match=r"^config: method\.pool: invalid enum value 'max'"):
        decode({"pool": "max"}, fastbert.Config, where="config", prefix="method.")
