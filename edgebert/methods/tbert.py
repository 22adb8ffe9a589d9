"""tbert: TBERT, dynamic BERT inference with top-k based predictors: every input has its own heads and neurons.

"TBERT: Dynamic BERT Inference with Top-k Based Predictors", DATE 2023. In every layer two small predictors score the
attention heads and the feed-forward neurons for the input at hand, and exactly the k best of each are computed. So the
share of the work is set beforehand, with no threshold to search. Everything is trained together in one step from a
fine-tuned model, with the same hard choice as at run time, helped by classifiers on the inner layers.

A realisation of the published idea: only the abstract was to be had, and the code of EBERT (Findings of ACL 2021), by
the same first author, whose top-k mode is the nearest precursor. After that code: what is pruned, the predictors'
shape, hard top-k without a sparsity loss, one optimiser. Departures, and what the sources leave open:
- `block_size`: feed-forward neurons are chosen in blocks of neighbours (an eighth of them by default), since skipped
  blocks save time. 1 is the lineage's granularity: there each row gathers the weights of its own neurons and computes
  with these alone, and moving weights costs more time than it saves but for long texts and small shares.
- `pool` is the masked mean of the tokens; EBERT reads the first token, and the mean in the first layer, padding
  included. With `pool: cls` the first layer reads the masked mean: its first token is the same for every input.
- Kept counts are the nearest whole numbers, at least 1, the same for all layers (EBERT rounds the pruned ones down);
  `exact_budget` lets the blocks make up for the rounding of the heads and for the predictors.
- `surrogate: sigmoid` lends the choice the gradient of a sigmoid of the row's standardised scores, straight through
  (Bengio et al., 2013, https://arxiv.org/abs/1308.3432); `identity`, as in EBERT, passes it on unchanged. `topk_noise`
  (0: none) adds Gumbel noise to the scores in training.
- `widths`: every row of a training batch is dealt one of these shares, so that one model serves them all; the papers
  train a model for each share. 1.0 among them keeps the full model, which is what `distillation` takes for a teacher:
  no frozen copy of the fine-tuned one, no gradient, no dropout. `distillation: 0` is the published form.
- `anneal_steps` lowers the kept counts from all to the share's over the first steps (0: from the start).
- Predictors and the classifiers on inner layers learn `head_learning_rate_factor` times faster than the encoder.
- A choice masks what a head gives before the output map, and a neuron after its activation: equal to leaving it out
  for any activation. EBERT masks before it.
- `static: true` learns one score per piece and layer instead, for all inputs: the rival at equal cost, trained alike.
- Layers that share weights (ALBERT) have predictors of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebert.bundle.manifest import Macs, Part, total
from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Encoder, EncoderConfig, initialise
from edgebert.errors import ConfigError
from edgebert.losses import mean_distillation, task_loss
from edgebert.methods._choices import Surrogate, shared_out, straight_through
from edgebert.methods._heads import new_head
from edgebert.methods._pieces import AttentionPart, FeedForwardPart
from edgebert.methods._pooled import Classifier, PooledExit, Pooler
from edgebert.methods._program import (
    AdaptiveModel,
    Batch,
    CompiledStep,
    HeadStep,
    Pool,
    Pooling,
    Stage,
    embed_step,
    evaluating,
    groups,
    head_step,
    layer_step,
)
from edgebert.policies import Choice, SelectPosition
from edgebert.policies.width import kept_counts

STAGES = ("fine_tune", "joint")
POLICIES = ("width", "never")
WHOLE_MODEL = False
TASKS = ("classification", "regression", "question_answering")
REFUSES: dict[str, str] = {}
DEFAULT_BLOCKS = 8

Choose = Callable[[Tensor, str], Tensor]
"""Turns scores, float [batch, pieces], and the name of the choice into 0 or 1 for each piece, float [batch, pieces]."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `tbert`.

    Attributes:
        widths: Shares of the pieces that training deals out to rows, each more than 0, at most 1.
        block_size: Neighbouring feed-forward neurons that are chosen together; 1 chooses single ones. None takes an
            eighth of them.
        exact_budget: Let the kept blocks make up for the rounding of the kept heads, and for the predictors.
        pool: What predictors, head and inner classifiers read of the hidden states.
        static: Learn scores that do not depend on the input.
        predictor_width: Width of a predictor's hidden layer.
        predictor_norm: What its hidden layer is normalised over: the batch, or itself.
        surrogate: Where a choice's gradient comes from.
        topk_noise: Scale of Gumbel noise on the scores in training.
        anneal_steps: Steps in which the kept counts fall from all to what the width says.
        inner_loss: Weight of the mean loss of the classifiers on inner layers.
        inner_layers: The layers that have one, counted from 1; None takes all but the last.
        distillation: Weight of KL(full width || chosen width).
    """

    widths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    block_size: int | None = None
    exact_budget: bool = False
    pool: Pool = "mean"
    static: bool = False
    predictor_width: int = 64
    predictor_norm: Literal["batch", "layer"] = "batch"
    surrogate: Surrogate = "sigmoid"
    topk_noise: float = 0.0
    anneal_steps: int = 0
    inner_loss: float = 1.0
    inner_layers: tuple[int, ...] | None = None
    distillation: float = 1.0

    def __post_init__(self) -> None:
        if not self.widths or not all(0 < width <= 1 for width in self.widths):
            raise ValueError(f"widths: expected shares of more than 0, at most 1, got {self.widths}")
        for name in ("topk_noise", "anneal_steps", "inner_loss", "distillation"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.predictor_width < 1:
            raise ValueError(f"predictor_width: expected 1 or more, got {self.predictor_width}")


class Predictor(nn.Module):
    """Scores the pieces of one part of a layer."""

    def __init__(self, shape: EncoderConfig, config: Config, pool: Pool, pieces: int) -> None:
        super().__init__()
        self.pooling = Pooling(pool, shape.hidden_size)
        self.reduce = nn.Linear(shape.hidden_size, config.predictor_width)
        kind = nn.BatchNorm1d if config.predictor_norm == "batch" else nn.LayerNorm
        self.norm = kind(config.predictor_width, eps=shape.norm_epsilon)
        self.score = nn.Linear(config.predictor_width, pieces)
        initialise(self)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns scores, float [batch, pieces].

        Args:
            hidden: What the part reads, float [batch, tokens, hidden].
            attention_mask: 1 for a token, 0 for padding, int64 [batch, tokens].
        """
        reduced = self.reduce(self.pooling(hidden, attention_mask))
        if isinstance(self.norm, nn.BatchNorm1d) and reduced.shape[0] == 1:  # one row has no variance
            with evaluating(self.norm):
                return self.score(functional.relu(self.norm(reduced)))
        return self.score(functional.relu(self.norm(reduced)))

    def folded(self) -> nn.Module:
        """Returns what runs: the norm over the batch is a linear map then, and part of the one before it."""
        if not isinstance(self.norm, nn.BatchNorm1d):
            return self
        norm, reduce = self.norm, nn.Linear(self.reduce.in_features, self.reduce.out_features)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            reduce.weight.copy_(scale[:, None] * self.reduce.weight)
            reduce.bias.copy_(scale * (self.reduce.bias - norm.running_mean) + norm.bias)
        return FoldedPredictor(self.pooling, reduce, self.score)


