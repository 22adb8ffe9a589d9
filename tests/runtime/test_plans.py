"""Depths planned before batching: the parity ladder of a planned program, and what batch mates do to each other."""

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

from edgebert.bundle import open_bundle
from edgebert.checkpoint import load_checkpoint
from edgebert.decisions import Decision, Followed
from edgebert.methods._program import AdaptiveModel, Batch
from edgebert.methods._reference import run_reference
from edgebert.policies import make_policy
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.outcome import Outcome
from edgebert.tasks.classification import softmax
from edgebert.text import Encoded, TextEncoder
from edgebert.verify import compare, differing_rows, within_margin

LAYERS = (1, 2, 3)
KNOBS: dict[str, Any] = {"prediction": "expect", "gain": 8.0, "offset": 0.0}
OWN = ("predicted_exit", {**KNOBS, "batch_exit": "own"})
HOMOGENEOUS = ("predicted_exit", {**KNOBS, "batch_exit": "homogeneous"})
MAX = ("predicted_exit", {**KNOBS, "batch_exit": "max"})
INDEPENDENT: list[tuple[str, dict[str, Any]]] = [
    OWN,
    HOMOGENEOUS,
    ("predicted_exit", {"prediction": "quantile", "quantile": 0.75}),
    ("predicted_exit", {"prediction": "mode", "offset": 1.0}),
    ("fixed", {"layer": 2}),
    ("never", {}),
]


@dataclass(frozen=True)
class Reference:
    """The torch model, and what its steps gave on all rows."""

    model: AdaptiveModel
    batch: Batch
    decisions: list[Decision]

    def follow(self, policy: tuple[str, dict[str, Any]]) -> Followed:
        made = make_policy(*policy, exit_layers=LAYERS, rule=OWN)
        _, followed = run_reference(self.model.steps(), self.batch, made)
        assert followed is not None
        return followed


@pytest.fixture(scope="module")
def encoded(tiny_tokenizer: bytes, texts: list[str]) -> list[Encoded]:
    return TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0).encode(texts)


@pytest.fixture(scope="module")
def reference(geep_checkpoint: Path, tiny_tokenizer: bytes, encoded: list[Encoded]) -> Reference:
    model = load_checkpoint(geep_checkpoint).model
    model.eval()
    values = TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0).pad(encoded)
    batch = Batch(**{name: torch.from_numpy(value) for name, value in values.items()})
    decisions, _ = run_reference(model.steps(), batch)
    return Reference(model, batch, decisions)


@pytest.fixture(scope="module")
def model(geep_bundle: Path) -> Iterator[EdgeModel]:
    with EdgeModel.from_pretrained(geep_bundle, threads=1) as opened:
        yield opened


def _run(model: EdgeModel, rows: Sequence[Encoded], policy: tuple[str, dict[str, Any]], **options: Any) -> Outcome:
    model.set_policy(policy[0], **policy[1])
    return model.run_encoded(rows, **options)


def _rows_into(outcome: Outcome) -> Counter[str]:
    """How many rows entered each graph."""
    rows: Counter[str] = Counter()
    for call in outcome.calls:
        rows[Path(call.graph).stem] += call.rows
    return rows


def test_fixture_rows_stop_at_every_layer_with_either_label(reference: Reference) -> None:
    followed = reference.follow(OWN)
    policy = make_policy(*OWN, exit_layers=LAYERS)

    assert np.bincount(followed.exit_layer, minlength=4)[1:].min() >= 30
    assert np.bincount(followed.scores.argmax(1)).min() >= 50
    assert not within_margin(policy, reference.decisions, 3, np.random.default_rng(0)).any()


