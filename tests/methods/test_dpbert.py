"""The planner, its paths and its gradients against Hugging Face layers, enumeration and finite differences."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from edgebert.config import TrainConfig, decode
from edgebert.data import read_examples, texts_of
from edgebert.decisions import Followed
from edgebert.encoders._blocks import Encoder
from edgebert.encoders._checkpoint import checkpoint_weights, settings_of
from edgebert.errors import ConfigError
from edgebert.methods import _paths, dpbert
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference
from edgebert.output import Reporter
from edgebert.policies import make_policy
from edgebert.text import TextEncoder
from edgebert.training.loop import train_stage
from edgebert.training.rows import Rows

MakeEncoder = Callable[..., Encoder]
PLANNERS: dict[str, dict[str, Any]] = {
    "sequential": {"planner": "sequential"},
    "state": {"planner": "sequential", "planner_input": "state"},
    "shared": {"planner": "sequential", "shared_planner": True},
    "upfront": {"planner": "upfront"},
}
ROWS = 8
LAYERS = 4


@pytest.fixture
def batch() -> Batch:
    lengths = torch.tensor([9, 4, 1, 7, 9, 2, 5, 8])
    mask = (torch.arange(9)[None, :] < lengths[:, None]).long()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 50, mask.shape, generator=generator)
    ids[:, 0] = 2  # every text starts with the same token
    types = torch.randint(0, 2, mask.shape, generator=generator)
    types[:, 0] = 0
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    return Batch(input_ids=ids * mask, attention_mask=mask, token_type_ids=types * mask, labels=labels)


@pytest.fixture
def make_model(
    make_encoder: MakeEncoder, balance_planner: Callable[..., None], batch: Batch
) -> Callable[..., dpbert.DpBert]:
    """Makes models whose planners and heads have weights large enough that rows differ, and take different paths."""

    def make(*, layers: int = LAYERS, n_labels: int = 3, seed: int = 5, **settings: Any) -> dpbert.DpBert:
        encoder = make_encoder(layers=layers, hidden_dropout=0.3)
        torch.manual_seed(seed)
        model = dpbert.build(
            encoder, dpbert.Config(**{"planner_width": 16, "full_loss": 0.0, **settings}), n_labels
        ).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("encoder."):
                    parameter.add_(0.4 * torch.randn_like(parameter))
        balance_planner(model, batch)
        return model

    return make


def _planner(model: dpbert.DpBert) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if name.startswith(("planner.", "layer_embedding."))]


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().numpy().astype(np.float64)


def _classifier(model: dpbert.DpBert, layers: tuple[int, ...]) -> transformers.BertForSequenceClassification:
    """The same weights as a Hugging Face classifier that has only these layers, counted from 1."""
    shape = settings_of(model.encoder.config)
    reference = transformers.BertForSequenceClassification(transformers.BertConfig(**shape, num_labels=3)).eval()
    head = {
        "bert.pooler.dense.weight": model.head.dense.weight,
        "bert.pooler.dense.bias": model.head.dense.bias,
        "classifier.weight": model.head.classifier.weight,
        "classifier.bias": model.head.classifier.bias,
    }
    reference.load_state_dict({**checkpoint_weights(model.encoder), **head})
    reference.bert.encoder.layer = nn.ModuleList(reference.bert.encoder.layer[layer - 1] for layer in layers)
    return reference


@torch.no_grad()
def _hugging_face(model: dpbert.DpBert, batch: Batch, layers: tuple[int, ...]) -> Tensor:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return _classifier(model, layers)(**{name: getattr(batch, name) for name in names}).logits


def _follow(model: dpbert.DpBert, batch: Batch, policy: str, **knobs: Any) -> Followed:
    """Runs the program in torch under a policy."""
    steps = model.steps()
    layers = range(1, len(model.encoder.layers) + 1)
    followed = run_reference(steps, batch, make_policy(policy, knobs, exit_layers=list(layers)))[1]
    assert followed is not None
    return followed


def _decisions(path: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Decides the same for every row, whatever the logits: layer by layer, or the whole path at once."""
    left = iter(path)

    def decide(logits: Tensor) -> Tensor:
        if logits.ndim == 2:
            return torch.tensor(path).to(logits.dtype).expand_as(logits)
        return torch.full_like(logits, float(next(left)))

    return decide


