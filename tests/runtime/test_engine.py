"""The engine's contract (DESIGN 4) against the torch model: same answers, whoever the batch mates, and no idle work."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgebert.bundle import open_bundle
from edgebert.checkpoint import load_checkpoint
from edgebert.decisions import Decision
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference
from edgebert.policies import Outputs, make_policy
from edgebert.runtime.engine import Engine
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.outcome import Outcome
from edgebert.tasks.classification import softmax
from edgebert.text import Encoded, TextEncoder
from edgebert.verify import within_margin
from tests._replay import replay

LAYERS = (1, 2, 3)
RULE: tuple[str, dict[str, Any]] = ("halting", {"slack": 0.0, "bound": "paper"})
POLICIES: list[tuple[str, dict[str, Any]]] = [
    RULE,
    ("halting", {"slack": 0.0, "bound": "tight"}),
    ("halting", {"slack": 0.3, "bound": "paper"}),
    ("confidence", {"threshold": 0.75}),
    ("confidence", {"threshold": 0.9}),
    ("fixed", {"layer": 2}),
    ("fixed", {"layer": None}),
    ("never", {}),
]


@dataclass(frozen=True)
class Reference:
    """What torch says: the exits of all rows, and the full-depth answer, log-probabilities."""

    exits: list[Outputs]
    answer: NDArray[Any]

    def replay(self, name: str, knobs: dict[str, Any]) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.bool_]]:
        """Returns labels, exit layers, and which rows lie within 1e-5 of another decision."""
        policy = make_policy(name, knobs, exit_layers=LAYERS, rule=RULE)
        scores, layers = replay(policy, self.exits, LAYERS)
        decisions = [Decision("exit", layer, outputs) for layer, outputs in zip(LAYERS, self.exits, strict=True)]
        return scores.argmax(1), layers, within_margin(policy, decisions, 3, np.random.default_rng(0))


@pytest.fixture(scope="module")
def encoded(tiny_tokenizer: bytes, texts: list[str]) -> list[Encoded]:
    return TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0).encode(texts)


@pytest.fixture(scope="module")
def reference(dact_checkpoint: Path, tiny_tokenizer: bytes, encoded: list[Encoded]) -> Reference:
    model = load_checkpoint(dact_checkpoint).model
    model.eval()  # type: ignore[attr-defined]
    values = TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0).pad(encoded)
    batch = Batch(**{name: torch.from_numpy(value) for name, value in values.items()})
    exits = [decision.outputs for decision in run_reference(model.steps(), batch)[0]]
    with torch.no_grad():
        answer = model.forward(batch.input_ids, batch.attention_mask, batch.token_type_ids).numpy()
    return Reference(exits, answer)


@pytest.fixture(scope="module", params=["dact_bundle", "dact_bundle_split"])
def model(request: pytest.FixtureRequest) -> Iterator[EdgeModel]:
    """The same model with its exits linked into the layers' graphs, and as graphs of their own."""
    with EdgeModel.from_pretrained(request.getfixturevalue(request.param), threads=1) as opened:
        yield opened


def _run(model: EdgeModel, rows: Sequence[Encoded], policy: tuple[str, dict[str, Any]], **options: Any) -> Outcome:
    model.set_policy(policy[0], **policy[1])
    return model.run_encoded(rows, **options)


def _layer_calls(outcome: Outcome) -> Counter[str]:
    """How many rows entered each graph."""
    rows: Counter[str] = Counter()
    for call in outcome.calls:
        rows[Path(call.graph).stem] += call.rows
    return rows


@pytest.mark.parametrize(("policy", "least"), [(RULE, 20), (("confidence", {"threshold": 0.75}), 10)])
def test_fixture_rows_stop_at_every_layer_with_either_label(
    reference: Reference, policy: tuple[str, dict[str, Any]], least: int
) -> None:
    labels, layers, near = reference.replay(*policy)

    assert np.bincount(layers, minlength=4)[1:].min() >= least
    assert np.bincount(labels).min() >= 50
    assert near.sum() <= 2


def test_engine_never_equals_the_full_torch_model(
    model: EdgeModel, reference: Reference, encoded: list[Encoded]
) -> None:
    outcome = _run(model, encoded, ("never", {}))

    assert np.abs(softmax(outcome.scores) - np.exp(reference.answer)).max() <= 1e-4
    assert (outcome.exit_layer == 3).all()
    assert (outcome.layers_run == 3).all()


