"""Rows that leave layers out, in the engine, against torch under the same rule and against the calls it makes."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgebert import frontier
from edgebert.bundle.manifest import OperatingPoint, Step
from edgebert.checkpoint import load_checkpoint, save_checkpoint
from edgebert.data import read_examples
from edgebert.decisions import Followed
from edgebert.encoders._blocks import Encoder
from edgebert.export import export_model
from edgebert.export.trace import trace_module
from edgebert.methods import dpbert
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference
from edgebert.output import Reporter
from edgebert.policies import make_policy
from edgebert.runtime.engine import Engine
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.outcome import Outcome
from edgebert.runtime.sessions import make_graph
from edgebert.tasks.classification import softmax
from edgebert.text import Encoded, TextEncoder
from edgebert.verify import within_margin

LAYERS = (1, 2, 3)
POLICIES: list[tuple[str, dict[str, Any]]] = [
    ("bypass", {"delta": 0.5}),
    ("bypass", {"delta": 0.3}),
    ("bypass", {"delta": 0.9}),
    ("bypass", {"delta": 1.0}),
    ("path", {"layers": "1,3"}),
    ("path", {"layers": 2}),
    ("fixed", {"layer": 2}),
    ("never", {}),
]
RULE = POLICIES[0]
METHODS: dict[str, dict[str, Any]] = {
    "sequential": {"planner": "sequential"},
    "upfront": {"planner": "upfront"},
}


@dataclass(frozen=True)
class Setting:
    """A bundle opened, and what torch says about the rows under each policy, with those within 1e-5 of a border."""

    planner: str
    model: EdgeModel
    torch_model: Any
    batch: Batch

    def reference(self, policy: tuple[str, dict[str, Any]]) -> tuple[Followed, NDArray[np.bool_]]:
        made = make_policy(*policy, exit_layers=LAYERS)
        decisions, followed = run_reference(self.torch_model.steps(), self.batch, made)
        assert followed is not None
        return followed, within_margin(made, decisions, 3, np.random.default_rng(0))


@pytest.fixture(scope="module")
def encoded(tiny_tokenizer: bytes, texts: list[str]) -> list[Encoded]:
    return TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0).encode(texts[:80])


@pytest.fixture(scope="module", params=METHODS)
def setting(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    save_tiny_checkpoint: Callable[..., Path],
    balance_planner: Callable[..., None],
    tiny_tokenizer: bytes,
    encoded: list[Encoded],
) -> Iterator[Setting]:
    method = {"name": "dpbert", "planner_width": 16, **METHODS[request.param]}
    point = OperatingPoint(policy=RULE[0], knobs=RULE[1])
    folder = save_tiny_checkpoint(method, {"default": point}, seed=4)
    checkpoint = load_checkpoint(folder)
    torch_model: Any = checkpoint.model
    torch_model.eval()
    values = TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0).pad(encoded)
    batch = Batch(**{name: torch.from_numpy(value) for name, value in values.items()})
    balance_planner(torch_model, batch)
    save_checkpoint(checkpoint, folder, force=True)
    bundle = export_model(folder, tmp_path_factory.mktemp("bundles") / request.param)
    with EdgeModel(bundle, threads=1) as model:
        yield Setting(request.param, model, torch_model, batch)


def _run(model: EdgeModel, rows: Sequence[Encoded], policy: tuple[str, dict[str, Any]], **options: Any) -> Outcome:
    model.set_policy(policy[0], **policy[1])
    return model.run_encoded(rows, **options)


def _entered(outcome: Outcome) -> Counter[str]:
    """How many rows entered each graph."""
    rows: Counter[str] = Counter()
    for call in outcome.calls:
        rows[Path(call.graph).stem] += call.rows
    return rows


def test_fixture_rows_take_many_paths(setting: Setting) -> None:
    followed, near = setting.reference(RULE)

    paths, counts = np.unique(followed.path, axis=0, return_counts=True)
    assert len(paths) >= 4
    assert np.sort(counts)[-3] >= 5
    assert 0.1 < followed.path.mean(axis=0).min() < followed.path.mean(axis=0).max() < 0.98
    assert near.sum() <= 1


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("batching", ["single", "sorted", "unsorted", "shuffled", "uncompacted"])
def test_engine_takes_the_paths_of_torch(
    monkeypatch: pytest.MonkeyPatch,
    setting: Setting,
    encoded: list[Encoded],
    policy: tuple[str, dict[str, Any]],
    batching: str,
) -> None:
    followed, near = setting.reference(policy)
    order = np.random.default_rng(0).permutation(80) if batching == "shuffled" else np.arange(80)
    options = {"single": {"batch_size": 1}, "unsorted": {"sort": False}, "shuffled": {"sort": False}}
    monkeypatch.setattr(setting.model, "compact", batching != "uncompacted")

    outcome = _run(setting.model, [encoded[i] for i in order], policy, **options.get(batching, {}))

    far = ~near[order]
    assert outcome.path[far].tolist() == followed.path[order][far].tolist()
    assert np.abs(outcome.scores - followed.scores[order])[far].max() <= 1e-4
    assert (outcome.exit_layer == 3).all()
    assert far.sum() >= 79


@pytest.mark.parametrize("layers", [path for size in LAYERS for path in itertools.combinations(LAYERS, size)], ids=str)
def test_engine_forced_path_composes_the_layers(
    setting: Setting, encoded: list[Encoded], layers: tuple[int, ...]
) -> None:
    outcome = _run(setting.model, encoded, ("path", {"layers": ",".join(map(str, layers))}))

    model, batch = setting.torch_model, setting.batch
    with torch.no_grad():
        hidden = model.encoder.embed(batch.input_ids, batch.token_type_ids)
        for layer in layers:
            hidden = model.encoder.layers[layer - 1](hidden, batch.attention_mask)
        expected = model.head(model.pooling(hidden, batch.attention_mask)).numpy()
    assert np.abs(outcome.scores - expected).max() <= 1e-4
    assert outcome.path.tolist() == [[layer in layers for layer in LAYERS]] * 80


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("batch_size", [1, 7, 80])
def test_engine_layers_run_on_the_rows_that_want_them(
    setting: Setting, encoded: list[Encoded], policy: tuple[str, dict[str, Any]], batch_size: int
) -> None:
    outcome = _run(setting.model, encoded, policy, batch_size=batch_size)

    entered = _entered(outcome)
    assert all(call.rows for call in outcome.calls)
    assert {name: rows for name, rows in entered.items() if name.startswith("layer")} == {
        f"layer_{layer - 1:02d}": rows for layer, rows in zip(LAYERS, outcome.path.sum(axis=0), strict=True) if rows
    }
    assert outcome.path.any(axis=1).all()
    planned = {"plan": 80} if setting.planner == "upfront" else {f"gate_{layer - 1:02d}": 80 for layer in LAYERS}
    assert {name: rows for name, rows in entered.items() if not name.startswith("layer")} == {
        "embed": 80,
        "head": 80,
        **planned,
    }


def test_engine_layer_that_nobody_wants_is_not_called(setting: Setting, encoded: list[Encoded]) -> None:
    outcome = _run(setting.model, encoded, ("path", {"layers": "1,3"}))

    assert "layer_01" not in _entered(outcome)


def test_engine_groups_a_batch_by_path_or_asks_before_each_layer(setting: Setting, encoded: list[Encoded]) -> None:
    outcome = _run(setting.model, encoded, RULE, batch_size=80)

    calls = [(Path(call.graph).stem, call.rows) for call in outcome.calls]
    expected: list[tuple[str, int]] = [("embed", 80)]
    if setting.planner == "upfront":
        expected.append(("plan", 80))
        for path, rows in zip(*np.unique(outcome.path, axis=0, return_counts=True), strict=True):
            expected += [(f"layer_{index:02d}", int(rows)) for index in np.flatnonzero(path)]
            expected.append(("head", int(rows)))
    else:
        for index, rows in enumerate(outcome.path.sum(axis=0).tolist()):
            expected += [(f"gate_{index:02d}", 80), (f"layer_{index:02d}", rows)]
        expected.append(("head", 80))
    assert calls == expected


def test_engine_counts_predictors_and_both_kinds_of_products(setting: Setting, encoded: list[Encoded]) -> None:
    outcome = _run(setting.model, encoded, RULE)

    gates = 3 if setting.planner == "sequential" else 0
    assert setting.model.predictor_rows(outcome.calls) == 80 * (gates + 1)
    tokens = np.array([len(row.ids) for row in encoded])
    assert outcome.macs - outcome.linear_macs == pytest.approx(2 * 32 * tokens**2 * outcome.layers_run)


def test_fixed_exits_of_a_planned_model_are_its_static_paths(setting: Setting, sentiment_data: Path) -> None:
    examples = read_examples(sentiment_data / "test.tsv")

    measured = frontier.measure_fixed_exits(setting.model, examples, 32, None, "b", Reporter())

    paths = {entry.row["policy"]: entry.row["layer_share"] for entry in measured}
    assert paths == {
        "fixed exit 1": [1.0, 0.0, 0.0],
        "fixed exit 2": [1.0, 1.0, 0.0],
        "fixed exit 3": [1.0, 1.0, 1.0],
        "path 3": [0.0, 0.0, 1.0],
        "path 1 3": [1.0, 0.0, 1.0],
    }


def test_engine_does_not_split_a_batch_into_small_groups(setting: Setting, encoded: list[Encoded]) -> None:
    outcome = _run(setting.model, encoded[:16], RULE, batch_size=16)

    layers = {Path(call.graph).stem: call.rows for call in outcome.calls if "layer" in call.graph}
    assert len(np.unique(outcome.path, axis=0)) > 2
    assert layers == {f"layer_{i:02d}": rows for i, rows in enumerate(outcome.path.sum(axis=0).tolist()) if rows}
    assert sum("layer" in call.graph for call in outcome.calls) == len(layers)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_engine_claimed_paths_are_executed_layers(
    monkeypatch: pytest.MonkeyPatch,
    setting: Setting,
    encoded: list[Encoded],
    policy: tuple[str, dict[str, Any]],
    compact: bool,
) -> None:
    monkeypatch.setattr(setting.model, "compact", compact)

    outcome = _run(setting.model, encoded, policy)

    assert outcome.layers_run.sum() == setting.model.layer_rows(outcome.calls)


@settings(max_examples=25)
@given(
    places=st.lists(st.integers(0, 79), min_size=1, max_size=12),
    padding=st.integers(0, 9),
    junk=st.integers(0, 60),
    policy=st.sampled_from(POLICIES),
)
def test_engine_row_alone_takes_the_same_path(
    setting: Setting,
    encoded: list[Encoded],
    places: list[int],
    padding: int,
    junk: int,
    policy: tuple[str, dict[str, Any]],
) -> None:
    model = setting.model
    far = ~setting.reference(policy)[1][places]
    rows = [encoded[i] for i in places]
    values = {name: np.pad(value, ((0, 0), (0, padding))) for name, value in model.pad(rows).items()}
    values["input_ids"] = np.where(values["attention_mask"] == 1, values["input_ids"], junk)

    alone = _run(model, rows, policy, batch_size=1)
    together = model.forward(**values)

    assert together.path[far].tolist() == alone.path[far].tolist()
    assert np.abs(softmax(together.logits) - softmax(alone.scores))[far].max(initial=0.0) <= 1e-5
    assert together.cost_ratio[far] == pytest.approx((alone.macs / model.full_macs([len(r.ids) for r in rows]))[far])


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("batch_size", [1, 32])
def test_engine_paths_cost_in_closed_form(
    setting: Setting, encoded: list[Encoded], policy: tuple[str, dict[str, Any]], batch_size: int
) -> None:
    outcome = _run(setting.model, encoded, policy, batch_size=batch_size)

    # A layer costs (4 d^2 + 2 d f) T + 2 d T^2 (METHODS 1.1), the head d (d + C); d 32, f 64, C 2, planner width 16.
    tokens = np.array([len(row.ids) for row in encoded])
    layer = (4 * 32**2 + 2 * 32 * 64) * tokens + 2 * 32 * tokens**2
    head = 32 * (32 + 2)
    planning = {
        "sequential": 3 * (33 * 16 + 16 + head),
        "upfront": 32 * 16 + 16 * 3,
    }[setting.planner]
    assert outcome.macs == pytest.approx(outcome.path.sum(axis=1) * layer + head + planning)


def test_engine_empty_path_runs_one_layer(setting: Setting, encoded: list[Encoded]) -> None:
    with torch.no_grad():
        decisions, _ = run_reference(
            setting.torch_model.steps(), setting.batch, make_policy("bypass", {"delta": 1.0}, exit_layers=LAYERS)
        )

    outcome = _run(setting.model, encoded, ("bypass", {"delta": 1.0}))

    if setting.planner == "upfront":
        likeliest = decisions[0].outputs["include"].argmax(axis=1)
        assert outcome.path.tolist() == np.eye(3, dtype=bool)[likeliest].tolist()
        assert len(set(likeliest.tolist())) > 1
    else:
        assert outcome.path.tolist() == [[False, False, True]] * 80


def test_gate_of_a_shared_planner_knows_its_layer_as_a_graph(make_encoder: Callable[..., Encoder]) -> None:
    encoder = make_encoder()
    torch.manual_seed(0)
    model = dpbert.build(encoder, dpbert.Config(shared_planner=True), 2).eval()
    torch.nn.init.normal_(model.layer_embedding.weight)
    torch.nn.init.normal_(model.planner.decide.weight)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    hidden = torch.randn(2, 3, 32)
    gate = model.gate(1)

    names = (("hidden", "attention_mask"), ("include",))
    graph = trace_module(gate, *names, config=encoder.config, opset=23).SerializeToString()
    given = {"hidden": hidden.numpy(), "attention_mask": mask.numpy()}
    made = make_graph(graph, name="gate", threads=1).run(given, ("include",))["include"]

    with torch.no_grad():
        assert np.abs(made - gate(hidden, mask).numpy()).max() <= 1e-5
        assert np.abs(made - model.gate(2)(hidden, mask).numpy()).max() > 1e-2


class Gives:
    """A graph that adds 1 to hidden states, or gives what it was told to."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __init__(self, **given: NDArray[Any]) -> None:
        self.given = given

    def run(self, values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, NDArray[Any]]:
        return {name: self.given[name] if name in self.given else values["hidden"] + 1 for name in names}


def test_engine_reads_a_gate_that_is_linked_into_the_embeddings() -> None:
    hidden, include = np.zeros((3, 2, 1)), np.array([0.9, 0.1, 0.7])
    program = [
        Step(kind="embed", layer=0, graph="embed", inputs=("input_ids",), outputs=("hidden", "include")),
        Step(kind="gate", layer=1, graph=None, inputs=("include",), outputs=()),
        Step(kind="layer", layer=1, graph="layer", inputs=("hidden",), outputs=("hidden",)),
        Step(kind="layer", layer=2, graph="layer", inputs=("hidden",), outputs=("hidden",)),
        Step(kind="head", layer=2, graph="head", inputs=("hidden",), outputs=("logits",)),
    ]
    graphs: dict[str, Any] = {"embed": Gives(hidden=hidden, include=include), "layer": Gives()}
    engine = Engine(program, {**graphs, "head": Gives(logits=np.zeros((3, 2)))})
    ids = np.ones((3, 2), np.int64)

    outcome = engine.run(
        {"input_ids": ids, "attention_mask": ids}, make_policy("bypass", {"delta": 0.5}, exit_layers=(1, 2))
    )

    assert outcome.path.tolist() == [[True, True], [False, True], [True, True]]
