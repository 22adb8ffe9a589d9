"""dynamic_tinybert: against plain, against the published rule row by row, and from torch to the engine."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgebert.bundle.manifest import Macs, OperatingPoint
from edgebert.checkpoint import load_checkpoint
from edgebert.config import TrainConfig
from edgebert.costs import macs_torchprofile
from edgebert.encoders._blocks import Encoder, Layer
from edgebert.encoders._checkpoint import checkpoint_weights, settings_of
from edgebert.errors import ConfigError
from edgebert.export import export_model
from edgebert.export.shapes import SHAPES
from edgebert.losses import divergence
from edgebert.methods import dynamic_tinybert, plain
from edgebert.methods._program import Batch, CompiledStep
from edgebert.methods._reference import run_reference
from edgebert.methods._tokens import ReceivedAttention, drop_and_restore, states_and_probabilities
from edgebert.methods.dynamic_tinybert import Config, DynamicTinyBert, build, tokens_of
from edgebert.policies import DropPosition, make_policy
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.outcome import Outcome
from edgebert.text import Encoded, TextEncoder, Values

QUALA = (315, 251, 242, 159, 142, 33)
LENGTH_ADAPTIVE = (269, 253, 252, 202, 104, 34)


def _model(encoder: Encoder, n_labels: int = 3, *, per_token: bool = False, **settings: Any) -> DynamicTinyBert:
    torch.manual_seed(5)
    model = build(encoder, Config(**{"layer_drop": 0.0, **settings}), n_labels, per_token=per_token)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def _keep(lengths: str, batch: Batch, layers: int) -> list[Tensor]:
    policy = make_policy("lengths", {"lengths": lengths}, exit_layers=())
    tokens = batch.attention_mask.sum(dim=1).numpy()
    return [torch.from_numpy(policy.keep(DropPosition(layer, layers), tokens)) for layer in range(1, layers + 1)]


def _published(
    layers: Sequence[Layer], embedded: Tensor, lengths: Sequence[int], *, keep_first: bool
) -> tuple[Tensor, list[set[int]]]:
    """Drop-and-Restore of one row without padding as its paper's code goes about it, with weights but no code of ours.

    Probabilities summed over heads and queries, the largest taken in no order, everything gathered, `restored` written
    after each layer at the places that remain.

    Args:
        layers: The layers.
        embedded: float [tokens, hidden].
        lengths: Tokens after each layer.
        keep_first: Whether the first token always stays.

    Returns:
        The restored states, float [tokens, hidden], and the places that remain after each layer.
    """
    x, restored, remain = embedded, embedded.clone(), torch.arange(len(embedded))
    remained = []
    for layer, length in zip(layers, lengths, strict=True):
        part = layer.attention
        size = x.shape[1] // part.heads
        probabilities, contexts = [], []
        for head in range(part.heads):
            own = slice(head * size, (head + 1) * size)
            query, key, value = (
                functional.linear(x, linear.weight[own], linear.bias[own])
                for linear in (part.query, part.key, part.value)
            )
            probabilities.append(functional.softmax(query @ key.T / math.sqrt(size), dim=-1))
            contexts.append(probabilities[-1] @ value)
        x = part.norm(part.output(torch.cat(contexts, dim=1)) + x)
        if length < len(x):
            received = torch.stack(probabilities).sum(dim=(0, 1))
            if keep_first:
                kept = torch.cat([torch.tensor([0]), received[1:].topk(length - 1).indices + 1])
            else:
                kept = received.topk(length).indices
            x, remain = x[kept], remain[kept]
        x = layer.feed_forward(x)
        restored[remain] = x
        remained.append(set(remain.tolist()))
    return restored, remained


@pytest.mark.parametrize("pool", ["mean", "attention", "cls"])
def test_all_tokens_give_what_plain_gives(make_encoder: Callable[..., Encoder], batch: Batch, pool: Any) -> None:
    encoder = make_encoder()
    model = _model(encoder, pool=pool)
    static = plain.build(encoder, plain.Config(pool=pool), 3).eval()
    static.load_state_dict(model.state_dict())

    expected = static(batch.input_ids, batch.attention_mask)
    _, followed = run_reference(model.steps(), batch, make_policy("never", {}, exit_layers=()))

    assert followed is not None
    assert torch.allclose(model(batch.input_ids, batch.attention_mask), expected, atol=1e-5)
    assert torch.allclose(model.answer_at(batch, _keep("1.0", batch, 3)), expected, atol=1e-5)
    assert followed.scores == pytest.approx(expected.detach().numpy(), abs=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_parts_of_a_layer_are_those_of_hugging_face(
    make_encoder: Callable[..., Encoder], batch: Batch, activation: str
) -> None:
    encoder = make_encoder(activation=activation)
    settings = transformers.BertConfig(**settings_of(encoder.config), attn_implementation="eager")
    theirs = transformers.BertModel(settings, add_pooling_layer=False).eval()
    theirs.load_state_dict({name.removeprefix("bert."): w for name, w in checkpoint_weights(encoder).items()})

    with torch.no_grad():
        answer = theirs(
            batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True, output_attentions=True
        )
        states, probabilities = states_and_probabilities(
            encoder.layers, encoder.embed(batch.input_ids), batch.attention_mask
        )

    real = batch.attention_mask.bool()
    for own, other in zip(states, answer.hidden_states, strict=True):
        assert torch.allclose(own[real], other[real], atol=1e-5)
    for own, other in zip(probabilities, answer.attentions, strict=True):
        assert torch.allclose(own.transpose(1, 2)[real], other.transpose(1, 2)[real], atol=1e-5)


def test_a_token_receives_the_sum_over_heads_and_real_queries(
    make_encoder: Callable[..., Encoder], batch: Batch
) -> None:
    attention, hidden = make_encoder().layers[0].attention, torch.randn(6, 9, 32)
    mask = batch.attention_mask

    def received(*, keep_first: bool = False, count_padding: bool = False) -> Tensor:
        part = ReceivedAttention(attention, keep_first=keep_first, count_padding=count_padding)
        _, made = part(hidden, mask)
        assert torch.allclose(made, part.received(hidden, mask))
        return made.detach()

    tokens = mask.sum(dim=1)
    assert torch.allclose(received().sum(dim=1), 4.0 * tokens)
    assert torch.allclose(received(count_padding=True).sum(dim=1), torch.full((6,), 4.0 * 9))
    assert received()[mask == 0].abs().max() < 1e-6
    assert torch.equal(received(keep_first=True)[:, 0], torch.full((6,), math.inf))
    assert torch.equal(received(keep_first=True)[:, 1:], received()[:, 1:])


class _Identity(nn.Module):
    """A layer's feed-forward part, or attention, that changes nothing."""

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return hidden