def test_engine_equals_the_plain_torch_model(
    plain_bundle: Path, plain_checkpoint: Path, encoded: list[Encoded]
) -> None:
    torch_model = load_checkpoint(plain_checkpoint).model
    torch_model.eval()  # type: ignore[attr-defined]

    with EdgeModel.from_pretrained(plain_bundle, threads=1) as model, torch.no_grad():
        outcome = model.run_encoded(encoded)
        values = {name: torch.from_numpy(value) for name, value in model.pad(encoded).items()}
        expected = torch_model.forward(**values).numpy()

    assert np.abs(outcome.scores - expected).max() <= 1e-4
    assert np.bincount(expected.argmax(1)).min() >= 10


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("batching", ["single", "sorted", "unsorted", "shuffled", "uncompacted"])
def test_engine_equals_the_rule_folded_over_torch(
    monkeypatch: pytest.MonkeyPatch,
    model: EdgeModel,
    reference: Reference,
    encoded: list[Encoded],
    policy: tuple[str, dict[str, Any]],
    batching: str,
) -> None:
    labels, layers, near = reference.replay(*policy)
    order = np.random.default_rng(0).permutation(200) if batching == "shuffled" else np.arange(200)
    options = {"single": {"batch_size": 1}, "unsorted": {"sort": False}, "shuffled": {"sort": False}}
    monkeypatch.setattr(model, "compact", batching != "uncompacted")

    outcome = _run(model, [encoded[i] for i in order], policy, **options.get(batching, {}))

    far = ~near[order]
    assert outcome.exit_layer[far].tolist() == layers[order][far].tolist()
    assert outcome.scores.argmax(1)[far].tolist() == labels[order][far].tolist()
    assert far.sum() >= 196


@settings(max_examples=30)
@given(
    places=st.lists(st.integers(0, 199), min_size=1, max_size=12),
    padding=st.integers(0, 9),
    junk=st.integers(0, 60),
    policy=st.sampled_from(POLICIES),
)
def test_engine_row_alone_gets_the_same_answer(
    model: EdgeModel,
    reference: Reference,
    encoded: list[Encoded],
    places: list[int],
    padding: int,
    junk: int,
    policy: tuple[str, dict[str, Any]],
) -> None:
    near = reference.replay(*policy)[2]
    rows = [encoded[i] for i in places]
    values = {name: np.pad(value, ((0, 0), (0, padding))) for name, value in model.pad(rows).items()}
    values["input_ids"] = np.where(values["attention_mask"] == 1, values["input_ids"], junk)

    alone = _run(model, rows, policy, batch_size=1)
    together = model.forward(**values)

    far = ~near[places]
    assert together.exit_layer[far].tolist() == alone.exit_layer[far].tolist()
    assert np.abs(softmax(together.logits) - softmax(alone.scores))[far].max(initial=0.0) <= 1e-5
    assert together.cost_ratio[far] == pytest.approx((alone.macs / model.full_macs([len(r.ids) for r in rows]))[far])


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_one_row_is_answered_and_charged_as_one_in_a_batch_of_its_own(
    model: EdgeModel, encoded: list[Encoded], policy: tuple[str, dict[str, Any]]
) -> None:
    several = _run(model, encoded[:4], policy, batch_size=1, sort=False)

    alone = [_run(model, [row], policy) for row in encoded[:4]]

    for name in ("scores", "exit_layer", "path", "macs", "linear_macs"):
        joined = np.concatenate([getattr(outcome, name) for outcome in alone])
        np.testing.assert_array_equal(joined, getattr(several, name), err_msg=name)
    assert [call for outcome in alone for call in outcome.calls] == several.calls


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_engine_finished_rows_enter_no_layer(
    model: EdgeModel, encoded: list[Encoded], policy: tuple[str, dict[str, Any]]
) -> None:
    outcome = _run(model, encoded, policy, batch_size=200)

    entered = _layer_calls(outcome)
    needed = {f"layer_{layer - 1:02d}": int((outcome.exit_layer >= layer).sum()) for layer in LAYERS}
    assert {name: rows for name, rows in entered.items() if name.startswith("layer")} == {
        name: rows for name, rows in needed.items() if rows
    }
    assert entered["embed"] == 200
    assert (outcome.layers_run == outcome.exit_layer).all()


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_engine_claimed_layers_are_executed_layers(
    monkeypatch: pytest.MonkeyPatch,
    model: EdgeModel,
    encoded: list[Encoded],
    policy: tuple[str, dict[str, Any]],
    compact: bool,
) -> None:
    monkeypatch.setattr(model, "compact", compact)

    outcome = _run(model, encoded, policy)

    assert outcome.layers_run.sum() == model.layer_rows(outcome.calls)


