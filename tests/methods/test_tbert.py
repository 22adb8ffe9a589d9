"""Choices of heads and blocks against Hugging Face, gathered weights, EBERT's rule, differences and closed forms."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgebert import EdgeModel
from edgebert.bundle.manifest import OperatingPoint
from edgebert.checkpoint import Checkpoint, CheckpointFacts, save_checkpoint
from edgebert.config import ExportConfig, RunConfig, TrainConfig
from edgebert.encoders._blocks import Encoder
from edgebert.encoders._checkpoint import checkpoint_weights, settings_of
from edgebert.errors import ConfigError
from edgebert.export import export_model
from edgebert.methods import _choices, plain, tbert
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference
from edgebert.policies import make_policy
from edgebert.policies.width import kept_count

MakeModel = Callable[..., tbert.TBert]
ROWS, LAYERS, HEADS, BLOCKS = 8, 3, 4, 8


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
def make_model(make_encoder: Callable[..., Encoder]) -> MakeModel:
    """Makes models whose predictors and heads have weights and statistics of no special value."""

    def make(*, n_labels: int = 3, shape: dict[str, Any] | None = None, **settings: Any) -> tbert.TBert:
        encoder = make_encoder(hidden_dropout=0.3, **(shape or {}))
        torch.manual_seed(5)
        model = tbert.build(encoder, tbert.Config(**{"predictor_width": 16, **settings}), n_labels).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("encoder."):
                    parameter.add_(0.4 * torch.randn_like(parameter))
            for part in model.modules():
                if isinstance(part, tbert.Predictor):
                    part.reduce.weight.mul_(8)
                    part.score.bias.zero_()
                if isinstance(part, nn.BatchNorm1d):
                    assert part.running_mean is not None
                    assert part.running_var is not None
                    part.running_mean.normal_()
                    part.running_var.uniform_(0.5, 2.0)
        return model

    return make


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().numpy().astype(np.float64)


def _best(model: tbert.TBert, batch: Batch, width: float) -> tuple[Callable[[Tensor, str], Tensor], list[Tensor]]:
    """Chooses as at run time; the second value collects the choices."""
    chosen: list[Tensor] = []

    def choose(scores: Tensor, choice: str) -> Tensor:
        widths = torch.full((len(scores),), width, dtype=torch.float64)
        chosen.append(_choices.best(scores, model.counts(choice, widths, batch.attention_mask.sum(dim=1))))
        return chosen[-1]

    return choose, chosen


def _answer(model: tbert.TBert, states: list[Tensor], mask: Tensor) -> Tensor:
    return model.head(model.pooling(states[-1], mask))


@torch.no_grad()
def test_tbert_full_width_is_hugging_face(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(pool="cls")
    shape = settings_of(model.encoder.config)
    reference = transformers.BertForSequenceClassification(transformers.BertConfig(**shape, num_labels=3)).eval()
    head = {
        "bert.pooler.dense.weight": model.head.dense.weight,
        "bert.pooler.dense.bias": model.head.dense.bias,
        "classifier.weight": model.head.classifier.weight,
        "classifier.bias": model.head.classifier.bias,
    }
    reference.load_state_dict({**checkpoint_weights(model.encoder), **head})
    static = plain.build(model.encoder, plain.Config(), 3).eval()
    static.head = model.head
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "token_type_ids": batch.token_type_ids,
    }

    full = model(**inputs)
    choose, chosen = _best(model, batch, 1.0)
    walked = _answer(model, model.walk(batch, choose), batch.attention_mask)

    assert (full - reference(**inputs).logits).abs().max() <= 1e-4
    assert torch.equal(full, static(**inputs))
    assert torch.equal(full, walked)
    assert all(part.all() for part in chosen)


def test_choices_best_takes_exactly_k_and_the_first_of_equal_ones() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 2.0], [3.0, 1.0, 2.0, 1.0]])

    taken = _choices.best(scores, torch.tensor([2, 2, 3]))

    assert taken.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize(("share", "pieces"), [(0.25, 12), (0.5, 12), (0.75, 96), (0.34, 50)])
def test_choices_best_is_the_rule_of_ebert(share: float, pieces: int) -> None:
    scores = torch.randn(20, pieces, generator=torch.Generator().manual_seed(1))
    pruned = int((1 - share) * pieces)

    taken = _choices.best(scores, torch.full((20,), pieces - pruned))

    for row, mask in zip(scores.tolist(), taken.tolist(), strict=True):
        threshold = sorted(row)[pruned - 1]  # the largest of those that go
        assert mask == [float(score > threshold) for score in row]


@pytest.mark.parametrize("surrogate", ["sigmoid", "identity"])
def test_choices_gradient_is_that_of_the_surrogate(surrogate: _choices.Surrogate) -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    weights = torch.randn(3, 5, generator=generator, dtype=torch.float64)

    chosen = _choices.straight_through(scores, torch.tensor([1, 2, 4]), surrogate)
    (chosen * weights).sum().backward()

    def carried(values: NDArray[np.float64]) -> float:
        if surrogate == "sigmoid":
            values = (values - values.mean(axis=1, keepdims=True)) / values.std(axis=1, keepdims=True)
            values = 1 / (1 + np.exp(-values))
        return float((values * weights.numpy()).sum())

    assert sorted(chosen.detach().unique().tolist()) == [0.0, 1.0]
    assert chosen.sum(dim=1).tolist() == [1, 2, 4]
    assert scores.grad is not None
    for place in np.ndindex(3, 5):
        step = np.zeros((3, 5))
        step[place] = 1e-5
        slope = (carried(scores.detach().numpy() + step) - carried(scores.detach().numpy() - step)) / 2e-5
        assert scores.grad[place].item() == pytest.approx(slope, abs=1e-7)


def test_choices_noise_changes_who_is_chosen_but_not_how_many() -> None:
    torch.manual_seed(0)
    scores = torch.linspace(0, 1, 8).expand(200, 8)

    chosen = _choices.straight_through(scores, torch.full((200,), 3), "sigmoid", noise=1.0)

    assert chosen.sum(dim=1).tolist() == [3] * 200
    assert chosen.unique(dim=0).shape[0] > 20
    assert chosen[:, 7].mean() > chosen[:, 0].mean() + 0.1


@pytest.mark.parametrize(("values", "rows", "most"), [(4, 8, 2), (4, 6, 2), (3, 2, 1)])
def test_choices_shared_out_evenly(values: int, rows: int, most: int) -> None:
    torch.manual_seed(0)

    dealt = _choices.shared_out(torch.arange(values), rows)

    assert len(dealt) == rows
    assert int(dealt.bincount().max()) == most


@torch.no_grad()
@pytest.mark.parametrize("activation", [functional.gelu, functional.relu, torch.sigmoid, torch.cos])
def test_tbert_masked_is_gathered(make_model: MakeModel, batch: Batch, activation: Callable[[Tensor], Tensor]) -> None:
    model = make_model(shape={"standard_deviation": 0.1})
    for layer in model.encoder.layers:
        layer.feed_forward.activation = activation
    choose, chosen = _best(model, batch, 0.5)
    states = model.walk(batch, choose)

    size, block = 32 // HEADS, model.block_size
    for row, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        ids = batch.input_ids[row : row + 1, :length]
        assert batch.token_type_ids is not None
        x = model.encoder.embed(ids, batch.token_type_ids[row : row + 1, :length])[0]
        for index, layer in enumerate(model.encoder.layers):
            heads = chosen[2 * index][row].nonzero().flatten().tolist()
            blocks = chosen[2 * index + 1][row].nonzero().flatten().tolist()
            assert len(heads) == HEADS // 2
            assert len(blocks) == BLOCKS // 2
            part = layer.attention
            total = x + part.output.bias
            for head in heads:
                places = slice(head * size, (head + 1) * size)
                query, key, value = (
                    x @ linear.weight[places].T + linear.bias[places] for linear in (part.query, part.key, part.value)
                )
                context = torch.softmax(query @ key.T / size**0.5, dim=-1) @ value
                total = total + context @ part.output.weight[:, places].T
            x = part.norm(total)
            neurons = [i for b in blocks for i in range(b * block, (b + 1) * block)]
            other = layer.feed_forward
            inner = activation(x @ other.expand.weight[neurons].T + other.expand.bias[neurons])
            x = other.norm(x + inner @ other.contract.weight[:, neurons].T + other.contract.bias)
            assert (states[index][row, :length] - x).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("width", [0.1, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("exact_budget", [False, True])
def test_tbert_training_keeps_what_the_policy_keeps(
    make_model: MakeModel, batch: Batch, width: float, exact_budget: bool
) -> None:
    model = make_model(exact_budget=exact_budget, block_size=1)
    choose, chosen = _best(model, batch, width)
    states = model.walk(batch, choose)

    policy = make_policy("width", {"width": width, "exact_budget": exact_budget}, exit_layers=())
    _, followed = run_reference(model.steps(), batch, policy)

    assert followed is not None
    heads, blocks = (torch.stack(chosen[first::2], dim=1).numpy().astype(bool) for first in (0, 1))
    assert np.array_equal(followed.chosen["head_choice"], heads)
    assert np.array_equal(followed.chosen["block_choice"], blocks)
    assert (heads.sum(axis=2) == kept_count(width, HEADS)).all()
    if not exact_budget:
        assert (blocks.sum(axis=2) == kept_count(width, 64)).all()
    logits = _answer(model, states, batch.attention_mask)
    assert np.abs(followed.scores - _array(logits)).max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"predictor_norm": "layer"}, {"pool": "attention"}, {"static": True}])
def test_tbert_predictor_does_not_see_the_batch(make_model: MakeModel, batch: Batch, settings: dict[str, Any]) -> None:
    model = make_model(**settings)
    hidden = model.encoder.embed(batch.input_ids, batch.token_type_ids)

    for predictor in (*model.head_predictors, *model.block_predictors):
        together = predictor(hidden, batch.attention_mask)
        folded = predictor.folded()  # type: ignore[operator]
        alone = torch.cat([predictor(hidden[i : i + 1], batch.attention_mask[i : i + 1]) for i in range(ROWS)])
        assert (together - alone).abs().max() <= 1e-4  # scores are up to 40
        assert (together - folded(hidden, batch.attention_mask)).abs().max() <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_tbert_first_predictor_varies_over_inputs(make_model: MakeModel, batch: Batch, pool: str) -> None:
    model = make_model(pool=pool)
    hidden = model.encoder.embed(batch.input_ids, batch.token_type_ids)

    assert (hidden[:, 0] - hidden[0, 0]).abs().max() == 0
    assert model.head_predictors[0](hidden, batch.attention_mask).unique(dim=0).shape[0] == ROWS
    if pool == "cls":
        assert model.head_predictors[1](hidden, batch.attention_mask).unique(dim=0).shape[0] == 1


def test_tbert_static_is_the_same_for_every_input(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(static=True)

    _, followed = run_reference(model.steps(), batch, make_policy("width", {"width": 0.5}, exit_layers=()))
    model.train().joint_loss(batch).backward()

    assert followed is not None
    for chosen in followed.chosen.values():
        assert (chosen == chosen[0]).all()
        assert (chosen[0] != chosen[0, 0]).any()
    assert all(predictor.scores.grad.abs().sum() > 0 for predictor in model.head_predictors)  # type: ignore[union-attr]


def test_tbert_joint_loss_written_out(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(widths=(0.5,), inner_loss=0.5, distillation=0.25)
    choose, _ = _best(model, batch, 0.5)

    loss = model.joint_loss(batch)
    states = model.walk(batch, choose)
    logits = _answer(model, states, batch.attention_mask)
    full = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)

    inner = [
        functional.cross_entropy(model.inner[str(layer)](states[layer - 1], batch.attention_mask), batch.labels)
        for layer in (1, 2)
    ]
    kept = functional.kl_div(logits.log_softmax(dim=-1), full.softmax(dim=-1), reduction="batchmean")
    expected = functional.cross_entropy(logits, batch.labels) + 0.5 * sum(inner) / 2 + 0.25 * kept
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_tbert_joint_loss_reaches_everything_once(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(distillation=1.0).train()
    groups = model.stages(TrainConfig())[1].groups

    model.joint_loss(batch).backward()

    trained = [id(parameter) for group in groups for parameter in group.parameters]
    assert sorted(trained) == sorted(id(parameter) for parameter in model.parameters())
    names = ("head_predictors", "block_predictors", "inner.1", "inner.2", "head.", "encoder.layers")
    for name, parameter in model.named_parameters():
        if name.startswith(names) and not name.endswith(("key.bias", "reduce.bias")):  # these cancel out
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0, name


def test_tbert_widths_are_dealt_out_and_counts_fall(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(widths=(1.0, 0.5), anneal_steps=4, distillation=0.0)
    counts: list[list[float]] = []
    model.walk = lambda batch, choose: (  # type: ignore[method-assign]
        counts.append(sorted(choose(torch.randn(ROWS, HEADS), "head_choice").sum(dim=1).tolist()))
        or tbert.TBert.walk(model, batch, choose)
    )

    for _ in range(6):
        model.joint_loss(batch)

    assert [kept[0] for kept in counts] == [4, 4, 3, 2, 2, 2]  # 2 + round(2 * (1, 3/4, 1/2, 1/4, 0))
    assert [kept[ROWS // 2 :] for kept in counts] == [[HEADS] * (ROWS // 2)] * 6


def test_tbert_one_row_trains(make_model: MakeModel, batch: Batch) -> None:
    model = make_model().train()
    assert batch.labels is not None
    row = Batch(input_ids=batch.input_ids[:1], attention_mask=batch.attention_mask[:1], labels=batch.labels[:1])

    assert torch.isfinite(model.joint_loss(row))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 7}, "method.block_size: expected a divisor of 64, the feed-forward width, got 7"),
        ({"inner_layers": (1, 3)}, r"method.inner_layers: expected layers of 1 to 2, got \(1, 3\)"),
    ],
)
def test_tbert_setting_that_does_not_fit(make_model: MakeModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"widths": ()}, {"widths": (0.5, 1.5)}, {"topk_noise": -1.0}, {"inner_loss": -1.0}, {"predictor_width": 0}],
)
def test_tbert_setting_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}: expected"):
        tbert.Config(**settings)


# From torch to the engine


@pytest.fixture
def make_runtime(
    make_model: MakeModel, tmp_path: Path, tiny_tokenizer: bytes
) -> Iterator[Callable[..., tuple[tbert.TBert, EdgeModel]]]:
    """Exports a model; returns it and its bundle's runtime."""
    opened: list[EdgeModel] = []

    def make(*, link: bool = True, opset: int = 23, **settings: Any) -> tuple[tbert.TBert, EdgeModel]:
        model = make_model(n_labels=2, shape={"standard_deviation": 0.1}, **settings)
        facts = CheckpointFacts(
            labels=("negative", "positive"),
            seed=0,
            config=RunConfig(
                method={"name": "tbert", "predictor_width": 16, **settings},
                train=TrainConfig(max_length=32),
                export=ExportConfig(link=link, opset=opset, verify_samples=24),
            ),
            operating_points={"default": OperatingPoint(policy="width", knobs={"width": 0.5})},
        )
        folder = tmp_path / f"checkpoint-{len(opened)}"
        save_checkpoint(Checkpoint(model, facts, {"tokenizer.json": tiny_tokenizer}), folder, force=False)
        opened.append(EdgeModel(export_model(folder, tmp_path / f"bundle-{len(opened)}"), threads=1))
        return model.eval(), opened[-1]

    yield make
    for runtime in opened:
        runtime.close()


