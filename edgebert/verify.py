"""Does a bundle say what its torch model says? The only place that sees both ends.

Three comparisons on random inputs: every single graph with the torch module it was made from, the engine without
early stops with the full torch model, and the engine under the method's rule with torch under that rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert.arguments import check_count, check_positive
from edgebert.bundle import SIGNATURE_NAME, WHOLE_MODEL_NAME, Bundle, open_bundle
from edgebert.bundle.manifest import MANIFEST_NAME, SINGLE_NAME, STATES, Manifest, Parity
from edgebert.decisions import Decision, follow
from edgebert.errors import ConfigError, DataError, QualityError, require
from edgebert.policies import Policy, make_policy
from edgebert.runtime.graphs import Graph, LateGraph
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.sessions import make_graph
from edgebert.samples import differing_rows, replay_samples
from edgebert.signing import Signed, check_signature
from edgebert.tasks import load_task
from edgebert.text import Values

if TYPE_CHECKING:
    from torch import Tensor

    from edgebert.methods._program import AdaptiveModel, Batch, CompiledStep

MARGIN = 1.0e-5
HALF_TOLERANCE = 5.0e-2
"""The least that fp16, which keeps 11 bits of a number, is allowed: hidden states are up to 20. Its decisions are
compared where a difference as large as the tolerance would not change them."""

PER_TOKEN = (*STATES, "received")
"""Values that mean nothing where a row has no token."""

_ROWS = 8


def verify_bundle(
    path: str | Path,
    *,
    reference: str | None = None,
    samples: int = 64,
    tolerance: float = 1.0e-4,
    public_key: str | Path | None = None,
    signature: str | Path | None = None,
    deep: bool = False,
) -> dict[str, Any]:
    """Checks every file of a bundle, loads every graph, and compares with a reference when one is given.

    Args:
        path: The bundle.
        deep: Load the single-file form too, and ask the bundle again what it was asked when it was made.
        reference: The checkpoint it was made from; of a quantized bundle, the fp32 bundle it was made from, and what is
            given back is how far they agree. None compares nothing, and torch is not needed.
        samples: Random inputs of the comparison.
        tolerance: Largest difference it allows, as in `compare`.
        public_key: The key whose signature it must have; None does not ask for one.
        signature: That signature; None is the one in the bundle.

    Raises:
        BundleError: The bundle is refused, or not as it was signed.
        ConfigError: A signature, and no key to check it with; fewer samples than one.
        DataError: The reference is not what it was made from, or the key cannot be used.
        QualityError: It differs from the reference, or answers otherwise than when it was made.
    """
    samples = check_count("samples", samples)
    bundle = open_bundle(path)
    signed = _signed(bundle, public_key, signature)
    notes = bundle.check_files()
    if bundle.is_signed and signed is None:
        notes.append(f"{bundle.path / SIGNATURE_NAME}: not checked; give --public-key.")
    with EdgeModel(bundle, prepare=False) as model:
        for graph in model.graphs.values():
            if isinstance(graph, LateGraph):
                graph.load()
        graphs = len(model.graphs) + (_whole_form(bundle, WHOLE_MODEL_NAME) is not None)
    replay = None
    if deep:
        graphs += _whole_form(bundle, SINGLE_NAME) is not None
        replay = msgspec.structs.asdict(replay_samples(bundle))
    parity = agreement = None
    if reference is not None and bundle.manifest.quantization is not None:
        agreement = agreement_with(_source_of(bundle, reference), bundle, samples=samples)
    elif reference is not None:
        require("torch", extra="train", purpose="--reference")
        from edgebert.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(reference)
        parity = compare(checkpoint.model, bundle, samples=samples, tolerance=tolerance)
    return {
        "schema": "edgebert.verify/1",
        "bundle": str(path),
        "files": len(bundle.manifest.files),
        "graphs": graphs,
        "notes": notes,
        "parity": None if parity is None else msgspec.structs.asdict(parity),
        "agreement": agreement,
        "signature": None if signed is None else {**asdict(signed), "path": str(signed.path)},
        "replay": replay,
    }


def _signed(bundle: Bundle, public_key: str | Path | None, signature: str | Path | None) -> Signed | None:
    """Returns the signature after checking it, or None where no key was given."""
    if public_key is not None:
        return check_signature(bundle, public_key, signature=signature)
    if signature is not None:
        raise ConfigError(f"--signature {signature}: goes with --public-key, the key that it is checked with.")
    return None


def _source_of(bundle: Bundle, reference: str) -> Bundle:
    """Opens the fp32 bundle that a quantized one was made of."""
    assert bundle.manifest.quantization is not None
    if not (Path(reference) / MANIFEST_NAME).is_file():
        raise DataError(
            f"--reference {reference}: give the fp32 bundle that this {bundle.manifest.precision} one is of."
        )
    source = open_bundle(reference)
    if source.manifest.graphs_digest != bundle.manifest.quantization.source_digest:
        raise DataError(f"--reference {reference}: {bundle.path} was made of another bundle (its graphs differ).")
    return source


def agreement_with(source: Bundle, bundle: Bundle, *, samples: int, seed: int = 0) -> dict[str, Any]:
    """Says how far a quantized bundle answers like the one it was made of, on random inputs, each under its default.

    Random inputs are harder than texts: `edgebert eval --against` measures what matters.

    Returns:
        `samples`, `same_answer` and `same_path` (shares, 0 to 1; the path is the layers that ran) and `max_difference`,
        the largest difference of an answer.
    """
    values = load_task(bundle.manifest.task).values
    rng = np.random.default_rng(seed)
    answers, paths, largest = [], [], 0.0
    with EdgeModel(source, threads=1, prepare=False) as before, EdgeModel(bundle, threads=1, prepare=False) as after:
        for start in range(0, samples, _ROWS):
            inputs = random_inputs(rng, min(_ROWS, samples - start), 64, bundle)
            expected, got = before.forward(**inputs), after.forward(**inputs)
            same = expected.logits.argmax(axis=1) == got.logits.argmax(axis=1)
            answers.append(same.reshape(len(same), -1).all(axis=1))
            paths.append((expected.path == got.path).all(axis=1))
            unit = _unit("logits", expected.logits)
            largest = _larger(largest, _differences(values(expected.logits), values(got.logits)) / unit)
    return {
        "samples": samples,
        "same_answer": float(np.concatenate(answers).mean()),
        "same_path": float(np.concatenate(paths).mean()),
        "max_difference": largest,
    }


def compare(
    model: AdaptiveModel,
    bundle: Bundle,
    *,
    samples: int,
    tolerance: float,
    seed: int = 0,
    max_tokens: int = 64,
    name: str | None = None,
) -> Parity:
    """Compares a torch model with its bundle on random inputs.

    Args:
        model: The torch model, on the CPU.
        bundle: The bundle made from it.
        samples: How many inputs.
        tolerance: Largest allowed absolute difference; of single values, relative to the largest (at least 1). A
            bundle in fp16 is allowed `HALF_TOLERANCE` at least.
        seed: Of the inputs.
        max_tokens: Longest input.
        name: What messages call the bundle; None takes its path.

    Raises:
        ConfigError: There are fewer samples than one, or the tolerance is not more than 0.
        DataError: The model and the bundle are not of one shape.
        QualityError: A difference is larger than the tolerance, or a decision differs outside the margin.
    """
    import torch

    from edgebert.methods._program import Batch
    from edgebert.methods._reference import run_reference

    samples = check_count("samples", samples)
    manifest, name = bundle.manifest, name or str(bundle.path)
    is_half = manifest.precision == "fp16"
    tolerance = check_positive("tolerance", tolerance)
    tolerance = max(tolerance, HALF_TOLERANCE) if is_half else tolerance
    margin = tolerance if is_half else MARGIN
    _check_shapes(model, manifest, name)
    values = load_task(manifest.task).values
    model.eval()
    rng = np.random.default_rng(seed)
    rule = (manifest.rule.policy, manifest.rule.knobs)
    policy = make_policy(*rule, exit_layers=manifest.exit_layers)
    largest = graph_largest = 0.0
    compared = differing = near = 0
    with EdgeModel(bundle, policy="never", threads=1, prepare=False) as runtime:
        graphs, whole = runtime.graphs, _whole_form(bundle, WHOLE_MODEL_NAME)
        for start in range(0, samples, _ROWS):
            inputs = random_inputs(rng, min(_ROWS, samples - start), max_tokens, bundle)
            batch = Batch(**{name: torch.from_numpy(value) for name, value in inputs.items()})
            with torch.no_grad():
                expected = model.forward(batch.input_ids, batch.attention_mask, batch.token_type_ids).numpy()
            runtime.set_policy("never")
            got = runtime.forward(**inputs)
            unit = _unit("logits", expected)
            largest = _larger(largest, np.abs(values(got.logits) - values(expected)) / unit)
            graph_largest = _larger(graph_largest, compare_graphs(model.steps(), bundle, graphs, batch))
            if whole is not None:
                logits = whole.run(inputs, ("logits",))["logits"]
                largest = _larger(largest, np.abs(values(logits) - values(expected)) / unit)
            if not manifest.exit_layers and model.n_labels == 1:
                continue  # a static regression decides nothing
            decisions, expected_under_rule = run_reference(model.steps(), batch, policy)
            assert expected_under_rule is not None
            runtime.set_policy(manifest.rule.policy, **manifest.rule.knobs)
            decided = runtime.forward(**inputs)
            differs = differing_rows(expected_under_rule, decided)
            unstable = within_margin(policy, decisions, manifest.encoder.layers, rng, margin=margin)
            compared += len(differs)
            near += int(unstable.sum())
            differing += int((differs & ~unstable).sum())
    parity = Parity(
        samples=samples,
        max_difference=largest,
        graph_max_difference=graph_largest,
        decisions=compared,
        differing_decisions=differing,
        within_margin=near,
        tolerance=tolerance,
    )
    if not (largest <= tolerance and graph_largest <= tolerance) or differing:  # not: NaN is no agreement
        raise QualityError(
            f"{name}: differs from torch: answers by up to {largest:.2e}, single graphs by up to "
            f"{graph_largest:.2e} (tolerance {tolerance:.0e}), {differing} of {compared} decisions."
        )
    return parity


def _differences(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Returns absolute differences; none where both are the same infinity."""
    differences: NDArray[Any] = np.zeros(first.shape)
    differs = first != second
    differences[differs] = np.abs(first[differs] - second[differs])
    return differences