def test_layers_that_change_nothing_restore_the_embeddings(make_encoder: Callable[..., Encoder], batch: Batch) -> None:
    encoder = make_encoder()
    embedded = encoder.embed(batch.input_ids)
    for layer in encoder.layers:
        layer.attention.norm = nn.Identity()  # type: ignore[assignment]
        for part in (layer.attention.value, layer.attention.output):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        layer.feed_forward = _Identity()  # type: ignore[assignment]

    restored = drop_and_restore(
        encoder.layers, embedded, batch.attention_mask, _keep("6,4,2", batch, 3), keep_first=True, count_padding=False
    )

    assert torch.equal(restored, embedded)


def test_tokens_leave_between_attention_and_feed_forward(make_encoder: Callable[..., Encoder], batch: Batch) -> None:
    encoder = make_encoder()
    widths: list[tuple[str, int]] = []
    for layer in encoder.layers:
        layer.attention.output.register_forward_hook(lambda *_: widths.append(("attention", _[1][0].shape[1])))
        layer.feed_forward.expand.register_forward_hook(lambda *_: widths.append(("feed_forward", _[1][0].shape[1])))

    _model(encoder).answer_at(batch, _keep("7,7,3", batch, 3))

    assert widths == [
        ("attention", 9),
        ("feed_forward", 7),
        ("attention", 7),
        ("feed_forward", 7),
        ("attention", 7),
        ("feed_forward", 3),
    ]


