"""plain: a static BERT with one head, a classifier or a regressor, the reference of every method.

Devlin et al., 2019 (https://arxiv.org/abs/1810.04805). All layers run on every input; the family's own head reads
the result. With `pool: cls` and all layers it is an ordinary Hugging Face sequence classifier, or regressor of one
output, and is saved as one.

Departures: `pool` may be `mean` or `attention`, and `layers` may keep only the first k layers. That is how the
static frontier that adaptive methods must beat is trained.
"""

from __future__ import annotations

import msgspec
from torch import Tensor

from edgebert import registry
from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Encoder, initialise
from edgebert.errors import ConfigError
from edgebert.losses import task_loss
from edgebert.methods._program import (
    AdaptiveModel,
    Batch,
    CompiledStep,
    Pool,
    Pooling,
    Stage,
    embed_step,
    groups,
    head_step,
    layer_step,
)

STAGES = ("fine_tune",)
POLICIES = ("never",)
WHOLE_MODEL = True
TASKS = ("classification", "regression")
REFUSES: dict[str, str] = {}


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `plain`.

    Attributes:
        pool: What the head reads: the first token, the mean of the tokens, or learned attention over them.
        layers: Keep only the first k layers; None keeps all.
    """

    pool: Pool = "cls"
    layers: int | None = None


class Plain(AdaptiveModel):
    """A static encoder and one classification head."""

    def __init__(self, encoder: Encoder, config: Config, n_labels: int) -> None:
        super().__init__()
        family = registry.load("edgebert.encoders", encoder.config.family)
        self.encoder = encoder
        self.pooling = Pooling(config.pool, encoder.config.hidden_size)
        self.head = family.ClassificationHead(encoder.config, n_labels)
        self.n_labels = n_labels
        initialise(self.pooling)
        initialise(self.head)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns logits, float [batch, labels]."""
        hidden = self.encoder(input_ids, attention_mask, token_type_ids)[-1]
        return self.head(self.pooling(hidden, attention_mask))

    def stages(self, train: TrainConfig) -> list[Stage]:
        """Returns the one stage: the task's loss (cross-entropy or squared error), all weights."""

        def loss(batch: Batch) -> Tensor:
            assert batch.labels is not None
            return task_loss(self(batch.input_ids, batch.attention_mask, batch.token_type_ids), batch.labels)

        new = [*self.pooling.parameters(), *self.head.parameters()]
        return [Stage(name=STAGES[0], groups=groups(self.encoder.parameters(), new, train), loss=loss)]

    def steps(self) -> list[CompiledStep]:
        """Returns embed, the layers, and one head."""
        shape = self.encoder.config
        head = head_step(self.pooling, self.head, shape, self.n_labels, may_link=True)
        layers = [layer_step(layer, index, shape) for index, layer in enumerate(self.encoder.layers)]
        return [embed_step(self.encoder), *layers, head]


def build(encoder: Encoder, config: Config, n_labels: int) -> Plain:
    """Makes the model; with `layers` set, the encoder keeps only its first layers.

    Raises:
        ConfigError: `layers` is not between 1 and the encoder's number of layers.
    """
    if config.layers is not None:
        if not 1 <= config.layers <= encoder.config.layers:
            raise ConfigError(f"method.layers: expected 1 to {encoder.config.layers}, got {config.layers}.")
        encoder = encoder.first(config.layers)
    return Plain(encoder, config, n_labels)


def rule(config: Config) -> tuple[str, dict[str, object]]:
    """Returns the policy a bundle of this method follows unless told otherwise, and its knobs."""
    return "never", {}
