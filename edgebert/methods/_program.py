"""What a method compiles down to (steps), how it is trained (stages), and the parts methods share."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgebert.bundle.manifest import Macs, Part, StepKind
from edgebert.config import TrainConfig
from edgebert.encoders._blocks import Embeddings, Encoder, EncoderConfig, Layer

Pool = Literal["mean", "attention", "cls"]

PADDING_SCORE = -1.0e4
"""The score of padding where every token has scores: its probability is 0, and half precision can hold it."""


@dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """One step of a method's program, still in torch.

    Attributes:
        kind: What the engine does with it.
        layer: The layer it belongs to, counted from 1; 0 before the first.
        file: Name of its graph file, without folder and suffix.
        module: Computes `outputs` from `inputs`, given and returned in that order; None for what the runtime does by
            itself.
        inputs: Names of the values it reads.
        outputs: Names of the values it makes.
        macs: Multiply-accumulates of one row.
        may_link: Every row that runs the layer before it runs this step too, so that both may be one graph.
        part: Which part of its layer a `layer` step is.
        choice: The value that says which of its optional pieces run; it is the last of a layer's `inputs`.
        choices: How many pieces there are to choose from.
        each: Multiply-accumulates of one chosen piece for one row.
    """

    kind: StepKind
    layer: int
    file: str
    module: nn.Module | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: Macs
    may_link: bool = False
    part: Part = "whole"
    choice: str | None = None
    choices: int = 0
    each: Macs = field(default_factory=Macs)

    @property
    def is_linked(self) -> bool:
        """Whether an export puts it into the graph before it, unless told otherwise."""
        return self.may_link


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Token ids of some rows, int64 [batch, tokens], and in training the labels, [batch, ...], as the task has them."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate, in units per step."""

    parameters: list[nn.Parameter]
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes:
        name: What it is called in messages and on disk.
        groups: The parameters it trains; all others are frozen.
        loss: The loss of a batch, a scalar.
        before: Runs once before the stage, with the weights the stages before it left; not when it is resumed.
    """

    name: str
    groups: list[ParameterGroup]
    loss: Callable[[Batch], Tensor]
    before: Callable[[], None] | None = None


@dataclass(frozen=True, kw_only=True)
class LengthSearch:
    """How the tokens that go on from each layer are searched for after training.

    Attributes:
        algorithm: `evolution`, or one of optuna's samplers.
        evaluations: How many lengths are measured at most.
        largest_drops: Share of its tokens, 0 to 1, that each layer drops at most in training.
        answer_at: Answers a batch, of which each layer passes on that many tokens of each row, int64 [batch].
    """

    algorithm: Literal["evolution", "tpe", "nsga2"]
    evaluations: int
    largest_drops: tuple[float, ...]
    answer_at: Callable[[Batch, Sequence[Tensor]], Tensor]


class AdaptiveModel(nn.Module, abc.ABC):
    """A method's model: an encoder with whatever the method adds."""

    encoder: Encoder
    n_labels: int
    """How many labels there are, or scores of a token; 1 is a value."""
    calibrates = False
    """Whether `calibrate` needs rows that training has not seen."""
    learns_from: str | None = None
    """What it learns from in training: a checkpoint folder, hub id or embedded name; None when from labels alone."""

    @abc.abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns the full-depth answer: logits or log-probabilities, float [batch, labels] or [batch, tokens, 2]."""

    @abc.abstractmethod
    def stages(self, train: TrainConfig) -> list[Stage]:
        """Returns the stages of its training, in order."""

    @property
    def length_search(self) -> LengthSearch | None:
        """The search for operating points that drop tokens; None where points are chosen from policies' grids."""
        return None

    @property
    def chosen_settings(self) -> dict[str, Any]:
        """What stands in the place of settings that were left to the model's shape; a bundle says them."""
        return {}

    def learn_from(self, teacher: AdaptiveModel | None) -> None:
        """Takes the teacher for the training; None forgets it, with whatever served to learn from it."""

    def calibrate(self, batches: Iterable[Batch], special_ids: Collection[int]) -> None:
        """Sets what is counted rather than trained, after the last stage, without gradients or dropout.

        Args:
            batches: Rows held out of training for this, each once.
            special_ids: Token ids that stand for no part of a text, padding among them.
        """

    @abc.abstractmethod
    def steps(self) -> list[CompiledStep]:
        """Returns the program it compiles down to."""


class Pooling(nn.Module):
    """One vector per row from its tokens: masked mean, learned attention, or the first token; `none` is all of them."""

    def __init__(self, pool: Pool | Literal["none"], hidden_size: int) -> None:
        super().__init__()
        self.pool = pool
        if pool == "attention":
            self.score = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns float [batch, hidden], in which padding has no influence; with `none` the hidden states.

        Args:
            hidden: Hidden states, float [batch, tokens, hidden].
            attention_mask: 1 for a token, 0 for padding, int64 [batch, tokens].
        """
        if self.pool == "none":
            return hidden
        if self.pool == "cls":
            return hidden[:, 0]
        mask = attention_mask.to(hidden.dtype)
        if self.pool == "attention":
            scores = self.score(hidden).squeeze(-1).masked_fill(attention_mask == 0, -1.0e4)
            weights = torch.softmax(scores, dim=-1) * mask
        else:
            weights = mask / mask.sum(dim=1, keepdim=True)
        return torch.bmm(weights[:, None, :].to(hidden.dtype), hidden).squeeze(1)


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Switches the dropout of modules off, and back to what it was."""
    were_training = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, was_training in were_training:
            part.training = was_training