def _larger(largest: float, differences: NDArray[Any] | float) -> float:
    """Returns the largest of both; NaN when anything is NaN."""
    return float(np.maximum(largest, np.max(differences)))


def _unit(name: str, output: NDArray[Any]) -> float:
    """Returns what differences of an output are measured in: of values and of sums the largest, at least 1; else 1."""
    is_value = name == "logits" and output.shape[-1] == 1
    if not is_value and name != "received":
        return 1.0
    return float(np.maximum(1.0, np.abs(output[np.isfinite(output)]).max(initial=0.0)))


def _whole_form(bundle: Bundle, name: str) -> Graph | None:
    """Loads the whole model or the single file, when the bundle has it."""
    if not bundle.has(name):
        return None
    return make_graph(bundle.read(name), name=str(bundle.path / name), threads=1)


def _check_shapes(model: AdaptiveModel, manifest: Manifest, name: str) -> None:
    ours, facts = model.encoder.config, manifest.encoder
    theirs = (
        (ours.layers, ours.hidden_size, ours.vocabulary_size, model.n_labels),
        [(step.kind, step.layer) for step in model.steps()],
    )
    own = (
        (facts.layers, facts.hidden_size, facts.vocabulary_size, len(manifest.labels)),
        [(step.kind, step.layer) for step in manifest.program],
    )
    if theirs[0] != own[0]:
        what = "has {} layers of width {}, a vocabulary of {} and {} labels"
        raise DataError(
            f"{name}: {what.format(*own[0])}; the reference {what.format(*theirs[0])}. "
            "Give the checkpoint it was made from."
        )
    if theirs != own:
        raise DataError(f"{name}: the reference is of another method. Give the checkpoint it was made from.")