@pytest.mark.parametrize("keep_first", [True, False])
@pytest.mark.parametrize("lengths", ["7,4,2", "0.7,0.5,0.2", "3", "1.0,0.4"])
@torch.no_grad()
def test_training_and_reference_do_what_the_published_code_does_row_by_row(
    make_encoder: Callable[..., Encoder], batch: Batch, lengths: str, keep_first: bool
) -> None:
    encoder = make_encoder()
    model = _model(encoder, keep_cls=keep_first)
    keep = _keep(lengths, batch, 3)
    embedded = encoder.embed(batch.input_ids)

    mine = drop_and_restore(
        encoder.layers, embedded, batch.attention_mask, keep, keep_first=keep_first, count_padding=False
    )
    policy = make_policy("lengths", {"lengths": lengths}, exit_layers=())
    _, followed = run_reference(model.steps(), batch, policy)

    assert followed is not None
    assert followed.token_layers is not None
    assert followed.scores == pytest.approx(model.answer_at(batch, keep).numpy(), abs=1e-5)
    for row, tokens in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        own = [min(int(count[row]), tokens) for count in keep]
        restored, remained = _published(list(encoder.layers), embedded[row, :tokens], own, keep_first=keep_first)
        assert torch.allclose(mine[row, :tokens], restored, atol=1e-5)
        kept = [set(np.flatnonzero(followed.token_layers[row] >= layer)) for layer in (1, 2, 3)]
        assert kept == remained
        assert [len(places) for places in kept] == own
        if keep_first:
            assert all(0 in places for places in kept)


def test_the_first_token_can_go_unless_it_is_kept(make_encoder: Callable[..., Encoder]) -> None:
    ids = torch.randint(1, 50, (60, 10), generator=torch.Generator().manual_seed(1))
    many = Batch(input_ids=ids, attention_mask=torch.ones_like(ids))
    policy = make_policy("lengths", {"lengths": "2"}, exit_layers=())

    stays = {}
    for keep_cls in (True, False, None):
        _, followed = run_reference(_model(make_encoder(), keep_cls=keep_cls).steps(), many, policy)
        assert followed is not None
        assert followed.token_layers is not None
        stays[keep_cls] = float((followed.token_layers[:, 0] == 3).mean())

    reader = _model(make_encoder(), n_labels=2, per_token=True)
    _, followed = run_reference(reader.steps(), many, policy)
    assert followed is not None
    assert followed.token_layers is not None
    assert stays[True] == stays[None] == 1.0
    assert stays[False] == float((followed.token_layers[:, 0] == 3).mean())
    assert stays[False] < 1.0


def test_padding_changes_nothing_but_in_the_published_form(make_encoder: Callable[..., Encoder], batch: Batch) -> None:
    wider = Batch(
        input_ids=functional.pad(batch.input_ids, (0, 23)), attention_mask=functional.pad(batch.attention_mask, (0, 23))
    )
    policy = make_policy("lengths", {"lengths": "0.7,0.5,0.3"}, exit_layers=())

    def kept_and_scores(model: DynamicTinyBert, rows: Batch) -> tuple[NDArray[Any], NDArray[Any]]:
        _, followed = run_reference(model.steps(), rows, policy)
        assert followed is not None
        assert followed.token_layers is not None
        return followed.token_layers[:, :9], followed.scores

    model = _model(make_encoder())
    (kept, scores), (kept_wider, scores_wider) = (kept_and_scores(model, rows) for rows in (batch, wider))
    assert np.array_equal(kept, kept_wider)
    assert scores == pytest.approx(scores_wider, abs=1e-5)
    official = _model(make_encoder(), compat="official")
    assert not np.array_equal(kept_and_scores(official, batch)[0], kept_and_scores(official, wider)[0])


@torch.no_grad()
def test_spans_begin_and_end_at_dropped_tokens_too(make_encoder: Callable[..., Encoder], batch: Batch) -> None:
    encoder = make_encoder()
    model = _model(encoder, n_labels=2, per_token=True)
    keep = _keep("0.7,0.5,0.2", batch, 3)

    logits = model.answer_at(batch, keep)

    assert logits.shape == (6, 9, 2)
    for row, tokens in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        own = [min(int(count[row]), tokens) for count in keep]
        embedded = encoder.embed(batch.input_ids)[row, :tokens]
        restored, _ = _published(list(encoder.layers), embedded, own, keep_first=False)
        assert torch.allclose(logits[row, :tokens], model.head(restored), atol=1e-4)
        assert (logits[row, tokens:] == -1.0e4).all()


