"""What the tests of several methods share: a padded batch, short trainings, and the ladder from torch to the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgebert.bundle.manifest import OperatingPoint
from edgebert.checkpoint import load_checkpoint
from edgebert.config import RunConfig, TrainConfig
from edgebert.export import export_model
from edgebert.methods._program import AdaptiveModel, Batch
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.results import softmax
from edgebert.text import Encoded, TextEncoder, Values
from edgebert.training import train_model

Stops = Callable[[list[NDArray[np.float64]]], bool]
"""A rule in plain words: given the probabilities of the exits so far, the newest last, does the row stop?"""


@pytest.fixture
def batch() -> Batch:
    """Six rows of 1 to 9 tokens, with labels of three classes."""
    lengths = torch.tensor([9, 4, 1, 7, 9, 2])
    mask = (torch.arange(9)[None, :] < lengths[:, None]).long()
    ids = torch.randint(1, 50, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    return Batch(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1, 2, 0, 1, 2]))


@pytest.fixture
def train_tiny(tmp_path: Path, tiny_hf_folder: Path, sentiment_data: Path) -> Callable[..., dict[str, Tensor]]:
    """Trains a method for some epochs of 20 steps per stage, always from the same weights, and returns its weights."""

    def train(method: dict[str, Any], *stage_epochs: float) -> dict[str, Tensor]:
        settings = TrainConfig(
            model=str(tiny_hf_folder),
            data=str(sentiment_data),
            max_length=32,
            batch_size=8,
            stage_epochs=stage_epochs,
            learning_rate=1e-3,
            tuning_rows=40,
            precision="fp32",
        )
        config = RunConfig(method=method, train=settings)
        model: Any = train_model(config, tmp_path / "-".join(map(str, stage_epochs))).model
        assert all(parameter.requires_grad for parameter in model.parameters())
        weights: dict[str, Tensor] = model.state_dict()
        return weights

    return train


@dataclass(frozen=True)
class ExitLadder:
    """A checkpoint and its bundle, and what each exit says about each row when it is alone, in torch.

    Attributes:
        model: The torch model.
        runtime: The bundle's runtime.
        encoded: The rows.
        values: The same as one padded batch.
        alone: For each row and exit, the probabilities.
    """

    model: Any
    runtime: EdgeModel
    encoded: list[Encoded]
    values: Values
    alone: list[list[NDArray[np.float64]]]

    def check(self, policy: str, knobs: dict[str, Any], stops: Stops) -> set[int]:
        """Holds the engine, with rows alone, in mixed and in shuffled batches, against the rule folded row by row.

        Returns:
            The layers after which rows stopped.
        """
        layers = [next((n for n in range(1, len(exits)) if stops(exits[:n])), len(exits)) for exits in self.alone]
        expected = np.stack([exits[layer - 1] for exits, layer in zip(self.alone, layers, strict=True)])
        self.runtime.set_policy(policy, **knobs)
        shuffled = np.random.default_rng(0).permutation(len(self.encoded))
        for order, size in ((np.arange(len(layers)), 1), (np.arange(len(layers)), 7), (shuffled, 16)):
            outcome = self.runtime.run_encoded([self.encoded[i] for i in order], batch_size=size, sort=False)
            assert outcome.exit_layer.tolist() == [layers[i] for i in order]
            assert outcome.layers_run.tolist() == [layers[i] for i in order]
            assert np.abs(softmax(outcome.scores) - expected[order]).max() <= 1e-4
        return set(layers)

    def check_never(self) -> None:
        """Holds the engine without early stops against the torch model's forward."""
        with torch.no_grad():
            answers = self.model(**{name: torch.from_numpy(value) for name, value in self.values.items()}).numpy()
        self.runtime.set_policy("never")
        outcome = self.runtime.run_encoded(self.encoded)
        assert np.abs(softmax(outcome.scores) - softmax(answers)).max() <= 1e-4
        assert set(outcome.exit_layer) == {self.model.encoder.config.layers}


@pytest.fixture(scope="module")
def make_exit_ladder(
    tmp_path_factory: pytest.TempPathFactory,
    save_tiny_checkpoint: Callable[..., Path],
    tiny_tokenizer: bytes,
    texts: list[str],
) -> Iterator[Callable[..., ExitLadder]]:
    """Makes the ladder of a method with a classifier after every layer.

    `exits` says which modules they are: each gives logits of hidden states and mask.
    """
    opened: list[EdgeModel] = []

    def make(
        method: dict[str, Any], rule: tuple[str, dict[str, Any]], exits: Callable[[AdaptiveModel], list[nn.Module]]
    ) -> ExitLadder:
        folder = save_tiny_checkpoint(method, {"default": OperatingPoint(policy=rule[0], knobs=rule[1])})
        bundle = export_model(folder, tmp_path_factory.mktemp("ladders") / "bundle").path
        model: Any = load_checkpoint(folder).model
        model.eval()
        text = TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0)
        encoded = text.encode(texts[:60])
        opened.append(EdgeModel.from_pretrained(bundle, threads=1))
        alone = [_alone(model, exits(model), row) for row in encoded]
        return ExitLadder(model, opened[-1], encoded, text.pad(encoded), alone)

    yield make
    for runtime in opened:
        runtime.close()


@torch.no_grad()
def _alone(model: Any, exits: list[nn.Module], row: Encoded) -> list[NDArray[np.float64]]:
    ids = torch.tensor([row.ids])
    mask = torch.ones_like(ids)
    states = model.encoder(ids, mask)[1:]
    return [part(x, mask)[0].double().softmax(-1).numpy() for part, x in zip(exits, states, strict=True)]