def _all_paths(layers: int = LAYERS) -> list[tuple[int, ...]]:
    return list(itertools.product((0, 1), repeat=layers))


def _executed(model: dpbert.DpBert, path: tuple[int, ...], row: Batch) -> list[int]:
    """The layers, counted from 1, that a decided path runs; METHODS 3.2: never none."""
    ran = [layer for layer, runs in enumerate(path, start=1) if runs]
    if ran:
        return ran
    if model.config.planner == "sequential":
        return [len(path)]
    states = model.encoder(row.input_ids, row.attention_mask, row.token_type_ids)
    return [int(model.planner(states[0], row.attention_mask).argmax()) + 1]


@pytest.mark.parametrize("planner", PLANNERS)
def test_dpbert_with_every_layer_is_a_hugging_face_classifier(
    make_model: Callable[..., dpbert.DpBert], batch: Batch, planner: str
) -> None:
    model = make_model(pool="cls", **PLANNERS[planner])
    expected = _hugging_face(model, batch, (1, 2, 3, 4))

    with torch.no_grad():
        answer = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        walked = model.walk(batch, torch.ones_like)

    assert (answer - expected).abs().max() <= 1e-5
    assert (walked.logits - expected).abs().max() <= 1e-5
    assert np.abs(_follow(model, batch, "bypass", delta=0.0).scores - expected.numpy()).max() <= 1e-5
    assert np.abs(_follow(model, batch, "never").scores - expected.numpy()).max() <= 1e-5


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("path", [path for path in _all_paths() if any(path)], ids=str)
def test_dpbert_forced_path_composes_hugging_face_layers(
    make_model: Callable[..., dpbert.DpBert], batch: Batch, planner: str, path: tuple[int, ...]
) -> None:
    model = make_model(pool="cls", **PLANNERS[planner])
    layers = tuple(layer for layer, runs in enumerate(path, start=1) if runs)
    expected = _hugging_face(model, batch, layers)

    followed = _follow(model, batch, "path", layers=",".join(map(str, layers)))
    with torch.no_grad():
        walked = model.walk(batch, _decisions(path))

    assert followed.path.tolist() == [[bool(runs) for runs in path]] * ROWS
    assert np.abs(followed.scores - expected.numpy()).max() <= 1e-5
    assert walked.executed.tolist() == [list(path)] * ROWS
    assert (walked.logits - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("planner", PLANNERS)
def test_dpbert_hard_decisions_of_training_are_those_at_run_time(
    make_model: Callable[..., dpbert.DpBert], monkeypatch: pytest.MonkeyPatch, batch: Batch, planner: str
) -> None:
    model = make_model(**PLANNERS[planner])
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))  # logistic noise of 0

    walked = model.walk(batch, lambda logits: _paths.straight_through(logits, 0.7))
    followed = _follow(model, batch, "bypass", delta=0.5)

    assert walked.executed.tolist() == followed.path.astype(float).tolist()  # exactly 0 or 1
    assert np.abs(_array(walked.logits) - followed.scores).max() <= 1e-5
    assert model.walk(batch, _paths.threshold).executed.tolist() == walked.executed.tolist()
    assert len(np.unique(followed.path, axis=0)) >= 2


@pytest.mark.parametrize(("bias", "path"), [(50.0, [1, 1, 1, 1]), (-50.0, [0, 0, 0, 1])])
def test_dpbert_large_logits_include(
    make_model: Callable[..., dpbert.DpBert], batch: Batch, bias: float, path: list[int]
) -> None:
    model = make_model()
    with torch.no_grad():
        for planner in model.planner:  # type: ignore[union-attr]
            planner.decide.bias.fill_(bias)

    followed = _follow(model, batch, "bypass", delta=0.5)

    assert followed.path.astype(int).tolist() == [path] * ROWS


