import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest

from edgebert import EdgeModel, processor
from edgebert.bundle import open_bundle
from edgebert.bundle.files import sha256
from edgebert.bundle.manifest import FileFacts, OperatingPoint, Quantization, encode_manifest
from edgebert.decisions import all_layers
from edgebert.derive import derive
from edgebert.errors import BundleError, ConfigError, DataError, EdgeBertError, MissingExtraError
from edgebert.runtime.outcome import Outcome
from edgebert.runtime.results import Prediction
from edgebert.tasks.classification import softmax
from edgebert.text import Encoded, Text


@pytest.fixture
def model(dact_bundle: Path) -> Iterator[EdgeModel]:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def copy(tmp_path: Path, dact_bundle: Path) -> Path:
    """A copy of a bundle, to be changed."""
    return shutil.copytree(dact_bundle, tmp_path / "copy")


def _close(first: Prediction, second: Prediction) -> bool:
    """Whether two predictions are the same but for rounding."""
    facts = [
        (p.label, p.exit_layer, p.layers_run, round(p.cost_ratio, 9), p.tokens, p.truncated) for p in (first, second)
    ]
    return facts[0] == facts[1] and abs(first.score - second.score) <= 1e-5


def test_call_one_text(model: EdgeModel) -> None:
    result = model("a gripping film .")

    assert isinstance(result, Prediction)
    assert result.label in model.labels
    assert 0.5 <= result.score <= 1
    assert (result.tokens, result.truncated, result.top) == (6, False, None)
    assert result.layers_run == result.exit_layer


def test_call_gives_input_order_for_any_lengths(model: EdgeModel, texts: list[str]) -> None:
    order = np.random.default_rng(1).permutation(len(texts))

    results = model([texts[i] for i in order], batch_size=16)

    alone = [model(texts[i]) for i in order]
    assert all(_close(a, b) for a, b in zip(results, alone, strict=True))
    assert len({result.exit_layer for result in results}) == 3


@pytest.mark.parametrize("empty", [[], ()])
def test_call_no_texts(model: EdgeModel, empty: Any) -> None:
    assert model(empty) == []


def test_call_empty_text(model: EdgeModel) -> None:
    assert model("").tokens == 2
    assert [result.tokens for result in model(["", " ", "a"])] == [2, 2, 3]


def test_call_pairs(model: EdgeModel) -> None:
    pair = model(("a good film", "a bad film"))

    results = model([("a good film", "a bad film"), ("a bad film", "a good film")])

    assert pair.tokens == 9
    assert _close(results[0], pair)
    assert not _close(results[1], pair)


def test_call_surrogates_and_other_scripts(model: EdgeModel) -> None:
    results = model(["good \ud83d film", "日本語", "\u202e\x00"])

    assert [result.tokens for result in results] == [4, 5, 2]


@pytest.mark.parametrize(("max_length", "tokens"), [(None, 48), (20, 20), (999, 48)])
def test_call_long_text_is_truncated(model: EdgeModel, max_length: int | None, tokens: int) -> None:
    result = model("very " * 100 + "bad", max_length=max_length)

    assert (result.tokens, result.truncated) == (tokens, True)


def test_call_text_of_the_full_length_is_not_truncated(model: EdgeModel) -> None:
    result = model("very " * 46)

    assert (result.tokens, result.truncated) == (48, False)