class EmbedStep(nn.Module):
    """The embeddings as a step; families without segments are given no segment ids."""

    def __init__(self, embeddings: Embeddings) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns hidden states, float [batch, tokens, hidden]."""
        return self.embeddings(input_ids, token_type_ids)


def embed_step(encoder: Encoder) -> CompiledStep:
    """Returns the step that starts every row."""
    shape = encoder.config
    return CompiledStep(
        kind="embed",
        layer=0,
        file="embed",
        module=EmbedStep(encoder.embeddings),
        inputs=tuple(name for name in shape.input_names if name != "attention_mask"),
        outputs=("hidden",),
        macs=Macs(token=(shape.embedding_size or 0) * shape.hidden_size),
    )


def layer_step(layer: Layer, index: int, config: EncoderConfig) -> CompiledStep:
    """Returns the step of one whole layer; `index` counts from 0. Layers that share weights share their file."""
    width, expanded = config.hidden_size, config.feed_forward_size
    return CompiledStep(
        kind="layer",
        layer=index + 1,
        file=f"layer_{config.own_layer(index):02d}",
        module=layer,
        inputs=("hidden", "attention_mask"),
        outputs=("hidden",),
        macs=Macs(token=4 * width * width + 2 * width * expanded, token_pair=2 * width),
    )


def dropping_steps(
    layer: Layer, attention: nn.Module, index: int, config: EncoderConfig
) -> tuple[CompiledStep, CompiledStep, CompiledStep, CompiledStep]:
    """Returns the steps of one layer that can drop tokens between its parts; `index` counts from 0.

    Args:
        layer: The layer.
        attention: Gives `attended` and `received` of hidden states and their mask, from the layer's own attention.
        index: The layer's number.
        config: The encoder's shape.
    """
    width, expanded = config.hidden_size, config.feed_forward_size
    fused = layer_step(layer, index, config)
    first = replace(
        fused,
        file=fused.file.replace("layer", "attention"),
        module=attention,
        outputs=("attended", "received"),
        macs=Macs(token=4 * width * width, token_pair=2 * width),
        part="attention",
    )
    drop = replace(
        fused,
        kind="drop",
        file="drop",
        module=None,
        inputs=("hidden", "attended", "received", "attention_mask"),
        outputs=("attended", "attention_mask"),
        macs=Macs(),
    )
    second = replace(
        fused,
        file=fused.file.replace("layer", "feed_forward"),
        module=layer.feed_forward,
        inputs=("attended",),
        macs=Macs(token=2 * width * expanded),
        part="feed_forward",
    )
    return replace(fused, part="fused"), first, drop, second


def restore_step(config: EncoderConfig) -> CompiledStep:
    """Returns the step that puts every token that was dropped back in its place."""
    return CompiledStep(
        kind="restore",
        layer=config.layers,
        file="restore",
        module=None,
        inputs=("hidden", "attention_mask"),
        outputs=("hidden", "attention_mask"),
        macs=Macs(),
    )


def exit_steps(
    encoder: Encoder, exits: Iterable[nn.Module], macs: Macs, outputs: tuple[str, ...] = ("logits",)
) -> list[CompiledStep]:
    """Returns a whole program: embed, then every layer followed by its exit.

    Args:
        encoder: The encoder.
        exits: For each layer, a module of hidden states and mask.
        macs: Multiply-accumulates of one exit.
        outputs: What an exit gives.
    """
    steps = [embed_step(encoder)]
    for index, (layer, module) in enumerate(zip(encoder.layers, exits, strict=True)):
        steps.append(layer_step(layer, index, encoder.config))
        steps.append(
            CompiledStep(
                kind="exit",
                layer=index + 1,
                file=f"exit_{index:02d}",
                module=module,
                inputs=("hidden", "attention_mask"),
                outputs=outputs,
                macs=macs,
                may_link=True,
            )
        )
    return steps


class HeadStep(nn.Module):
    """A pooling and a head as a step."""

    def __init__(self, pooling: Pooling, head: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling
        self.head = head

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns logits, float [batch, labels], of hidden states, float [batch, tokens, hidden].

        A head that reads every token gives float [batch, tokens, outputs], `PADDING_SCORE` for padding.
        """
        logits = self.head(self.pooling(hidden, attention_mask))
        return logits if logits.ndim == 2 else logits.masked_fill(attention_mask[:, :, None] == 0, PADDING_SCORE)


def head_step(
    pooling: Pooling, head: nn.Module, config: EncoderConfig, n_labels: int, *, may_link: bool = False
) -> CompiledStep:
    """Returns the step that answers every row after the last layer, with a pooling and a head that `new_head` made."""
    width = config.hidden_size
    per_token = pooling.pool == "none"
    return CompiledStep(
        kind="head",
        layer=config.layers,
        file="head",
        module=HeadStep(pooling, head),
        inputs=("hidden", "attention_mask"),
        outputs=("logits",),
        macs=Macs(token=width * n_labels) if per_token else Macs(row=width * (width + n_labels)),
        may_link=may_link,
    )


def groups(encoder: Iterable[nn.Parameter], heads: Iterable[nn.Parameter], train: TrainConfig) -> list[ParameterGroup]:
    """Returns the usual two groups: the encoder, and everything new, which learns faster."""
    return [
        ParameterGroup(parameters=list(encoder), learning_rate=train.learning_rate),
        ParameterGroup(parameters=list(heads), learning_rate=train.learning_rate * train.head_learning_rate_factor),
    ]
