"""Torch and the split runtime on random inputs of every kind, and each row of them alone and with other batch mates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgebert import registry
from edgebert.bundle.manifest import Manifest, OperatingPoint
from edgebert.checkpoint import load_checkpoint, save_checkpoint
from edgebert.config import ExportConfig
from edgebert.export import export_model
from edgebert.methods._program import AdaptiveModel, Batch
from edgebert.methods._reference import run_reference
from edgebert.policies import make_policy
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.results import Forward
from edgebert.text import Encoded, Values
from edgebert.verify import differing_rows, within_margin

LONGEST, MOST_ROWS = 512, 33
TORCH_TOLERANCE, MATES_TOLERANCE = 1e-4, 1e-5

SETTINGS: dict[str, dict[str, Any]] = {
    **{method: {"name": method} for method in registry.names("edgebert.methods")},
    "dpbert upfront": {"name": "dpbert", "planner": "upfront"},
}

Draw = Callable[[np.random.Generator, Manifest], dict[str, Any]]


def _some_layers(rng: np.random.Generator, manifest: Manifest) -> dict[str, Any]:
    layers = manifest.exit_layers
    return {"layers": ",".join(str(n) for n in sorted(rng.permutation(layers)[: rng.integers(1, len(layers) + 1)]))}


def _lengths(rng: np.random.Generator, manifest: Manifest) -> dict[str, Any]:
    layers = manifest.encoder.layers
    if rng.random() < 0.3:
        return {"lengths": ",".join(str(n) for n in sorted(rng.integers(1, LONGEST, layers))[::-1])}
    return {"lengths": ",".join(f"{share:.2f}" for share in sorted(rng.uniform(0.05, 1, layers))[::-1])}


DRAWS: dict[str, Draw] = {
    "never": lambda rng, manifest: {},
    "fixed": lambda rng, manifest: {"layer": int(rng.choice(manifest.exit_layers))},
    "path": _some_layers,
    "lengths": _lengths,
    "entropy": lambda rng, manifest: {
        "threshold": rng.uniform(0, 0.9),
        "scale": str(rng.choice(["normalised", "nats"])),
    },
    "confidence": lambda rng, manifest: {"threshold": rng.uniform(0.5, 1)},
    "halting": lambda rng, manifest: {"slack": rng.uniform(0, 0.5), "bound": str(rng.choice(["paper", "tight"]))},
    "patience": lambda rng, manifest: {"patience": int(rng.integers(1, 4))},
    "bypass": lambda rng, manifest: {"delta": rng.uniform(0.3, 0.7)},
    "width": lambda rng, manifest: {"width": rng.uniform(0.1, 1), "exact_budget": bool(rng.random() < 0.5)},
    "predicted_exit": lambda rng, manifest: {
        "prediction": str(rng.choice(["expect", "mode", "quantile"])),
        "offset": rng.uniform(-1, 1),
        "gain": rng.uniform(1, 12),
        "quantile": rng.uniform(0.2, 0.9),
        "batch_exit": str(rng.choice(["own", "homogeneous", "max"])),
    },
}
"""Random knobs of each policy, few of which leave all rows the same way."""


@dataclass
class Tally:
    """What was compared, and how it came out.

    Attributes:
        rows: Rows that were compared.
        near: Those of them so near a border that either decision is right.
        differing: Decisions that differ away from every border.
        largest: The largest difference of an answer between rows that were decided alike.
        ways: The different ways that rows took: layers, pieces and tokens, and where they stopped.
    """

    rows: int = 0
    near: int = 0
    differing: int = 0
    largest: float = 0.0
    ways: set[bytes] = field(default_factory=set)

    def compare(self, expected: Any, got: Forward, near: NDArray[np.bool_], values: Callable[..., Any]) -> None:
        """Holds answers against what they should be, row by row."""
        differs = differing_rows(expected, got)
        self.rows += len(differs)
        self.near += int(near.sum())
        self.differing += int((differs & ~near).sum())
        difference = np.abs(values(got.logits) - values(expected.scores))[~differs]
        self.largest = float(np.maximum(self.largest, difference.max(initial=0.0)))
        tokens = () if got.token_layers is None else (got.token_layers,)
        taken = [array.reshape(len(near), -1) for array in (got.path, got.exit_layer, *got.chosen.values(), *tokens)]
        self.ways |= {row.astype(np.int8).tobytes() for row in np.concatenate(taken, axis=1)}

    def __str__(self) -> str:
        return (
            f"{self.rows} rows, largest difference {self.largest:.1e}, {self.differing} decisions differ, "
            f"{self.near} within the margin, {len(self.ways)} ways taken"
        )


@dataclass(frozen=True)
class Pair:
    """A torch model and its bundle, opened."""

    torch_model: AdaptiveModel
    runtime: EdgeModel


IN_MAKE_TEST = ("dact_bert", "dynamic_tinybert", "tbert")
"""Exporting every method with 512 positions takes a minute; tests/test_families.py has them all at fewer."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in IN_MAKE_TEST else pytest.mark.long) for name in SETTINGS],
)
def pair(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    save_tiny_checkpoint: Callable[..., Path],
    balance_planner: Callable[..., None],
) -> Iterator[Pair]:
    settings = SETTINGS[request.param]
    module = registry.load("edgebert.methods", settings["name"])
    policy, knobs = module.rule(module.Config())
    points = {"default": OperatingPoint(policy=policy, knobs=knobs)}
    folder = save_tiny_checkpoint(settings, points, max_positions=LONGEST, max_length=LONGEST, standard_deviation=0.3)
    checkpoint = load_checkpoint(folder)
    model: Any = checkpoint.model
    model.eval()
    values = _batch(np.random.default_rng(9), 64, 128, model.encoder.config.vocabulary_size)
    some = Batch(**{name: torch.from_numpy(value) for name, value in values.items()})
    if settings["name"] == "dpbert":
        balance_planner(model, some)
    if model.calibrates:
        with torch.no_grad():
            model.calibrate([some], frozenset({0, 1, 2, 3}))
    save_checkpoint(checkpoint, folder, force=True)
    config = ExportConfig(verify_samples=8, whole_model=False)
    bundle = export_model(folder, tmp_path_factory.mktemp("parity") / settings["name"], settings=config)
    with EdgeModel(bundle, threads=1) as runtime:
        yield Pair(model, runtime)