def test_bundle_holds_one_head_for_all_depths(geep_bundle: Path) -> None:
    manifest = open_bundle(geep_bundle).manifest

    heads = [step for step in manifest.program if step.kind == "head"]
    assert [step.layer for step in heads] == [1, 2, 3]
    assert {step.graph for step in heads} == {"graphs/head.onnx"}
    assert sorted(path for path in manifest.files if path.startswith("graphs/")) == [
        "graphs/embed.onnx",
        "graphs/head.onnx",
        *[f"graphs/layer_{n:02d}.onnx" for n in range(3)],
        "graphs/plan.onnx",
    ]
    assert manifest.exit_layers == LAYERS


def test_bundle_agrees_with_torch(geep_bundle: Path, reference: Reference) -> None:
    parity = compare(reference.model, open_bundle(geep_bundle), samples=32, tolerance=1e-4, seed=7)

    assert parity.differing_decisions == 0
    assert parity.decisions == 32
    assert 0 < parity.graph_max_difference <= 1e-4


def test_model_holds_one_session_per_graph(model: EdgeModel) -> None:
    assert len(model.graphs) == 6


def test_never_equals_the_full_torch_model(model: EdgeModel, reference: Reference, encoded: list[Encoded]) -> None:
    batch = reference.batch
    with torch.no_grad():
        expected = reference.model.forward(batch.input_ids, batch.attention_mask, batch.token_type_ids).numpy()

    outcome = _run(model, encoded, ("never", {}))

    assert np.abs(softmax(outcome.scores) - softmax(expected)).max() <= 1e-4
    assert (outcome.path).all()


@pytest.mark.parametrize("policy", INDEPENDENT, ids=str)
@pytest.mark.parametrize("batching", ["single", "sorted", "unsorted", "shuffled", "uncompacted"])
def test_engine_equals_torch_under_the_rule(
    monkeypatch: pytest.MonkeyPatch,
    model: EdgeModel,
    reference: Reference,
    encoded: list[Encoded],
    policy: tuple[str, dict[str, Any]],
    batching: str,
) -> None:
    expected = reference.follow(policy)
    order = np.random.default_rng(0).permutation(200) if batching == "shuffled" else np.arange(200)
    options = {"single": {"batch_size": 1}, "unsorted": {"sort": False}, "shuffled": {"sort": False}}
    monkeypatch.setattr(model, "compact", batching != "uncompacted")

    outcome = _run(model, [encoded[i] for i in order], policy, **options.get(batching, {}))

    assert (outcome.path == expected.path[order]).all()
    assert (outcome.exit_layer == expected.exit_layer[order]).all()
    assert np.abs(softmax(outcome.scores) - softmax(expected.scores[order])).max() <= 1e-4


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_engine_equals_torch_when_the_batch_stops_together(
    model: EdgeModel, reference: Reference, encoded: list[Encoded], rows: int
) -> None:
    policy = make_policy(*MAX, exit_layers=LAYERS)
    model.set_policy(MAX[0], **MAX[1])

    for start in range(0, 200, rows):
        part = slice(start, start + rows)
        batch = Batch(
            input_ids=reference.batch.input_ids[part],
            attention_mask=reference.batch.attention_mask[part],
            token_type_ids=None,
        )
        got = model.forward(batch.input_ids.numpy(), batch.attention_mask.numpy())
        _, expected = run_reference(reference.model.steps(), batch, policy)
        assert expected is not None
        assert not differing_rows(expected, got).any()
        assert np.abs(softmax(got.logits) - softmax(expected.scores)).max() <= 1e-4


@settings(max_examples=30)
@given(
    places=st.lists(st.integers(0, 199), min_size=1, max_size=12),
    padding=st.integers(0, 9),
    junk=st.integers(0, 60),
    policy=st.sampled_from(INDEPENDENT),
)
def test_row_alone_gets_the_same_answer(
    model: EdgeModel,
    encoded: list[Encoded],
    places: list[int],
    padding: int,
    junk: int,
    policy: tuple[str, dict[str, Any]],
) -> None:
    rows = [encoded[i] for i in places]
    values = {name: np.pad(value, ((0, 0), (0, padding))) for name, value in model.pad(rows).items()}
    values["input_ids"] = np.where(values["attention_mask"] == 1, values["input_ids"], junk)

    alone = _run(model, rows, policy, batch_size=1)
    together = model.forward(**values)

    assert (together.path == alone.path).all()
    assert np.abs(softmax(together.logits) - softmax(alone.scores)).max() <= 1e-5
    assert together.cost_ratio == pytest.approx(alone.macs / model.full_macs([len(row.ids) for row in rows]))