def test_dpbert_upfront_signs_and_likeliest_layer(make_model: Callable[..., dpbert.DpBert], batch: Batch) -> None:
    model = make_model(planner="upfront")
    with torch.no_grad():
        model.planner.decide.weight.zero_()
        model.planner.decide.bias.copy_(torch.tensor([5.0, -5.0, -5.0, 5.0]))
        mixed = _follow(model, batch, "bypass", delta=0.5)
        model.planner.decide.bias.copy_(torch.tensor([-5.0, -3.0, -5.0, -4.0]))
        none = _follow(model, batch, "bypass", delta=0.5)
        walked = model.walk(batch, _paths.threshold)

    assert mixed.path.astype(int).tolist() == [[1, 0, 0, 1]] * ROWS
    assert none.path.astype(int).tolist() == [[0, 1, 0, 0]] * ROWS
    assert walked.executed.tolist() == none.path.astype(float).tolist()
    assert walked.chosen.sum() == 0


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("delta", [0.3, 0.9, 1.0])
def test_dpbert_path_is_never_empty(
    make_model: Callable[..., dpbert.DpBert], batch: Batch, planner: str, delta: float
) -> None:
    model = make_model(**PLANNERS[planner])

    assert _follow(model, batch, "bypass", delta=delta).path.any(axis=1).all()
    assert (model.walk(batch, torch.zeros_like).executed.sum(dim=1) == 1).all()
    assert (model.walk(batch, _paths.sample).executed.sum(dim=1) >= 1).all()


