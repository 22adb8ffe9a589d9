"""Many threads on one model, many models in one process, and what a process may do with a model in its children."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert import EdgeModel, Prediction
from edgebert.errors import EdgeBertError
from edgebert.runtime.graphs import LateGraph

Answers = list[tuple[str, int]]
HANG_SECONDS = 120

BUNDLES = ["dact_bundle", "geep_bundle", "token_bundle", "width_bundle"]


@pytest.fixture
def bundle(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def budget_mb(bundle: Path) -> float:
    """What the largest graph of a bundle takes to load, so that some are let go for others."""
    with EdgeModel.from_pretrained(bundle, threads=1, memory_budget_mb=100) as model:
        sizes = [graph.loading_bytes for graph in model.graphs.values() if isinstance(graph, LateGraph)]
    return max(sizes) / 1e6


def _seen(answers: list[Prediction]) -> Answers:
    return [(answer.label, answer.exit_layer) for answer in answers]


def _calls(model: EdgeModel, texts: list[str]) -> list[Callable[[], Any]]:
    """Every way to ask, each giving labels, and layers where it has them."""
    ids = model.pad(model.encode(texts))
    return [
        lambda: _seen(model(texts, batch_size=7)),
        lambda: _seen([model(text) for text in texts[:5]]),
        lambda: _seen(list(model.stream(texts, window=9, batch_size=4))),
        lambda: model.predict(texts),
        lambda: model.predict_proba(texts, batch_size=3).argmax(axis=1).tolist(),
        lambda: model.forward(**ids).exit_layer.tolist(),
        lambda: model.forward(**ids).logits.argmax(axis=1).tolist(),
    ]


@pytest.mark.parametrize("bundle", BUNDLES, indirect=True)
@pytest.mark.parametrize("with_budget", [False, True], ids=["loaded", "within a budget"])
def test_threads_of_one_model_get_answers_of_one_policy(
    bundle: Path,
    budget_mb: float,
    with_budget: bool,
    texts: list[str],
    rounds: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    some = texts[:30]
    count = rounds(1 if with_budget else 6, 150)
    with EdgeModel.from_pretrained(bundle, threads=1, memory_budget_mb=budget_mb if with_budget else None) as model:
        calls = _calls(model, some)
        expected: list[list[Any]] = [[] for _ in calls]
        for policy in ("default", "never"):
            model.set_policy(policy)
            for known, call in zip(expected, calls, strict=True):
                known.append(call())
        changing = threading.Event()

        def change() -> None:
            while not changing.wait(0.0005):
                model.set_policy("default")
                model.set_policy("never")

        def ask(number: int) -> int:
            rng = random.Random(number)
            right = 0
            for _ in range(count):
                which = rng.randrange(len(calls))
                # The second asks text by text, so that each of its calls may come under another policy.
                if which == 1:
                    right += all(a in pair for a, *pair in zip(calls[1](), *expected[1], strict=True))
                else:
                    right += calls[which]() in expected[which]
            return right

        with ThreadPoolExecutor(9) as pool:
            changer = pool.submit(change)
            right = sum(pool.map(ask, range(8), timeout=HANG_SECONDS * 5))
            changing.set()
            changer.result()
        use = model.memory

    record_property("calls of 8 threads", f"{right} of {8 * count} right, {use.loads} loads, {use.drops} drops")
    assert right == 8 * count
    if with_budget:
        assert use.drops > 0
        assert use.peak_mb <= budget_mb


def test_a_stream_keeps_the_policy_it_began_with(dact_bundle: Path, texts: list[str]) -> None:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        expected = _seen(model(texts))
        stream = model.stream(texts, window=8)
        answers = [next(stream)]
        model.set_policy("fixed", layer=1)
        answers += stream

    assert _seen(answers) == expected
    assert {layer for _, layer in expected[8:]} != {1}


@pytest.mark.parametrize("bundle", BUNDLES[:1], indirect=True)
@pytest.mark.parametrize("with_budget", [False, True], ids=["loaded", "within a budget"])
def test_closing_while_others_ask(
    bundle: Path, budget_mb: float, with_budget: bool, texts: list[str], rounds: Callable[[int, int], int]
) -> None:
    for number in range(rounds(3, 60)):
        model = EdgeModel.from_pretrained(bundle, threads=1, memory_budget_mb=budget_mb if with_budget else None)
        calls = _calls(model, texts[:8])
        expected = [call() for call in calls]

        def ask(which: int, calls: list[Callable[[], Any]] = calls, expected: list[Any] = expected) -> tuple[bool, str]:
            right = True
            try:
                while True:
                    right &= calls[which]() == expected[which]
            except EdgeBertError as error:
                return right, str(error)

        with ThreadPoolExecutor(len(calls)) as pool:
            asking = [pool.submit(ask, which) for which in range(len(calls))]
            threading.Event().wait(0.01 * (number % 5))
            model.close()
            ends = [future.result(HANG_SECONDS) for future in asking]

        assert ends == [(True, "this model is closed; open it again with EdgeModel.from_pretrained.")] * len(calls)
        assert model.memory.loaded_mb == 0


def test_models_opened_and_closed_in_threads(
    dact_bundle: Path,
    width_bundle: Path,
    token_bundle: Path,
    texts: list[str],
    rounds: Callable[[int, int], int],
) -> None:
    some = texts[:12]
    bundles = [dact_bundle, width_bundle, token_bundle]
    options: list[dict[str, Any]] = [{"threads": 1}, {"threads": 2}, {"threads": 3}, {"provider": "openvino"}]
    expected = {}
    for path in bundles:
        with EdgeModel.from_pretrained(path, threads=1) as model:
            expected[path] = _seen(model(some))
        EdgeModel.from_pretrained(path, provider="openvino").close()
    before = threading.active_count()

    def open_and_ask(number: int) -> bool:
        path = bundles[number % len(bundles)]
        with EdgeModel.from_pretrained(path, **options[number % len(options)]) as model:
            return _seen(model(some)) == expected[path]

    of_system = []
    for count in (12, rounds(6, 240)):
        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(open_and_ask, range(count), timeout=HANG_SECONDS * 5))
        of_system.append(len(os.listdir("/proc/self/task")))

    assert threading.active_count() == before
    assert of_system[1] <= of_system[0] + 12  # OpenVINO keeps some of its own


def test_asyncio_to_thread(dact_bundle: Path, texts: list[str]) -> None:
    async def ask(model: EdgeModel) -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(model, text) for text in texts[:40]))

    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        expected = [model(text) for text in texts[:40]]
        answers = asyncio.run(ask(model))

    assert answers == expected


class _SignalError(BaseException):
    """What the handler of a signal raises, as Ctrl-C does."""


@pytest.fixture
def _alarm() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise _SignalError

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("_alarm")
@pytest.mark.parametrize("bundle", BUNDLES[:1], indirect=True)
def test_interrupts_leave_nothing_held(
    bundle: Path,
    budget_mb: float,
    rounds: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    rng = random.Random(0)
    ids = np.random.default_rng(0).integers(5, 90, (4, 20))
    interrupted = 0
    count = rounds(150, 5000)
    with EdgeModel.from_pretrained(bundle, policy="never", threads=1, memory_budget_mb=budget_mb) as model:
        expected = model.forward(ids).logits
        for _ in range(count):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-2))
                try:
                    assert (model.forward(ids).logits == expected).all()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except _SignalError:
                interrupted += 1
            running = [graph.name for graph in model.graphs.values() if isinstance(graph, LateGraph) and graph.users]
            assert running == []
        with ThreadPoolExecutor(2) as pool:  # others find every lock free
            answers = [future.result(HANG_SECONDS).logits for future in [pool.submit(model.forward, ids)] * 2]
        use = model.memory

    record_property("interrupted", f"{interrupted} of {count} calls, {use.loads} loads")
    assert interrupted > count / 10
    assert all((answer == expected).all() for answer in answers)
    assert use.peak_mb <= budget_mb


def test_an_open_model_is_not_pickled(dact_bundle: Path, texts: list[str]) -> None:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        for act in (pickle.dumps, copy.deepcopy, lambda it: pickle.dumps(it.predict)):
            with pytest.raises(
                EdgeBertError, match=r"dact: an open model cannot be pickled, .* send the path, and open"
            ):
                act(model)
        assert _seen(copy.copy(model)(texts[:5])) == _seen(model(texts[:5]))


START = """
import os, sys, threading, time, multiprocessing
from edgebert import EdgeModel

