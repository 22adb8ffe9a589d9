"""Operating points of a model that drops tokens, on a tiny random one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgebert.bundle.manifest import OperatingPoint
from edgebert.checkpoint import load_checkpoint
from edgebert.config import RunConfig, TrainConfig
from edgebert.data import read_examples, texts_of
from edgebert.errors import ConfigError
from edgebert.methods.dynamic_tinybert import DynamicTinyBert
from edgebert.output import Reporter
from edgebert.policies import make_policy
from edgebert.tasks import classification
from edgebert.text import TextEncoder
from edgebert.training import length_points, train_model
from edgebert.training.length_points import choose_lengths
from edgebert.training.length_search import Candidate
from edgebert.training.operating_points import run_rule
from edgebert.training.rows import Rows


@pytest.fixture(scope="module")
def model(save_tiny_checkpoint: Callable[..., Path]) -> DynamicTinyBert:
    point = OperatingPoint(policy="lengths", knobs={})
    loaded: Any = load_checkpoint(save_tiny_checkpoint({"name": "dynamic_tinybert"}, {"default": point})).model
    return loaded  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def rows(model: DynamicTinyBert, sentiment_data: Path, tiny_tokenizer: bytes) -> Rows:
    """Texts with the labels that the model gives them with all of their tokens, but for every seventh."""
    text = TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0)
    encoded = text.encode(texts_of(read_examples(sentiment_data, split="train")))[:80]
    unlabelled = Rows(encoded, np.zeros(80, np.int64), text)
    scores, *_ = run_rule(model, model.steps(), unlabelled, make_policy("never", {}, exit_layers=()))
    return Rows(encoded, scores.argmax(axis=1) ^ (np.arange(80) % 7 == 0), text)


@pytest.fixture(scope="module", params=[0.0, 5.0, 100.0])
def chosen(request: pytest.FixtureRequest, model: DynamicTinyBert, rows: Rows) -> tuple[float, dict[str, Any]]:
    assert model.length_search is not None
    train = TrainConfig(max_drop_points=request.param, precision="fp32")
    search = msgspec.structs.replace(model.config, search_evaluations=25)
    model.config = search
    return request.param, choose_lengths(
        model, model.length_search, rows, task=classification, train=train, reporter=Reporter()
    )


def test_points_say_what_the_reference_measures(
    chosen: tuple[float, dict[str, Any]], model: DynamicTinyBert, rows: Rows
) -> None:
    for name, point in chosen[1].items():
        policy = make_policy(point.policy, point.knobs, exit_layers=())
        scores, path, cost_ratio = run_rule(model, model.steps(), rows, policy)
        assert point.cost_ratio == pytest.approx(cost_ratio), name
        assert point.metric == pytest.approx((scores.argmax(axis=1) == rows.labels).mean()), name
        assert path.all()


def test_default_is_the_cheapest_point_that_keeps_the_metric(chosen: tuple[float, dict[str, Any]]) -> None:
    allowed, points = chosen
    full = 1 - 12 / 80

    front = [point for name, point in points.items() if name != "default"]
    kept = [point for point in front if point.metric >= full - allowed / 100]

    assert points["default"] == min(kept, key=lambda point: point.cost_ratio)
    assert {name for name in points if name != "default"} == {f"lengths_{round(100 * p.cost_ratio):02d}" for p in front}
    assert f"{80} rows of train; all tokens have accuracy {full:.4f}" == points["default"].chosen_on
    assert allowed < 100 or points["default"].cost_ratio < 0.8


def test_of_two_points_that_cost_the_same_the_better_one_is_kept(
    model: DynamicTinyBert, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = [
        Candidate(lengths=(100, 20, 5), cost=0.621, metric=0.7),
        Candidate(lengths=(100, 20, 6), cost=0.623, metric=0.8),
        Candidate(lengths=(100, 100, 100), cost=1.0, metric=0.9),
    ]
    monkeypatch.setattr(length_points, "search_lengths", lambda *_, **__: front)
    assert model.length_search is not None

    points = choose_lengths(
        model,
        model.length_search,
        rows,
        task=classification,
        train=TrainConfig(max_drop_points=100.0, precision="fp32"),
        reporter=Reporter(),
    )

    assert {name: point.metric for name, point in points.items() if name != "default"} == {
        "lengths_100": 0.9,
        "lengths_62": 0.8,
    }


@pytest.mark.parametrize("search", ["evolution", "tpe", "none"])
def test_training_stores_the_points(tiny_hf_folder: Path, sentiment_data: Path, tmp_path: Path, search: str) -> None:
    train = TrainConfig(
        model=str(tiny_hf_folder),
        data=str(sentiment_data),
        max_length=32,
        stage_epochs=(0.2, 0.0, 0.0, 0.2),
        tuning_rows=20,
        precision="fp32",
    )
    method = {"name": "dynamic_tinybert", "search": search, "search_evaluations": 6}

    points = train_model(RunConfig(method=method, train=train), tmp_path / "out").facts.operating_points

    assert points == load_checkpoint(tmp_path / "out").facts.operating_points
    assert {point.policy for point in points.values()} == {"lengths"}
    assert points["default"].metric is not None
    assert (len(points) == 1) == (search == "none")
    if search == "none":
        assert str(points["default"].knobs["lengths"]).startswith("0.80,0.64,0.51")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "regression"}, "expected the task regression, got classification"),
        ({"labels": ("bad", "good")}, "expected the labels bad, good, got negative, positive"),
    ],
)
def test_a_teacher_of_something_else_is_refused(
    plain_checkpoint: Path,
    tiny_hf_folder: Path,
    sentiment_data: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    lines = (sentiment_data / "train.tsv").read_text(encoding="utf-8").splitlines()
    words = {"regression": ("0.5", "1.5"), "classification": ("bad", "good")}[changes.get("task", "classification")]
    (tmp_path / "data").mkdir()
    rows = [line.replace("negative", words[0]).replace("positive", words[1]) for line in lines]
    (tmp_path / "data" / "train.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    train = TrainConfig(
        model=str(tiny_hf_folder),
        data=str(tmp_path / "data"),
        max_length=32,
        stage_epochs=(0.0, 0.1, 0.0, 0.0),
        tuning_rows=20,
        **{"task": "classification", **changes},
    )
    method = {"name": "dynamic_tinybert", "teacher": str(plain_checkpoint)}

    with pytest.raises(ConfigError, match=f"method.teacher: .*: {message}"):
        train_model(RunConfig(method=method, train=train), tmp_path / "out")