@pytest.mark.parametrize("n_labels", [1, 2], ids=["a value", "spans"])
def test_every_loss_has_a_gradient_in_every_task(
    make_encoder: Callable[..., Encoder], batch: Batch, n_labels: int
) -> None:
    per_token = n_labels == 2
    labels = torch.tensor([[0, 1], [2, 3], [0, 0], [1, 5], [8, 8], [1, 1]]) if per_token else torch.arange(6.0)
    rows = Batch(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels)
    model = _model(make_encoder(), n_labels, per_token=per_token, teacher="somewhere", largest_drop=0.4)
    model.learn_from(plain.build(make_encoder(seed=9), plain.Config(), n_labels, per_token=per_token))

    for stage in model.stages(TrainConfig(stage_epochs=(1.0, 1.0, 1.0, 1.0))):
        model.zero_grad()
        loss = stage.loss(rows)
        loss.backward()
        assert loss.isfinite(), stage.name
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.layers[0].parameters())


def test_equal_tokens_go_from_the_last_on(make_encoder: Callable[..., Encoder]) -> None:
    encoder = make_encoder()
    for layer in encoder.layers:
        for part in (layer.attention.query, layer.attention.key):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    same = Batch(input_ids=torch.full((2, 8), 7), attention_mask=torch.ones(2, 8, dtype=torch.long))

    _, followed = run_reference(_model(encoder).steps(), same, make_policy("lengths", {"lengths": "5"}, exit_layers=()))

    assert followed is not None
    assert followed.token_layers is not None
    assert followed.token_layers.tolist() == [[3] * 5 + [0] * 3] * 2


def test_published_costs_come_out_of_the_program() -> None:
    published = {
        ("bert-base", 12, None): 35.33,
        ("bert-base", 6, None): 17.67,
        ("minilm-l6", 6, None): 4.756,
        ("minilm-l6", 6, QUALA): 2.545,
        ("minilm-l6", 6, LENGTH_ADAPTIVE): 2.484,
    }
    for (name, layers, lengths), giga_macs in published.items():
        with torch.device("meta"):
            steps = build(Encoder(SHAPES[name]).first(layers), Config(), 2).steps()
        kept = lengths or (384,) * layers
        spent = {
            part: [step.macs for step in steps if step.part == part] for part in ("fused", "attention", "feed_forward")
        }
        counted = sum(
            float(attention.of(before) + feed_forward.of(after))
            for attention, feed_forward, before, after in zip(
                spent["attention"], spent["feed_forward"], (384, *kept), kept, strict=False
            )
        )
        assert counted / 1e9 == pytest.approx(giga_macs, abs=5e-3)
        assert all(
            fused == Macs(token=a.token + f.token, token_pair=a.token_pair)
            for fused, a, f in zip(*spent.values(), strict=True)
        )


@dataclass(frozen=True)
class Ladder:
    """A checkpoint's model, its bundle's runtime, and some rows, alone and as one padded batch."""

    model: DynamicTinyBert
    runtime: EdgeModel
    encoded: list[Encoded]
    values: Values


@pytest.fixture(scope="module")
def ladder(
    tmp_path_factory: pytest.TempPathFactory,
    save_tiny_checkpoint: Callable[..., Path],
    tiny_tokenizer: bytes,
    texts: list[str],
) -> Iterator[Ladder]:
    points = {"default": OperatingPoint(policy="lengths", knobs={"lengths": "0.7,0.5,0.3"})}
    folder = save_tiny_checkpoint({"name": "dynamic_tinybert"}, points)
    bundle = export_model(folder, tmp_path_factory.mktemp("ladders") / "bundle").path
    model: Any = load_checkpoint(folder).model
    text = TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0)
    encoded = text.encode(texts[:60])
    with EdgeModel.from_pretrained(bundle, threads=1) as runtime:
        yield Ladder(model.eval(), runtime, encoded, text.pad(encoded))


