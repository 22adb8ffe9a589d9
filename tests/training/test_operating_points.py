import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgebert.checkpoint import load_checkpoint
from edgebert.data import read_examples, texts_of
from edgebert.decisions import follow
from edgebert.errors import DataError, EdgeBertError
from edgebert.policies import confidence, halting, make_policy
from edgebert.tasks import classification, regression
from edgebert.text import TextEncoder
from edgebert.training.operating_points import choose_operating_points, record_decisions
from edgebert.training.rows import Rows

LAYERS = (1, 2, 3)
RULE: tuple[str, dict[str, Any]] = ("halting", {"slack": 0.0, "bound": "tight"})


@dataclass(frozen=True)
class Setting:
    model: Any
    rows: Rows

    def points(self, *, drop: float, policies: tuple[str, ...] = ("halting", "confidence", "fixed", "never")) -> Any:
        return choose_operating_points(
            self.model,
            self.model.steps(),
            self.rows,
            rule=RULE,
            policies=policies,
            task=classification,
            max_drop_points=drop,
        )

    def measure(self, policy: str, knobs: dict[str, Any]) -> tuple[float, float]:
        """Accuracy and mean layers of a policy on the rows."""
        decisions = record_decisions(self.model, self.model.steps(), self.rows)
        followed = follow(make_policy(policy, knobs, exit_layers=LAYERS, rule=RULE), decisions, 3)
        return float((followed.scores.argmax(1) == self.rows.labels).mean()), float(followed.exit_layer.mean())


@pytest.fixture(scope="module")
def setting(dact_checkpoint: Path, sentiment_data: Path, tiny_tokenizer: bytes) -> Setting:
    """The random model on rows that it labels as its own full depth does, but for every seventh."""
    text = TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0)
    encoded = text.encode(texts_of(read_examples(sentiment_data, split="train")))
    model: Any = load_checkpoint(dact_checkpoint).model
    rows = Rows(encoded, np.zeros(200, np.int64), text)
    never = make_policy("never", {}, exit_layers=LAYERS, rule=RULE)
    scores = follow(never, record_decisions(model, model.steps(), rows), 3).scores
    return Setting(model, Rows(encoded, scores.argmax(1) ^ (np.arange(200) % 7 == 0), text))


def test_points_are_the_rules_default_and_one_for_each_policy_with_a_grid(setting: Setting) -> None:
    points = setting.points(drop=30.0)

    assert sorted(points) == ["confidence", "default"]
    assert points["default"].policy == "halting"
    assert points["default"].knobs["bound"] == "tight"
    assert points["default"].chosen_on == f"200 rows of train; full depth has accuracy {171 / 200:.4f}"


@pytest.mark.parametrize("drop", [0.0, 0.5, 5.0, 30.0])
def test_points_keep_the_metric_and_report_it(setting: Setting, drop: float) -> None:
    points = setting.points(drop=drop)

    full, _ = setting.measure("never", {})
    for_each = {name: setting.measure(point.policy, point.knobs) for name, point in points.items()}
    assert {name: (point.metric, point.mean_layers) for name, point in points.items()} == for_each
    assert points["default"].metric >= full - drop / 100


def test_points_larger_drop_is_cheaper(setting: Setting) -> None:
    layers = [setting.points(drop=drop)["default"].mean_layers for drop in (0.0, 5.0, 30.0)]

    assert layers == sorted(layers, reverse=True)
    assert layers[0] > layers[-1]


def test_points_default_is_no_dearer_than_the_sound_rule(setting: Setting) -> None:
    _, sound = setting.measure(*RULE)

    assert setting.points(drop=0.0)["default"].mean_layers <= sound


def test_points_without_any_that_keeps_the_metric_are_full_depth(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halting, "GRID", [{"slack": 24.0}])
    monkeypatch.setattr(confidence, "GRID", [{"threshold": 0.1}])

    points = setting.points(drop=0.0)

    assert {name: (point.policy, point.mean_layers) for name, point in points.items()} == {"default": ("never", 3.0)}
    assert points["default"].metric == 171 / 200


def test_points_say_what_the_engine_would_spend(setting: Setting) -> None:
    steps, lengths = setting.model.steps(), np.array([len(row.ids) for row in setting.rows.encoded])
    decisions = record_decisions(setting.model, steps, setting.rows)

    for point in setting.points(drop=5.0).values():
        policy = make_policy(point.policy, point.knobs, exit_layers=LAYERS, rule=RULE)
        stops = follow(policy, decisions, 3).exit_layer
        runs = {step.file: stops >= step.layer for step in steps if step.kind in ("layer", "exit")}
        spent = sum((runs[step.file] * step.macs.of(lengths)).sum() for step in steps if step.file in runs)
        full = sum(step.macs.of(lengths).sum() for step in steps if step.kind == "layer")
        assert point.cost_ratio == pytest.approx(spent / full)


def test_points_of_a_model_that_answers_nan_are_refused(setting: Setting) -> None:
    model = copy.deepcopy(setting.model)
    with torch.no_grad():
        model.units[-1].label.bias.fill_(float("nan"))

    with pytest.raises(EdgeBertError, match="scores are nan; train it again"):
        Setting(model, setting.rows).points(drop=0.5)


def test_points_of_values_that_are_all_equal_are_refused(setting: Setting) -> None:
    rows = Rows(setting.rows.encoded[:3], np.full(3, 2.5), setting.rows.text)

    with pytest.raises(DataError, match="pearson needs at least 2 different values, got 1 in 3"):
        choose_operating_points(
            setting.model,
            setting.model.steps(),
            rows,
            rule=RULE,
            policies=("halting",),
            task=regression,
            max_drop_points=0.5,
        )


def test_points_of_a_static_model(plain_checkpoint: Path, setting: Setting) -> None:
    model: Any = load_checkpoint(plain_checkpoint).model

    points = choose_operating_points(
        model,
        model.steps(),
        setting.rows,
        rule=("never", {}),
        policies=("never",),
        task=classification,
        max_drop_points=0.5,
    )

    assert {name: (point.policy, point.knobs) for name, point in points.items()} == {"default": ("never", {})}


@pytest.mark.parametrize("size", [7, 64])
def test_record_decisions_in_the_rows_own_order(setting: Setting, size: int) -> None:
    setting.model.train()

    exits = [d.outputs for d in record_decisions(setting.model, setting.model.steps(), setting.rows, size=size)]

    assert setting.model.training
    setting.model.eval()
    with torch.no_grad():
        batch = setting.rows.collate([150])
        unit = setting.model.units[1]
        state = setting.model.encoder(batch["input_ids"], batch["attention_mask"])[2]
        probabilities, halt = unit(state, batch["attention_mask"])
    assert exits[1]["probabilities"][150] == pytest.approx(probabilities[0].numpy(), abs=1e-5)
    assert exits[1]["halt"][150] == pytest.approx(halt[0].numpy(), abs=1e-5)
