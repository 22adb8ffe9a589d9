"""dact_bert: DACT-BERT, differentiable adaptive computation time for an efficient BERT inference.

Eyzaguirre, del Rio, Araujo, Soto, 2021 (https://arxiv.org/abs/2109.11745); the halting rule is that of DACT
(Eyzaguirre and Soto, CVPR 2020). After every layer a small unit gives a label distribution y_n and a halting value
h_n. The answers are mixed as they come, a_n = y_n p_{n-1} + a_{n-1} (1 - p_{n-1}) with p_n = h_n p_{n-1}, and the
mixture is trained as a whole. At run time a row stops as soon as the layers left cannot change the argmax of a_N.

A realisation of the published idea; departures from it, and what the sources leave open:
- `pool` is the masked mean of the tokens; the paper's figure suggests the first token (`pool: cls`), whose early
  states carry nothing in a sentence-embedding backbone.
- `trunk` is 128 wide; the paper does not give the width. Units are separate for every layer.
- `ponder: h_sum` is the paper's sum of halting values as far as known; `p_sum` is the earlier DACT penalty.
- `halt_input: uncertainty` lets the halting output also see how undecided its own label distribution is: a learned
  slope times (the normalised entropy of y_n - 1/2) is added to the halting logit; no gradient flows through y_n
  there. A linear output on the trunk has to learn that from scratch and stays blurred. `trunk` is the published form.
- The halting logit starts at `halt_bias` (2) plus that term, so that an undecided row carries on from the first step.
- Dropout of the encoder's rate before the trunk, in training.
- New parts learn ten times faster than the encoder (`train.head_learning_rate_factor`); the paper has one rate for all.
- `exit_loss` and `distillation` are added terms: each unit is also trained as a classifier of its own, and taught by
  the last unit. With both at 0 the loss is the published one.
- Stage 1 fine-tunes through the last unit's own classifier, since the encoder family's head is not used afterwards.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebert.bundle.manifest import Macs
from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Encoder, EncoderConfig, initialise
from edgebert.losses import mean_cross_entropy, mean_distillation, normalised_entropy, probability_nll
from edgebert.methods._program import (
    AdaptiveModel,
    Batch,
    CompiledStep,
    Pool,
    Pooling,
    Stage,
    exit_steps,
    groups,
)

STAGES = ("fine_tune", "joint")
POLICIES = ("halting", "confidence", "fixed", "never")
WHOLE_MODEL = False
TASKS = ("classification",)
REFUSES = {
    "regression": "its halting bound compares label probabilities, which a single value does not have",
    "question_answering": "its halting bound compares the probabilities of labels, and a span has those of every token",
}
HALT_SLOPE = 12.0
"""Start value of the slope: h falls from 0.9 to 0.1 while the normalised entropy falls by about a third."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `dact_bert`.

    Attributes:
        pool: What a unit reads of its layer's hidden states.
        trunk: Width r of the layer that a unit's two outputs share.
        ponder: `h_sum` penalises the sum of h_n, `p_sum` the sum of p_n.
        tau: Weight of the penalty: more makes rows stop earlier.
        bound: `paper` is the published stopping bound, `tight` a sound one that never stops later.
        halt_input: What the halting output reads: the trunk (as published), or also the entropy of y_n.
        halt_bias: Start value of the halting logit where the entropy is one half, or everywhere for `trunk`.
        exit_loss: Weight of every unit's own cross-entropy (0 in the paper).
        distillation: Weight of KL(last unit || unit), averaged over units (0 in the paper).
    """

    pool: Pool = "mean"
    trunk: int = 128
    ponder: Literal["h_sum", "p_sum"] = "h_sum"
    tau: float = 0.02
    bound: Literal["paper", "tight"] = "paper"
    halt_input: Literal["uncertainty", "trunk"] = "uncertainty"
    halt_bias: float = 2.0
    exit_loss: float = 1.0
    distillation: float = 1.0

    def __post_init__(self) -> None:
        for name in ("tau", "exit_loss", "distillation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.trunk < 1:
            raise ValueError(f"trunk: expected 1 or more, got {self.trunk}")


class Unit(nn.Module):
    """The unit after one layer: a shared trunk, a label distribution and a halting value."""

    def __init__(self, shape: EncoderConfig, config: Config, n_labels: int) -> None:
        super().__init__()
        self.pooling = Pooling(config.pool, shape.hidden_size)
        self.dropout = nn.Dropout(shape.hidden_dropout)
        self.trunk = nn.Linear(shape.hidden_size, config.trunk)
        self.label = nn.Linear(config.trunk, n_labels)
        self.halt = nn.Linear(config.trunk, 1)
        initialise(self)
        nn.init.constant_(self.halt.bias, config.halt_bias)
        if config.halt_input == "uncertainty":
            self.halt_slope = nn.Parameter(torch.tensor(HALT_SLOPE))
        else:
            self.halt_slope = None

    def logits(self, hidden: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns label logits, float [batch, labels], and the halting logit, float [batch]."""
        trunk = functional.relu(self.trunk(self.dropout(self.pooling(hidden, attention_mask))))
        label, halt = self.label(trunk).float(), self.halt(trunk).float().squeeze(-1)
        if self.halt_slope is not None:
            halt = halt + self.halt_slope * (normalised_entropy(label.detach()) - 0.5)
        return label, halt

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns y_n, float [batch, labels], and h_n, float [batch]."""
        label, halt = self.logits(hidden, attention_mask)
        return label.softmax(dim=-1), torch.sigmoid(halt)


def accumulate(labels: list[Tensor], halts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Mixes the units' answers over the full depth.

    Args:
        labels: y_1 to y_N, each float [batch, labels], summing to 1.
        halts: h_1 to h_N, each float [batch], 0 to 1.

    Returns:
        a_N, float [batch, labels], and p_1 to p_N, each float [batch].
    """
    answer = torch.zeros_like(labels[0])
    remaining = torch.ones_like(halts[0])
    trajectory = []
    for label, halt in zip(labels, halts, strict=True):
        answer = label * remaining[:, None] + answer * (1 - remaining[:, None])
        remaining = halt * remaining
        trajectory.append(remaining)
    return answer, trajectory