def test_engine_uncompacted_runs_finished_rows_to_the_end_of_their_batch(
    monkeypatch: pytest.MonkeyPatch, model: EdgeModel, encoded: list[Encoded]
) -> None:
    compacted = _run(model, encoded, RULE, batch_size=200)
    monkeypatch.setattr(model, "compact", False)

    outcome = _run(model, encoded, RULE, batch_size=200)

    assert (outcome.layers_run == 3).all()
    assert (outcome.exit_layer == compacted.exit_layer).all()
    assert np.abs(softmax(outcome.scores) - softmax(compacted.scores)).max() <= 1e-5
    assert outcome.macs.sum() > compacted.macs.sum()


def test_engine_fixed_calls_no_layer_after_it(dact_bundle: Path, encoded: list[Encoded]) -> None:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        outcome = _run(model, encoded, ("fixed", {"layer": 2}), batch_size=200)

    assert [(call.graph, call.rows) for call in outcome.calls] == [
        ("graphs/embed.onnx", 200),
        ("graphs/layer_00.onnx", 200),
        ("graphs/layer_01.onnx", 200),
    ]


def test_engine_fixed_evaluates_one_exit_only(dact_bundle_split: Path, encoded: list[Encoded]) -> None:
    with EdgeModel.from_pretrained(dact_bundle_split, threads=1) as model:
        outcome = _run(model, encoded, ("fixed", {"layer": 2}), batch_size=200)

    assert [call.graph for call in outcome.calls] == [
        "graphs/embed.onnx",
        "graphs/layer_00.onnx",
        "graphs/layer_01.onnx",
        "graphs/exit_01.onnx",
    ]


def test_engine_linked_and_split_give_the_same(
    dact_bundle: Path, dact_bundle_split: Path, encoded: list[Encoded]
) -> None:
    outcomes = []
    for path in (dact_bundle, dact_bundle_split):
        with EdgeModel.from_pretrained(path, threads=1) as model:
            outcomes.append(_run(model, encoded, RULE))

    linked, split = outcomes
    assert linked.exit_layer.tolist() == split.exit_layer.tolist()
    assert np.abs(softmax(linked.scores) - softmax(split.scores)).max() <= 1e-5
    assert linked.macs == pytest.approx(split.macs)
    assert len(linked.calls) < len(split.calls)


def test_engine_costs_in_closed_form(model: EdgeModel, encoded: list[Encoded]) -> None:
    outcome = _run(model, encoded, RULE)

    # A layer costs (4 d^2 + 2 d f) T + 2 d T^2 (METHODS 1.1), a unit d r + r (C + 1); d 32, f 64, r 16, C 2.
    tokens = np.array([len(row.ids) for row in encoded])
    layer = (4 * 32**2 + 2 * 32 * 64) * tokens + 2 * 32 * tokens**2
    assert outcome.macs == pytest.approx(outcome.exit_layer * (layer + 32 * 16 + 16 * 3))
    assert model.full_macs(tokens) == pytest.approx(3 * layer)


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_engine_call_tokens_are_the_padded_length(model: EdgeModel, encoded: list[Encoded], batch_size: int) -> None:
    outcome = _run(model, encoded, ("never", {}), batch_size=batch_size)

    embeds = [call for call in outcome.calls if call.graph == "graphs/embed.onnx"]
    lengths = sorted(len(row.ids) for row in encoded)
    groups = [lengths[start : start + batch_size] for start in range(0, 200, batch_size)]
    assert [(call.rows, call.tokens) for call in embeds] == [(len(group), max(group)) for group in groups]


def test_engine_knows_no_method(dact_bundle: Path) -> None:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        engine = Engine(open_bundle(dact_bundle).manifest.program, model.graphs)

        outcome = engine.run(
            {name: np.ones((2, 4), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")},
            make_policy("confidence", {"threshold": 2.0}, exit_layers=LAYERS),
        )

    assert outcome.exit_layer.tolist() == [3, 3]
