"""Joins an exit or head that every row needs with the step before it: one graph, one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from edgebert.methods._program import CompiledStep

_ALWAYS = {"attention_mask"}
"""Values that no step has to make and that are never let go."""


@dataclass(frozen=True, kw_only=True)
class GraphPlan:
    """A graph to export: the first step it holds, and those linked behind it.

    Attributes:
        step: The step that owns the graph.
        linked: Steps whose outputs the same graph gives.
    """

    step: CompiledStep
    linked: tuple[CompiledStep, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the step reads, and what the linked steps read that was there from the start."""
        read = {name for step in self.linked for name in step.inputs} & _ALWAYS
        return (*self.step.inputs, *sorted(read - set(self.step.inputs)))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs of the step, then those of the linked steps."""
        return (*self.step.outputs, *(name for step in self.linked for name in step.outputs))

    @property
    def module(self) -> nn.Module | None:
        """The module to export; None where the runtime needs none."""
        return LinkedModule(self.step, self.linked, self.inputs) if self.linked else self.step.module


class LinkedModule(nn.Module):
    """A step's module and those of the steps linked behind it, as one, of these inputs."""

    def __init__(self, step: CompiledStep, linked: Sequence[CompiledStep], inputs: tuple[str, ...]) -> None:
        super().__init__()
        steps = (step, *linked)
        self.inputs = inputs
        # Nothing of the steps' numbers and files, so that all layers' modules are of one structure and traced once.
        self.names = tuple((part.inputs, part.outputs) for part in steps)
        self.parts = nn.ModuleList(part.module for part in steps if part.module is not None)

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Returns every step's outputs, the first step's first."""
        values = dict(zip(self.inputs, arguments, strict=True))
        results: list[Tensor] = []
        for (read, made), part in zip(self.names, self.parts, strict=True):
            outputs = part(*(values[name] for name in read))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            values.update(zip(made, outputs, strict=True))
            results.extend(outputs)
        return tuple(results)


def plan_graphs(steps: Sequence[CompiledStep], *, link: bool) -> list[GraphPlan]:
    """Decides which steps share a graph.

    Args:
        steps: The program.
        link: Join every step that may be linked with the one before it, unless that one's graph stands at several
            places of the program. False gives each step its own graph.

    Raises:
        ValueError: Steps name the same file but would not make the same graph.
    """
    uses = Counter(step.file for step in steps)
    plans: list[GraphPlan] = []
    for step in steps:
        before = plans[-1] if plans and plans[-1].module is not None and uses[plans[-1].step.file] == 1 else None
        if link and step.may_link and before is not None and set(step.inputs) <= _visible(before):
            plans[-1] = GraphPlan(step=before.step, linked=(*before.linked, step))
        else:
            plans.append(GraphPlan(step=step))
    _check_shared(plans)
    return plans


def _check_shared(plans: Sequence[GraphPlan]) -> None:
    """Refuses steps that share a file but would not make the same graph."""
    first: dict[str, CompiledStep] = {}
    for step in (plan.step for plan in plans if plan.module is not None):
        other = first.setdefault(step.file, step)
        if step.module is not other.module or (step.inputs, step.outputs) != (other.inputs, other.outputs):
            raise ValueError(
                f"{step.file}: the {other.kind} of layer {other.layer} and the {step.kind} of layer {step.layer} share "
                "this file; expected the same module, inputs and outputs."
            )


def _visible(plan: GraphPlan) -> set[str]:
    return {*plan.step.inputs, *plan.outputs, *_ALWAYS}