def compare_graphs(steps: Sequence[CompiledStep], bundle: Bundle, graphs: dict[str, Graph], batch: Batch) -> float:
    """Returns the largest difference between any graph's outputs and those of the torch modules in it.

    That of a regression's values is relative to the largest of them, where that is more than 1. Every graph gets
    torch's own inputs, so that errors do not add up; where pieces are chosen from, every second one, others in the
    next row.
    """
    import torch

    values = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "token_type_ids": batch.token_type_ids,
    }
    rows = len(batch.input_ids)
    largest = 0.0
    outputs: dict[str, NDArray[np.float32]] = {}
    for step, stored in zip(steps, bundle.manifest.program, strict=True):
        if step.module is None:
            continue
        if stored.graph is not None:
            outputs = graphs[stored.graph].run(_as_stored(values, bundle.manifest), stored.outputs)
        with torch.no_grad():
            expected = step.module(*(values[name] for name in step.inputs))
        named = dict(zip(step.outputs, expected if isinstance(expected, tuple) else (expected,), strict=True))
        real = values["attention_mask"].numpy().astype(bool)
        for name, value in named.items():
            difference = _differences(outputs[name], value.numpy()) / _unit(name, value.numpy())
            largest = _larger(largest, difference[real] if name in PER_TOKEN else difference)
        values.update(named)
        if step.kind == "select" and step.choice is not None:
            values[step.choice] = (torch.arange(rows)[:, None] + torch.arange(step.choices)) % 2 == 0
    return largest