def ask(model):
    return [(a.label, a.exit_layer, a.score) for a in model(TEXTS, batch_size=4)]

TEXTS = ["a good film", "boring and weak", "the plot", "a clever script and a funny cast", "bad"] * 3
"""
FORKS = """
path, threads, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = EdgeModel.from_pretrained(path, threads=threads)
expected, is_over = ask(model), threading.Event()

def keep_asking():
    while not is_over.is_set():
        ask(model)

def in_child(number):
    if number % 4 == 0:
        with EdgeModel.from_pretrained(path, threads=threads) as own:
            assert ask(own) == expected
    elif number % 4 == 1:
        model.close()
        del globals()["model"]
    elif threads == 1:
        assert ask(model) == expected
    else:
        try:
            ask(model)
        except Exception as error:
            assert "is a fork that has not its threads; open it here" in str(error), error
        else:
            raise AssertionError("a model without its threads was used")

busy = [threading.Thread(target=keep_asking) for _ in range(3)]
for thread in busy:
    thread.start()
ends = []
for number in range(rounds):
    time.sleep(0.002)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        in_child(number)
        sys.exit(7)  # with all that the interpreter and C libraries do at the end
    for _ in range(400):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        status = "hung"
    ends.append(status)
is_over.set()
for thread in busy:
    thread.join()
