from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from edgebert.bundle.manifest import Macs
from edgebert.export.link import plan_graphs
from edgebert.export.template import structure
from edgebert.methods._program import CompiledStep


class _Double(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * hidden


class _Split(nn.Module):
    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return hidden + mask, hidden - mask


def _step(file: str, module: nn.Module, inputs: str, outputs: str, *, may_link: bool = False) -> CompiledStep:
    return CompiledStep(
        kind="exit" if may_link else "layer",
        layer=1,
        file=file,
        module=module,
        inputs=tuple(inputs.split()),
        outputs=tuple(outputs.split()),
        macs=Macs(),
        may_link=may_link,
    )


LAYER = _step("layer", _Double(), "hidden mask", "hidden")
EXIT = _step("exit", _Split(), "hidden mask", "plus minus", may_link=True)


def test_plan_graphs_links_what_may_be_linked() -> None:
    other = _step("other", _Double(), "hidden mask", "hidden")

    plans = plan_graphs([LAYER, EXIT, other, EXIT], link=True)

    assert [plan.step.file for plan in plans] == ["layer", "other"]
    assert [plan.outputs for plan in plans] == [("hidden", "plus", "minus")] * 2


def test_plan_graphs_split() -> None:
    plans = plan_graphs([LAYER, EXIT], link=False)

    assert [(plan.step.file, plan.outputs) for plan in plans] == [("layer", ("hidden",)), ("exit", ("plus", "minus"))]
    assert plans[1].module is EXIT.module


def test_plan_graphs_leaves_a_step_whose_inputs_the_graph_has_not() -> None:
    embed = _step("embed", _Double(), "input_ids", "hidden")

    plans = plan_graphs([embed, EXIT], link=True)

    assert [plan.step.file for plan in plans] == ["embed", "exit"]


def test_plan_graphs_leaves_a_graph_that_stands_at_several_places() -> None:
    again = _step("layer", LAYER.module, "hidden mask", "hidden")

    plans = plan_graphs([LAYER, again, EXIT], link=True)

    assert [(plan.step.file, plan.outputs) for plan in plans] == [
        ("layer", ("hidden",)),
        ("layer", ("hidden",)),
        ("exit", ("plus", "minus")),
    ]


def test_plan_graphs_first_step_stays() -> None:
    assert [plan.step.file for plan in plan_graphs([EXIT], link=True)] == ["exit"]


def test_plan_graphs_steps_may_share_a_file() -> None:
    head = _step("head", EXIT.module, "hidden mask", "plus minus")

    plans = plan_graphs([LAYER, head, LAYER, head], link=True)

    assert [plan.step.file for plan in plans] == ["layer", "head", "layer", "head"]


@pytest.mark.parametrize(
    "other",
    [
        _step("layer", _Double(), "hidden mask", "hidden"),
        _step("layer", LAYER.module, "hidden", "hidden"),
        _step("layer", LAYER.module, "hidden mask", "wide"),
    ],
    ids=["module", "inputs", "outputs"],
)
def test_plan_graphs_one_file_for_different_graphs(other: CompiledStep) -> None:
    with pytest.raises(ValueError, match=r"^layer: the layer of layer 1 and the layer of layer 1 share this file;"):
        plan_graphs([LAYER, other, EXIT], link=True)


def test_linked_module_feeds_each_part_the_newest_values() -> None:
    double = _step("layer", _Double(), "hidden", "hidden")
    (plan,) = plan_graphs([double, _step("exit", _Double(), "hidden", "logits", may_link=True)], link=True)

    hidden, logits = plan.module(torch.ones(2))

    assert hidden.tolist() == [2.0, 2.0]
    assert logits.tolist() == [4.0, 4.0]


def test_linked_layers_of_different_numbers_are_of_one_structure() -> None:
    third = replace(LAYER, layer=3, file="third"), replace(EXIT, layer=3, file="third_exit")

    first, other = (plan_graphs(steps, link=True)[0].module for steps in ([LAYER, EXIT], third))
    swapped = plan_graphs([LAYER, replace(EXIT, outputs=("minus", "plus"))], link=True)[0].module

    assert structure(first) == structure(other)
    assert structure(first) != structure(swapped)