def _outcome(ladder: Ladder, lengths: str | None, order: Sequence[int], size: int) -> Outcome:
    ladder.runtime.set_policy("lengths", lengths=lengths)
    return ladder.runtime.run_encoded([ladder.encoded[i] for i in order], batch_size=size, sort=False)


@pytest.mark.parametrize("lengths", ["0.7,0.5,0.3", "12,9,5", "1.0,1.0,0.4", "0.5,0.5,0.5", "1", None])
def test_engine_keeps_the_same_tokens_as_torch_whoever_shares_the_batch(ladder: Ladder, lengths: str | None) -> None:
    batch = Batch(**{name: torch.from_numpy(value) for name, value in ladder.values.items()})
    _, followed = run_reference(
        ladder.model.steps(), batch, make_policy("lengths", {"lengths": lengths}, exit_layers=())
    )
    assert followed is not None
    assert followed.token_layers is not None

    shuffled = np.random.default_rng(0).permutation(len(ladder.encoded))
    for order, size in ((np.arange(60), 1), (np.arange(60), 7), (shuffled, 16)):
        outcome = _outcome(ladder, lengths, order.tolist(), size)
        assert outcome.token_layers is not None
        assert outcome.scores == pytest.approx(followed.scores[order], abs=1e-4)
        for place, row in enumerate(order):
            tokens = len(ladder.encoded[row].ids)
            assert outcome.token_layers[place, :tokens].tolist() == followed.token_layers[row, :tokens].tolist()


def test_engine_does_what_the_published_code_does_row_by_row(ladder: Ladder) -> None:
    encoder = ladder.model.encoder
    outcome = _outcome(ladder, "0.7,0.5,0.3", range(60), 16)

    assert outcome.token_layers is not None
    for row, encoded in enumerate(ladder.encoded):
        tokens = len(encoded.ids)
        own = [max(2, math.ceil(round(share * tokens, 9))) for share in (0.7, 0.5, 0.3)]
        with torch.no_grad():
            embedded = encoder.embed(torch.tensor([encoded.ids]))[0]
            restored, remained = _published(list(encoder.layers), embedded, own, keep_first=True)
            logits = ladder.model.head(restored.mean(dim=0, keepdim=True))
        assert [set(np.flatnonzero(outcome.token_layers[row] >= layer)) for layer in (1, 2, 3)] == remained
        assert outcome.scores[row] == pytest.approx(logits[0].numpy(), abs=1e-4)


def test_session_calls_agree_with_what_is_claimed(ladder: Ladder) -> None:
    row = max(range(60), key=lambda i: len(ladder.encoded[i].ids))
    tokens = len(ladder.encoded[row].ids)

    def calls(lengths: str | None) -> list[tuple[str, int]]:
        outcome = _outcome(ladder, lengths, [row], 1)
        return [(call.graph.removeprefix("graphs/").removesuffix(".onnx"), call.tokens) for call in outcome.calls]

    assert calls(None) == [("embed", tokens), *((f"layer_0{i}", tokens) for i in range(3)), ("head", tokens)]
    assert calls("1.0,0.5") == [
        ("embed", tokens),
        ("layer_00", tokens),
        ("attention_01", tokens),
        ("feed_forward_01", math.ceil(tokens / 2)),
        ("layer_02", math.ceil(tokens / 2)),
        ("head", tokens),
    ]


def test_the_cost_is_that_of_the_tokens_left(ladder: Ladder) -> None:
    shape = ladder.runtime.manifest.encoder
    outcome = _outcome(ladder, "12,9,5", range(60), 8)

    head = sum(step.macs.row for step in ladder.runtime.manifest.program if step.kind == "head")
    for row, encoded in enumerate(ladder.encoded):
        tokens = len(encoded.ids)
        kept = [min(tokens, count) for count in (12, 9, 5)]
        assert outcome.macs[row] == macs_torchprofile(shape, tokens, kept) + head
    full = ladder.runtime.full_macs([20])
    assert full == [macs_torchprofile(shape, 20)]