def test_dpbert_gate_reads_the_state_before_its_layer(make_model: Callable[..., dpbert.DpBert], batch: Batch) -> None:
    model = make_model()
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    states = model.encoder(*inputs)
    read: dict[int, Tensor] = {}
    for index, planner in enumerate(model.planner):  # type: ignore[arg-type]
        planner.register_forward_hook(
            lambda module, arguments, output, index=index: read.update({index: arguments[0].detach()})
        )

    walked = model.walk(batch, _decisions((1, 0, 1, 1)))

    second = model.encoder.layers[2](states[1], batch.attention_mask)
    expected = [states[0], states[1], states[1], second]
    assert all((read[i] - state).abs().max() <= 1e-6 for i, state in enumerate(expected))
    # One hidden layer on the masked mean and the uncertainty of the head's answer, written out.
    mask = _array(batch.attention_mask)
    pooled = (_array(states[1]) * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    dense, classify = model.head.dense, model.head.classifier
    logits = np.tanh(pooled @ _array(dense.weight).T + _array(dense.bias)) @ _array(classify.weight).T
    answer = np.exp(logits + _array(classify.bias))
    answer /= answer.sum(1, keepdims=True)
    seen = np.concatenate([pooled, -(answer * np.log(answer)).sum(1, keepdims=True) / np.log(3)], axis=1)
    gate = model.planner[1]  # type: ignore[index]
    hidden = np.maximum(seen @ _array(gate.expand.weight).T + _array(gate.expand.bias), 0)
    assert _array(walked.include_logits)[:, 1] == pytest.approx(
        (hidden @ _array(gate.decide.weight).T + _array(gate.decide.bias))[:, 0], abs=1e-4
    )


@pytest.mark.parametrize("planner", ["state", "upfront"])
def test_dpbert_first_planner_reads_more_than_the_first_token(
    make_model: Callable[..., dpbert.DpBert], batch: Batch, planner: str
) -> None:
    model = make_model(pool="cls", **PLANNERS[planner])

    def first(model: dpbert.DpBert) -> Tensor:
        return model.walk(batch, torch.ones_like).include_logits[:, 0]

    # The first token's embedding is the same for every row, so that reading it alone would decide the same for all.
    states = model.encoder(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    assert (states[0][:, 0] - states[0][0, 0]).abs().max() == 0
    assert first(model).unique().numel() == ROWS
    if planner == "state":
        later = model.gate(1)
        moved = states[1].clone()
        moved[:, 1:] += 1.0
        assert torch.equal(later(states[1], batch.attention_mask), later(moved, batch.attention_mask))


def test_dpbert_shared_planner_tells_layers_apart(make_model: Callable[..., dpbert.DpBert], batch: Batch) -> None:
    model = make_model(shared_planner=True)
    hidden = model.encoder.embed(batch.input_ids, batch.token_type_ids)

    logits = torch.stack([model.gate(index).logits(hidden, batch.attention_mask) for index in range(LAYERS)])

    assert all((logits[i] - logits[j]).abs().max() > 0.01 for i, j in itertools.combinations(range(LAYERS), 2))
    assert {name for name, _ in model.named_parameters() if "planner" in name} == {
        f"planner.{part}.{kind}" for part in ("expand", "decide") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("planner", PLANNERS)
def test_dpbert_run_time_has_no_chance(make_model: Callable[..., dpbert.DpBert], batch: Batch, planner: str) -> None:
    model = make_model(**PLANNERS[planner])

    torch.manual_seed(1)
    first = _follow(model, batch, "bypass", delta=0.5)
    state = torch.get_rng_state()
    second = _follow(model, batch, "bypass", delta=0.5)

    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(first.path, second.path)
    assert np.array_equal(first.scores, second.scores)


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("pool", ["mean", "attention", "cls"])
def test_dpbert_padding_has_no_influence(
    make_model: Callable[..., dpbert.DpBert], batch: Batch, planner: str, pool: str
) -> None:
    model = make_model(pool=pool, **PLANNERS[planner])
    assert batch.token_type_ids is not None

    together = model.walk(batch, _paths.threshold)

    for i, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        row = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        ids, mask, types = (value[i : i + 1, :length] for value in row)
        alone = model.walk(Batch(input_ids=ids, attention_mask=mask, token_type_ids=types), _paths.threshold)
        assert (alone.include_logits - together.include_logits[i]).abs().max() <= 1e-4
        assert alone.executed.tolist() == together.executed[i : i + 1].tolist()
        assert (alone.logits - together.logits[i]).abs().max() <= 1e-5


def _row(batch: Batch, i: int) -> Batch:
    values = (batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.labels)
    ids, mask, types, labels = (None if value is None else value[i : i + 1] for value in values)
    assert ids is not None
    assert mask is not None
    return Batch(input_ids=ids, attention_mask=mask, token_type_ids=types, labels=labels)


def _rewarded(model: dpbert.DpBert, row: Batch, layers: list[int]) -> float:
    """The reward of METHODS 3.2, from a forward pass through just these layers."""
    hidden = model.encoder.embed(row.input_ids, row.token_type_ids)
    for layer in layers:
        hidden = model.encoder.layers[layer - 1](hidden, row.attention_mask)
    right = model.head(model.pooling(hidden, row.attention_mask)).argmax() == row.labels
    return 1 - (len(layers) / LAYERS) ** 2 if right else -model.config.wrong_penalty


def _expected_reward(model: dpbert.DpBert, row: Batch) -> Tensor:
    """The expected reward as a tree of all paths: each gate decides on the state its own past has led to."""
    start = model.encoder.embed(row.input_ids, row.token_type_ids)
    if model.config.planner == "upfront":
        include = torch.sigmoid(model.planner(start, row.attention_mask))[0]
        terms = []
        for path in _all_paths():
            chosen = torch.tensor(path)
            likelihood = torch.where(chosen == 1, include, 1 - include).prod()
            terms.append(likelihood * _rewarded(model, row, _executed(model, path, row)))
        return torch.stack(terms).sum()

    def expect(hidden: Tensor, ran: list[int], layer: int) -> Tensor:
        if layer > LAYERS:
            return torch.tensor(_rewarded(model, row, ran))
        after = model.encoder.layers[layer - 1](hidden, row.attention_mask)
        if layer == LAYERS and not ran:
            return expect(after, [layer], layer + 1)
        include = torch.sigmoid(model.gate(layer - 1).logits(hidden, row.attention_mask))[0]
        return include * expect(after, [*ran, layer], layer + 1) + (1 - include) * expect(hidden, ran, layer + 1)

    return expect(start, [], 1)


@pytest.mark.parametrize("planner", PLANNERS)
def test_dpbert_reinforce_gradient_equals_enumeration(
    make_model: Callable[..., dpbert.DpBert], monkeypatch: pytest.MonkeyPatch, batch: Batch, planner: str
) -> None:
    settings = {"estimator": "reinforce", "entropy_bonus": 0.0, "distillation": 0.0, "wrong_penalty": 0.7}
    model = make_model(**settings, **PLANNERS[planner])
    parameters, rows = _planner(model), (0, 3, 6)
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is p for p in parameters))

    exact = torch.autograd.grad(sum(_expected_reward(model, _row(batch, i)) for i in rows), parameters)
    estimate = [torch.zeros_like(p) for p in parameters]
    total = 0.0
    for path, i in itertools.product(_all_paths(), rows):
        row = _row(batch, i)
        walk = model.walk(row, _decisions(path))
        include = torch.sigmoid(walk.include_logits.detach())
        drawn = float(torch.where(torch.tensor(path) == 1, include, 1 - include).prod())
        monkeypatch.setattr(dpbert, "sample", _decisions(path))
        # The sampler draws the last layer's decision too where it does not count.
        gradient = torch.autograd.grad(model.joint_loss(row), parameters, allow_unused=True)
        for so_far, part in zip(estimate, gradient, strict=True):
            so_far.sub_(0.0 if part is None else drawn * part)
        total += drawn

    assert total == pytest.approx(len(rows), rel=1e-5)
    scale = max(g.abs().max().item() for g in exact)
    assert scale > 0.01
    assert max((a - b).abs().max().item() for a, b in zip(estimate, exact, strict=True)) <= 1e-4 * max(scale, 1.0)


@pytest.mark.parametrize("planner", ["sequential", "upfront"])
def test_dpbert_path_probabilities_sum_to_one(
    make_model: Callable[..., dpbert.DpBert], batch: Batch, planner: str
) -> None:
    model = make_model(planner=planner)

    total = torch.zeros(ROWS)
    for path in _all_paths():
        walk = model.walk(batch, _decisions(path))
        probability = _paths.log_probability(walk.include_logits, walk.chosen, walk.free).exp()
        # A forced layer's decision has no probability, so that its two values are one path.
        total += probability / torch.where(walk.free, 1.0, 2.0).prod(dim=1)

    assert total.tolist() == pytest.approx([1.0] * ROWS, abs=1e-5)


@pytest.mark.parametrize("planner", ["state", "upfront"])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_dpbert_straight_through_gradient_equals_the_surrogates_finite_differences(
    make_model: Callable[..., dpbert.DpBert],
    monkeypatch: pytest.MonkeyPatch,
    batch: Batch,
    planner: str,
    temperature: float,
) -> None:
    model = make_model(**PLANNERS[planner], temperature=temperature, executed_share=0.2)
    parameters = _planner(model)
    noise = torch.Generator().manual_seed(3)
    draws = [torch.rand(ROWS, LAYERS if planner == "upfront" else 1, generator=noise) for _ in range(LAYERS)]
    left: Iterator[Tensor] = iter(())
    monkeypatch.setattr(torch, "rand_like", lambda x: next(left).reshape(x.shape))
    left = iter(draws)
    gradient = torch.autograd.grad(model.joint_loss(batch), parameters)
    base: list[tuple[Tensor, Tensor]] = []

    def soft(logits: Tensor, uniform: Tensor) -> Tensor:
        return torch.sigmoid((logits + torch.logit(uniform.reshape(logits.shape))) / temperature)

    def surrogate(logits: Tensor, temperature: float) -> Tensor:
        """The hard decision at the base point, moved by as much as the sigmoid has moved since."""
        place = next(places)
        now = soft(logits, draws[place])
        if place == len(base):
            base.append(((now >= 0.5).float(), now))
        hard, start = base[place]
        return hard + (now - start)

    monkeypatch.setattr(dpbert, "straight_through", surrogate)
    direction = [g / _norm(gradient) + torch.randn(g.shape, generator=noise) / 10 for g in gradient]
    size = _norm(direction)
    losses = []
    with torch.no_grad():
        for step in (0.0, 0.005, -0.005):
            moved = copy.deepcopy(model)
            for parameter, towards in zip(_planner(moved), direction, strict=True):
                parameter.add_(step * towards / size)
            places = iter(range(LAYERS))
            losses.append(moved.joint_loss(batch).item())

    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)) / size
    assert abs(slope.item()) > 0.01
    assert slope.item() == pytest.approx((losses[1] - losses[2]) / 0.01, rel=0.02)


