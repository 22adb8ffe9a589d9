"""`edgebert verify`: checks a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgebert.cli._options import json_option, positive_range, print_json, say_hub


@click.command(name="verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--reference", help="What it was made from: a checkpoint; of a quantized bundle, the fp32 one.")
@click.option(
    "--samples",
    type=click.IntRange(1, 1_000_000),
    default=64,
    show_default=True,
    help="Random inputs of that comparison.",
)
@click.option("--tolerance", type=positive_range, default=1.0e-4, show_default=True)
@click.option("--public-key", type=click.Path(path_type=Path), help="Whose signature it must have; see edgebert sign.")
@click.option("--signature", type=click.Path(path_type=Path), help="Where that is.  [default: model.sig in the bundle]")
@click.option("--deep", is_flag=True, help="Also load the single file, and ask again what was asked at the export.")
@json_option
def command(
    bundle: Path,
    reference: str | None,
    samples: int,
    tolerance: float,
    public_key: Path | None,
    signature: Path | None,
    deep: bool,
    as_json: bool,
) -> None:
    """Check every file of a bundle, load every graph, and compare with torch if a reference is given."""
    from edgebert.verify import verify_bundle

    say_hub(reference)
    result = verify_bundle(
        bundle,
        reference=reference,
        samples=samples,
        tolerance=tolerance,
        public_key=public_key,
        signature=signature,
        deep=deep,
    )
    for note in result["notes"]:
        click.echo(f"note: {note}", err=True)
    if as_json:
        print_json(result)
        return
    click.echo(f"{bundle}: {result['files']} files and {result['graphs']} graphs are as they were made")
    if result["signature"]:
        click.echo(f"signed by {public_key} (sha256 {result['signature']['key']}), every file of it")
    if result["replay"]:
        click.echo(
            "answers {samples} recorded samples as when made: largest difference {max_difference:.1e} (tolerance "
            "{tolerance:.0e}), {within_margin} too near a border to tell".format(**result["replay"])
        )
    if result["parity"]:
        click.echo(
            f"agrees with {reference} on {result['parity']['samples']} inputs: largest difference "
            f"{result['parity']['max_difference']:.1e}, {result['parity']['differing_decisions']} decisions differ"
        )
    if result["agreement"]:
        agreement = result["agreement"]
        click.echo(
            f"answers like {reference} on {agreement['same_answer']:.1%} of {agreement['samples']} random inputs, by"
            f" the same layers on {agreement['same_path']:.1%}; largest difference {agreement['max_difference']:.2g}"
        )
