"""fastbert: FastBERT, a self-distilling BERT with adaptive inference time.

Liu et al., 2020 (https://arxiv.org/abs/2004.02178). Every layer is followed by a small classifier. The last one, the
teacher, is fine-tuned with the encoder; then both are frozen and the others, the students, learn to answer like the
teacher. At run time a row stops as soon as the normalised entropy of a classifier's answer is below the threshold.

Departures, and what paper and code leave open:
- `pool` is the masked mean of the tokens after the classifier's own attention; the published form takes the first
  token there (`pool: cls`).
- `joint` is ours: step 2 then trains all weights, encoder and teacher included, with the mean cross-entropy of all
  classifiers plus the mean KL(teacher || student), no gradient through the teacher's answer there. The published
  step 2 (`joint: false`) never touches the encoder, so that early layers stay as fine-tuning for the last one left
  them.
- The distillation loss is KL(teacher || student), summed over students, as in the code; the paper writes the reverse.
- `teacher_eval` runs the frozen encoder and teacher without dropout during distillation; in the code they keep it.
- Rows that are distilled are those of the training data; labels are not used for it.
- In step 1 the teacher learns ten times faster than the encoder (`train.head_learning_rate_factor`); the code has one
  rate for all there.
- AdamW corrects its bias, which the code's does not.
"""

from __future__ import annotations

import contextlib

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Encoder
from edgebert.errors import ConfigError
from edgebert.losses import mean_cross_entropy, mean_distillation
from edgebert.methods._program import (
    AdaptiveModel,
    Batch,
    CompiledStep,
    Pool,
    Stage,
    evaluating,
    exit_steps,
    groups,
)
from edgebert.methods._student import Student

STAGES = ("fine_tune", "distil")
POLICIES = ("entropy", "confidence", "fixed", "never")
WHOLE_MODEL = False
TASKS: tuple[str, ...] = ("classification",)
REFUSES = {
    "regression": "its exits stop by entropy, which a single value does not have",
    "question_answering": "its exits stop by the entropy of labels, and a span has two distributions over tokens",
}


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `fastbert`.

    Attributes:
        pool: What a classifier reads of the tokens after its own attention.
        joint: Train all weights in step 2, not only the students.
        teacher_eval: Distil from an encoder and a teacher without dropout. No effect with `joint`.
    """

    pool: Pool = "mean"
    joint: bool = False
    teacher_eval: bool = True


class FastBert(AdaptiveModel):
    """An encoder with a classifier after every layer; the last one is the teacher."""

    def __init__(self, encoder: Encoder, config: Config, n_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.n_labels = n_labels
        self.students = nn.ModuleList(
            Student(encoder.config, config.pool, n_labels) for _ in range(encoder.config.layers - 1)
        )
        self.teacher = Student(encoder.config, config.pool, n_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns the teacher's logits, float [batch, labels]."""
        return self.teacher(self.encoder(input_ids, attention_mask, token_type_ids)[-1], attention_mask)

    def fine_tune_loss(self, batch: Batch) -> Tensor:
        """Returns the teacher's cross-entropy."""
        logits = self(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        return functional.cross_entropy(logits.float(), batch.labels)

    def distillation_loss(self, batch: Batch) -> Tensor:
        """Returns KL(teacher || student) summed over students; encoder and teacher get no gradient."""
        frozen = (self.encoder, self.teacher)
        with torch.no_grad(), evaluating(*frozen) if self.config.teacher_eval else contextlib.nullcontext():
            states = self.encoder(batch.input_ids, batch.attention_mask, batch.token_type_ids)[1:]
            target = self.teacher(states[-1], batch.attention_mask)
        return len(self.students) * mean_distillation(self._answers(states, batch), target)

    def joint_loss(self, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of all classifiers plus the students' mean KL(teacher || student)."""
        states = self.encoder(batch.input_ids, batch.attention_mask, batch.token_type_ids)[1:]
        target = self.teacher(states[-1], batch.attention_mask)
        students = self._answers(states, batch)
        assert batch.labels is not None
        return mean_cross_entropy([*students, target], batch.labels) + mean_distillation(students, target)

    def _answers(self, states: list[Tensor], batch: Batch) -> list[Tensor]:
        return [student(x, batch.attention_mask) for student, x in zip(self.students, states[:-1], strict=True)]

    def stages(self, train: TrainConfig) -> list[Stage]:
        """Returns fine-tuning through the teacher, then distillation of the students."""
        encoder, teacher, students = (list(part.parameters()) for part in (self.encoder, self.teacher, self.students))
        fine_tune = Stage(name=STAGES[0], groups=groups(encoder, teacher, train), loss=self.fine_tune_loss)
        if self.config.joint:
            everything = groups(encoder, [*teacher, *students], train)
            return [fine_tune, Stage(name=STAGES[1], groups=everything, loss=self.joint_loss)]
        return [fine_tune, Stage(name=STAGES[1], groups=groups([], students, train), loss=self.distillation_loss)]

    def steps(self) -> list[CompiledStep]:
        """Returns embed, then each layer followed by its classifier."""
        return exit_steps(self.encoder, [*self.students, self.teacher], self.teacher.macs)


def build(encoder: Encoder, config: Config, n_labels: int) -> FastBert:
    """Makes the model, with new classifiers.

    Raises:
        ConfigError: The encoder has one layer only, so that there is no student.
    """
    if encoder.config.layers < 2:
        raise ConfigError("fastbert: expected an encoder of 2 or more layers, got 1; it would have no student.")
    return FastBert(encoder, config, n_labels)


def rule(config: Config) -> tuple[str, dict[str, object]]:
    """Returns the policy a bundle of this method follows unless told otherwise, and its knobs."""
    return "entropy", {"threshold": 0.5, "scale": "normalised"}