@pytest.mark.parametrize("name", ["predict", "predict_proba", "stream", "encode"])
def test_one_pair_does_not_pass_for_two_texts(model: EdgeModel, name: str) -> None:
    with pytest.raises(DataError, match=r"^texts: expected a list, got one pair; write \[\(a, b\)\] for the pair"):
        list(getattr(model, name)(("a good film", "a bad film")))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["a", 3], "text 1: expected a str or a pair of str, got int"),
        (["a", "b", None], "text 2: expected a str or a pair of str, got None"),
        ([("a", "b", "c")], "text 0: expected a str or a pair of str, got tuple"),
        (("a", 3), "text 0: expected a str or a pair of str, got int"),
    ],
)
def test_call_not_a_text(model: EdgeModel, bad: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        model(bad)


@pytest.mark.parametrize("bad", [3, None, 2.5])
def test_call_not_a_list_either(model: EdgeModel, bad: Any) -> None:
    with pytest.raises(DataError, match=r"^texts: expected a list, got "):
        model(bad)


def test_call_bad_batch_size(model: EdgeModel) -> None:
    with pytest.raises(ConfigError, match=r"^batch_size: expected 1 or more, got 0\.$"):
        model(["a"], batch_size=0)


@pytest.mark.parametrize(("top_k", "labels"), [(1, 1), (2, 2), (5, 2)])
def test_call_top_k(model: EdgeModel, top_k: int, labels: int) -> None:
    result = model("a good film", top_k=top_k)

    assert result.top is not None
    assert len(result.top) == labels
    assert (result.top[0].label, result.top[0].score) == (result.label, result.score)
    assert [entry.score for entry in result.top] == sorted((entry.score for entry in result.top), reverse=True)


def test_predict_and_predict_proba_agree_with_calls(model: EdgeModel, texts: list[str]) -> None:
    results = model(texts)

    probabilities = model.predict_proba(texts)

    assert model.predict(texts) == [result.label for result in results]
    assert probabilities.shape == (200, 2)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(200))
    assert probabilities.max(axis=1) == pytest.approx(np.array([result.score for result in results]))


@pytest.mark.parametrize("ask", ["predict", "predict_proba", "encode"])
def test_one_str_in_the_place_of_a_list(model: EdgeModel, ask: str) -> None:
    with pytest.raises(DataError, match=r"expected a list, got one str; write \[text\]"):
        getattr(model, ask)("a good movie")


def test_stream_one_str(model: EdgeModel) -> None:
    with pytest.raises(DataError, match="got one str"):
        list(model.stream("a good movie"))


def test_stream_numbers_a_bad_text_from_its_start(model: EdgeModel) -> None:
    with pytest.raises(DataError, match=r"^text 4: "):
        list(model.stream(["a", "b", "c", "d", 5], window=2))


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_stream_equals_call(model: EdgeModel, texts: list[str], window: int) -> None:
    results = list(model.stream(iter(texts), window=window, batch_size=8))

    assert all(_close(a, b) for a, b in zip(results, model(texts), strict=True))


@pytest.mark.parametrize(("window", "most_ahead"), [(1, 0), (8, 16)])
def test_stream_reads_no_more_than_the_next_window_ahead(model: EdgeModel, window: int, most_ahead: int) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "a good film"

    stream = model.stream(endless(), window=window)

    ahead = []
    for done, _ in enumerate(stream, start=1):
        ahead.append(read - done)
        if done == 40:
            break

    assert max(ahead) <= most_ahead
    assert read <= 40 + window


def test_stream_tokenizes_the_next_window_while_one_is_answered(
    model: EdgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_is_tokenized = threading.Event()
    encode, run = model.encode, model.run_encoded

    def encode_and_say(texts: Sequence[Text], **options: Any) -> Sequence[Encoded]:
        rows = encode(texts, **options)
        if "boring" in texts:
            second_is_tokenized.set()
        return rows

    def run_when_it_is(rows: Sequence[Encoded], **options: Any) -> Outcome:
        assert second_is_tokenized.wait(30)
        return run(rows, **options)

    expected = model.predict(["good", "moving", "boring"])
    monkeypatch.setattr(model, "encode", encode_and_say)
    monkeypatch.setattr(model, "run_encoded", run_when_it_is)

    answers = list(model.stream(["good", "moving", "boring"], window=2))

    assert [answer.to_dict()["label"] for answer in answers] == expected


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 100])
def test_stream_answers_all_that_came_before_the_source_failed(model: EdgeModel, window: int) -> None:
    def failing() -> Iterator[str]:
        yield from ["a", "good", "film", "too"]
        raise OSError("the line is dead")

    stream = model.stream(failing(), window=window)
    answers = [next(stream) for _ in range(4)]

    assert all(_close(a, b) for a, b in zip(answers, model(["a", "good", "film", "too"]), strict=True))
    with pytest.raises(OSError, match="the line is dead"):
        next(stream)


