"""`edgebert quantize`: makes a bundle of fewer bits."""

from __future__ import annotations

from pathlib import Path

import click

from edgebert.cli._options import NumberRange, force_option, json_option, print_json, read_columns, say_next
from edgebert.output import ConsoleReporter


@click.command(name="quantize")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("-c", "--config", type=click.Path(path_type=Path), help="Take the section `quantize` of this file.")
@click.option("-p", "--precision", type=click.Choice(["int8", "int4"]), help="Of the weights; int4 is weight-only.")
@click.option("--mode", type=click.Choice(["dynamic", "static", "weight-only"]), help="What happens to activations.")
@click.option("--backend", help="onnxruntime, or neural_compressor.")
@click.option("--per-channel/--per-tensor", default=None, help="A scale for each output of a matrix, or one for all.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave these graphs fp32, such as '*layer_00*'.")
@click.option(
    "--target", type=click.Choice(["auto", "avx2", "avx512", "avx512_vnni", "arm64"]), help="Where it will run."
)
@click.option("--calibration", help="Texts that static scales are taken from: a file, or a folder's train split.")
@click.option("--calibration-texts", type=click.IntRange(min=1), help="How many of them.")
@click.option("--eval", "evaluation", multiple=True, help="Labelled file to measure the drop on; may be repeated.")
@click.option(
    "--max-drop",
    type=NumberRange(min=0),
    help="Points of the metric that may be lost under `default`; graphs stay fp32 until it is met.",
)
@click.option("--smooth-quant/--no-smooth-quant", default=None, help="SmoothQuant before static (neural_compressor).")
@click.option("--columns", help="Which column is which field, such as text=sentence,label=label.")
@force_option
@json_option
def command(
    bundle: Path,
    out: Path,
    config: Path | None,
    precision: str | None,
    mode: str | None,
    backend: str | None,
    per_channel: bool | None,
    exclude: tuple[str, ...],
    target: str | None,
    calibration: str | None,
    calibration_texts: int | None,
    evaluation: tuple[str, ...],
    max_drop: float | None,
    smooth_quant: bool | None,
    columns: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn an fp32 bundle into one of 8 or 4 bits, smaller and faster."""
    from edgebert.config import read_config
    from edgebert.errors import require

    require("onnx", extra="quantize", purpose="edgebert quantize")
    from edgebert.describe import describe_bundle
    from edgebert.quantize import quantize_bundle

    overrides = {
        "precision": precision,
        "mode": mode,
        "backend": backend,
        "per_channel": per_channel,
        "exclude": list(exclude) or None,
        "target": target,
        "calibration_texts": calibration_texts,
        "max_drop": max_drop,
        "smooth_quant": smooth_quant,
    }
    made = quantize_bundle(
        bundle,
        out,
        settings=read_config(config).quantize if config else None,
        overrides={key: value for key, value in overrides.items() if value is not None},
        calibration=calibration,
        evaluation=evaluation,
        columns=read_columns(columns) or None,
        force=force,
        reporter=ConsoleReporter(),
    )
    facts = describe_bundle(made.path)
    graphs = facts["quantization"]["graphs"]
    kept = sorted(path for path, kind in graphs.items() if kind == "fp32")
    before = describe_bundle(bundle)["size_mb"]
    share = facts["size_mb"] / before
    click.echo(f"{out}: {facts['size_mb']:.1f} MB of graphs, {share:.3f} of {before:.1f}", err=True)
    if kept:
        click.echo(f"fp32 stay: {', '.join(kept)}", err=True)
    click.echo("scores have moved: choose thresholds and other knobs anew with edgebert tune", err=True)
    if as_json:
        print_json(facts)
    say_next(f"edgebert eval {bundle} {out} --data FILE --against {bundle}")