@pytest.mark.parametrize(("largest_drop", "shortest"), [(0.4, [6, 4, 2]), ((0.0, 0.5), [9, 5, 3])])
def test_shorter_passes_have_gradients_and_never_more_tokens_than_before(
    make_encoder: Callable[..., Encoder], batch: Batch, largest_drop: Any, shortest: list[int]
) -> None:
    model = _model(make_encoder(), largest_drop=largest_drop)
    kept: list[list[int]] = []
    answer_at = model.answer_at

    def spy(rows: Batch, keep: Sequence[Tensor | None]) -> Tensor:
        kept.append([int(count[0]) for count in keep if count is not None])
        return answer_at(rows, keep)

    model.answer_at = spy  # type: ignore[method-assign]
    torch.manual_seed(0)
    model.length_drop_loss(batch).backward()

    assert len(kept) == 4
    assert kept[:2] == [[9, 9, 9], shortest]
    for counts in kept[2:]:
        assert counts == sorted(counts, reverse=True)
        assert all(least <= count for least, count in zip(shortest, counts, strict=True))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.layers[0].parameters())


def test_length_drop_is_the_mean_of_the_task_and_the_distances(
    make_encoder: Callable[..., Encoder], batch: Batch
) -> None:
    model = _model(make_encoder(), largest_drop=0.4, random_passes=0)
    lengths = batch.attention_mask.sum(dim=1)

    full = model(batch.input_ids, batch.attention_mask)
    short = model.answer_at(batch, [tokens_of(share, lengths) for share in (0.6, 0.36, 0.216)])
    task = functional.cross_entropy(full, batch.labels)  # type: ignore[arg-type]

    assert model.length_drop_loss(batch).item() == pytest.approx(
        ((task + divergence(short, full)) / 2).item(), rel=1e-5
    )
    p, q = short.softmax(-1), full.softmax(-1)
    assert divergence(short, full).item() == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-4)
    other = _model(make_encoder(), largest_drop=0.4, random_passes=0, divergence="full_short")
    expected = (task + (q * (q / p).log()).sum(-1).mean()) / 2
    assert other.length_drop_loss(batch).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_layer_left_out_drops_nothing(make_encoder: Callable[..., Encoder], batch: Batch) -> None:
    model = _model(make_encoder(), layer_drop=0.99999)
    embedded = model.encoder.embed(batch.input_ids)

    nothing_runs = model.answer_at(batch, [None] * 3)

    assert torch.allclose(nothing_runs, model.head(model.pooling(embedded, batch.attention_mask)))
    torch.manual_seed(1)
    assert model._shares([0.2] * 3) == [None] * 3
    half = _model(make_encoder(), layer_drop=0.5)
    shares = [share for _ in range(50) for share in half._shares([0.2] * 3) if share is not None]
    assert 40 < len(shares) < 110
    assert {round(share, 6) for share in shares} == {0.8, 0.64, 0.512}


def test_tokens_of_a_share_are_the_policys() -> None:
    lengths = torch.arange(1, 513)
    for share in (0.1, 0.3, 0.64, 0.7, 1.0):
        policy = make_policy("lengths", {"lengths": str(share)}, exit_layers=())
        assert tokens_of(share, lengths).tolist() == policy.keep(DropPosition(1, 1), lengths.numpy()).tolist()


def test_learning_from_a_teacher_matches_its_layers_and_its_answer(
    make_encoder: Callable[..., Encoder], batch: Batch
) -> None:
    model = _model(make_encoder(layers=3), teacher="somewhere")
    teacher = plain.build(make_encoder(seed=9, layers=6, hidden_size=48, feed_forward_size=96), plain.Config(), 3)
    model.learn_from(teacher)
    mask = batch.attention_mask

    loss = model.distil_layers_loss(batch)
    loss.backward()

    with torch.no_grad():
        own = model.encoder(batch.input_ids, mask)
        theirs = teacher.encoder(batch.input_ids, mask)
        hidden = sum(
            functional.mse_loss(model.fit(own[m])[mask == 1], theirs[2 * m][mask == 1]).item() for m in range(4)
        )
    model.config = Config(attention_distillation=0.0)
    assert model.distil_layers_loss(batch).item() == pytest.approx(hidden, rel=1e-4)
    assert loss.item() > hidden
    assert model.fit.weight.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(name.startswith("_teachers") for name, _ in model.named_parameters())
    logits, target = (m(batch.input_ids, mask).log_softmax(-1) for m in (model, teacher))
    expected = (target.exp() * (target - logits)).sum(-1).mean()
    assert model.distil_answer_loss(batch).item() == pytest.approx(expected.item(), rel=1e-4)
    model.learn_from(None)
    assert "fit.weight" not in model.state_dict()