def _norm(parts: Iterable[Tensor]) -> float:
    return float(sum((part**2).sum() for part in parts)) ** 0.5


def test_straight_through_values_and_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.linspace(-6, 6, 1000, dtype=torch.float64).repeat(400).requires_grad_()

    decisions = _paths.straight_through(logits, 1.0)
    decisions.sum().backward()

    assert set(decisions.unique().tolist()) == {0.0, 1.0}
    share = decisions.detach().reshape(400, 1000).mean(0)
    assert (share - torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64))).abs().max() < 0.12
    assert abs((share - torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64))).mean()) < 0.005
    assert logits.grad is not None
    assert (logits.grad > 0).all()
    assert logits.grad.max() <= 0.25


def test_reward_of_right_and_wrong_answers() -> None:
    rewards = _paths.reward(torch.tensor([0.5, 1.0, 0.25]), torch.tensor([True, True, False]), 0.4)

    assert rewards.tolist() == pytest.approx([0.75, 0.0, -0.4])


def test_mean_entropy_counts_free_decisions() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])

    assert _paths.mean_entropy(logits, torch.tensor([[True, True], [True, False]])).item() == pytest.approx(
        0.75 * np.log(2)
    )


@pytest.mark.parametrize("skip_probability", [0.0, 0.2, 0.9, 1.0])
def test_random_paths_are_never_empty(skip_probability: float) -> None:
    torch.manual_seed(0)

    paths = _paths.random_paths(4000, LAYERS, skip_probability)

    assert paths.any(dim=1).all()
    # Half of the rows keep everything, the others stop after a random layer: (1 + P(last >= l)) / 2 of layer l is left.
    kept = torch.tensor([(1 + (LAYERS - layer) / LAYERS) / 2 for layer in range(LAYERS)]) * (1 - skip_probability)
    if skip_probability <= 0.2:
        assert (paths.float().mean(0) - kept).abs().max() < 0.04
    if skip_probability == 1.0:
        assert (paths.sum(dim=1) == 1).all()
        assert paths.float().mean(0).min() > 0.2