@pytest.mark.parametrize("window", [1, 2])
def test_stream_with_a_thread_of_its_own_is_not_continued_in_a_fork(
    model: EdgeModel, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    stream = model.stream(["a", "good", "film"], window=window)
    next(stream)

    monkeypatch.setattr(os, "getpid", lambda: 1)  # all that a fork changes of what is looked at

    if window == 1:
        assert len(list(stream)) == 2
    else:
        with pytest.raises(
            EdgeBertError, match=r"a stream: opened in process \d+, of which .* a fork .*; begin it here"
        ):
            next(stream)


@pytest.mark.parametrize("window", [0, -1])
def test_stream_bad_window(model: EdgeModel, window: int) -> None:
    with pytest.raises(ConfigError, match=f"^window: expected 1 or more, got {window}"):
        list(model.stream(["a"], window=window))


def test_forward_equals_call(model: EdgeModel) -> None:
    encoded = model.encode(["a good film", "so bad"])
    values = model.pad(encoded)

    answer = model.forward(**values)

    results = model(["a good film", "so bad"])
    assert softmax(answer.logits).max(axis=1) == pytest.approx([result.score for result in results], abs=1e-5)
    assert answer.exit_layer.tolist() == [result.exit_layer for result in results]
    assert answer.layers_run.tolist() == [result.layers_run for result in results]
    assert answer.cost_ratio == pytest.approx([result.cost_ratio for result in results])


def test_forward_one_row_of_ids_without_a_mask(model: EdgeModel) -> None:
    (encoded,) = model.encode(["a good film"])

    answer = model.forward(input_ids=encoded.ids)  # type: ignore[arg-type]

    assert answer.logits.shape == (1, 2)
    assert softmax(answer.logits).max() == pytest.approx(model("a good film").score, abs=1e-5)


ONES = np.ones((2, 4), np.int64)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": ONES, "attention_mask": ONES[:, :3]}, r"of one shape \[rows, tokens\], got \(2, 4\), \(2, 3\)"),
        ({"input_ids": ONES, "token_type_ids": ONES[:1]}, r"of one shape \[rows, tokens\], got .* and \(1, 4\)"),
        (
            {"input_ids": ONES[None]},
            r"^input_ids: .* an array of shape \(1, 2, 4\)",
        ),
        ({"input_ids": ONES[:0]}, r"^input_ids: .* an array of shape \(0, 4\)"),
        ({"input_ids": ONES[:, :0]}, r"^input_ids: .* an array of shape \(2, 0\)"),
        ({"input_ids": np.ones((1, 49), np.int64)}, "input_ids: expected at most 48 tokens, got 49"),
        ({"input_ids": ONES * 100_000}, r"input_ids: expected ids of 0 to \d+, got 100000 to 100000"),
        ({"input_ids": -ONES}, r"input_ids: expected ids of 0 to \d+, got -1 to -1"),
        ({"input_ids": ONES, "token_type_ids": 2 * ONES}, "token_type_ids: expected 0 to 1, got up to 2"),
        ({"input_ids": ONES, "attention_mask": 2 * ONES}, r"^attention_mask: expected 0 and 1, got 2 to 2\.$"),
        ({"input_ids": ONES, "attention_mask": [[1, 1, -1, 0]] * 2}, r"^attention_mask: expected 0 and 1, got -1 to 1"),
        ({"input_ids": ONES, "attention_mask": [[1, 1, 1, 1], [0, 0, 0, 0]]}, "attention_mask: a row is all padding"),
    ],
)
def test_forward_refused(model: EdgeModel, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        model.forward(**inputs)


def test_policy_default_is_the_bundles(model: EdgeModel) -> None:
    assert (model.policy.policy, model.policy.knobs) == ("halting", {"slack": 0.0, "bound": "paper"})


def test_from_pretrained_with_a_policy(dact_bundle: Path) -> None:
    with EdgeModel.from_pretrained(dact_bundle, policy="confidence", threads=1) as model:
        assert (model.policy.policy, model.policy.knobs) == ("confidence", {"threshold": 0.75})


@pytest.mark.parametrize(
    ("name", "knobs", "policy", "expected"),
    [
        (None, {"threshold": 0.6}, "confidence", {"threshold": 0.6}),
        (None, {"slack": 0.5}, "halting", {"slack": 0.5, "bound": "paper"}),
        (None, {"layer": 2}, "fixed", {"layer": 2}),
        (None, {}, "halting", {"slack": 0.0, "bound": "paper"}),
        ("halting", {"bound": "tight"}, "halting", {"slack": 0.0, "bound": "tight"}),
        ("fixed", {}, "fixed", {}),
        ("never", {}, "never", {}),
        ("default", {"slack": 0.1}, "halting", {"slack": 0.1, "bound": "paper"}),
        ("confidence", {}, "confidence", {"threshold": 0.75}),
    ],
)
def test_set_policy_by_name_and_knob(
    model: EdgeModel, name: str | None, knobs: dict[str, Any], policy: str, expected: dict[str, Any]
) -> None:
    model.set_policy(name, **knobs)

    assert (model.policy.policy, model.policy.knobs) == (policy, expected)


def test_set_policy_knob_keeps_the_other_knobs(model: EdgeModel) -> None:
    model.set_policy("halting", bound="tight", slack=0.2)

    model.set_policy(slack=0.4)

    assert model.policy.knobs == {"slack": 0.4, "bound": "tight"}


def test_policy_says_what_was_measured_until_a_knob_is_set(dact_bundle: Path, tmp_path: Path) -> None:
    point = OperatingPoint(policy="confidence", knobs={"threshold": 0.9}, chosen_on="train, 40 rows", metric=0.87)
    points = {**open_bundle(dact_bundle).manifest.operating_points, "quick": point}
    derive(open_bundle(dact_bundle), tmp_path / "bundle", changes={"operating_points": points})

    with EdgeModel.from_pretrained(tmp_path / "bundle", policy="quick", threads=1) as model:
        assert model.policy == point
        model.set_policy(threshold=0.9)
        assert model.policy == OperatingPoint(policy="confidence", knobs={"threshold": 0.9})


def test_policy_is_a_copy(model: EdgeModel) -> None:
    model.policy.knobs["slack"] = 9.0

    assert model.policy.knobs == {"slack": 0.0, "bound": "paper"}
    assert model.manifest.operating_points["default"].knobs == {"slack": 0.0, "bound": "paper"}


def test_set_policy_takes_numbers_of_numpy(dact_bundle: Path) -> None:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        model.set_policy("confidence", threshold=np.float32(0.5))
        assert model.policy.knobs == {"threshold": 0.5}
        assert type(model.policy.knobs["threshold"]) is float
        model.set_policy("fixed", layer=np.int64(1))
        assert {p.layers_run for p in model(["a film", "a dull film"])} == {1}


def test_set_policy_changes_the_answers(model: EdgeModel, texts: list[str]) -> None:
    before = [result.exit_layer for result in model(texts)]

    model.set_policy(threshold=0.99)

    assert np.mean(before) < np.mean([result.exit_layer for result in model(texts)])


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("confidense", {}, ".*/dact has no point or policy 'confidense'; it has confidence, default, "),
        (None, {"treshold": 0.9}, r"unknown knob 'treshold'\. Did you mean 'threshold'\?"),
        (None, {"threshold": 0.9, "layer": 2}, "no policy of dact_bert has the knobs layer, threshold together"),
        ("halting", {"threshold": 0.9}, "policy halting: unknown key 'threshold'"),
        (None, {"threshold": -1}, "policy confidence: threshold: expected 0 to 1, or at most 2"),
        ("fixed", {"layer": 4}, "policy fixed: layer: the model can stop after layers 1, 2, 3, got 4"),
    ],
)
def test_set_policy_refused_keeps_the_old(
    model: EdgeModel, name: str | None, knobs: dict[str, Any], message: str
) -> None:
    before = model.policy

    with pytest.raises(ConfigError, match=f"^{message}"):
        model.set_policy(name, **knobs)

    assert model.policy == before


