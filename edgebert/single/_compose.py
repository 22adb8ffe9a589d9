"""Turns a bundle's program and a rule into one graph for one row: what the engine would do, written down as branches.

A layer that may not be needed stands in a branch of its own, with its exit. The branches stand one after the other and
not inside each other, and all weights stand outside of them. Measured with ONNX Runtime 1.31 on one x86 core (DACT-BERT
on MiniLM-L6, one thread; private memory of the process; processor time of texts that stop after layer 4 of 6,
of the split graphs 1):

| how | memory | time |
|---|---|---|
| one after the other, weights outside | 106 MB | 0.94 (after layer 1: 0.88) |
| inside each other, weights outside: ONNX Runtime packs none beyond the first branch | 105 MB | 1.16 (0.86) |
| inside each other, weights in the branch around | 225 MB | 0.91 (0.81) |
| inside each other, weights in their own branch | 305 MB | 0.89 (0.77) |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from edgebert import registry
from edgebert.bundle import Bundle
from edgebert.bundle.manifest import Knobs, Step
from edgebert.config import decode
from edgebert.decisions import select_position
from edgebert.policies import DropPosition, ExitPosition, GatePosition
from edgebert.single._graph import BOOL, FLOAT, INT64, Graph, Value
from edgebert.single._rule import Outputs, Rule, State


@dataclass(frozen=True)
class Composed:
    """A single file: its bytes, and the values that its policy's inputs have by default, by name."""

    data: bytes
    knobs: dict[str, NDArray[Any]]


def compose(bundle: Bundle, policy: str, knobs: Knobs, facts: Mapping[str, str], *, requires_knobs: bool) -> Composed:
    """Returns a bundle's single-file form.

    Args:
        bundle: The bundle.
        policy: A file in `edgebert/policies`.
        knobs: Its knobs, which become the inputs' defaults or, where they choose a form, part of the graph.
        facts: What the file says of itself.
        requires_knobs: Give no input a default.
    """
    composer = _Composer(bundle, policy, knobs, requires_knobs=requires_knobs)
    data = composer.write(facts)
    return Composed(data, composer.rule.defaults)


@dataclass
class _Row:
    """Where the one row stands.

    Attributes:
        values: The program's values by name.
        state: What the rule remembers.
        scores: The answer so far; None before the first.
        exit_layer: The layer it was given after, int64 [1].
        goes_on: Whether there is more to run, bool [1]; None after the last exit.
    """

    values: dict[str, Value]
    state: State
    scores: Value | None = None
    exit_layer: Value | None = None
    goes_on: Value | None = None

    def answer(self) -> list[Value]:
        """Returns the answer so far and whether there is more to run, where that is open."""
        return [value for value in (self.scores, self.exit_layer, self.goes_on) if value is not None]