def test_dpbert_path_robust_loss_of_the_drawn_paths(
    make_model: Callable[..., dpbert.DpBert], monkeypatch: pytest.MonkeyPatch, batch: Batch
) -> None:
    model = make_model(pool="cls", distillation=0.5)
    drawn = torch.tensor(_all_paths()[1 : ROWS + 1], dtype=torch.bool)
    monkeypatch.setattr(dpbert, "random_paths", lambda rows, layers, skip: drawn)

    loss = model.path_robust_loss(batch)

    full = _hugging_face(model, batch, (1, 2, 3, 4)).log_softmax(-1)
    own = torch.cat(
        [
            _hugging_face(model, _row(batch, i), tuple((path.nonzero()[:, 0] + 1).tolist()))
            for i, path in enumerate(drawn)
        ]
    ).log_softmax(-1)
    assert batch.labels is not None
    cross_entropy = -own[torch.arange(ROWS), batch.labels].mean()
    distance = (full.exp() * (full - own)).sum(-1).mean()
    assert loss.item() == pytest.approx((cross_entropy + 0.5 * distance).item(), rel=1e-4)


def test_dpbert_cost_counts_executed_layers_not_probabilities(
    make_model: Callable[..., dpbert.DpBert], monkeypatch: pytest.MonkeyPatch, batch: Batch
) -> None:
    model = make_model(distillation=0.0, cost_weight=3.0, executed_share=0.3)
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))

    loss = model.joint_loss(batch)

    followed = _follow(model, batch, "bypass", delta=0.5)
    log = torch.from_numpy(followed.scores).float().log_softmax(-1)
    assert batch.labels is not None
    expected = -log[torch.arange(ROWS), batch.labels].mean() + 3 * (followed.path.mean() - 0.3) ** 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_dpbert_new_planners_include_most_layers(make_encoder: MakeEncoder, batch: Batch) -> None:
    torch.manual_seed(0)
    model = dpbert.build(make_encoder(layers=LAYERS), dpbert.Config(), 3).eval()

    probabilities = torch.sigmoid(model.walk(batch, torch.ones_like).include_logits)

    assert ((probabilities > 0.75) & (probabilities < 0.95)).all()


