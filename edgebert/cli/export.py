"""`edgebert export`: makes a bundle of a checkpoint, and a single file of either."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import click

from edgebert.cli._options import force_option, json_option, positive_range, print_json, say_hub, say_next
from edgebert.errors import ConfigError, require
from edgebert.output import ConsoleReporter

if TYPE_CHECKING:
    from edgebert.bundle import Bundle


@click.command(name="export")
@click.argument("checkpoint")
@click.argument("target", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--layout",
    type=click.Choice(["split", "single", "both"]),
    default="split",
    show_default=True,
    help="A bundle; one file for stock ONNX Runtime (BUNDLE is then a FILE.onnx); or a bundle with that inside.",
)
@click.option("--point", default="default", show_default=True, help="Operating point or policy of the single file.")
@click.option(
    "--knobs",
    type=click.Choice(["defaults", "required"]),
    default="defaults",
    show_default=True,
    help="Whether the single file's policy inputs have defaults; onnxruntime-web sets only those without.",
)
@click.option("-c", "--config", type=click.Path(path_type=Path), help="Take the section `export` of this file.")
@click.option("--method", help="The method, for random:SHAPE, such as random:minilm-l6.")
@click.option("--opset", type=int, help="ONNX operator set.")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), help="Of weights and states; fp16 is for GPUs.")
@click.option("--link/--no-link", default=None, help="Join each exit with the layer before it: one call, not two.")
@click.option("--verify-samples", type=int, help="Random inputs on which torch and the bundle are compared.")
@click.option("--tolerance", type=positive_range, help="Largest difference the comparison allows.")
@force_option
@json_option
def command(
    checkpoint: str,
    target: Path,
    layout: str,
    point: str,
    knobs: Literal["defaults", "required"],
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
    """Turn a checkpoint (or random:bert-base) into a bundle of ONNX graphs; or it, or a bundle, into a single file."""
    from edgebert.bundle.manifest import MANIFEST_NAME

    given = {
        "opset": opset,
        "precision": precision,
        "link": link,
        "verify_samples": verify_samples,
        "tolerance": tolerance,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    single = _Single(point=point, knobs=knobs, samples=verify_samples, tolerance=tolerance, force=force)
    if layout != "single" and point != "default":
        raise ConfigError("--point goes with --layout single; the single file in a bundle holds its default point.")
    if layout != "single" and knobs != "defaults":
        raise ConfigError("--knobs goes with --layout single; the single file in a bundle has its default point.")
    if layout == "single":
        single.check(target)
    if (Path(checkpoint) / MANIFEST_NAME).is_file():
        if layout == "split" or config or method or set(overrides) - {"verify_samples", "tolerance"}:
            raise ConfigError(
                f"{checkpoint}: is a bundle; of one a single file is made, with --layout single or both, "
                "and -c, --method, --opset, --precision and --link say nothing."
            )
        made = single.write(checkpoint, target) if layout == "single" else single.add(checkpoint, target)
    else:
        made = _export(checkpoint, target, layout, single, config, overrides, method)
    _report(made, target, as_json=as_json)


def _export(
    checkpoint: str,
    target: Path,
    layout: str,
    single: _Single,
    config: Path | None,
    overrides: Mapping[str, Any],
    method: str | None,
) -> Bundle | Path:
    """Makes of a checkpoint what the layout says."""
    from edgebert.config import read_config

    settings = read_config(config).export if config else None
    for module in ("torch", "transformers", "onnx", "onnxscript"):
        require(module, extra="export", purpose="edgebert export")
    from edgebert.bundle.publish import check_target
    from edgebert.export import export_model
    from edgebert.partial import scratch_folder

    if layout != "single":
        check_target(target, force=single.force, kind="bundle", sources=[checkpoint])
    say_hub(checkpoint)
    make = partial(
        export_model, checkpoint, method=method, settings=settings, overrides=overrides, reporter=ConsoleReporter()
    )
    if layout == "split":
        return make(target, force=single.force)
    with scratch_folder(target) as folder:
        bundle = make(folder / target.name).path
        return single.write(bundle, target) if layout == "single" else single.add(bundle, target)


@dataclass(frozen=True)
class _Single:
    """The options of a single file; `samples` and `tolerance` are None where they were not given."""

    point: str
    knobs: Literal["defaults", "required"]
    samples: int | None
    tolerance: float | None
    force: bool

    def check(self, target: Path) -> None:
        """Checks the target before any work."""
        self._module().check_single_target(target, force=self.force)

    def write(self, bundle: str | Path, target: Path) -> Path:
        """Writes the file of a bundle."""
        options = {"point": self.point, "knobs": self.knobs, **self._options()}
        made: Path = self._module().export_single(bundle, target, **options, force=self.force)
        return made

    def add(self, bundle: str | Path, target: Path) -> Bundle:
        """Makes a bundle with the file in it."""
        made: Bundle = self._module().add_single(bundle, target, **self._options(), force=self.force)
        return made

    def _options(self) -> dict[str, Any]:
        given = {"samples": self.samples, "tolerance": self.tolerance}
        options = {name: value for name, value in given.items() if value is not None}
        return {"reporter": ConsoleReporter(), **options}

    def _module(self) -> ModuleType:
        require("onnx", extra="export", purpose="edgebert export --layout single")
        return importlib.import_module("edgebert.single")


def _report(made: Bundle | Path, target: Path, *, as_json: bool) -> None:
    """Says what was made, under the name the user gave it, and what can be done with it."""
    if isinstance(made, Path):
        size_bytes = made.stat().st_size
        click.echo(f"{target}: {size_bytes / 1e6:.1f} MB, for batch 1, in any ONNX Runtime", err=True)
        if as_json:
            print_json({"schema": "edgebert.single/1", "file": str(target), "bytes": size_bytes})
        return
    click.echo(f"{target}: {len(made.manifest.files)} files, {made.size_bytes / 1e6:.1f} MB of graphs", err=True)
    if as_json:
        from edgebert.describe import describe_bundle

        print_json(describe_bundle(target))
    from edgebert.tasks import load_task

    arguments = load_task(made.manifest.task).ARGUMENTS
    follow = f"run {target} {arguments}" if made.has("tokenizer.json") else f"bench {target}"
    say_next(f"edgebert {follow}")
