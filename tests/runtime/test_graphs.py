import gc
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgebert.errors import ConfigError
from edgebert.runtime.graphs import LateGraph, Shelf
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.prepared import prepare_bundle
from edgebert.text import Values


class Doubling:
    """A graph that doubles, and waits for a sign when it has one."""

    def __init__(self, wait: Callable[[], Any] = lambda: None) -> None:
        self.inputs: tuple[str, ...] = ("x",)
        self.outputs = ["y"]
        self._wait = wait

    def run(self, values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Values:
        self._wait()
        return {names[0]: 2 * values["x"]}


def _layers(shelf: Shelf, sizes: Sequence[int], loading: Sequence[int] | None = None) -> list[LateGraph]:
    loading = loading or sizes
    return [
        LateGraph(Doubling, shelf=shelf, name=f"layer {n}", size_bytes=size, loading_bytes=more)
        for n, (size, more) in enumerate(zip(sizes, loading, strict=True))
    ]


def _run(graph: LateGraph) -> None:
    assert graph.run({"x": np.array([3.0])}, ("y",))["y"].tolist() == [6.0]


def test_without_a_budget_nothing_is_let_go() -> None:
    shelf = Shelf()
    layers = _layers(shelf, [10, 20, 30])

    for layer in (*layers, *layers):
        _run(layer)

    assert (shelf.use.budget_mb, shelf.use.loads, shelf.use.drops) == (None, 3, 0)
    assert shelf.use.loaded_mb == shelf.use.peak_mb == pytest.approx(60e-6)


def test_layers_in_turn_reload_only_what_does_not_fit() -> None:
    shelf = Shelf(30)
    layers = _layers(shelf, [10] * 6)

    for layer in layers:
        _run(layer)
    before = shelf.use.loads
    for layer in layers:
        _run(layer)

    assert before == 6
    assert shelf.use.loads - before == 4  # two stay, one place is shared by the other four
    assert shelf.use.peak_mb == pytest.approx(30e-6)


def test_a_layer_that_is_rarely_needed_is_the_one_to_go() -> None:
    shelf = Shelf(30)
    first, second, third, fourth = _layers(shelf, [10] * 4)
    for layer in (first, second, first, second, third):
        _run(layer)

    _run(fourth)

    assert [layer.loaded is not None for layer in (first, second, third, fourth)] == [True, True, False, True]


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    turns=st.lists(st.integers(0, 5), max_size=40),
    spare=st.integers(0, 30),
)
def test_the_budget_is_never_exceeded(sizes: list[int], turns: list[int], spare: int) -> None:
    loading = [3 * size for size in sizes]
    budget = max(loading) + spare
    shelf = Shelf(budget)
    layers = _layers(shelf, sizes, loading)

    for turn in turns:
        _run(layers[turn % len(layers)])
        assert shelf.use.loaded_mb <= budget / 1e6

    assert shelf.use.peak_mb <= budget / 1e6
    assert shelf.use.loads - shelf.use.drops == sum(layer.loaded is not None for layer in layers)


def test_a_graph_that_alone_exceeds_the_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^memory_budget_mb: layer 0 alone takes 4\.0 MB to load, .* 3\.0"):
        _layers(Shelf(3_000_000), [4_000_000])


def test_a_graph_that_is_running_is_not_let_go() -> None:
    shelf = Shelf(10)
    started, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        assert go_on.wait(30)

    busy = LateGraph(lambda: Doubling(wait), shelf=shelf, name="busy", size_bytes=10, loading_bytes=10)
    other = LateGraph(Doubling, shelf=shelf, name="other", size_bytes=10, loading_bytes=10)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(_run, busy)
        assert started.wait(30)
        second = pool.submit(_run, other)
        assert busy.loaded is not None
        assert other.loaded is None
        go_on.set()
        first.result(30)
        second.result(30)

    assert other.loaded is not None
    assert shelf.use.peak_mb == pytest.approx(10e-6)


def test_closing_lets_graphs_go_those_that_run_afterwards_too() -> None:
    shelf = Shelf()
    layers = _layers(shelf, [10, 20])
    for layer in layers:
        _run(layer)

    shelf.close()

    assert not any(layer.loaded is not None for layer in layers)
    _run(layers[0])
    assert layers[0].loaded is None
    assert (shelf.use.loaded_mb, shelf.use.drops) == (0, 0)


def test_a_load_that_fails_leaves_no_trace() -> None:
    shelf = Shelf(10)

    def fail() -> Doubling:
        raise OSError("gone")

    graph = LateGraph(fail, shelf=shelf, name="x", size_bytes=10, loading_bytes=10)

    with pytest.raises(OSError, match="gone"):
        graph.load()

    assert graph.loaded is None
    assert shelf.use.loaded_mb == 0
    assert shelf.use.loads == 0


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_model_within_half_its_weights_answers_the_same(
    dact_bundle: Path, is_prepared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEBERT_CACHE", str(tmp_path))
    texts = ["a gripping film", "two hours of boring plot , that i will not get back", "good"] * 5
    with EdgeModel.from_pretrained(dact_bundle) as model:
        expected = [(p.label, p.score, p.exit_layer) for p in model(texts)]
        if is_prepared:
            prepare_bundle(model.bundle)
        sizes = [model.bundle.manifest.files[path].bytes for path in model.graphs]
        # Of models this small, nodes are most of a graph, and those are there twice.
        budget = 2 * max(sizes) if is_prepared else 5 * max(sizes)

    with EdgeModel.from_pretrained(dact_bundle, memory_budget_mb=budget / 1e6) as model:
        assert (model.prepared is not None) == is_prepared
        assert model.memory.loads == 0
        model(texts[:1])
        model.set_policy("never")
        for _ in range(3):
            model(texts)
        model.set_policy("default")

        assert [(p.label, p.score, p.exit_layer) for p in model(texts)] == expected
        assert 0 < model.memory.peak_mb <= budget / 1e6


def test_layers_that_no_text_needs_are_never_loaded(dact_bundle: Path) -> None:
    with EdgeModel.from_pretrained(dact_bundle, policy="fixed", memory_budget_mb=1000) as model:
        model.set_policy(layer=1)
        model(["a gripping film"])

        loaded = {
            path for path, graph in model.graphs.items() if isinstance(graph, LateGraph) and graph.loaded is not None
        }

        assert len(model.graphs) > 3
        assert {path for path in loaded if "layer" in path} == {"graphs/layer_00.onnx"}
        assert model.memory.loads == len(loaded)


def test_a_model_that_is_let_go_takes_its_sessions_with_it_at_once(dact_bundle: Path) -> None:
    model = EdgeModel.from_pretrained(dact_bundle, threads=1, memory_budget_mb=1000)
    sessions = [weakref.ref(graph.load()) for graph in model.graphs.values() if isinstance(graph, LateGraph)]
    gc.disable()

    del model

    gone = [session() is None for session in sessions]
    gc.enable()
    assert gone == [True] * len(sessions)
    assert sessions


@pytest.mark.parametrize("budget", [0, -1.0, float("nan")])
def test_a_budget_that_makes_no_sense(dact_bundle: Path, budget: float) -> None:
    with pytest.raises(ConfigError, match=r"^memory_budget_mb: expected a number of more than 0, got"):
        EdgeModel.from_pretrained(dact_bundle, memory_budget_mb=budget)
