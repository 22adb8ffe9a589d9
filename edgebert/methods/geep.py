"""geep: GEEP, GPU-efficient exit prediction, on FastBERT's classifier.

GEEP: Frontiers of Computer Science 18(3), 2024. Its full text was not to be had, only the abstract; the classifier is
FastBERT's (Liu et al., 2020, https://arxiv.org/abs/2004.02178). One classifier reads the states after every layer and
is trained on all of them at once, together with the encoder. A table of how deep the rows of held-out texts went that
a token occurred in foretells, from token ids alone, how deep a row will go. So texts are sorted by that depth before
the first layer, and each is classified exactly once, without any test on the way.

A realisation of the published idea; departures from it, and what the abstract leaves open:
- The shared loss is the mean of the cross-entropies after all layers; `weights: linear` weighs layer l by l, and
  `distillation` adds KL(after the last layer || after layer l), no gradient through the former.
- `pool` is the masked mean of the tokens after the classifier's own attention; FastBERT takes the first (`pool: cls`).
- `exit_label: entropy` calls the exit layer of a held-out row the first one after which the normalised entropy is
  below `speed`, else the last. `correct` takes the first layer from which on the answer is the final one. Entropy is
  the default, as FastBERT's measure and because it is not blind to how sure an answer is.
- The table counts the occurrences of a token (`count_once`: the rows it occurs in), smoothed towards the distribution
  over all rows with a weight of `smoothing`. It is a dense table inside a graph, not a hash table on a GPU.
- The classifier learns ten times faster than the encoder (`train.head_learning_rate_factor`).
- What is made of the table's rows is the policy `predicted_exit`: by default the rounded expected layer with an offset
  and a gain chosen on further held-out rows, and every row stops after its own layer, not after its batch's deepest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Literal

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from edgebert.bundle.manifest import Macs
from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Encoder
from edgebert.losses import mean_distillation
from edgebert.methods._program import AdaptiveModel, Batch, CompiledStep, Pool, Stage, embed_step, groups, layer_step
from edgebert.methods._student import Student
from edgebert.methods._token_table import TokenTable

STAGES = ("joint",)
POLICIES = ("predicted_exit", "fixed", "never")
WHOLE_MODEL = False
TASKS: tuple[str, ...] = ("classification",)
REFUSES = {
    "regression": "its exit labels come from entropy, which a single value does not have",
    "question_answering": "its exit labels come from the entropy of labels, and a span has distributions over tokens",
}


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `geep`.

    Attributes:
        pool: What the classifier reads of the tokens after its own attention.
        weights: Share of each layer in the loss: equal, or growing with the layer's number.
        distillation: Weight of KL(after the last layer || after layer l), averaged over layers.
        exit_label: What counts as the exit layer of a held-out row.
        speed: The normalised entropy, 0 to 1, below which a held-out row exits. No effect with `correct`.
        smoothing: Weight of the distribution over all rows in a token's.
        count_once: Count a token that occurs several times in a row once.
    """

    pool: Pool = "mean"
    weights: Literal["uniform", "linear"] = "uniform"
    distillation: float = 0.0
    exit_label: Literal["entropy", "correct"] = "entropy"
    speed: float = 0.5
    smoothing: float = 1.0
    count_once: bool = False

    def __post_init__(self) -> None:
        for name in ("distillation", "speed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 < self.smoothing < math.inf:
            raise ValueError(f"smoothing: expected more than 0, got {self.smoothing}")


def exit_labels(logits: Tensor, config: Config) -> Tensor:
    """Returns the layer, from 1, after which each row could stop, int64 [batch].

    Args:
        logits: The classifier's answers after every layer, float [layers, batch, labels].
        config: Says which layer that is.
    """
    if config.exit_label == "entropy":
        logarithm = logits.double().log_softmax(dim=-1)
        entropy = -(logarithm.exp() * logarithm).sum(dim=-1) / math.log(logits.shape[-1])
        may_stop = entropy < config.speed
    else:
        answers = logits.argmax(dim=-1)
        differs_later = (answers != answers[-1]).long().flip(0).cumsum(dim=0).flip(0)
        may_stop = differs_later == 0
    may_stop[-1] = True
    return may_stop.long().argmax(dim=0) + 1


class Geep(AdaptiveModel):
    """An encoder, one classifier for the states after every layer, and a table of exit layers per token."""

    calibrates = True

    def __init__(self, encoder: Encoder, config: Config, n_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.n_labels = n_labels
        self.classifier = Student(encoder.config, config.pool, n_labels)
        self.table = TokenTable(encoder.config.vocabulary_size, encoder.config.layers, config.smoothing)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns the classifier's logits after the last layer, float [batch, labels]."""
        return self.classifier(self.encoder(input_ids, attention_mask, token_type_ids)[-1], attention_mask)

    def answers(self, batch: Batch) -> list[Tensor]:
        """Returns the classifier's logits after every layer, each float [batch, labels]."""
        states = self.encoder(batch.input_ids, batch.attention_mask, batch.token_type_ids)[1:]
        return [self.classifier(state, batch.attention_mask) for state in states]

    def loss(self, batch: Batch) -> Tensor:
        """Returns the weighted cross-entropy after all layers, and the added term."""
        answers = self.answers(batch)
        losses = torch.stack([functional.cross_entropy(logits.float(), batch.labels) for logits in answers])
        weights = torch.ones_like(losses)
        if self.config.weights == "linear":
            weights = torch.arange(1, len(losses) + 1, device=losses.device, dtype=losses.dtype)
        loss = (weights / weights.sum() * losses).sum()
        if self.config.distillation and len(answers) > 1:
            loss = loss + self.config.distillation * mean_distillation(answers[:-1], answers[-1])
        return loss

    def stages(self, train: TrainConfig) -> list[Stage]:
        """Returns the one stage: the shared loss, all weights."""
        trained = groups(self.encoder.parameters(), self.classifier.parameters(), train)
        return [Stage(name=STAGES[0], groups=trained, loss=self.loss)]

    def calibrate(self, batches: Iterable[Batch], special_ids: Collection[int]) -> None:
        """Counts the table anew."""
        self.table.reset(special_ids)
        for batch in batches:
            exits = exit_labels(torch.stack(self.answers(batch)), self.config)
            self.table.count(batch.input_ids, batch.attention_mask, exits, once=self.config.count_once)

    def steps(self) -> list[CompiledStep]:
        """Returns embed, the plan, then each layer followed by the classifier, which is one graph for all."""
        plan = CompiledStep(
            kind="plan",
            layer=0,
            file="plan",
            module=self.table,
            inputs=("input_ids", "attention_mask"),
            outputs=("exit_share", "exit_log_share"),
            macs=Macs(),
        )
        steps = [embed_step(self.encoder), plan]
        for index, layer in enumerate(self.encoder.layers):
            steps.append(layer_step(layer, index, self.encoder.config))
            steps.append(
                CompiledStep(
                    kind="head",
                    layer=index + 1,
                    file="head",
                    module=self.classifier,
                    inputs=("hidden", "attention_mask"),
                    outputs=("logits",),
                    macs=self.classifier.macs,
                )
            )
        return steps


def build(encoder: Encoder, config: Config, n_labels: int) -> Geep:
    """Makes the model, with a new classifier and a table that runs every layer."""
    return Geep(encoder, config, n_labels)


def rule(config: Config) -> tuple[str, dict[str, object]]:
    """Returns the policy a bundle of this method follows unless told otherwise, and its knobs."""
    return "predicted_exit", {"prediction": "expect", "offset": 0.0, "gain": 1.0, "batch_exit": "own"}
