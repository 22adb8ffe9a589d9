"""dpbert: DPBERT, dynamic planning: every input takes a path of its own through the layers.

"DPBERT: Dynamic Planning for BERT", ECAI 2023 (https://arxiv.org/abs/2308.00108). A planner decides for each input
which layers it runs; a layer left out passes its input on unchanged. The model is first made robust to missing layers,
then the planner is trained to keep the answer at a given share of the layers, then both together. The answer always
comes from the one head after the last position.

A realisation of the published idea; only the abstract was to be had, so the planner's shape and training are ours:
- `planner: sequential` decides before each layer on the state so far; `upfront` decides the whole path on the
  embeddings. The abstract leaves open which; "included or bypassed during inference" reads like the former.
- A planner is one hidden layer of `planner_width`, separate for every layer, or one for all that also knows the layer
  (`shared_planner`). With `pool: cls` the first one, and one for all, reads the masked mean: at the embeddings the
  first token is the same for every input.
- `planner_input: uncertainty` also shows it how undecided the head would be if the path ended here (the normalised
  entropy of the head's answer, no gradient through it); `state` shows the pooled state alone. Not for regression and
  question answering, and not for `upfront`, which sees no answer.
- Four stages: fine-tuning; path-robust tuning with every layer left out with `skip_probability` and, for half of the
  rows, everything after a random layer; the planner alone; everything together.
- The teacher of a path is the same model with every layer, not a frozen copy. `full_loss` keeps it one: from the second
  stage on, the task's loss with every layer is added. At 0 the teacher has no gradient and no dropout, and drifts.
- `st_gumbel` adds logistic noise to the planner's logits, decides hard, and lets the gradient through a sigmoid;
  `reinforce` samples a path, rewards 1 - share^2 if the answer is right and -`wrong_penalty` if not, and takes the
  reward of the path without sampling as its baseline. No curriculum: new planners include most layers.
- The mean share of layers that really ran is kept near `executed_share` by `cost_weight` times the squared difference
  (`st_gumbel`). The default is 0.55 of them; the paper's headline speaks of three quarters of the time.
- A batch is split by path, with `upfront`, only where the paths have 8 rows or more on average; else each layer runs on
  the rows of the batch that want it, which was measured faster. Neither changes an answer.
- With `full_loss` above 0 the pass that teaches has dropout, being trained itself.
- No path is empty: a row that has left out everything runs the last layer, or with `upfront` its likeliest one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebert.bundle.manifest import Macs, StepKind
from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Encoder, EncoderConfig, initialise
from edgebert.errors import ConfigError
from edgebert.losses import is_right, mean_distillation, normalised_entropy, task_loss
from edgebert.methods._heads import new_head
from edgebert.methods._paths import (
    log_probability,
    mean_entropy,
    not_empty,
    random_paths,
    reinforce_loss,
    reward,
    sample,
    straight_through,
    threshold,
)
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

STAGES = ("fine_tune", "path_robust", "planner", "joint")
POLICIES = ("bypass", "path", "fixed", "never")
WHOLE_MODEL = False
TASKS = ("classification", "regression", "question_answering")
REFUSES: dict[str, str] = {}

INCLUDE_BIAS = 2.0
"""Start value of a planner's logit: a layer is included with probability 0.88."""

