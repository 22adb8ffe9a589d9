"""pabee: PABEE, patience-based early exit ("BERT Loses Patience").

Zhou et al., 2020 (https://arxiv.org/abs/2006.04152). Every layer is followed by a linear classifier on a pooler that
all of them share; all are trained together with the encoder, a deeper one with more weight. At run time a row stops
once its prediction has stayed the same for `patience` exits in a row, which also works for regression.

Departures, and what paper and code leave open:
- `pool` is the masked mean of the tokens; the published form takes the first token (`pool: cls`), whose early states
  carry nothing in a sentence-embedding backbone: constant answers agree, and every row stops at once and wrong.
- `shared_pooler: false` gives every exit a pooler of its own; one for all is the published form.
- `distillation` is an added term, the mean KL(last exit || exit); 0 is the published loss.
- `confidence`, the usual rule of early exits, is offered beside `patience` where there are probabilities: with few
  layers patience is coarse.
- New parts learn ten times faster than the encoder (`train.head_learning_rate_factor`); the code has one rate for all.
- The shared pooler starts from new weights; the code takes the pre-trained one.
- The patience is each row's own; the code lets a batch stop only as a whole and evaluates one row at a time.
"""

from __future__ import annotations

import msgspec
from torch import Tensor, nn

from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Encoder
from edgebert.errors import ConfigError
from edgebert.losses import mean_distillation, task_loss
from edgebert.methods._pooled import Classifier, PooledExit, Pooler, pooled_macs
from edgebert.methods._program import AdaptiveModel, Batch, CompiledStep, Pool, Stage, exit_steps, groups

STAGES = ("joint",)
POLICIES = ("patience", "confidence", "fixed", "never")
WHOLE_MODEL = False
TASKS: tuple[str, ...] = ("classification", "regression")
REFUSES: dict[str, str] = {
    "question_answering": "its exits compare one label or value of a row, and a span has two tokens",
}


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `pabee`.

    Attributes:
        pool: What an exit reads of its layer's hidden states.
        shared_pooler: All exits share one pooler (as published), or each has its own.
        distillation: Weight of KL(last exit || exit), averaged over exits (0 in the paper). Not for regression.
    """

    pool: Pool = "mean"
    shared_pooler: bool = True
    distillation: float = 0.0

    def __post_init__(self) -> None:
        if not self.distillation >= 0:
            raise ValueError(f"distillation: expected 0 or more, got {self.distillation}")


class Pabee(AdaptiveModel):
    """An encoder with a classifier after every layer."""

    def __init__(self, encoder: Encoder, config: Config, n_labels: int) -> None:
        super().__init__()
        shape = encoder.config
        self.encoder = encoder
        self.config = config
        self.n_labels = n_labels
        self.poolers = nn.ModuleList(
            Pooler(shape, config.pool) for _ in range(1 if config.shared_pooler else shape.layers)
        )
        self.classifiers = nn.ModuleList(Classifier(shape, n_labels) for _ in range(shape.layers))

    def exits(self) -> list[PooledExit]:
        """Returns the exit of every layer."""
        poolers = list(self.poolers) * (len(self.classifiers) // len(self.poolers))
        return [PooledExit(pooler, part) for pooler, part in zip(poolers, self.classifiers, strict=True)]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns the last exit's logits, float [batch, labels]; [batch, 1] for regression."""
        return self.exits()[-1](self.encoder(input_ids, attention_mask, token_type_ids)[-1], attention_mask)

    def loss(self, batch: Batch) -> Tensor:
        """Returns the exits' losses, cross-entropy or squared error, weighted by their layer, and the added term."""
        states = self.encoder(batch.input_ids, batch.attention_mask, batch.token_type_ids)[1:]
        logits = [part(x, batch.attention_mask).float() for part, x in zip(self.exits(), states, strict=True)]
        layers = range(1, len(logits) + 1)
        assert batch.labels is not None
        weighted = [layer * task_loss(given, batch.labels) for layer, given in zip(layers, logits, strict=True)]
        loss = sum(weighted[1:], weighted[0]) / sum(layers)
        if self.config.distillation and len(logits) > 1:
            loss = loss + self.config.distillation * mean_distillation(logits[:-1], logits[-1])
        return loss

    def stages(self, train: TrainConfig) -> list[Stage]:
        """Returns the one stage: all exits and all weights together."""
        new = [*self.poolers.parameters(), *self.classifiers.parameters()]
        return [Stage(name=STAGES[0], groups=groups(self.encoder.parameters(), new, train), loss=self.loss)]

    def steps(self) -> list[CompiledStep]:
        """Returns embed, then each layer followed by its exit."""
        return exit_steps(self.encoder, self.exits(), pooled_macs(self.encoder.config, self.n_labels))


def build(encoder: Encoder, config: Config, n_labels: int) -> Pabee:
    """Makes the model, with new poolers and classifiers.

    Raises:
        ConfigError: `distillation` is set for regression.
    """
    if n_labels == 1 and config.distillation:
        raise ConfigError("method.distillation: expected 0 for regression, where an exit gives no distribution.")
    return Pabee(encoder, config, n_labels)


def rule(config: Config) -> tuple[str, dict[str, object]]:
    """Returns the policy a bundle of this method follows unless told otherwise, and its knobs."""
    return "patience", {"patience": 3, "tolerance": 0.1}