def _batch(rng: np.random.Generator, rows: int, tokens: int, vocabulary: int) -> Values:
    """Returns random ids: one row of so many tokens, the others of 1 to as many, short ones as often as long ones."""
    lengths = np.exp(rng.uniform(0, np.log(tokens + 1), rows)).astype(np.int64).clip(1, tokens)
    lengths[rng.integers(rows)] = tokens
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return {
        "input_ids": rng.integers(1, vocabulary, (rows, tokens)) * mask,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (rows, tokens)) * mask,
    }


def _batches(rng: np.random.Generator, count: int, vocabulary: int) -> Iterator[Values]:
    """Gives batches of 1 to 33 rows until there were so many rows; every 16th is as long as the model reads."""
    number = left = 0
    for number in range(count):
        rows = min(int(rng.integers(1, MOST_ROWS + 1)), count - left)
        tokens = LONGEST if number % 16 == 15 else int(np.exp(rng.uniform(0, np.log(LONGEST + 1))))
        yield _batch(rng, rows, tokens, vocabulary)
        left += rows
        if left == count:
            return


def _draw(rng: np.random.Generator, manifest: Manifest) -> tuple[str, dict[str, Any]]:
    policy = str(rng.choice(manifest.policies))
    return policy, DRAWS[policy](rng, manifest)


