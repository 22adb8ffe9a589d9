"""Pieces chosen and tokens dropped inside a layer: the engine against the torch interpreter, without any export."""

import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgebert.bundle.manifest import Macs, Step
from edgebert.decisions import Followed, spent_macs
from edgebert.methods._program import Batch, CompiledStep
from edgebert.methods._reference import run_reference
from edgebert.policies import Policy, make_policy
from edgebert.runtime.engine import Engine
from edgebert.runtime.outcome import Outcome
from edgebert.runtime.rows import run_rows
from edgebert.text import Encoded
from edgebert.verify import differing_rows

LAYERS, WIDTH, PIECES = 3, 8, 4
ATTENTION, FEED_FORWARD, PIECE = Macs(token=40, token_pair=3), Macs(token=70, row=2), Macs(token=5, token_pair=1)


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, WIDTH)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table(input_ids)


class AttentionPart(nn.Module):
    """One head; says what each token received from the real ones, of which the first must stay if asked for."""

    def __init__(self, keep_first: bool) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.keep_first = keep_first

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        scores = 3 * self.query(hidden) @ self.key(hidden).transpose(1, 2)
        shares = torch.softmax(scores.masked_fill(attention_mask[:, None, :] == 0, -1e4), dim=-1)
        received = (shares * attention_mask[:, :, None]).sum(dim=1)
        if self.keep_first:
            received = torch.cat([torch.full_like(received[:, :1], torch.inf), received[:, 1:]], dim=1)
        return shares @ hidden + hidden, received


class Select(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, PIECES)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[:, :, None].float()
        return self.score((hidden * mask).sum(dim=1) / mask.sum(dim=1))


class FeedForwardPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(PIECES))

    def forward(self, attended: Tensor, block_choice: Tensor | None = None) -> Tensor:
        every = torch.stack([torch.tanh(piece(attended)) for piece in self.pieces], dim=-1)
        if block_choice is not None:
            every = every * block_choice[:, None, None, :]
        return attended + every.sum(dim=-1)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Linear(WIDTH, 3)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[:, :, None].float()
        return self.label((hidden * mask).sum(dim=1) / mask.sum(dim=1))


def _step(kind: Any, layer: int, module: nn.Module | None, inputs: str, outputs: str, **more: Any) -> CompiledStep:
    file = f"{kind}_{layer}_{more.get('part', '')}"
    macs = more.pop("macs", Macs())
    return CompiledStep(
        kind=kind,
        layer=layer,
        file=file,
        module=module,
        inputs=tuple(inputs.split()),
        outputs=tuple(outputs.split()),
        macs=macs,
        **more,
    )


@pytest.fixture(scope="module", params=[True, False], ids=["keeps the first token", "keeps any"])
def dropping(request: pytest.FixtureRequest) -> list[CompiledStep]:
    torch.manual_seed(1)
    steps = [_step("embed", 0, Embed(), "input_ids", "hidden")]
    for layer in range(1, LAYERS + 1):
        part = AttentionPart(request.param)
        steps += [
            _step("layer", layer, part, "hidden attention_mask", "attended received", part="attention", macs=ATTENTION),
            _step("drop", layer, None, "hidden attended received attention_mask", "attended attention_mask"),
            _step("layer", layer, FeedForwardPart(), "attended", "hidden", part="feed_forward", macs=FEED_FORWARD),
        ]
    steps.append(_step("restore", LAYERS, None, "hidden attention_mask", "hidden attention_mask"))
    steps.append(_step("head", LAYERS, Head(), "hidden attention_mask", "logits", macs=Macs(row=9)))
    return steps


@pytest.fixture(scope="module")
def selecting() -> list[CompiledStep]:
    torch.manual_seed(2)
    steps = [_step("embed", 0, Embed(), "input_ids", "hidden")]
    for layer in range(1, LAYERS + 1):
        part = AttentionPart(False)
        pieces: dict[str, Any] = {"choice": "block_choice", "choices": PIECES}
        steps += [
            _step("layer", layer, part, "hidden attention_mask", "attended received", part="attention", macs=ATTENTION),
            _step("select", layer, Select(), "attended attention_mask", "block_scores", macs=Macs(row=7), **pieces),
            _step(
                "layer",
                layer,
                FeedForwardPart(),
                "attended block_choice",
                "hidden",
                part="feed_forward",
                macs=FEED_FORWARD,
                each=PIECE,
                **pieces,
            ),
        ]
    steps.append(_step("head", LAYERS, Head(), "hidden attention_mask", "logits", macs=Macs(row=9)))
    return steps