class DactBert(AdaptiveModel):
    """An encoder with a unit after every layer."""

    def __init__(self, encoder: Encoder, config: Config, n_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.n_labels = n_labels
        self.units = nn.ModuleList(Unit(encoder.config, config, n_labels) for _ in encoder.layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns log a_N, float [batch, labels]."""
        states = self.encoder(input_ids, attention_mask, token_type_ids)[1:]
        pairs = [unit(state, attention_mask) for unit, state in zip(self.units, states, strict=True)]
        answer, _ = accumulate([label for label, _ in pairs], [halt for _, halt in pairs])
        return answer.clamp_min(1.0e-30).log()

    def loss(self, batch: Batch) -> Tensor:
        """Returns the joint stage's loss: -log a_N[label] + tau * ponder, and the added terms."""
        states = self.encoder(batch.input_ids, batch.attention_mask, batch.token_type_ids)[1:]
        pairs = [unit.logits(state, batch.attention_mask) for unit, state in zip(self.units, states, strict=True)]
        logits = [label for label, _ in pairs]
        halts = [torch.sigmoid(halt) for _, halt in pairs]
        answer, trajectory = accumulate([label.softmax(dim=-1) for label in logits], halts)
        ponder = torch.stack(halts if self.config.ponder == "h_sum" else trajectory).sum(dim=0).mean()
        assert batch.labels is not None
        loss = probability_nll(answer, batch.labels) + self.config.tau * ponder
        if self.config.exit_loss:
            loss = loss + self.config.exit_loss * mean_cross_entropy(logits, batch.labels)
        if self.config.distillation and len(logits) > 1:
            loss = loss + self.config.distillation * mean_distillation(logits[:-1], logits[-1])
        return loss

    def stages(self, train: TrainConfig) -> list[Stage]:
        """Returns fine-tuning through the last unit's classifier, then the joint stage on all weights."""
        last = self.units[-1]

        def fine_tune(batch: Batch) -> Tensor:
            state = self.encoder(batch.input_ids, batch.attention_mask, batch.token_type_ids)[-1]
            return functional.cross_entropy(last.logits(state, batch.attention_mask)[0], batch.labels)

        encoder = self.encoder.parameters
        return [
            Stage(name=STAGES[0], groups=groups(encoder(), last.parameters(), train), loss=fine_tune),
            Stage(name=STAGES[1], groups=groups(encoder(), self.units.parameters(), train), loss=self.loss),
        ]

    def steps(self) -> list[CompiledStep]:
        """Returns embed, then each layer followed by its unit."""
        shape = self.encoder.config
        macs = Macs(row=shape.hidden_size * self.config.trunk + self.config.trunk * (self.n_labels + 1))
        return exit_steps(self.encoder, self.units, macs, ("probabilities", "halt"))


def build(encoder: Encoder, config: Config, n_labels: int) -> DactBert:
    """Makes the model, with new units."""
    return DactBert(encoder, config, n_labels)


def rule(config: Config) -> tuple[str, dict[str, object]]:
    """Returns the policy a bundle of this method follows unless told otherwise, and its knobs."""
    return "halting", {"slack": 0.0, "bound": config.bound}