def _with_policies(bundle: Path, *policies: str) -> EdgeModel:
    """A model whose bundle allows other policies than its method does."""
    opened = open_bundle(bundle)
    return EdgeModel(dataclasses.replace(opened, manifest=msgspec.structs.replace(opened.manifest, policies=policies)))


def test_set_policy_knob_of_several_policies(dact_bundle: Path) -> None:
    with _with_policies(dact_bundle, "halting", "confidence", "entropy", "fixed") as model:
        with pytest.raises(ConfigError) as raised:
            model.set_policy(threshold=0.5)

        model.set_policy("entropy", threshold=0.5)

    assert str(raised.value) == "the policies confidence and entropy have the knobs threshold; name one of them."
    assert model.policy.policy == "entropy"


def test_set_policy_knob_of_the_rule_and_of_others(dact_bundle: Path) -> None:
    opened = open_bundle(dact_bundle)
    rule = OperatingPoint(policy="entropy", knobs={"threshold": 0.3})
    manifest = msgspec.structs.replace(opened.manifest, rule=rule, policies=("confidence", "entropy", "fixed"))

    with EdgeModel(dataclasses.replace(opened, manifest=manifest), policy="fixed", threads=1) as model:
        model.set_policy(threshold=0.2)

    assert (model.policy.policy, model.policy.knobs["threshold"]) == ("entropy", 0.2)