assert ask(model) == expected
print(sum(end == 7 << 8 for end in ends), sorted(set(map(str, ends))))
"""
POOLS = """
path, method = sys.argv[1:]

def work(number):
    return ask(MODEL)

def open_here():
    global MODEL
    MODEL = EdgeModel.from_pretrained(path, threads=2)

if __name__ == "__main__":
    if method == "fork":
        MODEL = EdgeModel.from_pretrained(path, threads=1)
        expected, start = ask(MODEL), None
    else:
        with EdgeModel.from_pretrained(path, threads=1) as own:
            expected = ask(own)
        start = open_here
    with multiprocessing.get_context(method).Pool(2, start) as pool:
        answers = pool.map(work, range(6))
        assert all([a[:2] for a in answer] == [a[:2] for a in expected] for answer in answers)
    print("ended")
"""


def _python(code: str, folder: Path, *arguments: object) -> str:
    """Runs a program in a process of its own, and gives what it printed; forks are not for a process with torch."""
    (folder / "program.py").write_text(START + code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(folder / "program.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS * 10,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "true"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.mark.parametrize("threads", [1, 2])
def test_forks_of_a_busy_process_neither_hang_nor_answer_wrongly(
    dact_bundle: Path,
    tmp_path: Path,
    threads: int,
    rounds: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    count = rounds(4, 200)

    printed = _python(FORKS, tmp_path, dact_bundle, threads, count)

    record_property(f"forks with {threads} threads", f"{printed.split()[0]} of {count} children ended as they should")
    assert printed == f"{count} ['{7 << 8}']\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_processes(dact_bundle: Path, tmp_path: Path, method: str) -> None:
    assert _python(POOLS, tmp_path, dact_bundle, method) == "ended\n"


PREPARE = """
from edgebert.bundle import open_bundle
from edgebert.runtime.prepared import prepare_bundle
path, what, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with EdgeModel.from_pretrained(path, threads=1, prepare=False) as model:
    expected = ask(model)
used = 0
for number in range(rounds):
    if what == "prepare":
        prepare_bundle(open_bundle(path), force=True)
    else:
        with EdgeModel.from_pretrained(path, threads=1) as model:
            used += model.prepared is not None
            assert ask(model) == expected
print(used)
"""


def test_reading_what_others_are_preparing(
    dact_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounds: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setenv("EDGEBERT_CACHE", str(tmp_path / "cache"))
    count = rounds(4, 60)
    tasks = [("prepare", count), ("prepare", count), ("read", 4 * count), ("read", 4 * count)]
    folders = [tmp_path / str(number) for number in range(len(tasks))]
    for folder in folders:
        folder.mkdir()

    with ThreadPoolExecutor(len(tasks)) as pool:
        runs = [pool.submit(_python, PREPARE, f, dact_bundle, *task) for f, task in zip(folders, tasks, strict=True)]
        used = [int(run.result()) for run in runs]

    record_property(
        "opened prepared", f"{used[2] + used[3]} of {8 * count}, while two others prepared {2 * count} times"
    )
    assert used[2] + used[3] > 0