@pytest.mark.parametrize("policy", [*INDEPENDENT, MAX], ids=str)
@pytest.mark.parametrize("batch_size", [1, 16, 200])
def test_every_text_is_classified_exactly_once(
    model: EdgeModel, encoded: list[Encoded], policy: tuple[str, dict[str, Any]], batch_size: int
) -> None:
    outcome = _run(model, encoded, policy, batch_size=batch_size)

    entered = _rows_into(outcome)
    assert entered["head"] == 200
    assert entered["plan"] == 200
    assert entered["embed"] == 200
    assert {name for name in entered if not name.startswith("layer")} == {"head", "plan", "embed"}
    assert [entered[f"layer_{n:02d}"] for n in range(3)] == outcome.path.sum(axis=0).tolist()
    assert outcome.layers_run.sum() == model.layer_rows(outcome.calls)
    assert (outcome.layers_run == outcome.exit_layer).all()


def test_plan_is_made_for_all_rows_before_any_layer(model: EdgeModel, encoded: list[Encoded]) -> None:
    outcome = _run(model, encoded, OWN, batch_size=16)

    graphs = [Path(call.graph).stem for call in outcome.calls]
    assert graphs.count("plan") == 1
    assert graphs.index("plan") == 0


def test_costs_in_closed_form(model: EdgeModel, encoded: list[Encoded]) -> None:
    outcome = _run(model, encoded, OWN)

    # A layer as in METHODS 1.1 (d 32, f 64), one classifier as in 4.2 with d 32, the look-up nothing.
    tokens = np.array([len(row.ids) for row in encoded])
    layer = (4 * 32**2 + 2 * 32 * 64) * tokens + 2 * 32 * tokens**2
    head = (32 * 128 + 4 * 128**2) * tokens + 2 * 128 * tokens**2 + 128**2 + 2 * 128
    assert outcome.macs == pytest.approx(outcome.exit_layer * layer + head)