def test_a_teacher_of_another_shape_is_refused(make_encoder: Callable[..., Encoder]) -> None:
    model = _model(make_encoder(), teacher="there")

    with pytest.raises(ConfigError, match=r"method.teacher: there: expected 4 attention heads, got 2"):
        model.learn_from(plain.build(make_encoder(heads=2), plain.Config(), 3))
    with pytest.raises(ConfigError, match=r"method.teacher: there: expected \d+ token ids, got 11"):
        model.learn_from(plain.build(make_encoder(vocabulary_size=11), plain.Config(), 3))
    with pytest.raises(ConfigError, match=r"method.teacher: there: expected at least 3 layers, got 2"):
        _model(make_encoder(layers=5), teacher="there").learn_from(
            plain.build(make_encoder(layers=2), plain.Config(), 3)
        )


def test_distillation_without_a_teacher_is_refused(make_encoder: Callable[..., Encoder]) -> None:
    model = _model(make_encoder())

    model.stages(TrainConfig(stage_epochs=(1.0, 0.0, 0.0, 1.0)))

    with pytest.raises(ConfigError, match=r"method\.teacher: the stages distil_layers and distil_answer need one"):
        model.stages(TrainConfig(stage_epochs=(1.0, 0.0, 0.5, 1.0)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"largest_drop": 1.0}, "largest_drop: expected 0 to less than 1, got 1.0"),
        ({"largest_drop": (0.1, -0.2)}, "largest_drop: expected 0 to less than 1, got -0.2"),
        ({"largest_drop": ()}, "largest_drop: expected a number or a list of them, got an empty list"),
        ({"layer_drop": -0.1}, "layer_drop: expected 0 to less than 1, got -0.1"),
        ({"random_passes": -1}, "random_passes: expected 0 or more, got -1"),
        ({"search_evaluations": 0}, "search_evaluations: expected 1 or more, got 0"),
        ({"hidden_distillation": -1.0}, "hidden_distillation: expected 0 or more, got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**setting)


def test_more_drops_than_layers_are_refused(make_encoder: Callable[..., Encoder]) -> None:
    with pytest.raises(ConfigError, match=r"largest_drop: expected at most 3 numbers, one a layer, got 4"):
        _model(make_encoder(), largest_drop=(0.1, 0.2, 0.2, 0.2))


def test_the_rule_drops_in_every_layer_as_much_as_training_did() -> None:
    name, knobs = dynamic_tinybert.rule(Config(largest_drop=0.5))

    assert name == "lengths"
    assert str(knobs["lengths"]).startswith("0.50,0.25,0.12,0.06,0.03,0.02,0.02")
    _, knobs = dynamic_tinybert.rule(Config(largest_drop=(0.1, 0.5)))
    assert str(knobs["lengths"]).startswith("0.90,0.45,0.23,0.11,0.06,0.03,0.02,0.02")


def test_training_leaves_no_trace_of_the_teacher_and_stores_the_front(
    train_tiny: Callable[..., dict[str, Tensor]], plain_checkpoint: Path
) -> None:
    weights = train_tiny(
        {"name": "dynamic_tinybert", "teacher": str(plain_checkpoint), "search_evaluations": 6, "layer_drop": 0.0},
        1.0,
        1.0,
        1.0,
        1.0,
    )

    assert not any(name.startswith(("fit", "teacher", "_")) for name in weights)


def _steps_by_kind(steps: Sequence[CompiledStep]) -> list[tuple[str, str]]:
    return [(step.kind, step.part) for step in steps]


def test_program_has_every_layer_in_one_and_in_parts(make_encoder: Callable[..., Encoder]) -> None:
    kinds = _steps_by_kind(_model(make_encoder()).steps())

    layer = [("layer", "fused"), ("layer", "attention"), ("drop", "whole"), ("layer", "feed_forward")]
    assert kinds == [("embed", "whole"), *layer * 3, ("restore", "whole"), ("head", "whole")]
