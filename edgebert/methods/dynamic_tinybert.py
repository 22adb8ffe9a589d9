"""dynamic_tinybert: Dynamic-TinyBERT: tokens leave inside the layers, and every one of them has an answer at the end.

Guskin et al., 2021 (https://arxiv.org/abs/2111.09645), on the Length-Adaptive Transformer's Drop-and-Restore (Kim and
Cho, 2021, https://arxiv.org/abs/2010.07003) and TinyBERT's distillation (Jiao et al., 2020,
https://arxiv.org/abs/1909.10351). Between a layer's attention and its feed-forward part only the tokens go on that
received the most attention, summed over heads and queries. A token that is dropped keeps its last hidden state, and
the head reads all tokens, so that spans can still begin and end anywhere. How many go on from each layer is an input at
run time, searched for after training.

Departures from the paper and its code:
- Only real tokens count as queries and only real tokens are kept, so that padding changes nothing. The code counts
  padded queries too (`compat: official`, for comparisons in torch: there padding and batch mates do
  change what is kept, and an export is refused).
- In training, what a token received comes from probabilities without dropout, which is what is seen at run time; the
  code takes them after dropout. It carries no gradient in either.
- Lengths in training and search are shares of each row's real length, not token counts for one padded length. The
  policy `lengths` takes published counts too; a row that is shorter keeps at most what it has.
- `largest_drop` may differ between layers (the code has one for all): on IMDB, lengths that fall little at first and
  steeply later answered better than a constant ratio of equal cost.
- `keep_cls` is true for classification and regression and false for question answering, as in the code. `pool` is by
  default the masked mean over the restored tokens; `cls` is what the code reads.
- Tokens that stay keep their order, which changes no result but makes places simple.
- Distillation does not count padding, and matches attention probabilities before dropout. A layer m of S is matched
  with layer m * T / S of the teacher's T, to the nearest whole one.
- The shorter passes of `length_drop` are pulled towards the full one by KL(shorter || full), as in the code, with the
  gradient through the shorter one; `divergence: full_short` is the other direction.
- A layer that drops no token of any row in a batch runs as one fused graph and asks for no significance. In two parts
  it was measured 1.02 to 1.06 times as slow (MiniLM-L6 in a chain, 32 to 512 tokens, 1 thread) as `plain`'s layers; the
  price is that the weights of the layers are stored and loaded twice.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn

from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Encoder, initialise
from edgebert.errors import ConfigError
from edgebert.losses import divergence, mean_distillation, task_loss
from edgebert.methods._heads import new_head
from edgebert.methods._program import (
    AdaptiveModel,
    Batch,
    CompiledStep,
    HeadStep,
    LengthSearch,
    Pool,
    Stage,
    dropping_steps,
    embed_step,
    groups,
    head_step,
    restore_step,
)
from edgebert.methods._tokens import ReceivedAttention, drop_and_restore, states_and_probabilities
from edgebert.policies.lengths import SHORTEST

STAGES = ("fine_tune", "distil_layers", "distil_answer", "length_drop")
POLICIES = ("lengths", "never")
WHOLE_MODEL = False
TASKS = ("classification", "regression", "question_answering")
REFUSES: dict[str, str] = {}
SMALLEST_SHARE = 0.02
MOST_LAYERS = 12
"""Layers after which the method's own rule drops nothing more."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `dynamic_tinybert`.

    Attributes:
        pool: What the head reads of the restored tokens; in question answering it reads all of them.
        keep_cls: Never drop the first token. None is true but for question answering.
        compat: `official` lets padding count among the queries, as the published code does.
        teacher: Checkpoint folder, hub id or embedded name of a trained model of the same task and vocabulary. None:
            the stages that distil have no epochs.
        hidden_distillation: Weight of the squared difference of hidden states, through a linear map that is trained
            with them and then forgotten.
        attention_distillation: Weight of the squared difference of attention probabilities.
        largest_drop: Share of its tokens, 0 to 1, that a layer drops at most in `length_drop`; evolution starts there.
            A list has one for each layer, first layer first; its last one stands for all later layers.
        random_passes: Passes at random lengths in `length_drop`, beside the full one and the shortest one.
        layer_drop: Probability of leaving a layer out of a pass of `length_drop`, the full one included.
        divergence: Direction of the distance between a shorter pass and the full one.
        search: How lengths are searched for: `evolution`, optuna's `tpe` or `nsga2`, or `none`.
        search_evaluations: How many lengths are measured at most, each on all held-out rows.
    """

    pool: Pool = "mean"
    keep_cls: bool | None = None
    compat: Literal["none", "official"] = "none"
    teacher: str | None = None
    hidden_distillation: float = 1.0
    attention_distillation: float = 1.0
    largest_drop: float | tuple[float, ...] = 0.2
    random_passes: int = 2
    layer_drop: float = 0.2
    divergence: Literal["short_full", "full_short"] = "short_full"
    search: Literal["evolution", "tpe", "nsga2", "none"] = "evolution"
    search_evaluations: int = 100

    def __post_init__(self) -> None:
        for name in ("hidden_distillation", "attention_distillation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        drops = self.largest_drop if isinstance(self.largest_drop, tuple) else (self.largest_drop,)
        if not drops:
            raise ValueError("largest_drop: expected a number or a list of them, got an empty list")
        for name, value in (("layer_drop", self.layer_drop), *(("largest_drop", drop) for drop in drops)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}: expected 0 to less than 1, got {value}")
        if self.random_passes < 0:
            raise ValueError(f"random_passes: expected 0 or more, got {self.random_passes}")
        if self.search_evaluations < 1:
            raise ValueError(f"search_evaluations: expected 1 or more, got {self.search_evaluations}")


class DynamicTinyBert(AdaptiveModel):
    """An encoder whose layers can drop tokens, and one head that reads all of them."""

    def __init__(self, encoder: Encoder, config: Config, n_labels: int, *, per_token: bool) -> None:
        super().__init__()
        layers = len(encoder.layers)
        if isinstance(config.largest_drop, tuple) and len(config.largest_drop) > layers:
            raise ConfigError(
                f"method.largest_drop: expected at most {layers} numbers, one a layer, got {len(config.largest_drop)}."
            )
        self.encoder = encoder
        self.config = config
        self.n_labels = n_labels
        self.keep_first = not per_token if config.keep_cls is None else config.keep_cls
        self.learns_from = config.teacher
        self.pooling, self.head = new_head(encoder.config, config.pool, n_labels, per_token=per_token)
        self._teachers: tuple[AdaptiveModel, ...] = ()  # in a tuple: no part of the model
        self.fit: nn.Linear | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns the logits with every token in every layer, float [batch, labels] or [batch, tokens, 2]."""
        return self._answer(self.encoder(input_ids, attention_mask, token_type_ids)[-1], attention_mask)

    def answer_at(self, batch: Batch, keep: Sequence[Tensor | None]) -> Tensor:
        """Returns the logits with fewer tokens, float [batch, labels] or [batch, tokens, 2].

        Args:
            batch: The rows.
            keep: For each layer, how many tokens of each row go on from it, int64 [batch]; None leaves the layer out.
        """
        restored = drop_and_restore(
            self.encoder.layers,
            self.encoder.embed(batch.input_ids, batch.token_type_ids),
            batch.attention_mask,
            keep,
            keep_first=self.keep_first,
            count_padding=self.config.compat == "official",
        )
        return self._answer(restored, batch.attention_mask)

    @property
    def length_search(self) -> LengthSearch | None:
        """The search that the settings ask for."""
        if self.config.search == "none":
            return None
        return LengthSearch(
            algorithm=self.config.search,
            evaluations=self.config.search_evaluations,
            largest_drops=largest_drops(self.config, len(self.encoder.layers)),
            answer_at=self.answer_at,
        )

    def learn_from(self, teacher: AdaptiveModel | None) -> None:
        """Takes a teacher, with a new map from its own hidden states to the teacher's, or forgets both.

        Raises:
            ConfigError: The teacher's shape does not go with its own.
        """
        if teacher is None:
            self._teachers, self.fit = (), None
            return
        own, theirs = self.encoder.config, teacher.encoder.config
        where = f"method.teacher: {self.config.teacher}"
        if theirs.vocabulary_size != own.vocabulary_size:
            raise ConfigError(f"{where}: expected {own.vocabulary_size} token ids, got {theirs.vocabulary_size}.")
        if 2 * theirs.layers < own.layers:  # its embeddings would be matched with the state after a layer
            raise ConfigError(f"{where}: expected at least {(own.layers + 1) // 2} layers, got {theirs.layers}.")
        if self.config.attention_distillation and theirs.heads != own.heads:
            raise ConfigError(
                f"{where}: expected {own.heads} attention heads, got {theirs.heads}; "
                "or set method.attention_distillation to 0."
            )
        self.fit = nn.Linear(own.hidden_size, theirs.hidden_size)
        initialise(self.fit)
        self._teachers = (teacher.eval().requires_grad_(False),)

    def fine_tune_loss(self, batch: Batch) -> Tensor:
        """Returns the task's loss with every token in every layer."""
        return _task_loss(self(batch.input_ids, batch.attention_mask, batch.token_type_ids), batch)

    def distil_layers_loss(self, batch: Batch) -> Tensor:
        """Returns the mean squared differences of hidden states and attention from the teacher's, summed over layers.

        Jiao et al., 2020, equations 7 to 9.
        """
        config, mask = self.config, batch.attention_mask
        hidden = self.encoder.embed(batch.input_ids, batch.token_type_ids)
        states, attention = states_and_probabilities(self.encoder.layers, hidden, mask)
        teacher = self._in_place(hidden)
        assert self.fit is not None
        with torch.no_grad():
            embedded = teacher.encoder.embed(batch.input_ids, batch.token_type_ids)
            their_states, their_attention = states_and_probabilities(teacher.encoder.layers, embedded, mask)
        real = mask[:, :, None]
        pairs = real[:, None] * mask[:, None, None, :]
        loss = hidden.new_zeros(())
        for number, state in enumerate(states):
            like = matched_layer(number, len(attention), len(their_attention))
            loss = loss + config.hidden_distillation * _mean_square(self.fit(state) - their_states[like], real)
            if number and config.attention_distillation:
                difference = attention[number - 1] - their_attention[like - 1]
                loss = loss + config.attention_distillation * _mean_square(difference, pairs)
        return loss

    def distil_answer_loss(self, batch: Batch) -> Tensor:
        """Returns KL(teacher || own answer) with every token in every layer; of values the squared difference."""
        return self._teaching_loss(self(batch.input_ids, batch.attention_mask, batch.token_type_ids), batch)

    def length_drop_loss(self, batch: Batch) -> Tensor:
        """Returns the mean over a full, a shortest and some random passes.

        Kim and Cho, 2021, section 3.2: the full pass learns the task (or from the teacher), the shorter ones the full
        one's answer.
        """
        lengths = batch.attention_mask.sum(dim=1)
        drops = largest_drops(self.config, len(self.encoder.layers))
        full = self.answer_at(batch, [None if share is None else lengths for share in self._shares([0.0] * len(drops))])
        loss = self._teaching_loss(full, batch) if self._teachers else _task_loss(full, batch)
        for number in range(self.config.random_passes + 1):
            shares = self._shares(drops, is_random=number > 0)
            short = self.answer_at(batch, [None if share is None else tokens_of(share, lengths) for share in shares])
            loss = loss + self._distance(short, full.detach())
        return loss / (self.config.random_passes + 2)

    def stages(self, train: TrainConfig) -> list[Stage]:
        """Returns fine-tuning, both distillations, and training at random lengths; 0 epochs leave one out.

        Raises:
            ConfigError: A stage that distils has epochs and there is no teacher.
        """
        if any(train.stage_epochs[1:3]) and self.config.teacher is None:
            raise ConfigError(
                f"method.teacher: the stages {STAGES[1]} and {STAGES[2]} need one; "
                "name a checkpoint, or set their train.stage_epochs to 0."
            )
        new = [*self.pooling.parameters(), *self.head.parameters()]
        fit = [] if self.fit is None else list(self.fit.parameters())
        losses: tuple[Callable[[Batch], Tensor], ...] = (
            self.fine_tune_loss,
            self.distil_layers_loss,
            self.distil_answer_loss,
            self.length_drop_loss,
        )
        heads = (new, fit, new, new)
        return [
            Stage(name=name, groups=groups(self.encoder.parameters(), head, train), loss=loss)
            for name, head, loss in zip(STAGES, heads, losses, strict=True)
        ]

    def steps(self) -> list[CompiledStep]:
        """Returns embed, every layer in one and in parts with a drop between them, the restoring, and one head."""
        shape = self.encoder.config
        attention = [
            ReceivedAttention(
                self.encoder.layers[shape.shared_layers * number].attention,
                keep_first=self.keep_first,
                count_padding=self.config.compat == "official",
            )
            for number in range(shape.different_layers)
        ]
        steps = [embed_step(self.encoder)]
        for index, layer in enumerate(self.encoder.layers):
            steps.extend(dropping_steps(layer, attention[shape.own_layer(index)], index, shape))
        return [*steps, restore_step(shape), head_step(self.pooling, self.head, shape, self.n_labels)]

    def _answer(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return HeadStep(self.pooling, self.head)(hidden, attention_mask)

    def _in_place(self, like: Tensor) -> AdaptiveModel:
        """Returns the teacher, on the device of a tensor."""
        (teacher,) = self._teachers
        return teacher.to(like.device)

    def _teaching_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher = self._in_place(logits)
            target = teacher(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        return mean_distillation([logits], target)

    def _shares(self, drops: Sequence[float], *, is_random: bool = False) -> list[float | None]:
        """Returns what share of a row's tokens goes on from each layer; None for a layer that LayerDrop leaves out."""
        share = 1.0
        shares: list[float | None] = []
        for drop, (chance, part) in zip(drops, torch.rand(len(drops), 2).tolist(), strict=True):
            if chance < self.config.layer_drop:
                shares.append(None)
                continue
            share *= 1 - drop * (part if is_random else 1.0)
            shares.append(share)
        return shares

    def _distance(self, short: Tensor, full: Tensor) -> Tensor:
        if self.config.divergence == "full_short":
            return mean_distillation([short], full)
        return divergence(short, full)


def largest_drops(config: Config, layers: int) -> tuple[float, ...]:
    """Returns what share of its tokens each layer drops at most.

    >>> largest_drops(Config(largest_drop=0.2), 3)
    (0.2, 0.2, 0.2)
    >>> largest_drops(Config(largest_drop=(0.1, 0.5)), 3)
    (0.1, 0.5, 0.5)
    """
    drops = config.largest_drop if isinstance(config.largest_drop, tuple) else (config.largest_drop,)
    return (drops + drops[-1:] * layers)[:layers]


def tokens_of(share: float, lengths: Tensor) -> Tensor:
    """Returns how many tokens a share of each row is, int64 [batch], counted as the policy `lengths` does."""
    tokens = torch.ceil(torch.round(share * lengths.double(), decimals=9)).long()
    return tokens.clamp_min(SHORTEST)


def matched_layer(layer: int, layers: int, teacher_layers: int) -> int:
    """Returns the teacher's layer that a layer is matched with; 0 are the embeddings.

    >>> [matched_layer(layer, 6, 12) for layer in range(7)]
    [0, 2, 4, 6, 8, 10, 12]
    >>> [matched_layer(layer, 3, 4) for layer in range(4)]
    [0, 1, 3, 4]
    """
    return (2 * layer * teacher_layers + layers) // (2 * layers)


def _mean_square(difference: Tensor, counted: Tensor) -> Tensor:
    """Returns the mean of the squares that are counted; `counted` is 0 or 1 and broadcasts."""
    weights = counted.to(difference.dtype).expand_as(difference)
    return (difference.float().square() * weights).sum() / weights.sum()


def _task_loss(logits: Tensor, batch: Batch) -> Tensor:
    assert batch.labels is not None
    return task_loss(logits, batch.labels)


def build(encoder: Encoder, config: Config, n_labels: int, *, per_token: bool = False) -> DynamicTinyBert:
    """Makes the model, with a new head.

    Args:
        encoder: The encoder.
        config: The settings.
        n_labels: How many labels there are, or outputs of a token.
        per_token: Whether every token has scores, as in question answering.
    """
    return DynamicTinyBert(encoder, config, n_labels, per_token=per_token)


def rule(config: Config) -> tuple[str, dict[str, object]]:
    """Returns the policy a bundle of this method follows unless told otherwise, and its knobs.

    Every layer drops as many tokens as it does at most in training.
    """
    left = itertools.accumulate((1 - drop for drop in largest_drops(config, MOST_LAYERS)), operator.mul)
    shares = [max(share, SMALLEST_SHARE) for share in left]
    return "lengths", {"lengths": ",".join(f"{share:.2f}" for share in shares)}