def _in_order(parts: list[Forward], order: NDArray[np.int64], tokens: int) -> Forward:
    """Puts answers of several batches together, cut or widened to so many tokens; row i of them goes to `order[i]`."""
    back = np.argsort(order)

    def join(arrays: list[Any]) -> Any:
        return np.concatenate(arrays)[back]

    def widen(array: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.pad(array[:, :tokens], ((0, 0), (0, max(0, tokens - array.shape[1]))))

    layers = [part.token_layers for part in parts]
    return Forward(
        join([part.logits for part in parts]),
        join([part.exit_layer for part in parts]),
        join([part.path for part in parts]),
        join([part.cost_ratio for part in parts]),
        {name: join([part.chosen[name] for part in parts]) for name in parts[0].chosen},
        None if layers[0] is None else join([widen(array) for array in layers if array is not None]),
    )


def _mates(rng: np.random.Generator, model: EdgeModel, inputs: Values) -> Mapping[str, Forward]:
    """Answers the rows of a batch in other company: alone, shuffled, padded wider, and in batches of like length."""
    mask = inputs["attention_mask"]
    rows, tokens = mask.shape
    lengths = mask.sum(axis=1)
    shuffled = rng.permutation(rows)
    wider = min(LONGEST, tokens + int(rng.integers(1, 65)))
    padded = {name: np.pad(value, ((0, 0), (0, wider - tokens))) for name, value in inputs.items()}
    padded["input_ids"] = np.where(padded["attention_mask"] == 1, padded["input_ids"], rng.integers(1, 100))
    alone = [
        model.forward(**{name: value[n : n + 1, :length] for name, value in inputs.items()})
        for n, length in enumerate(lengths)
    ]
    encoded = [
        Encoded(ids[:n].tolist(), types[:n].tolist(), False)
        for ids, types, n in zip(inputs["input_ids"], inputs["token_type_ids"], lengths, strict=True)
    ]
    listed = model.run_encoded(encoded, batch_size=int(rng.integers(1, MOST_ROWS + 1)), sort=bool(rng.random() < 0.7))
    as_forward = Forward(
        listed.scores,
        listed.exit_layer,
        listed.path,
        listed.macs / model.full_macs(lengths),
        listed.chosen,
        listed.token_layers,
    )
    same = np.arange(rows)
    return {
        "alone": _in_order(alone, same, tokens),
        "shuffled": _in_order([model.forward(**{n: v[shuffled] for n, v in inputs.items()})], shuffled, tokens),
        "padded wider": _in_order([model.forward(**padded)], same, tokens),
        "in batches of like length": _in_order([as_forward], same, tokens),
    }


def test_random_inputs(
    pair: Pair, rounds: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    model, torch_model, manifest = pair.runtime, pair.torch_model, pair.runtime.manifest
    values = model.task.values
    rng = np.random.default_rng(0)
    full, ruled, mates = Tally(), Tally(), {}
    count = rounds(60, 1000)
    for inputs in _batches(rng, count, manifest.encoder.vocabulary_size):
        batch = Batch(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        with torch.no_grad():
            answers = torch_model.forward(batch.input_ids, batch.attention_mask, batch.token_type_ids).numpy()
        model.set_policy("never")
        got = model.forward(**inputs)
        near = np.ones(len(answers), np.bool_)  # what is decided is compared under the rules
        full.compare(replace(got, logits=answers), got, near, values)
        policy, knobs = _draw(rng, manifest)
        made = make_policy(
            policy, knobs, exit_layers=manifest.exit_layers, rule=(manifest.rule.policy, manifest.rule.knobs)
        )
        decisions, expected = run_reference(torch_model.steps(), batch, made)
        near = within_margin(made, decisions, manifest.encoder.layers, rng)
        model.set_policy(policy, **knobs)
        got = model.forward(**inputs)
        ruled.compare(expected, got, near, values)
        if knobs.get("batch_exit") == "max":
            continue  # there the rows of a batch stop together, which is the method
        for name, other in _mates(rng, model, inputs).items():
            tally = mates.setdefault(name, Tally())
            tally.compare(got, other, near, values)
            assert other.cost_ratio == pytest.approx(got.cost_ratio) or near.any(), (policy, knobs, name)

    record_property("against torch, every layer", f"{full.rows} rows, largest difference {full.largest:.1e}")
    record_property("against torch, random policies", str(ruled))
    for name, tally in mates.items():
        record_property(f"against the same rows {name}", str(tally))
    assert full.largest <= TORCH_TOLERANCE
    assert ruled.largest <= TORCH_TOLERANCE
    assert ruled.differing == 0
    assert count < 1000 or (len(ruled.ways) > 1) == (manifest.method != "plain")
    assert count < 1000 or ruled.near <= 0.02 * ruled.rows
    assert {name: tally.differing for name, tally in mates.items()} == dict.fromkeys(mates, 0)
    assert max(tally.largest for tally in mates.values()) <= MATES_TOLERANCE
