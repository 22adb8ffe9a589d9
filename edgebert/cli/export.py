"""`edgebert export`: makes a bundle of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from edgebert.cli._options import force_option, json_option, print_json, say_next
from edgebert.errors import require
from edgebert.output import ConsoleReporter


@click.command(name="export")
@click.argument("checkpoint")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-c", "--config", type=click.Path(path_type=Path), help="Take the section `export` of this file.")
@click.option("--method", help="The method, for random:SHAPE, such as random:minilm-l6.")
@click.option("--opset", type=int, help="ONNX operator set.")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), help="Of weights and states; fp16 is for GPUs.")
@click.option("--link/--no-link", default=None, help="Join each exit with the layer before it: one call, not two.")
@click.option("--verify-samples", type=int, help="Random inputs on which torch and the bundle are compared.")
@click.option("--tolerance", type=float, help="Largest difference the comparison allows.")
@force_option
@json_option
def command(
    checkpoint: str,
    bundle: Path,
    config: Path | None,
    method: str | None,
    opset: int | None,
    precision: str | None,
    link: bool | None,
    verify_samples: int | None,
    tolerance: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a checkpoint (or random:bert-base) into a bundle of ONNX graphs."""
    from edgebert.config import read_config

    given = read_config(config).export if config else None
    overrides = {
        "opset": opset,
        "precision": precision,
        "link": link,
        "verify_samples": verify_samples,
        "tolerance": tolerance,
    }
    for module in ("torch", "transformers", "onnx", "onnxscript"):
        require(module, extra="export", purpose="edgebert export")
    from edgebert.export import export_model
    from edgebert.tasks import load_task

    made = export_model(
        checkpoint,
        bundle,
        method=method,
        settings=given,
        overrides={key: value for key, value in overrides.items() if value is not None},
        force=force,
        reporter=ConsoleReporter(),
    )
    click.echo(f"{made.path}: {len(made.manifest.files)} files, {made.size_bytes / 1e6:.1f} MB of graphs", err=True)
    if as_json:
        from edgebert.describe import describe_bundle

        print_json(describe_bundle(bundle))
    arguments = load_task(made.manifest.task).ARGUMENTS
    follow = f"run {bundle} {arguments}" if made.has("tokenizer.json") else f"bench {bundle}"
    say_next(f"edgebert {follow}")