Decide = Callable[[Tensor], Tensor]
"""Turns inclusion logits, float [batch], into decisions, 0 or 1, float [batch]."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `dpbert`.

    Attributes:
        planner: `sequential` decides before each layer, `upfront` before the first.
        estimator: How the planner gets a gradient: `st_gumbel` or `reinforce`.
        executed_share: Share of the layers that training aims at, 0 to 1. Not used by `reinforce`.
        pool: What the planner and the head read of the hidden states; in question answering the head reads all.
        planner_input: `state`, or also the `uncertainty` of the head's answer at that point. None is `uncertainty`
            where a planner sees an answer that can be undecided: `sequential`, for classification.
        planner_width: Width of a planner's hidden layer.
        shared_planner: One planner for all layers, with an embedding of the layer. Only for `sequential`.
        skip_probability: Probability of leaving a layer out in path-robust tuning.
        full_loss: Weight of the task's loss with every layer, from the second stage on.
        distillation: Weight of KL(all layers || path).
        cost_weight: Weight of (mean share - executed_share)^2.
        temperature: Of the sigmoid that carries the gradient of a decision.
        wrong_penalty: Reward of a wrong answer is minus this.
        entropy_bonus: Weight of the planner's entropy, for `reinforce`.
    """

    planner: Literal["sequential", "upfront"] = "sequential"
    estimator: Literal["st_gumbel", "reinforce"] = "st_gumbel"
    executed_share: float = 0.55
    pool: Pool = "mean"
    planner_input: Literal["state", "uncertainty"] | None = None
    planner_width: int = 64
    shared_planner: bool = False
    skip_probability: float = 0.1
    full_loss: float = 1.0
    distillation: float = 1.0
    cost_weight: float = 4.0
    temperature: float = 1.0
    wrong_penalty: float = 1.0
    entropy_bonus: float = 1.0e-3

    def __post_init__(self) -> None:
        for name in ("executed_share", "skip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        for name in ("full_loss", "distillation", "cost_weight", "wrong_penalty", "entropy_bonus"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected more than 0, got {self.temperature}")
        if self.planner_width < 1:
            raise ValueError(f"planner_width: expected 1 or more, got {self.planner_width}")
        if self.shared_planner and self.planner == "upfront":
            raise ValueError("shared_planner: an upfront planner is one already; expected false")
        if self.planner_input == "uncertainty" and self.planner == "upfront":
            raise ValueError("planner_input: an upfront planner sees no answer; expected state or null")


class LayerPlanner(nn.Module):
    """Decides one layer on the state before it."""

    def __init__(self, shape: EncoderConfig, config: Config, pool: Pool) -> None:
        super().__init__()
        self.pooling = Pooling(pool, shape.hidden_size)
        features = shape.hidden_size + (config.planner_input == "uncertainty")
        self.expand = nn.Linear(features, config.planner_width)
        self.decide = nn.Linear(config.planner_width, 1)
        initialise(self)
        nn.init.constant_(self.decide.bias, INCLUDE_BIAS)

    def forward(
        self, hidden: Tensor, attention_mask: Tensor, uncertainty: Tensor | None, layer: Tensor | None
    ) -> Tensor:
        """Returns the logit of including the layer, float [batch].

        Args:
            hidden: The state before the layer, float [batch, tokens, hidden].
            attention_mask: 1 for a token, 0 for padding, int64 [batch, tokens].
            uncertainty: Normalised entropy of the head's answer at this point, float [batch].
            layer: The embedding of the layer, float [planner_width], for a shared planner.
        """
        pooled = self.pooling(hidden, attention_mask)
        if uncertainty is not None:
            pooled = torch.cat([pooled, uncertainty[:, None].to(pooled.dtype)], dim=-1)
        expanded = self.expand(pooled)
        if layer is not None:
            expanded = expanded + layer
        return self.decide(functional.relu(expanded)).squeeze(-1).float()


class PathPlanner(nn.Module):
    """Decides the whole path on the embeddings."""

    def __init__(self, shape: EncoderConfig, config: Config) -> None:
        super().__init__()
        self.pooling = Pooling(_first_pool(config.pool), shape.hidden_size)
        self.expand = nn.Linear(shape.hidden_size, config.planner_width)
        self.decide = nn.Linear(config.planner_width, shape.layers)
        initialise(self)
        nn.init.constant_(self.decide.bias, INCLUDE_BIAS)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns the logits of including each layer, float [batch, layers], on x_0, float [batch, tokens, hidden]."""
        return self.decide(functional.relu(self.expand(self.pooling(hidden, attention_mask)))).float()


def _first_pool(pool: Pool) -> Pool:
    return "mean" if pool == "cls" else pool  # the first token's embedding is the same for every input


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One pass of a batch along its paths.

    Attributes:
        logits: The head's answer, float [batch, labels] or [batch, tokens, 2].
        include_logits: The planner's, of running each layer, float [batch, layers].
        chosen: What the planner decided, 0 or 1, float [batch, layers].
        executed: What was run, 0 or 1: the same, but no path is empty.
        free: Where the decision counted, bool [batch, layers]: the last layer of an otherwise empty path runs anyway.
    """

    logits: Tensor
    include_logits: Tensor
    chosen: Tensor
    executed: Tensor
    free: Tensor