@pytest.mark.parametrize("estimator", ["st_gumbel", "reinforce"])
@pytest.mark.parametrize("planner", PLANNERS)
def test_dpbert_stages_train_what_they_say(
    make_model: Callable[..., dpbert.DpBert], batch: Batch, planner: str, estimator: str
) -> None:
    model = make_model(**PLANNERS[planner], estimator=estimator).train()
    stages = model.stages(TrainConfig(learning_rate=1e-4, head_learning_rate_factor=5.0))
    planner_ids = {id(p) for p in _planner(model)}
    everything = {id(p) for p in model.parameters()}

    trained = [{id(p) for group in stage.groups for p in group.parameters} for stage in stages]

    assert tuple(stage.name for stage in stages) == dpbert.STAGES
    assert trained == [everything - planner_ids, everything - planner_ids, planner_ids, everything]
    assert [[group.learning_rate for group in stage.groups] for stage in stages] == [pytest.approx([1e-4, 5e-4])] * 4
    reached = set()
    for _ in range(8):
        model.zero_grad()
        stages[3].loss(batch).backward()
        reached |= {id(p) for p in model.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert len(everything - reached) <= 2 + LAYERS  # keys' biases have no gradient; a unit may be off for every row


@pytest.mark.parametrize("estimator", ["st_gumbel", "reinforce"])
@pytest.mark.parametrize("planner", ["sequential", "upfront"])
def test_dpbert_planner_stage_changes_the_planner_alone(
    make_model: Callable[..., dpbert.DpBert],
    tmp_path: Path,
    sentiment_data: Path,
    tiny_tokenizer: bytes,
    planner: str,
    estimator: str,
) -> None:
    model = make_model(planner=planner, estimator=estimator, n_labels=2)
    before = copy.deepcopy(model.state_dict())
    text = TextEncoder(tiny_tokenizer, max_length=32, pad_token_id=0)
    rows = Rows(text.encode(texts_of(read_examples(sentiment_data, split="train")[:32])), np.arange(32) % 2, text)
    config = TrainConfig(batch_size=16, learning_rate=1e-2, precision="fp32")
    dropped: list[bool] = []
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.register_forward_hook(lambda module, arguments, output: dropped.append(module.training))

    train_stage(
        model,
        model.stages(config)[2],
        rows,
        config=config,
        epochs=2,
        seed=0,
        folder=tmp_path,
        max_steps=None,
        is_resumed=False,
        reporter=Reporter(),
    )

    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("planner.") for name in changed)
    assert dropped
    assert not any(dropped)
    assert model.training  # and dropout is back for the next stage


def test_dpbert_teacher_is_the_whole_model_without_dropout(
    make_model: Callable[..., dpbert.DpBert], batch: Batch
) -> None:
    model = make_model(distillation=1.0).train()
    logits = torch.zeros(ROWS, 3)

    first, second = (model._loss(logits, batch).item() - np.log(3) for _ in range(2))

    with torch.no_grad():
        full = model.eval()(batch.input_ids, batch.attention_mask, batch.token_type_ids).log_softmax(-1)
    assert first == second == pytest.approx((full.exp() * (full - np.log(1 / 3))).sum(-1).mean().item(), rel=1e-5)