class FoldedPredictor(nn.Module):
    """A predictor without its norm."""

    def __init__(self, pooling: Pooling, reduce: nn.Linear, score: nn.Linear) -> None:
        super().__init__()
        self.pooling = pooling
        self.reduce = reduce
        self.score = score

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns scores, float [batch, pieces]; see `Predictor`."""
        return self.score(functional.relu(self.reduce(self.pooling(hidden, attention_mask))))


class FixedScores(nn.Module):
    """Scores that are the same for every input."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.randn(pieces))

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns scores, float [batch, pieces]."""
        return self.scores.expand(hidden.shape[0], -1).clone()

    def folded(self) -> nn.Module:
        """Returns what runs."""
        return self


class TBert(AdaptiveModel):
    """An encoder with two predictors in every layer, and one head."""

    steps_taken: Tensor

    def __init__(self, encoder: Encoder, config: Config, n_labels: int, *, per_token: bool) -> None:
        super().__init__()
        shape = encoder.config
        self.encoder = encoder
        self.config = config
        self.n_labels = n_labels
        self.block_size = block_size(shape, config)
        self.pieces = {"head_choice": shape.heads, "block_choice": shape.feed_forward_size // self.block_size}
        self.pooling, self.head = new_head(shape, config.pool, n_labels, per_token=per_token)
        self.head_predictors = self._predictors("head_choice")
        self.block_predictors = self._predictors("block_choice")
        inner = range(1, shape.layers) if config.inner_layers is None else config.inner_layers
        self.inner = nn.ModuleDict({str(layer): _inner_head(shape, config, n_labels, per_token) for layer in inner})
        self.register_buffer("steps_taken", torch.zeros((), dtype=torch.int64))

    @property
    def chosen_settings(self) -> dict[str, int]:
        """The size of a block."""
        return {"block_size": self.block_size}

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns the logits at full width, float [batch, labels]; for question answering float [batch, tokens, 2]."""
        return self.answer(self.encoder(input_ids, attention_mask, token_type_ids)[-1], attention_mask)

    def answer(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns the head's logits of the last hidden states, float [batch, tokens, hidden]; see `forward`."""
        return HeadStep(self.pooling, self.head)(hidden, attention_mask)

    def walk(self, batch: Batch, choose: Choose) -> list[Tensor]:
        """Takes every row through the layers with the pieces chosen for it; all are computed and the rest masked.

        Args:
            batch: Its rows.
            choose: Asked for the heads of a layer, then for its blocks.

        Returns:
            The hidden states after each layer, float [batch, tokens, hidden].
        """
        mask = batch.attention_mask
        hidden = self.encoder.embed(batch.input_ids, batch.token_type_ids)
        states = []
        for layer, score_heads, score_blocks in zip(
            self.encoder.layers, self.head_predictors, self.block_predictors, strict=True
        ):
            heads = choose(_exactly(score_heads, hidden, mask), "head_choice")
            attended = AttentionPart(layer.attention)(hidden, mask, heads)
            blocks = choose(_exactly(score_blocks, attended, mask), "block_choice")
            hidden = FeedForwardPart(layer.feed_forward, self.block_size)(attended, blocks)
            states.append(hidden)
        return states

    def counts(self, choice: str, widths: Tensor, tokens: Tensor) -> Tensor:
        """Returns how many pieces each row keeps, int64 [batch], as the policy `width` counts them.

        Args:
            choice: `head_choice` or `block_choice`.
            widths: The share of each row, float [batch].
            tokens: Its number of tokens, int64 [batch].
        """
        position, kept = self._positions[choice], torch.empty_like(tokens)
        for width in widths.unique().tolist():
            rows = widths == width
            few = kept_counts(width, position, tokens[rows].cpu().numpy(), exact_budget=self.config.exact_budget)
            kept[rows] = torch.from_numpy(np.asarray(few, np.int64)).to(kept.device)
        return kept

    def fine_tune_loss(self, batch: Batch) -> Tensor:
        """Returns the task's loss at full width."""
        assert batch.labels is not None
        return task_loss(self(batch.input_ids, batch.attention_mask, batch.token_type_ids), batch.labels)

    def joint_loss(self, batch: Batch) -> Tensor:
        """Returns the task's loss at the widths dealt out, that of the inner classifiers, and the distillation."""
        assert batch.labels is not None
        config, mask = self.config, batch.attention_mask
        drawn = shared_out(torch.tensor(config.widths, dtype=torch.float64), len(mask)).to(mask.device)
        left = max(0.0, 1 - int(self.steps_taken) / config.anneal_steps) if config.anneal_steps else 0.0
        tokens = mask.sum(dim=1)

        def choose(scores: Tensor, choice: str) -> Tensor:
            counts = self.counts(choice, drawn, tokens)
            if left:
                counts = counts + ((self.pieces[choice] - counts) * left).round().long()
            return straight_through(scores, counts, config.surrogate, config.topk_noise)

        states = self.walk(batch, choose)
        logits = self.answer(states[-1], mask)
        loss = task_loss(logits, batch.labels)
        if config.inner_loss and self.inner:
            inner = [task_loss(head(states[int(name) - 1], mask), batch.labels) for name, head in self.inner.items()]
            loss = loss + config.inner_loss * torch.stack(inner).mean()
        if config.distillation:
            with torch.no_grad(), evaluating(self):
                full = self(batch.input_ids, mask, batch.token_type_ids)
            loss = loss + config.distillation * mean_distillation([logits], full)
        self.steps_taken += 1
        return loss

    def stages(self, train: TrainConfig) -> list[Stage]:
        """Returns fine-tuning at full width, then everything together."""
        encoder = list(self.encoder.parameters())
        head = [*self.pooling.parameters(), *self.head.parameters()]
        added = [
            *self.head_predictors.parameters(),
            *self.block_predictors.parameters(),
            *self.inner.parameters(),
        ]
        return [
            Stage(name=STAGES[0], groups=groups(encoder, head, train), loss=self.fine_tune_loss),
            Stage(name=STAGES[1], groups=groups(encoder, [*head, *added], train), loss=self.joint_loss),
        ]

    def steps(self) -> list[CompiledStep]:
        """Returns embed; for each layer choose heads, attention, choose blocks, feed-forward; and the head.

        A layer is there as one graph too, for when all of its pieces run.
        """
        shape = self.encoder.config
        attention = [AttentionPart(layer.attention) for layer in self._own_layers]
        feed_forward = [FeedForwardPart(layer.feed_forward, self.block_size) for layer in self._own_layers]
        steps = [embed_step(self.encoder)]
        for index in range(shape.layers):
            own = shape.own_layer(index)
            steps += [
                self._select("head_choice", "hidden", index, self.head_predictors[index]),
                replace(layer_step(self.encoder.layers[index], index, shape), part="fused"),
                self._part("head_choice", "hidden", index, attention[own]),
                self._select("block_choice", "attended", index, self.block_predictors[index]),
                self._part("block_choice", "attended", index, feed_forward[own]),
            ]
        return [*steps, head_step(self.pooling, self.head, shape, self.n_labels)]

    def _predictors(self, choice: str) -> nn.ModuleList:
        shape, config = self.encoder.config, self.config
        if config.static:
            return nn.ModuleList(FixedScores(self.pieces[choice]) for _ in range(shape.layers))
        predictors = []
        for index in range(shape.layers):
            is_first = index == 0 and choice == "head_choice" and config.pool == "cls"
            predictors.append(Predictor(shape, config, "mean" if is_first else config.pool, self.pieces[choice]))
        return nn.ModuleList(predictors)

    @property
    def _own_layers(self) -> list[nn.Module]:
        own = {self.encoder.config.own_layer(index): layer for index, layer in enumerate(self.encoder.layers)}
        return list(own.values())

    @functools.cached_property
    def _positions(self) -> dict[str, SelectPosition]:
        """Where pieces are chosen, by what is chosen from; the same in every layer."""
        choices = {name: Choice(name, pieces, self._each(name)) for name, pieces in self.pieces.items()}
        predictors = total(self._predictor_macs(name) for name in self.pieces)
        return {
            name: SelectPosition(1, choice, tuple(choices.values()), predictors) for name, choice in choices.items()
        }

    def _each(self, choice: str) -> Macs:
        """Returns what one piece costs."""
        width = self.encoder.config.hidden_size
        if choice == "block_choice":
            return Macs(token=2 * width * self.block_size)
        head_size = width // self.encoder.config.heads
        return Macs(token=4 * width * head_size, token_pair=2 * head_size)

    def _predictor_macs(self, choice: str) -> Macs:
        if self.config.static:
            return Macs()
        return Macs(row=self.config.predictor_width * (self.encoder.config.hidden_size + self.pieces[choice]))

    def _select(self, choice: str, reads: str, index: int, predictor: nn.Module) -> CompiledStep:
        name = choice.removesuffix("_choice")
        return CompiledStep(
            kind="select",
            layer=index + 1,
            file=f"{name}s_{index:02d}",
            module=predictor.folded(),
            inputs=(reads, "attention_mask"),
            outputs=(f"{name}_scores",),
            macs=self._predictor_macs(choice),
            may_link=True,
            choice=choice,
            choices=self.pieces[choice],
        )

    def _part(self, choice: str, reads: str, index: int, module: nn.Module) -> CompiledStep:
        is_attention = choice == "head_choice"
        part: Part = "attention" if is_attention else "feed_forward"
        return CompiledStep(
            kind="layer",
            layer=index + 1,
            file=f"{part}_{self.encoder.config.own_layer(index):02d}",
            module=module,
            inputs=(reads, "attention_mask", choice) if is_attention else (reads, choice),
            outputs=("attended" if is_attention else "hidden",),
            macs=Macs(),
            part=part,
            choice=choice,
            choices=self.pieces[choice],
            each=self._each(choice),
        )


def _exactly(predictor: nn.Module, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Returns scores in single precision: in half precision many would be equal."""
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        return predictor(hidden.float(), attention_mask)


def block_size(shape: EncoderConfig, config: Config) -> int:
    """Returns how many neighbouring neurons are chosen together.

    Raises:
        ConfigError: The feed-forward part cannot be divided like that.
    """
    neurons = shape.feed_forward_size
    size = -(-neurons // DEFAULT_BLOCKS) if config.block_size is None else config.block_size
    if size < 1 or neurons % size:
        raise ConfigError(f"method.block_size: expected a divisor of {neurons}, the feed-forward width, got {size}.")
    return size


def _inner_head(shape: EncoderConfig, config: Config, n_labels: int, per_token: bool) -> nn.Module:
    """Returns a classifier on an inner layer: a pooler and a linear map, or one of spans."""
    if per_token:
        return HeadStep(*new_head(shape, config.pool, n_labels, per_token=True))
    return PooledExit(Pooler(shape, config.pool), Classifier(shape, n_labels))


def build(encoder: Encoder, config: Config, n_labels: int, *, per_token: bool = False) -> TBert:
    """Makes the model, with new predictors, inner classifiers and head.

    Args:
        encoder: The encoder.
        config: The settings.
        n_labels: How many labels there are, or outputs of a token.
        per_token: Whether every token has scores, as in question answering.

    Raises:
        ConfigError: A setting does not go with the encoder.
    """
    layers = encoder.config.layers
    if not all(1 <= layer < layers for layer in config.inner_layers or ()):
        raise ConfigError(f"method.inner_layers: expected layers of 1 to {layers - 1}, got {config.inner_layers}.")
    return TBert(encoder, config, n_labels, per_token=per_token)


def rule(config: Config) -> tuple[str, dict[str, object]]:
    """Returns the policy a bundle of this method follows unless told otherwise, and its knobs."""
    return "width", {"width": min(config.widths), "exact_budget": config.exact_budget}