class _Composer:
    """A program on its way into a graph.

    Attributes:
        wanted: For each layer that may be left out whether it runs, bool [1].
    """

    def __init__(self, bundle: Bundle, policy: str, knobs: Knobs, *, requires_knobs: bool) -> None:
        self.bundle, self.manifest = bundle, bundle.manifest
        self.program = self.manifest.program
        self.layers = max(step.layer for step in self.program)
        self.graph = Graph(self.manifest.opset)
        self._models: dict[str, onnx.ModelProto] = {}
        self._read_inputs()
        self.tokens = self.inputs["attention_mask"].sum(axis=1)
        own = None
        if policy == "never" and self.manifest.rule.policy != "never":
            own = self._rule(self.manifest.rule.policy, self.manifest.rule.knobs, None, requires_knobs)
        self.rule = self._rule(policy, knobs, own, requires_knobs)
        self.wanted: dict[int, Value] = {}
        exits = [step.layer for step in self.program if step.kind == "exit"]
        self.exits = {layer: ExitPosition(layer, len(exits) - i - 1) for i, layer in enumerate(exits)}

    def write(self, facts: Mapping[str, str]) -> bytes:
        """Writes the program and returns the graph's bytes."""
        row = _Row(dict(self.inputs), self.rule.start())
        segments = self._segments()
        for number, segment in enumerate(segments):
            if number:
                read_later = {name for later in segments[number + 1 :] for step in later for name in step.inputs}
                row = self._if_going_on(segment, row, read_later)
            else:
                self._run_segment(segment, row)
        assert row.scores is not None
        assert row.exit_layer is not None
        path = self._numbers() <= row.exit_layer
        if self.wanted:
            path = path & self._wanted_layers()
        labels = len(self.manifest.labels)
        shape: list[int | str] = [1, "tokens", labels] if self.manifest.task == "question_answering" else [1, labels]
        outputs: dict[str, tuple[Value, list[int | str]]] = {
            "logits": (row.scores.cast(FLOAT), shape),
            "exit_layer": (row.exit_layer, [1]),
            "path": (path, [1, self.layers]),
        }
        return self.graph.finish(outputs, facts)

    def _rule(self, policy: str, knobs: Knobs, own: Rule | None, requires_knobs: bool) -> Rule:
        config = decode(dict(knobs), registry.load("edgebert.policies", policy).Config, where=f"policy {policy}")
        rule: Rule = registry.load("edgebert.single", policy).Rule(
            self.graph,
            config,
            labels=len(self.manifest.labels),
            exit_layers=self.manifest.exit_layers,
            requires_knobs=requires_knobs,
            own=own,
        )
        return rule

    def _read_inputs(self) -> None:
        names = ["input_ids", "attention_mask"]
        if any("token_type_ids" in step.inputs for step in self.program):
            names.append("token_type_ids")
        self.inputs = {name: self.graph.input(name, INT64, [1, "tokens"]) for name in names}

    def _numbers(self) -> Value:
        """Returns the layers' numbers, int64 [1, layers]."""
        return self.graph.constant([list(range(1, self.layers + 1))], INT64)

    def _wanted_layers(self) -> Value:
        """Returns which layers the row wants, bool [1, layers]."""
        always = self.graph.constant([True], BOOL)
        every = [self.wanted.get(layer, always) for layer in range(1, self.layers + 1)]
        return every[0].apply("Concat", *every[1:], axis=0).reshape(1, self.layers)

    def _segments(self) -> list[list[Step]]:
        """Cuts the program after each exit where the row may stop."""
        segments: list[list[Step]] = [[]]
        for step in self.program:
            segments[-1].append(step)
            if step.kind == "exit" and self.rule.stops and self.exits[step.layer].exits_left:
                segments.append([])
        return segments

    def _run_segment(self, segment: Sequence[Step], row: _Row) -> None:
        for step in segment:
            getattr(self, f"_{step.kind}")(step, row)

    def _if_going_on(self, segment: Sequence[Step], row: _Row, read_later: set[str]) -> _Row:
        """Writes a segment that runs unless the row has stopped; returns where the row is after it."""
        assert row.goes_on is not None
        after = _Row(dict(row.values), dict(row.state))
        carried: list[str] = []
        types: list[int] = []

        def then() -> list[Value]:
            self._run_segment(segment, after)
            carried.extend(sorted(name for name in read_later if after.values.get(name) is not row.values.get(name)))
            values = [*(after.values[name] for name in carried), *after.state.values()]
            types.extend(value.type for value in values)
            return [*values, *after.answer()]

        def otherwise() -> list[Value]:
            unread = [self.graph.constant(0, kind) for kind in types]
            never = self.graph.constant([False], BOOL)
            return [*unread, *row.answer()[:2], *[never] * (len(after.answer()) - 2)]

        made = self.graph.branch(row.goes_on, then, otherwise)
        names = [*carried, *after.state]
        for name, value in zip(names, made, strict=False):
            (after.values if name in carried else after.state)[name] = value
        after.scores, after.exit_layer, *goes_on = made[len(names) :]
        after.goes_on = goes_on[0] if goes_on else None
        return after

    def _run(self, step: Step, values: Mapping[str, Value]) -> dict[str, Value]:
        """Puts a step's graph in and returns what it gives; of a step linked into another's, what that one gave."""
        if step.graph is None:
            return {name: values[name] for name in step.inputs}
        if step.graph not in self._models:
            self._models[step.graph] = onnx.load_from_string(self.bundle.read(step.graph))
        made = self.graph.inline(self._models[step.graph], values)
        return dict(zip(step.outputs, made, strict=True))

    def _later(self, step: Step, values: Mapping[str, Value]) -> Outputs:
        return _Later(lambda: self._run(step, values), step.outputs or step.inputs)

    def _embed(self, step: Step, row: _Row) -> None:
        row.values.update(self._run(step, row.values))
        if self.rule.drops:
            hidden, zero, one = row.values["hidden"], self.graph.constant(0, INT64), self.graph.constant(1, INT64)
            row.values["restored"] = _rows(hidden)
            tokens = hidden.apply("Shape", kind=INT64, start=1, end=2).apply("Squeeze")
            row.values["places"] = zero.apply("Range", tokens, one)

    def _plan(self, step: Step, row: _Row) -> None:
        plan = self.rule.plan(self._later(step, row.values), self.layers)
        self.wanted = {layer: plan.columns(layer - 1, layer).reshape(1) for layer in range(1, self.layers + 1)}

    def _gate(self, step: Step, row: _Row) -> None:
        later = {other.layer for other in self.program if other.kind == "layer" and other.layer > step.layer}
        executed = self.graph.constant([0], INT64)
        for wanted in self.wanted.values():
            executed = executed + wanted.cast(INT64)
        outputs = self._later(step, row.values)
        self.wanted[step.layer] = self.rule.gate(outputs, GatePosition(step.layer, len(later)), executed)

    def _select(self, step: Step, row: _Row) -> None:
        if self.rule.selects:
            assert step.choice is not None
            (scores,) = self._run(step, row.values).values()
            row.values[step.choice] = self.rule.select(scores, select_position(step, self.program), self.tokens)

    def _exit(self, step: Step, row: _Row) -> None:
        position = self.exits[step.layer]
        verdict = self.rule.fold(row.state, self._later(step, row.values), position)
        row.state = verdict.state
        if self.rule.stops or not position.exits_left:
            row.scores = verdict.scores()
            row.exit_layer = self.graph.constant([step.layer], INT64)
            row.goes_on = ~verdict.finished if position.exits_left else None

    def _head(self, step: Step, row: _Row) -> None:
        """Answers at the end; of a head that may stand after several layers, wherever the row's path ends."""
        heads = [other for other in self.program if other.kind == "head"]
        if step is not heads[-1]:
            return
        row.scores = self._run(step, row.values)["logits"]
        row.exit_layer = self.graph.constant([step.layer], INT64)
        if len(heads) > 1 and self.wanted:
            row.exit_layer = (self._numbers() * self._wanted_layers().cast(INT64)).max()

    def _layer(self, step: Step, row: _Row) -> None:
        if step.part == "whole":
            self._whole_layer(step, row)
        elif self.rule.drops and step.part == "attention":
            self._dropping_layer(step, row)
        elif not self.rule.drops and (step.part == "fused") != self.rule.selects:
            row.values.update(self._run(step, row.values))

    def _whole_layer(self, step: Step, row: _Row) -> None:
        """Runs a layer, or leaves it out."""
        if step.layer not in self.wanted:
            row.values.update(self._run(step, row.values))
            return
        before = [row.values[name] for name in step.outputs]
        made = self.graph.branch(
            self.wanted[step.layer], lambda: list(self._run(step, row.values).values()), lambda: before
        )
        row.values.update(zip(step.outputs, made, strict=True))

    def _dropping_layer(self, attention: Step, row: _Row) -> None:
        """Runs a layer in parts, between which tokens go, or as one graph where all of them go on."""
        same_layer = {
            step.part: step for step in self.program if step.layer == attention.layer and step.kind == "layer"
        }
        left = row.values.get("tokens_left", self.tokens)
        keep = self.rule.keep(DropPosition(attention.layer, self.layers), self.tokens).at_least(1).at_most(left)
        names = ("hidden", "attention_mask", "restored", "places")

        def parts() -> list[Value]:
            values = {**row.values, **self._run(attention, row.values)}
            _let_go(values, keep)
            values.update(self._run(same_layer["feed_forward"], values))
            return [values[name] for name in names]

        def fused() -> list[Value]:
            values = {**row.values, **self._run(same_layer["fused"], row.values)}
            return [values[name] for name in names]

        made = self.graph.branch(keep < left, parts, fused) if "fused" in same_layer else parts()
        row.values.update(zip(names, made, strict=True), tokens_left=keep)

    def _drop(self, step: Step, row: _Row) -> None:
        """Nothing: it was done in the layer."""

    def _restore(self, step: Step, row: _Row) -> None:
        if self.rule.drops:
            values = row.values
            restored = _put(values["restored"], values["places"], values["hidden"])
            values["hidden"] = restored.apply("Unsqueeze", self.graph.constant([0], INT64))
            values["attention_mask"] = self.inputs["attention_mask"]