def test_dpbert_full_loss_adds_the_task_with_every_layer(
    make_model: Callable[..., dpbert.DpBert], batch: Batch
) -> None:
    model = make_model(full_loss=0.5, distillation=0.0)
    logits = torch.zeros(ROWS, 3)

    loss = model._loss(logits, batch)

    full = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    assert batch.labels is not None
    expected = np.log(3) + 0.5 * torch.nn.functional.cross_entropy(full, batch.labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert model.head.dense.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("planner", ["sequential", "upfront"])
def test_dpbert_regression_learns_by_squared_errors(
    make_model: Callable[..., dpbert.DpBert], batch: Batch, planner: str
) -> None:
    model = make_model(planner=planner, n_labels=1, distillation=0.5, cost_weight=0.0)
    numbers = torch.linspace(-1.0, 2.0, ROWS)
    batch = Batch(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=batch.token_type_ids,
        labels=numbers,
    )

    torch.manual_seed(0)
    loss = model.joint_loss(batch)
    torch.manual_seed(0)
    walk = model.walk(batch, lambda logits: _paths.straight_through(logits, 1.0))

    full = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)[:, 0]
    value = walk.logits[:, 0]
    expected = ((value - numbers) ** 2).mean() + 0.5 * ((value - full) ** 2).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in _planner(model))
    assert model.config.planner_input == "state"


def test_dpbert_uncertainty_needs_an_answer(make_encoder: MakeEncoder) -> None:
    with pytest.raises(ConfigError, match=r"^method\.planner_input: a value has no uncertainty"):
        dpbert.build(make_encoder(), dpbert.Config(planner_input="uncertainty"), 1)
    with pytest.raises(ValueError, match="an upfront planner sees no answer"):
        dpbert.Config(planner="upfront", planner_input="uncertainty")
    assert dpbert.build(make_encoder(), dpbert.Config(planner="upfront"), 2).config.planner_input == "state"
    assert dpbert.build(make_encoder(), dpbert.Config(), 2).config.planner_input == "uncertainty"


def test_dpbert_regression_refuses_reinforce(make_encoder: MakeEncoder) -> None:
    message = r"^method\.estimator: reinforce rewards right answers, which regression does not have\."
    with pytest.raises(ConfigError, match=message):
        dpbert.build(make_encoder(), dpbert.Config(estimator="reinforce"), 1)


def test_dpbert_program_costs(make_model: Callable[..., dpbert.DpBert]) -> None:
    sequential, state, upfront = (make_model(**PLANNERS[name]).steps() for name in ("sequential", "state", "upfront"))

    head = 32 * 32 + 32 * 3
    assert [step.kind for step in sequential] == ["embed", *["gate", "layer"] * 4, "head"]
    assert [step.kind for step in upfront] == ["embed", "plan", *["layer"] * 4, "head"]
    assert [step.layer for step in sequential] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert [step.macs.row for step in sequential if step.kind == "gate"] == [33 * 16 + 16 + head] * 4
    assert [step.macs.row for step in state if step.kind == "gate"] == [32 * 16 + 16] * 4
    assert [step.macs.row for step in upfront if step.kind == "plan"] == [32 * 16 + 16 * 4]
    assert [step.macs.row for step in upfront if step.kind == "head"] == [head]


def test_dpbert_rule_is_bypass_at_one_half() -> None:
    assert dpbert.rule(dpbert.Config()) == ("bypass", {"delta": 0.5})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executed_share": 1.5}, "method.executed_share: expected 0 to 1, got 1.5"),
        ({"skip_probability": -0.1}, "method.skip_probability: expected 0 to 1, got -0.1"),
        ({"distillation": -1.0}, "method.distillation: expected 0 or more, got -1.0"),
        ({"cost_weight": -1.0}, "method.cost_weight: expected 0 or more, got -1.0"),
        ({"wrong_penalty": -1.0}, "method.wrong_penalty: expected 0 or more, got -1.0"),
        ({"entropy_bonus": -1.0}, "method.entropy_bonus: expected 0 or more, got -1.0"),
        ({"temperature": 0.0}, "method.temperature: expected more than 0, got 0.0"),
        ({"planner_width": 0}, "method.planner_width: expected 1 or more, got 0"),
        ({"planner": "greedy"}, "method.planner: invalid enum value 'greedy'"),
        ({"estimator": "ppo"}, "method.estimator: invalid enum value 'ppo'"),
        (
            {"planner": "upfront", "shared_planner": True},
            "method.shared_planner: an upfront planner is one already; expected false",
        ),
    ],
)
def test_dpbert_config_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        decode(settings, dpbert.Config, where="config", prefix="method.")

    assert str(raised.value) == f"config: {message}"
