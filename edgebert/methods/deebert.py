"""deebert: DeeBERT, dynamic early exiting for accelerating BERT inference.

Xin et al., 2020 (https://arxiv.org/abs/2004.12993). Encoder and final classifier are fine-tuned as usual; then they
are frozen, and an exit after every other layer, a pooler and a classifier of its own, is trained on the labels. At
run time a row stops as soon as the entropy of an exit's answer, in nats, is below the threshold.

Departures, and what paper and code leave open:
- `pool` is the masked mean of the tokens; the published form takes the first token (`pool: cls`).
- There is no exit of its own after the last layer: the answer there is the final classifier's. The code has one that
  is never trained and may answer all the same.
- The exits' poolers start from the final classifier's, once that is trained; the code copies the pre-trained one.
- New parts learn ten times faster than the encoder (`train.head_learning_rate_factor`); the code has one rate for all.
- A batch may hold several rows, each stops on its own; the code evaluates one row at a time.
"""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Encoder
from edgebert.errors import ConfigError
from edgebert.losses import mean_cross_entropy
from edgebert.methods._pooled import Classifier, PooledExit, Pooler, pooled_macs
from edgebert.methods._program import AdaptiveModel, Batch, CompiledStep, Pool, Stage, exit_steps, groups

STAGES = ("fine_tune", "exits")
POLICIES = ("entropy", "confidence", "fixed", "never")
WHOLE_MODEL = False
TASKS: tuple[str, ...] = ("classification",)
REFUSES = {
    "regression": "its exits stop by entropy, which a single value does not have",
    "question_answering": "its exits stop by the entropy of labels, and a span has two distributions over tokens",
}


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `deebert`.

    Attributes:
        pool: What an exit, the final one included, reads of its layer's hidden states.
    """

    pool: Pool = "mean"


class DeeBert(AdaptiveModel):
    """An encoder with a final classifier, and an exit after every layer but the last."""

    def __init__(self, encoder: Encoder, config: Config, n_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.n_labels = n_labels
        *exits, self.final = (
            PooledExit(Pooler(encoder.config, config.pool), Classifier(encoder.config, n_labels))
            for _ in encoder.layers
        )
        self.exits = nn.ModuleList(exits)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns the final classifier's logits, float [batch, labels]."""
        return self.final(self.encoder(input_ids, attention_mask, token_type_ids)[-1], attention_mask)

    def fine_tune_loss(self, batch: Batch) -> Tensor:
        """Returns the final classifier's cross-entropy."""
        logits = self(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        return functional.cross_entropy(logits.float(), batch.labels)

    def exits_loss(self, batch: Batch) -> Tensor:
        """Returns the cross-entropy summed over all exits but the final one; the encoder gets no gradient."""
        with torch.no_grad():
            states = self.encoder(batch.input_ids, batch.attention_mask, batch.token_type_ids)[1:-1]
        logits = [part(x, batch.attention_mask) for part, x in zip(self.exits, states, strict=True)]
        assert batch.labels is not None
        return len(logits) * mean_cross_entropy(logits, batch.labels)

    def copy_pooler(self) -> None:
        """Gives every exit the final classifier's pooler to start from."""
        for part in self.exits:
            part.pooler.load_state_dict(self.final.pooler.state_dict())

    def stages(self, train: TrainConfig) -> list[Stage]:
        """Returns fine-tuning through the final classifier, then the exits with all else frozen."""
        fine_tune = groups(self.encoder.parameters(), self.final.parameters(), train)
        exits = groups([], self.exits.parameters(), train)
        return [
            Stage(name=STAGES[0], groups=fine_tune, loss=self.fine_tune_loss),
            Stage(name=STAGES[1], groups=exits, loss=self.exits_loss, before=self.copy_pooler),
        ]

    def steps(self) -> list[CompiledStep]:
        """Returns embed, then each layer followed by its exit; the last one is the final classifier."""
        return exit_steps(self.encoder, [*self.exits, self.final], pooled_macs(self.encoder.config, self.n_labels))


def build(encoder: Encoder, config: Config, n_labels: int) -> DeeBert:
    """Makes the model, with new classifiers.

    Raises:
        ConfigError: The encoder has one layer only, so that there is no exit before the final classifier.
    """
    if encoder.config.layers < 2:
        raise ConfigError("deebert: expected an encoder of 2 or more layers, got 1; it would have no early exit.")
    return DeeBert(encoder, config, n_labels)


def rule(config: Config) -> tuple[str, dict[str, object]]:
    """Returns the policy a bundle of this method follows unless told otherwise, and its knobs."""
    return "entropy", {"threshold": 0.3, "scale": "nats"}