class _Later(Mapping[str, Value]):
    """What a step gives, put into the graph where and when it is first looked at."""

    def __init__(self, run: Callable[[], dict[str, Value]], names: tuple[str, ...]) -> None:
        self._run_step = run
        self._names = names
        self._made: dict[str, Value] | None = None

    def __getitem__(self, name: str) -> Value:
        if self._made is None:
            self._made = self._run_step()
        return self._made[name]

    def __contains__(self, name: Any) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _rows(hidden: Value) -> Value:
    """Returns hidden states of the one row, float [tokens, hidden]."""
    return hidden.apply("Squeeze", hidden.graph.constant([0], INT64))


def _let_go(values: dict[str, Value], keep: Value) -> None:
    """Lets the tokens that received the most go on; `restored` has the last states of all, float [tokens, hidden].

    Args:
        values: `received` says which; `attended` and `attention_mask` lose the others. `places` says where the tokens
            left stood, int64 [tokens left].
        keep: How many go on, int64 [1].
    """
    mask, received = values["attention_mask"], values["received"]
    nothing = received.graph.constant(-float("inf"), received.type)
    _, most = mask.equals(1).apply("Where", received, nothing, kind=received.type).top(keep)
    left, _ = most.reshape(-1).top(keep, largest=False)
    values["restored"] = _put(values["restored"], values["places"], values["hidden"])
    values["places"] = values["places"].take(left, axis=0)
    values["attended"] = values["attended"].take(left, axis=1)
    values["attention_mask"] = mask.take(left, axis=1)


def _put(restored: Value, places: Value, hidden: Value) -> Value:
    """Returns all tokens' states, float [tokens, hidden], with those of some places in the place of what they were."""
    return restored.apply("ScatterND", places.reshape(-1, 1), _rows(hidden))
