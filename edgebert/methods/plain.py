"""plain: a static BERT with one head, a classifier, a regressor or a reader, the reference of every method.

Devlin et al., 2019 (https://arxiv.org/abs/1810.04805). All layers run on every input; the family's own head reads
the result. With `pool: cls` and all layers it is an ordinary Hugging Face sequence classifier, or regressor of one
output, and is saved as one; for question answering it is one whatever `pool` says, as the head reads every token.

Departures: `pool` may be `mean` or `attention`, and `layers` may keep only the first k layers. That is how the
static frontier that adaptive methods must beat is trained.
"""

from __future__ import annotations

import msgspec
from torch import Tensor

from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Encoder
from edgebert.errors import ConfigError
from edgebert.losses import task_loss
from edgebert.methods._heads import new_head
from edgebert.methods._program import (
    AdaptiveModel,
    Batch,
    CompiledStep,
    HeadStep,
    Pool,
    Stage,
    embed_step,
    groups,
    head_step,
    layer_step,
)

STAGES = ("fine_tune",)
POLICIES = ("never",)
WHOLE_MODEL = True
TASKS = ("classification", "regression", "question_answering")
REFUSES: dict[str, str] = {}


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `plain`.

    Attributes:
        pool: What the head reads: the first token, the mean of the tokens, or learned attention over them. Not used
            for question answering.
        layers: Keep only the first k layers; None keeps all.
    """

    pool: Pool = "cls"
    layers: int | None = None


class Plain(AdaptiveModel):
    """A static encoder and one head."""

    def __init__(self, encoder: Encoder, config: Config, n_labels: int, *, per_token: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.n_labels = n_labels
        self.pooling, self.head = new_head(encoder.config, config.pool, n_labels, per_token=per_token)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns logits, float [batch, labels]; for question answering float [batch, tokens, 2]."""
        hidden = self.encoder(input_ids, attention_mask, token_type_ids)[-1]
        return HeadStep(self.pooling, self.head)(hidden, attention_mask)

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


def build(encoder: Encoder, config: Config, n_labels: int, *, per_token: bool = False) -> Plain:
    """Makes the model; with `layers` set, the encoder keeps only its first layers.

    Args:
        encoder: The encoder.
        config: The settings.
        n_labels: How many labels there are, or outputs of a token.
        per_token: Whether every token has scores, as in question answering.

    Raises:
        ConfigError: `layers` is not between 1 and the encoder's number of layers.
    """
    if config.layers is not None:
        if not 1 <= config.layers <= encoder.config.layers:
            raise ConfigError(f"method.layers: expected 1 to {encoder.config.layers}, got {config.layers}.")
        encoder = encoder.first(config.layers)
    return Plain(encoder, config, n_labels, per_token=per_token)


def rule(config: Config) -> tuple[str, dict[str, object]]:
    """Returns the policy a bundle of this method follows unless told otherwise, and its knobs."""
    return "never", {}