def test_with_policy_leaves_the_model_as_it_was(dact_bundle: Path, texts: list[str]) -> None:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        before = model(texts)
        quick, thorough = model.with_policy("fixed", layer=1), model.with_policy("never")

        assert {answer.layers_run for answer in quick(texts)} == {1}
        assert {answer.layers_run for answer in thorough(texts)} == {3}
        quick.set_policy(layer=2)
        assert {answer.layers_run for answer in quick.with_policy()(texts)} == {2}
        quick.close()
        assert model(texts) == before
        assert model.policy != quick.policy


def test_with_policy_ends_with_the_model_it_comes_from(dact_bundle: Path) -> None:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        view = model.with_policy("never")
        with pytest.raises(ConfigError, match="has no point or policy 'sometimes'"):
            model.with_policy("sometimes")

    with pytest.raises(EdgeBertError, match=r"^this model is closed"):
        view(["good"])
    with pytest.raises(EdgeBertError, match=r"^this model is closed"):
        view.with_policy("never")


def test_with_policy_serves_callers_side_by_side(dact_bundle: Path, texts: list[str]) -> None:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        views = [model.with_policy("fixed", layer=layer) for layer in (1, 2, 3)] * 4

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda view: view(texts), views))

    for view, given in zip(views, answers, strict=True):
        assert {answer.layers_run for answer in given} == {view.policy.knobs["layer"]}


def test_plain_has_no_other_policy(plain_bundle: Path) -> None:
    with (
        EdgeModel.from_pretrained(plain_bundle, threads=1) as model,
        pytest.raises(ConfigError, match="has no point or policy 'halting'"),
    ):
        model.set_policy("halting")


def test_all_layers_are_added_up_in_little_memory_however_many_pieces_there_are(width_bundle: Path) -> None:
    manifest = open_bundle(width_bundle).manifest
    steps = [msgspec.structs.replace(step, choices=2**16) if step.choice else step for step in manifest.program]
    layers = [step for step in steps if step.kind == "layer" and step.part != "fused"]
    tracemalloc.start()

    every = all_layers(steps)

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert every.token == sum(step.macs.token + step.choices * step.each.token for step in layers)
    assert peak_bytes < 2**16


def test_only_layers_leaves_layers_out(plain_bundle: Path, texts: list[str]) -> None:
    with EdgeModel.from_pretrained(plain_bundle, threads=1) as model:
        part = model.only_layers([1, 3])

        outcome = part.run_encoded(part.encode(texts), batch_size=200)

        assert [call.graph for call in outcome.calls] == [
            "graphs/embed.onnx",
            "graphs/layer_00.onnx",
            "graphs/layer_02.onnx",
        ]
        assert (outcome.layers_run == 2).all()
        assert len(model.run_encoded(model.encode(texts[:1])).calls) == 4


def test_only_layers_needs_the_last(plain_bundle: Path) -> None:
    with (
        EdgeModel.from_pretrained(plain_bundle, threads=1) as model,
        pytest.raises(ConfigError, match=r"^layers: expected the last one, 3, among \[1, 2\]\.$"),
    ):
        model.only_layers([1, 2])