def _inputs(batch: Batch) -> dict[str, NDArray[np.int64]]:
    assert batch.token_type_ids is not None
    values = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return {name: value.numpy() for name, value in {**values, "token_type_ids": batch.token_type_ids}.items()}


@pytest.mark.parametrize("width", [0.1, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("settings", [{}, {"link": False, "opset": 18, "predictor_norm": "layer"}, {"static": True}])
def test_tbert_engine_is_the_reference(
    make_runtime: Callable[..., tuple[tbert.TBert, EdgeModel]], batch: Batch, width: float, settings: dict[str, Any]
) -> None:
    model, runtime = make_runtime(**settings)
    runtime.set_policy("width", width=width)
    _, expected = run_reference(model.steps(), batch, make_policy("width", {"width": width}, exit_layers=()))
    assert expected is not None
    inputs, shuffled = _inputs(batch), np.random.default_rng(0).permutation(ROWS)

    together = runtime.forward(**inputs)
    mixed = runtime.forward(**{name: value[shuffled] for name, value in inputs.items()})

    assert np.abs(together.logits - expected.scores).max() <= 1e-5
    assert np.abs(mixed.logits - together.logits[shuffled]).max() <= 1e-5
    for name, pieces in (("head_choice", HEADS), ("block_choice", BLOCKS)):
        assert np.array_equal(together.chosen[name], expected.chosen[name])
        assert (together.chosen[name].sum(axis=2) == kept_count(width, pieces)).all()
        if width == 0.5 and not settings.get("static"):
            assert len(np.unique(together.chosen[name], axis=0)) >= 4
    for row, length in enumerate(inputs["attention_mask"].sum(axis=1)):
        alone = runtime.forward(**{name: value[row : row + 1, :length] for name, value in inputs.items()})
        assert np.abs(alone.logits[0] - together.logits[row]).max() <= 1e-5
        assert all(np.array_equal(chosen[0], together.chosen[name][row]) for name, chosen in alone.chosen.items())
        assert alone.cost_ratio[0] == pytest.approx(together.cost_ratio[row])


@pytest.mark.parametrize("link", [True, False])
def test_tbert_session_calls(
    make_runtime: Callable[..., tuple[tbert.TBert, EdgeModel]], texts: list[str], link: bool
) -> None:
    _, runtime = make_runtime(link=link)
    encoded = runtime.encode(texts[:6])

    half = runtime.run_encoded(encoded, batch_size=6)
    runtime.set_policy("never")
    full = runtime.run_encoded(encoded, batch_size=6)

    parts = [f"graphs/{part}_{layer:02d}.onnx" for layer in range(LAYERS) for part in ("attention", "feed_forward")]
    whole = [f"graphs/layer_{layer:02d}.onnx" for layer in range(LAYERS)]
    if link:
        assert [call.graph for call in half.calls] == ["graphs/embed.onnx", *parts, "graphs/head.onnx"]
    else:
        selects = [f"graphs/{kind}_{layer:02d}.onnx" for layer in range(LAYERS) for kind in ("heads", "blocks")]
        both = [graph for pair in zip(selects, parts, strict=True) for graph in pair]
        assert [call.graph for call in half.calls] == ["graphs/embed.onnx", *both, "graphs/head.onnx"]
    assert [call.graph for call in full.calls] == ["graphs/embed.onnx", *whole, "graphs/head.onnx"]
    assert all(call.rows == 6 for call in half.calls)
    assert runtime.layer_rows(half.calls) == 6 * LAYERS


@pytest.mark.parametrize(("settings", "size"), [({}, 8), ({"block_size": 1}, 1)])
def test_tbert_bundle_says_its_block_size(
    make_runtime: Callable[..., tuple[tbert.TBert, EdgeModel]], settings: dict[str, int], size: int
) -> None:
    _, runtime = make_runtime(**settings)

    assert runtime.manifest.method_settings["block_size"] == size


@pytest.mark.parametrize("width", [0.25, 0.4, 0.5, 0.8])
def test_tbert_cost_is_the_closed_form(
    make_runtime: Callable[..., tuple[tbert.TBert, EdgeModel]], batch: Batch, width: float
) -> None:
    _, runtime = make_runtime(block_size=1)
    tokens = batch.attention_mask.sum(dim=1).numpy()
    d, f, p = 32, 64, 16

    runtime.set_policy("width", width=width)
    plainly = runtime.forward(**_inputs(batch))

    heads, neurons = kept_count(width, HEADS), kept_count(width, f)
    attention = heads / HEADS * (4 * tokens * d**2 + 2 * tokens**2 * d)
    predictors = p * (d + HEADS) + p * (d + f)
    spent = LAYERS * (attention + 2 * tokens * d * neurons + predictors) + d * (d + 2)
    assert plainly.cost_ratio == pytest.approx(
        spent / (LAYERS * (4 * tokens * d**2 + 2 * tokens**2 * d + 2 * tokens * d * f))
    )


def test_tbert_exact_budget_is_within_a_hundredth(make_encoder: Callable[..., Encoder]) -> None:
    shape = {"hidden_size": 120, "heads": 12, "feed_forward_size": 480, "layers": 1, "max_positions": 64}
    model = tbert.build(make_encoder(**shape), tbert.Config(exact_budget=True, block_size=1, predictor_width=4), 2)
    tokens = torch.tensor([8, 20, 40, 64])
    each = {name: model._each(name).of(tokens.tolist()) for name in model.pieces}
    full = 12 * each["head_choice"] + 480 * each["block_choice"]

    for width in (0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.8):
        widths = torch.full((4,), width, dtype=torch.float64)
        kept = {name: model.counts(name, widths, tokens).numpy() for name in model.pieces}
        predictors = sum(model._predictor_macs(name).row for name in model.pieces)
        ratio = (sum(kept[name] * each[name] for name in model.pieces) + predictors) / full
        assert ratio == pytest.approx(width, rel=0.01)
        assert (kept["head_choice"] == kept_count(width, 12)).all()


def test_tbert_bundle_has_no_inner_classifiers(
    make_runtime: Callable[..., tuple[tbert.TBert, EdgeModel]],
) -> None:
    model, runtime = make_runtime(link=False)
    files = set(runtime.manifest.files)

    kinds = {"attention", "feed_forward", "heads", "blocks", "layer"}
    graphs = {f"graphs/{kind}_{layer:02d}.onnx" for kind in kinds for layer in range(LAYERS)}
    assert {file for file in files if file.startswith("graphs/")} == {*graphs, "graphs/embed.onnx", "graphs/head.onnx"}
    assert set(model.inner) == {"1", "2"}
    assert not [step for step in model.steps() if step.kind == "exit"]


@pytest.mark.parametrize("stage", [0, 1])
def test_tbert_stage_trains_its_part(train_tiny: Callable[..., dict[str, Tensor]], stage: int) -> None:
    method = {"name": "tbert", "predictor_width": 8}

    before = train_tiny(method, 0.0, 0.0)
    after = train_tiny(method, *[float(number == stage) for number in range(2)])

    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    added = {"head_predictors", "block_predictors", "inner", "steps_taken"}
    assert moved == ({"encoder", "head"} if stage == 0 else {"encoder", "head", *added})