class DpBert(AdaptiveModel):
    """An encoder, a planner, and one head."""

    def __init__(self, encoder: Encoder, config: Config, n_labels: int, *, per_token: bool) -> None:
        super().__init__()
        shape = encoder.config
        self.encoder = encoder
        self.config = config
        self.n_labels = n_labels
        self.pooling, self.head = new_head(shape, config.pool, n_labels, per_token=per_token)
        if config.planner == "upfront":
            self.planner: nn.Module = PathPlanner(shape, config)
        elif config.shared_planner:
            self.planner = LayerPlanner(shape, config, _first_pool(config.pool))
            self.layer_embedding = nn.Embedding(shape.layers, config.planner_width)
            initialise(self.layer_embedding)
        else:
            pools = [_first_pool(config.pool), *[config.pool] * (shape.layers - 1)]
            self.planner = nn.ModuleList(LayerPlanner(shape, config, pool) for pool in pools)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns the logits of the path of all layers, float [batch, labels] or [batch, tokens, 2]."""
        return self._answer(self.encoder(input_ids, attention_mask, token_type_ids)[-1], attention_mask)

    def gate(self, index: int) -> Gate:
        """Returns the sequential planner of one layer, counted from 0, with what it reads."""
        answer = HeadStep(self.pooling, self.head) if self.config.planner_input == "uncertainty" else None
        if isinstance(self.planner, nn.ModuleList):
            return Gate(self.planner[index], answer)
        return Gate(self.planner, answer, self.layer_embedding, index)

    def walk(self, batch: Batch, decide: Decide) -> Walk:
        """Takes every row along its path, as the runtime does, but with every layer computed and the rest masked."""
        walk = self._walk_upfront if self.config.planner == "upfront" else self._walk_sequential
        return walk(self.encoder.embed(batch.input_ids, batch.token_type_ids), batch.attention_mask, decide)

    def fine_tune_loss(self, batch: Batch) -> Tensor:
        """Returns the task's loss with every layer."""
        return _task_loss(self(batch.input_ids, batch.attention_mask, batch.token_type_ids), batch)

    def path_robust_loss(self, batch: Batch) -> Tensor:
        """Returns the task's loss on random paths and the added terms."""
        mask = batch.attention_mask
        hidden = self.encoder.embed(batch.input_ids, batch.token_type_ids)
        paths = random_paths(len(hidden), len(self.encoder.layers), self.config.skip_probability).to(hidden.device)
        for layer, runs in zip(self.encoder.layers, paths.unbind(dim=1), strict=True):
            if runs.any():
                after = hidden.clone()
                after[runs] = layer(hidden[runs], mask[runs]).to(hidden.dtype)
                hidden = after
        logits = self._answer(hidden, mask)
        return self._loss(logits, batch)

    def planner_loss(self, batch: Batch) -> Tensor:
        """Returns the joint loss without dropout, for what is frozen then."""
        with evaluating(self):
            return self.joint_loss(batch)

    def joint_loss(self, batch: Batch) -> Tensor:
        """Returns the task's loss on planned paths, the added terms, and the planner's loss.

        With `reinforce` the decisions are constants for all but the last, so that the others reach other weights only.
        """
        if self.config.estimator == "reinforce":
            walk = self.walk(batch, sample)
            with torch.no_grad():
                baseline = self._reward(self.walk(batch, threshold), batch)
            chosen = log_probability(walk.include_logits, walk.chosen, walk.free)
            entropy = mean_entropy(walk.include_logits, walk.free)
            planning = (
                reinforce_loss(chosen, self._reward(walk, batch) - baseline) - self.config.entropy_bonus * entropy
            )
        else:
            walk = self.walk(batch, lambda logits: straight_through(logits, self.config.temperature))
            planning = self.config.cost_weight * (walk.executed.mean() - self.config.executed_share) ** 2
        return self._loss(walk.logits, batch) + planning

    def stages(self, train: TrainConfig) -> list[Stage]:
        """Returns fine-tuning, path-robust tuning, the planner alone, and everything together."""
        head = [*self.pooling.parameters(), *self.head.parameters()]
        planner = [p for name, p in self.named_parameters() if name.startswith(("planner.", "layer_embedding."))]
        encoder = list(self.encoder.parameters())
        return [
            Stage(name=STAGES[0], groups=groups(encoder, head, train), loss=self.fine_tune_loss),
            Stage(name=STAGES[1], groups=groups(encoder, head, train), loss=self.path_robust_loss),
            Stage(name=STAGES[2], groups=groups([], planner, train), loss=self.planner_loss),
            Stage(name=STAGES[3], groups=groups(encoder, [*head, *planner], train), loss=self.joint_loss),
        ]

    def steps(self) -> list[CompiledStep]:
        """Returns embed, the planner where it stands, the layers, and the head."""
        shape = self.encoder.config
        head = head_step(self.pooling, self.head, shape, self.n_labels)
        steps = [embed_step(self.encoder)]
        if self.config.planner == "upfront":
            macs = self.config.planner_width * (shape.hidden_size + shape.layers)
            steps.append(_decision("plan", 0, "plan", Plan(self.planner), macs))
        for index, layer in enumerate(self.encoder.layers):
            if self.config.planner == "sequential":
                sees_answer = self.config.planner_input == "uncertainty"
                macs = self.config.planner_width * (shape.hidden_size + sees_answer + 1) + sees_answer * head.macs.row
                steps.append(_decision("gate", index + 1, f"gate_{index:02d}", self.gate(index), macs))
            steps.append(layer_step(layer, index, shape))
        return [*steps, head]

    def _walk_upfront(self, hidden: Tensor, mask: Tensor, decide: Decide) -> Walk:
        logits = self.planner(hidden, mask)
        chosen = decide(logits)
        executed = not_empty(chosen, logits)
        for layer, include in zip(self.encoder.layers, executed.unbind(dim=1), strict=True):
            hidden = _pass(layer, hidden, mask, include)
        free = torch.ones_like(chosen, dtype=torch.bool)
        answer = self._answer(hidden, mask)
        return Walk(logits=answer, include_logits=logits, chosen=chosen, executed=executed, free=free)

    def _walk_sequential(self, hidden: Tensor, mask: Tensor, decide: Decide) -> Walk:
        decisions: list[tuple[Tensor, ...]] = []
        started = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        for index, layer in enumerate(self.encoder.layers):
            logits = self.gate(index).logits(hidden, mask)
            chosen = decide(logits)
            free = started if index == len(self.encoder.layers) - 1 else torch.ones_like(started)
            include = torch.where(free, chosen, 1.0)
            hidden = _pass(layer, hidden, mask, include)
            started = started | (include.detach() > 0.5)
            decisions.append((logits, chosen, include, free))
        include_logits, chosen, executed, free = (torch.stack(part, dim=1) for part in zip(*decisions, strict=True))
        answer = self._answer(hidden, mask)
        return Walk(logits=answer, include_logits=include_logits, chosen=chosen, executed=executed, free=free)

    def _answer(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return HeadStep(self.pooling, self.head)(hidden, attention_mask)

    def _reward(self, walk: Walk, batch: Batch) -> Tensor:
        assert batch.labels is not None
        return reward(walk.executed.mean(dim=1), is_right(walk.logits, batch.labels), self.config.wrong_penalty)

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the task's loss on paths, the distance from the answer of all layers, and the task's loss on that."""
        config = self.config
        loss = _task_loss(logits, batch)
        if not config.full_loss and not config.distillation:
            return loss
        with contextlib.nullcontext() if config.full_loss else _only_teaching(self):
            full = self(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        if config.full_loss:
            loss = loss + config.full_loss * _task_loss(full, batch)
        return loss + config.distillation * mean_distillation([logits], full)


class Plan(nn.Module):
    """An upfront planner as a step."""

    def __init__(self, planner: nn.Module) -> None:
        super().__init__()
        self.planner = planner

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns the probabilities of including each layer, float [batch, layers]."""
        return torch.sigmoid(self.planner(hidden, attention_mask))


class Gate(nn.Module):
    """The sequential planner of one layer as a step, with what it reads.

    Args:
        planner: The layer's own planner, or the one of all layers.
        answer: The head, if the planner reads how undecided it would be.
        layer_embedding: Of a planner of all layers.
        index: The layer's number there, counted from 0.
    """

    def __init__(
        self,
        planner: nn.Module,
        answer: HeadStep | None,
        layer_embedding: nn.Embedding | None = None,
        index: int = 0,
    ) -> None:
        super().__init__()
        self.planner = planner
        self.answer = answer
        self.layer_embedding = layer_embedding
        self.index = index

    def logits(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns the logits of including the layer, float [batch], on the state before it."""
        uncertainty = None
        if self.answer is not None:
            uncertainty = normalised_entropy(self.answer(hidden, attention_mask).detach().float())
        layer = None if self.layer_embedding is None else self.layer_embedding.weight[self.index]
        return self.planner(hidden, attention_mask, uncertainty, layer)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns the probability of including the layer, float [batch]."""
        return torch.sigmoid(self.logits(hidden, attention_mask))


@contextlib.contextmanager
def _only_teaching(model: nn.Module) -> Iterator[None]:
    """Switches dropout and gradients off and on again."""
    with torch.no_grad(), evaluating(model):
        yield


def _pass(layer: nn.Module, hidden: Tensor, mask: Tensor, include: Tensor) -> Tensor:
    """Returns the layer's output where it is included, else its input; `include` is 0 or 1, float [batch]."""
    weight = include[:, None, None].to(hidden.dtype)
    return weight * layer(hidden, mask) + (1 - weight) * hidden


def _task_loss(logits: Tensor, batch: Batch) -> Tensor:
    assert batch.labels is not None
    return task_loss(logits, batch.labels)


def _decision(kind: StepKind, layer: int, file: str, module: nn.Module, macs: int) -> CompiledStep:
    return CompiledStep(
        kind=kind,
        layer=layer,
        file=file,
        module=module,
        inputs=("hidden", "attention_mask"),
        outputs=("include",),
        macs=Macs(row=macs),
    )


def build(encoder: Encoder, config: Config, n_labels: int, *, per_token: bool = False) -> DpBert:
    """Makes the model, with a new planner and head.

    Args:
        encoder: The encoder.
        config: The settings.
        n_labels: How many labels there are, or outputs of a token.
        per_token: Whether every token has scores, as in question answering.

    Raises:
        ConfigError: A setting does not go with the task.
    """
    if n_labels == 1 and config.estimator == "reinforce":
        raise ConfigError("method.estimator: reinforce rewards right answers, which regression does not have.")
    if n_labels == 1 and config.planner_input == "uncertainty":
        raise ConfigError("method.planner_input: a value has no uncertainty; expected state or null for regression.")
    if per_token and config.planner_input == "uncertainty":
        raise ConfigError(
            "method.planner_input: a planner reads one vector a row, and a span's uncertainty is one of many tokens; "
            "expected state or null for question answering."
        )
    if config.planner_input is None:
        sees_answer = config.planner == "sequential" and n_labels > 1 and not per_token
        config = msgspec.structs.replace(config, planner_input="uncertainty" if sees_answer else "state")
    return DpBert(encoder, config, n_labels, per_token=per_token)


def rule(config: Config) -> tuple[str, dict[str, object]]:
    """Returns the policy a bundle of this method follows unless told otherwise, and its knobs."""
    return "bypass", {"delta": 0.5}