def test_model_answers_the_same_from_several_threads(model: EdgeModel, texts: list[str]) -> None:
    expected = model(texts)
    calls: list[Callable[[], list[Prediction]]] = [
        lambda: model(texts, batch_size=1),
        lambda: model(texts, batch_size=7, max_length=40),
        lambda: model(texts, batch_size=200),
        lambda: list(model.stream(texts, window=16)),
    ]

    with ThreadPoolExecutor(4) as pool:
        answers = [future.result() for future in [pool.submit(call) for call in calls * 3]]

    assert all(_close(a, b) for answer in answers for a, b in zip(answer, expected, strict=True))


@pytest.mark.parametrize(
    "use",
    [
        lambda model: model("a"),
        lambda model: model(["a"]),
        lambda model: model.predict_proba(["a"]),
        lambda model: model.forward(input_ids=ONES),
        lambda model: next(model.stream(["a"])),
        lambda model: model.graphs,
    ],
)
def test_close_then_use(dact_bundle: Path, use: Callable[[EdgeModel], object]) -> None:
    model = EdgeModel.from_pretrained(dact_bundle, threads=1)
    model.close()
    model.close()

    with pytest.raises(EdgeBertError, match="this model is closed"):
        use(model)


def test_context_manager_closes(dact_bundle: Path) -> None:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        assert model("a").label in ("negative", "positive")

    with pytest.raises(EdgeBertError, match="this model is closed"):
        model("a")


@pytest.mark.parametrize("edit", [None, "edited", "removed"])
def test_save_pretrained_round_trip(copy: Path, tmp_path: Path, texts: list[str], edit: str | None) -> None:
    if edit == "edited":
        (copy / "README.md").write_text("mine")
    if edit == "removed":
        (copy / "README.md").unlink()

    with EdgeModel.from_pretrained(copy, threads=1) as model:
        saved = model.save_pretrained(tmp_path / "saved")
        expected = model(texts)

    assert {path.relative_to(saved): path.read_bytes() for path in saved.rglob("*") if path.is_file()} == {
        path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()
    }
    with EdgeModel.from_pretrained(saved, threads=1) as model:
        assert model(texts) == expected


@pytest.mark.parametrize("name", ["README.md", "model.sig"])
@pytest.mark.parametrize("is_linked", [True, False], ids=["linked", "large"])
def test_save_pretrained_copies_no_card_or_signature_from_elsewhere_or_without_end(
    copy: Path, tmp_path: Path, name: str, is_linked: bool
) -> None:
    (copy / name).unlink(missing_ok=True)
    if is_linked:
        (tmp_path / "secret").write_text("a key")
        (copy / name).symlink_to(tmp_path / "secret")
    else:
        (copy / name).write_bytes(bytes(2**24 + 1))
    with (
        EdgeModel.from_pretrained(copy, threads=1) as model,
        pytest.raises(BundleError, match=f"{name}: expected (a file of the bundle itself|at most)"),
    ):
        model.save_pretrained(tmp_path / "saved")

    assert not (tmp_path / "saved").exists()


def test_model_opened_by_a_relative_path_outlives_a_change_of_folder(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)

    with EdgeModel.from_pretrained(copy.name, threads=1, memory_budget_mb=100) as model:
        monkeypatch.chdir(elsewhere)

        assert model("a gripping film").tokens == 5
        assert model.save_pretrained("saved").resolve() == elsewhere / "saved"


def test_save_pretrained_existing_folder(model: EdgeModel, copy: Path) -> None:
    with pytest.raises(EdgeBertError, match="copy: exists already; use --force to replace it"):
        model.save_pretrained(copy)


def test_save_pretrained_refuses_a_damaged_source(copy: Path, tmp_path: Path) -> None:
    with EdgeModel.from_pretrained(copy, threads=1) as model:
        (copy / "config.yaml").write_text("x")

        with pytest.raises(BundleError, match=r"config\.yaml: "):
            model.save_pretrained(tmp_path / "saved")

    assert not (tmp_path / "saved").exists()