@pytest.mark.parametrize("batch_size", [8, 32])
def test_homogeneous_batches_have_one_depth(model: EdgeModel, encoded: list[Encoded], batch_size: int) -> None:
    own = _run(model, encoded, OWN, batch_size=batch_size)
    outcome = _run(model, encoded, HOMOGENEOUS, batch_size=batch_size)

    # Each batch goes through embed, its layers and the head without losing a row.
    batches: list[list[int]] = []
    for call in outcome.calls:
        if call.graph == "graphs/embed.onnx":
            batches.append([])
        if batches:
            batches[-1].append(call.rows)
    assert all(len(set(rows)) == 1 for rows in batches)
    assert sorted(rows for (rows, *_) in batches) != [batch_size] * (200 // batch_size)
    assert (outcome.path == own.path).all()
    assert np.abs(softmax(outcome.scores) - softmax(own.scores)).max() <= 1e-5


def test_max_batches_stop_at_their_deepest_row(model: EdgeModel, encoded: list[Encoded]) -> None:
    own = _run(model, encoded, OWN)
    depths = own.exit_layer
    lengths = np.array([len(row.ids) for row in encoded])
    order = sorted(range(200), key=lambda place: (depths[place], lengths[place], place))

    outcome = _run(model, encoded, MAX, batch_size=16)

    expected = np.zeros(200, np.int64)
    deepest = []
    for start in range(0, 200, 16):
        group = order[start : start + 16]
        expected[group] = depths[group].max()
        deepest.append(depths[group].max())
    assert outcome.exit_layer.tolist() == expected.tolist()
    assert deepest == sorted(deepest)
    assert (outcome.exit_layer >= depths).all()
    assert outcome.layers_run.sum() > own.layers_run.sum()


def test_max_on_unsorted_rows_costs_more(model: EdgeModel, encoded: list[Encoded]) -> None:
    order = np.random.default_rng(1).permutation(200)
    shuffled = [encoded[i] for i in order]

    by_sorting = {sort: _run(model, shuffled, MAX, batch_size=16, sort=sort) for sort in (True, False)}

    assert by_sorting[False].layers_run.sum() > 1.2 * by_sorting[True].layers_run.sum()
    assert by_sorting[False].macs.sum() > by_sorting[True].macs.sum()


@pytest.mark.parametrize("policy", [OWN, HOMOGENEOUS, MAX], ids=str)
def test_shuffled_texts_get_their_own_answers_back(
    model: EdgeModel, texts: list[str], policy: tuple[str, dict[str, Any]]
) -> None:
    model.set_policy(policy[0], **policy[1])
    order = np.random.default_rng(2).permutation(200)

    straight, shuffled = model(texts), model([texts[i] for i in order])

    assert [shuffled[place].tokens for place in range(200)] == [straight[i].tokens for i in order]
    if policy is not MAX:  # whose batches, and with them the depths, may differ among equals
        assert [p.exit_layer for p in shuffled] == [straight[i].exit_layer for i in order]
        assert [p.label for p in shuffled] == [straight[i].label for i in order]
        assert [p.score for p in shuffled] == pytest.approx([straight[i].score for i in order], abs=1e-5)
        assert len({p.label for p in straight}) == 2


@pytest.mark.parametrize("policy", [OWN, HOMOGENEOUS], ids=str)
@pytest.mark.parametrize("window", [1, 30, 500])
def test_stream_equals_call(
    model: EdgeModel, texts: list[str], policy: tuple[str, dict[str, Any]], window: int
) -> None:
    model.set_policy(policy[0], **policy[1])

    listed, streamed = model(texts), list(model.stream(texts, window=window))

    assert [p.exit_layer for p in streamed] == [p.exit_layer for p in listed]
    assert [p.label for p in streamed] == [p.label for p in listed]
    assert [p.score for p in streamed] == pytest.approx([p.score for p in listed], abs=1e-5)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_fixed_depth_of_a_planned_program(
    model: EdgeModel, reference: Reference, encoded: list[Encoded], layer: int
) -> None:
    outcome = _run(model, encoded, ("fixed", {"layer": layer}))

    heads = [decision for decision in reference.decisions if decision.kind == "head"]
    assert set(outcome.exit_layer.tolist()) == {layer}
    assert np.abs(outcome.scores - heads[layer - 1].outputs["logits"]).max() <= 1e-4


@pytest.mark.parametrize(("offset", "layer"), [(99.0, 3), (-99.0, 1)])
def test_offsets_reach_both_ends(model: EdgeModel, encoded: list[Encoded], offset: float, layer: int) -> None:
    outcome = _run(model, encoded, ("predicted_exit", {**KNOBS, "offset": offset}))

    assert set(outcome.exit_layer.tolist()) == {layer}
    assert _rows_into(outcome)["layer_02"] == (200 if layer == 3 else 0)


def test_default_is_the_bundles_operating_point(geep_bundle: Path, encoded: list[Encoded]) -> None:
    with EdgeModel.from_pretrained(geep_bundle, threads=1) as opened:
        by_default = opened.run_encoded(encoded)
        own = _run(opened, encoded, OWN)
        opened.set_policy("default", offset=99.0)
        knobs = dict(opened.policy.knobs)

    assert by_default.exit_layer.tolist() == own.exit_layer.tolist()
    assert knobs == {**KNOBS, "offset": 99.0}
