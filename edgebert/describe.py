"""What a bundle is, for a person to read: `edgebert info`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgebert import registry
from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import Manifest
from edgebert.errors import BundleError
from edgebert.host import host_facts
from edgebert.output import markdown_table
from edgebert.runtime.points import find_point
from edgebert.runtime.prepared import cache_folder, usable_prepared
from edgebert.runtime.sessions import provider_states
from edgebert.tasks import load_task


def describe_bundle(path: str | Path) -> dict[str, Any]:
    """Returns a bundle's manifest as plain data, with its size, where it is prepared, and every policy's knobs.

    Raises:
        BundleError: The bundle is refused.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    facts: dict[str, Any] = {"schema": "edgebert.info/1", "bundle": str(path)}
    facts.update(msgspec.to_builtins(manifest))
    facts["size_mb"] = bundle.size_bytes / 1e6
    prepared = usable_prepared(bundle)
    facts["prepared"] = None if prepared is None else str(prepared.folder)
    facts["knobs"] = {policy: _knobs(manifest, policy) for policy in manifest.policies}
    return facts


def _knobs(manifest: Manifest, policy: str) -> dict[str, dict[str, Any]]:
    """Returns the knobs of a policy: what each is set to, None where it must be given, and which way saves work."""
    module, set_to = registry.load("edgebert.policies", policy), find_point(manifest, policy).knobs
    defaults = {field.name: field.default for field in msgspec.structs.fields(module.Config)}
    return {
        knob: {
            "value": set_to.get(knob, None if default is msgspec.NODEFAULT else default),
            "cheaper": module.CHEAPER.get(knob),
        }
        for knob, default in defaults.items()
    }


def describe_machine() -> dict[str, Any]:
    """Returns plain facts about this machine: see `edgebert.host`, the cache, and why a provider cannot be used."""
    try:
        cache = str(cache_folder())
    except BundleError as error:
        cache = f"nowhere: {error}"
    return {
        "schema": "edgebert.info/1",
        "host": host_facts(),
        "cache": cache,
        "providers": provider_states(),
    }


def machine_text(facts: dict[str, Any]) -> str:
    """Returns the machine's facts as a short text."""
    host = facts["host"]
    providers = [(name, "yes" if why is None else f"no: {why}") for name, why in facts["providers"].items()]
    return "\n".join(
        [
            f"{host['cpu']}, {host['threads']} threads, {host['os']}, Python {host['python']}",
            ", ".join(f"{name} {version}" for name, version in host["versions"].items()),
            f"prepared graphs: {facts['cache']}",
            "",
            markdown_table(("provider", "can be used"), providers),
        ]
    )


def describe_text(facts: dict[str, Any]) -> str:
    """Returns the facts as a short text."""
    encoder, metric = facts["encoder"], load_task(facts["task"]).METRIC
    points = [
        (
            name,
            point["policy"],
            ", ".join(f"{knob}={value}" for knob, value in point["knobs"].items()) or "-",
            "-" if point["metric"] is None else f"{point['metric']:.4f}",
            "-" if point["mean_layers"] is None else f"{point['mean_layers']:.2f}",
            "-" if point["cost_ratio"] is None else f"{point['cost_ratio']:.2f}",
            point["chosen_on"] or "-",
        )
        for name, point in facts["operating_points"].items()
    ]
    program = [
        (
            step["kind"],
            step["layer"],
            step["graph"] or "(linked)",
            ", ".join(step["inputs"]),
            ", ".join(step["outputs"]),
        )
        for step in facts["program"]
    ]
    return "\n".join(
        [
            f"{facts['bundle']}: {facts['method']} for {facts['task']}, {facts['precision']}, "
            f"{facts['size_mb']:.1f} MB",
            f"encoder: {encoder['family']}, {encoder['layers']} layers, hidden size {encoder['hidden_size']}, "
            f"up to {encoder['max_length']} tokens",
            f"labels: {', '.join(facts['labels'])}",
            f"prepared: {facts['prepared'] or 'no; edgebert prepare makes it load faster, in less memory'}",
            *_quantization_lines(facts["quantization"]),
            "",
            markdown_table(("operating point", "policy", "knobs", metric, "layers", "cost", "chosen on"), points),
            "",
            "policies (--policy) and their knobs (--set):",
            *(
                f"  {policy}: {_knobs_text(knobs)}" if knobs else f"  {policy}"
                for policy, knobs in facts["knobs"].items()
            ),
            "",
            markdown_table(("step", "layer", "graph", "inputs", "outputs"), program),
        ]
    )


def _knobs_text(knobs: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns knobs as `--set` takes them, each with which way is cheaper.

    >>> _knobs_text({"slack": {"value": 0.0, "cheaper": "higher"}, "bound": {"value": "paper", "cheaper": None}})
    'slack=0.0 (higher is cheaper), bound=paper'
    """
    ways = {knob: f" ({fact['cheaper']} is cheaper)" if fact["cheaper"] else "" for knob, fact in knobs.items()}
    values = {knob: "..." if fact["value"] is None else fact["value"] for knob, fact in knobs.items()}
    return ", ".join(f"{knob}={values[knob]}{ways[knob]}" for knob in knobs)


def _quantization_lines(facts: dict[str, Any] | None) -> list[str]:
    if facts is None:
        return []
    settings, kept = facts["settings"], [path for path, kind in facts["graphs"].items() if kind == "fp32"]
    details = [f"{facts['mode']} by {facts['backend']}", f"for {settings['target']}"]
    details += ["weights of 7 bits, which cannot overflow there"] if settings["reduce_range"] else []
    if facts["calibration"]:
        details.append(f"calibrated on {facts['calibration_texts']} texts of {facts['calibration']}")
    lines = [f"quantized: {', '.join(details)}; fp32: {', '.join(kept) or 'no graph'}"]
    if facts["trials"]:
        last = facts["trials"][-1]
        lines.append(
            f"chosen by {len(facts['trials'])} measurements: {last['drop_points']:+.2f} points lost on "
            f"{facts['evaluation']}"
        )
    return lines