def test_bundle_without_tokenizer(copy: Path) -> None:
    manifest = open_bundle(copy).manifest
    files = {name: facts for name, facts in manifest.files.items() if name != "tokenizer.json"}
    (copy / "tokenizer.json").unlink()
    (copy / "edgebert.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))

    with EdgeModel.from_pretrained(copy, threads=1) as model:
        assert model.forward(input_ids=ONES).logits.shape == (2, 2)
        with pytest.raises(EdgeBertError, match="this bundle has no tokenizer"):
            model("a")


def test_vocabulary_with_a_hole_and_an_id_that_the_model_does_not_know(copy: Path) -> None:
    bundle = open_bundle(copy)
    tree = json.loads(bundle.read("tokenizer.json"))
    tree["model"]["vocab"]["moving"] = bundle.manifest.encoder.vocabulary_size
    data = json.dumps(tree).encode()
    (copy / "tokenizer.json").write_bytes(data)
    files = {**bundle.manifest.files, "tokenizer.json": FileFacts(sha256=sha256(data), bytes=len(data))}
    (copy / "edgebert.json").write_bytes(encode_manifest(msgspec.structs.replace(bundle.manifest, files=files)))

    with pytest.raises(BundleError, match=r"tokenizer\.json: has ids up to (\d+), the model knows \1 of them; give"):
        EdgeModel.from_pretrained(copy, threads=1)


@pytest.mark.parametrize("threads", [0, -2])
def test_from_pretrained_bad_threads(dact_bundle: Path, threads: int) -> None:
    with pytest.raises(ConfigError, match=f"^threads: expected 1 or more, got {threads}"):
        EdgeModel.from_pretrained(dact_bundle, threads=threads)


def test_from_pretrained_unknown_policy(dact_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="has no point or policy 'quick'"):
        EdgeModel.from_pretrained(dact_bundle, policy="quick")


def test_from_pretrained_unknown_provider(dact_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"^unknown provider 'gpu'\."):
        EdgeModel.from_pretrained(dact_bundle, provider="gpu")


def test_from_pretrained_missing_provider(monkeypatch: pytest.MonkeyPatch, dact_bundle: Path) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])

    with pytest.raises(MissingExtraError, match=r"^provider cuda: this onnxruntime has only CPUExecutionProvider"):
        EdgeModel.from_pretrained(dact_bundle, provider="cuda")


@pytest.mark.parametrize("path", ["./nothing", "/nothing/at/all", "nothing"])
def test_from_pretrained_no_bundle(path: str) -> None:
    with pytest.raises(BundleError, match="no such bundle folder"):
        EdgeModel.from_pretrained(path)


def test_from_pretrained_hub_id_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(MissingExtraError, match=r"^someone/model: no such folder, and opening a hub id needs hugging"):
        EdgeModel.from_pretrained("someone/model")


def test_from_pretrained_second_model_with_other_threads(dact_bundle: Path, texts: list[str]) -> None:
    with (
        EdgeModel.from_pretrained(dact_bundle, threads=1) as first,
        EdgeModel.from_pretrained(dact_bundle, threads=2) as second,
    ):
        assert (first.threads, second.threads) == (1, 2)
        assert all(_close(a, b) for a, b in zip(first(texts), second(texts), strict=True))


def test_running_a_model_imports_nothing_heavy(dact_bundle: Path) -> None:
    code = (
        "import sys; from edgebert import EdgeModel; EdgeModel.from_pretrained(sys.argv[1])(['a good film'] * 3); "
        "heavy = {'torch', 'transformers', 'onnx', 'datasets', 'scipy', 'sklearn', 'safetensors', 'rich'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )

    result = subprocess.run([sys.executable, "-c", code, str(dact_bundle)], capture_output=True, text=True, check=True)

    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("is_narrow", "flags"), [(False, "avx2 avx512bw"), (True, "avx2 avx512bw"), (False, "avx2 avx_vnni")]
)
def test_weights_of_eight_bits_on_a_processor_that_overflows(
    is_narrow: bool, flags: str, dact_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = Quantization(
        source_digest="", backend="onnxruntime", mode="dynamic", settings={"reduce_range": is_narrow}, graphs={}
    )
    made = derive(open_bundle(dact_bundle), tmp_path / "made", changes={"quantization": facts})
    monkeypatch.setattr(processor, "_read", lambda: f"flags : fpu {flags}\n")
    overflows = not is_narrow and "vnni" not in flags

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        EdgeModel.from_pretrained(made.path, threads=1, prepare=False).close()

    said = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
    assert [("sums may overflow" in line, line.endswith("--target avx512.")) for line in said] == [
        (True, True)
    ] * overflows