def _as_stored(values: Mapping[str, Tensor], manifest: Manifest) -> Values:
    """Returns torch's values as the graphs take them."""
    in_half = STATES if manifest.precision == "fp16" else ()
    return {
        name: value.numpy().astype(np.float16) if name in in_half else value.numpy() for name, value in values.items()
    }


def within_margin(
    policy: Policy,
    decisions: Sequence[Decision],
    layers: int,
    rng: np.random.Generator,
    draws: int = 8,
    margin: float = MARGIN,
) -> NDArray[np.bool_]:
    """Says which rows lie so near a border that a `margin` in what decides changes path or label, bool [rows].

    Single values change by that share of the largest, where that is more than 1.
    """
    followed = follow(policy, decisions, layers)
    unstable = np.zeros(len(followed.exit_layer), np.bool_)
    for _ in range(draws):
        moved = [
            replace(
                decision,
                outputs={
                    name: value + margin * _unit(name, value) * rng.choice([-1.0, 1.0], value.shape)
                    for name, value in decision.outputs.items()
                },
            )
            for decision in decisions
        ]
        unstable |= differing_rows(follow(policy, moved, layers), followed)
    return unstable


def random_inputs(rng: np.random.Generator, rows: int, max_tokens: int, bundle: Bundle) -> Values:
    """Returns random ids of random lengths, padded: int64 [rows, tokens] each."""
    facts = bundle.manifest.encoder
    lengths = rng.integers(3, min(max_tokens, facts.max_length) + 1, rows)
    tokens = int(lengths.max())
    mask = (np.arange(tokens)[None, :] < lengths[:, None]).astype(np.int64)
    ids = rng.integers(1, facts.vocabulary_size, (rows, tokens))
    types = rng.integers(0, max(facts.token_types, 1), (rows, tokens))
    return {
        "input_ids": np.where(mask == 1, ids, facts.pad_token_id),
        "attention_mask": mask,
        "token_type_ids": np.where(mask == 1, types, 0),
    }