class TorchGraph:
    """A torch module where the engine expects a graph."""

    def __init__(self, step: CompiledStep) -> None:
        self.step = step

    @torch.no_grad()
    def run(self, values: Any, names: Sequence[str]) -> dict[str, Any]:
        assert self.step.module is not None
        outputs = self.step.module(*(torch.from_numpy(np.ascontiguousarray(values[name])) for name in self.step.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}


def _engine(steps: Sequence[CompiledStep]) -> Engine:
    program = [
        Step(
            kind=step.kind,
            layer=step.layer,
            graph=None if step.module is None else step.file,
            inputs=step.inputs,
            outputs=step.outputs,
            macs=step.macs,
            part=step.part,
            choice=step.choice,
            choices=step.choices,
            each=step.each,
        )
        for step in steps
    ]
    return Engine(program, {step.file: TorchGraph(step) for step in steps if step.module is not None})


def _inputs(lengths: Sequence[int], seed: int, padding: int = 0) -> dict[str, Any]:
    width = max(lengths) + padding
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(1, 50, (len(lengths), width)) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def _reference(steps: Sequence[CompiledStep], inputs: dict[str, Any], policy: Policy) -> Followed:
    batch = Batch(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    _, followed = run_reference(steps, batch, policy)
    assert followed is not None
    return followed


def _agree(outcome: Outcome, followed: Followed) -> None:
    assert not differing_rows(followed, outcome).any()  # type: ignore[arg-type]
    assert outcome.scores == pytest.approx(followed.scores, abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.sampled_from([None, "8,5,3", "4", "1", "0.7,0.5,0.3", "1.0,0.5", "0.25"]),
    st.integers(0, 3),
    st.integers(0, 100),
)
def test_rows_drop_their_own_tokens_whoever_shares_the_batch(
    dropping: list[CompiledStep], lengths: list[int], configuration: str | None, padding: int, seed: int
) -> None:
    policy = make_policy("lengths", {"lengths": configuration}, exit_layers=())
    inputs = _inputs(lengths, seed, padding)
    engine = _engine(dropping)

    outcome = engine.run(inputs, policy)

    followed = _reference(dropping, inputs, policy)
    _agree(outcome, followed)
    assert outcome.token_layers is not None
    assert (outcome.token_layers[inputs["attention_mask"] == 0] == 0).all()
    assert outcome.macs == pytest.approx(spent_macs(dropping, policy, followed, np.array(lengths)))
    for place, length in enumerate(lengths):
        alone = {name: value[place : place + 1, :length] for name, value in inputs.items()}
        own = engine.run(alone, policy)
        assert own.token_layers is not None
        assert (own.token_layers[0] == outcome.token_layers[place, :length]).all()
        assert own.scores[0] == pytest.approx(outcome.scores[place], abs=1e-5)
        assert own.macs[0] == outcome.macs[place]


def test_later_layers_get_only_the_tokens_that_are_left_and_the_head_gets_all(dropping: list[CompiledStep]) -> None:
    policy = make_policy("lengths", {"lengths": "6,6,2"}, exit_layers=())

    outcome = _engine(dropping).run(_inputs([9, 4], 0), policy)

    tokens = [(call.graph.rpartition("_")[0], call.tokens) for call in outcome.calls]
    assert tokens == [
        ("embed_0", 9),
        ("layer_1", 9),
        ("layer_1_feed", 6),
        ("layer_2", 6),
        ("layer_2_feed", 6),
        ("layer_3", 6),
        ("layer_3_feed", 2),
        ("head_3", 9),
    ]
    assert outcome.token_layers is not None
    kept = [(outcome.token_layers >= layer).sum(axis=1).tolist() for layer in (1, 2, 3)]
    assert kept == [[6, 4], [6, 4], [2, 2]]


def test_a_protected_token_is_never_dropped(dropping: list[CompiledStep]) -> None:
    part = dropping[1].module
    outcome = _engine(dropping).run(_inputs([12] * 40, 3), make_policy("lengths", {"lengths": "1"}, exit_layers=()))

    assert outcome.token_layers is not None
    stayed = outcome.token_layers[:, 0] == LAYERS
    assert stayed.all() == part.keep_first  # type: ignore[union-attr]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.sampled_from([0.2, 0.5, 0.75, 1.0]),
    st.booleans(),
    st.integers(0, 100),
)
def test_rows_run_their_own_pieces_whoever_shares_the_batch(
    selecting: list[CompiledStep], lengths: list[int], width: float, exact: bool, seed: int
) -> None:
    policy = make_policy("width", {"width": width, "exact_budget": exact}, exit_layers=())
    inputs = _inputs(lengths, seed)
    engine = _engine(selecting)

    outcome = engine.run(inputs, policy)

    followed = _reference(selecting, inputs, policy)
    _agree(outcome, followed)
    chosen = outcome.chosen["block_choice"]
    if not exact:
        assert (chosen.sum(axis=2) == max(1, round(width * PIECES))).all()
    selects = sum(call.graph.startswith("select") for call in outcome.calls)
    assert selects == (0 if width == 1 else LAYERS)
    assert outcome.macs == pytest.approx(spent_macs(selecting, policy, followed, np.array(lengths)))
    for place, length in enumerate(lengths):
        own = engine.run({name: value[place : place + 1, :length] for name, value in inputs.items()}, policy)
        assert (own.chosen["block_choice"][0] == chosen[place]).all()
        assert own.scores[0] == pytest.approx(outcome.scores[place], abs=1e-5)


def _in_batches(engine: Any, lengths: Sequence[int], *, batch_size: int) -> Outcome:
    """Runs rows of the ids 1, 2, 3, ... in the order given."""

    def pad(rows: Sequence[Encoded]) -> dict[str, Any]:
        width = max(len(row.ids) for row in rows)
        ids = np.array([row.ids + [0] * (width - len(row.ids)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}

    rows = [Encoded(list(range(1, length + 1)), [0] * length, False) for length in lengths]
    policy = make_policy("lengths", {"lengths": "3"}, exit_layers=())
    return run_rows(engine, policy, rows, pad=pad, batch_size=batch_size, sort=False, compact=True, show_progress=False)


def test_outcomes_of_batches_come_together_in_one(dropping: list[CompiledStep]) -> None:
    engine = _engine(dropping)

    together = _in_batches(engine, [4, 9, 7], batch_size=2)

    assert together.token_layers is not None
    assert together.token_layers.shape == (3, 9)
    for place, length in enumerate([4, 9, 7]):
        (alone,) = _in_batches(engine, [length], batch_size=1).token_layers  # type: ignore[misc]
        assert together.token_layers[place].tolist() == [*alone.tolist(), *[0] * (9 - length)]


class Fast:
    """An engine that does nothing, and says so of every token."""

    layers, plans_ahead = 1, False

    def run(self, inputs: dict[str, Any], policy: Policy, **options: Any) -> Outcome:
        outcome = Outcome.empty(len(inputs["input_ids"]), self.layers)
        outcome.token_layers = np.ones((len(inputs["input_ids"]), 600), np.int64)
        return outcome


def test_a_batch_takes_no_longer_because_of_the_rows_before_it() -> None:
    start = time.process_time()

    outcome = _in_batches(Fast(), [2] * 4000, batch_size=1)

    assert time.process_time() - start < 3  # 10 or more when every batch copies what is there
    assert outcome.token_layers is not None
    assert outcome.token_layers.sum() == 600 * 4000


def test_tokens_of_a_layer_are_counted_in_the_memory_of_one_layer() -> None:
    outcome = Outcome.empty(1000, 20)
    outcome.token_layers = np.tile(np.arange(100) % 21, (1000, 1))
    tracemalloc.start()

    went_on = outcome.layer_tokens

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert went_on is not None
    assert went_on[7].tolist() == [int((np.arange(100) % 21 >= layer).sum()) for layer in range(1, 21)]
    assert peak_bytes < 1000 * 100 * 10  # a byte for each row, token and layer would be twice as much
