"""The model card of a bundle, a README.md that a hub shows and a person may edit."""

from __future__ import annotations

from edgebert.bundle.manifest import Manifest


def write_card(
    manifest: Manifest, name: str, *, tag: str = "text-classification", call: str = 'model("a text")'
) -> str:
    """Returns the text of the model card.

    Args:
        manifest: The bundle's manifest.
        name: What the bundle is called.
        tag: What the hub calls the task.
        call: How the model is called.
    """
    facts = manifest.encoder
    labels = ", ".join(manifest.labels[:8]) + (", ..." if len(manifest.labels) > 8 else "")
    lines = [
        "---",
        "library_name: edgebert",
        f"pipeline_tag: {tag}",
        "---",
        f"# {name}",
        "",
        f"A `{manifest.method}` model for {manifest.task} ({labels}), as an edgebert bundle: "
        "one ONNX graph per layer, run conditionally, so that each input gets only the work it needs.",
        "",
        "```python",
        "from edgebert import EdgeModel",
        "",
        f'model = EdgeModel.from_pretrained("{name}")',
        f"print({call}.to_dict())",
        "```",
        "",
        f"Encoder: {facts.family}, {facts.layers} layers, hidden size {facts.hidden_size}, "
        f"up to {facts.max_length} tokens. Precision {manifest.precision}, opset {manifest.opset}.",
        "",
        "| operating point | policy | knobs | metric | layers | cost | chosen on |",
        "|---|---|---|---|---|---|---|",
    ]
    for point_name, point in manifest.operating_points.items():
        knobs = ", ".join(f"{knob}={value}" for knob, value in point.knobs.items()) or "-"
        metric = "-" if point.metric is None else f"{point.metric:.4f}"
        layers = "-" if point.mean_layers is None else f"{point.mean_layers:.2f}"
        cost = "-" if point.cost_ratio is None else f"{point.cost_ratio:.2f}"
        chosen_on = point.chosen_on or "-"
        lines.append(f"| {point_name} | {point.policy} | {knobs} | {metric} | {layers} | {cost} | {chosen_on} |")
    if manifest.parity is not None:
        parity = manifest.parity
        lines += [
            "",
            f"Compared with torch on {parity.samples} random inputs: answers differ by at most "
            f"{parity.max_difference:.1e}; {parity.differing_decisions} of {parity.decisions} decisions differ.",
        ]
    return "\n".join(lines) + "\n"
