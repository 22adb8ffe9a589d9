"""The command line: each command reads its options, calls one function and prints what it returns.

Data goes to stdout, messages and progress to stderr. Heavy code is imported inside the command that needs it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from edgebert import __version__
from edgebert.errors import ConfigError, EdgeBertError, QualityError, require, suggestion
from edgebert.output import ConsoleReporter


class _Group(click.Group):
    """A group that suggests the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command {args[0]!r}.{suggestion(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgebert")
@click.pass_context
def cli(context: click.Context) -> None:
    """BERT models that do only the work each input needs.

    Train one, export it to ONNX graphs, and run those conditionally on ONNX Runtime.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
_force = click.option("--force", is_flag=True, help="Replace what is there.")
_set = click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one key; may be repeated.")
_policy = click.option("--policy", "policy", default="default", show_default=True, help="Operating point or policy.")
_provider = click.option("--provider", default="cpu", show_default=True, help="cpu or cuda.")


@cli.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("demo-run"), show_default=True)
@click.option("--seed", default=0, show_default=True)
@_force
def demo(output: Path, seed: int, force: bool) -> None:
    """Train, export, verify and run a voice-command model; minutes on 2 cores, no network."""
    _require_training("demo")
    from edgebert.demo import run_demo

    click.echo(run_demo(output, seed=seed, force=force, reporter=ConsoleReporter()))


@cli.command()
@click.option(
    "-c", "--config", required=True, type=click.Path(path_type=Path), help="A file like those in export_configs."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The checkpoint folder to make.")
@click.option("--data", help="Folder with train.tsv (csv, jsonl, parquet), or a hub id.")
@click.option("--model", help="Encoder to start from: checkpoint folder, hub id, or embedded:minilm-l6.")
@click.option("--columns", help="Which column is which field, such as text=sentence,label=label.")
@click.option("--seed", default=0, show_default=True)
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop every stage after this many steps.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted training.")
@_set
@_force
@_json
def train(
    config: Path,
    output: Path,
    data: str | None,
    model: str | None,
    columns: str | None,
    seed: int,
    max_steps: int | None,
    resume: bool,
    settings: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Train a method and write a checkpoint."""
    from msgspec import to_builtins

    from edgebert.config import read_config, with_train

    read = with_train(read_config(config, settings), data=data, model=model, columns=_columns(columns) or None)
    _require_training("train")
    from edgebert.training import train_model

    made = train_model(
        read, output, seed=seed, max_steps=max_steps, is_resumed=resume, force=force, reporter=ConsoleReporter()
    )
    if as_json:
        _print_json({"schema": "edgebert.train/1", "checkpoint": str(output), **to_builtins(made.facts)})
    _next(f"edgebert export {output} {output}.bundle")


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--from", "naming", help="Whose tensor names it has, such as deebert; recognised if not given.")
@click.option("--config", type=click.Path(path_type=Path), help="Its configuration file, if not config.json beside it.")
@click.option("--tokenizer", help="Folder or hub id of its tokenizer, or a vocabulary file; SOURCE's if not given.")
@_force
@_json
def convert(
    source: Path,
    checkpoint: Path,
    naming: str | None,
    config: Path | None,
    tokenizer: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a checkpoint trained elsewhere, a folder or a file of weights, into one of edgebert."""
    for module in ("torch", "transformers"):
        require(module, extra="export", purpose="edgebert convert")
    from msgspec import to_builtins

    from edgebert.convert import convert_checkpoint

    made = convert_checkpoint(
        source,
        checkpoint,
        naming=naming,
        config=config,
        tokenizer=tokenizer,
        force=force,
        reporter=ConsoleReporter(),
    )
    if as_json:
        facts = to_builtins(made.checkpoint.facts)
        about = {"from": made.naming, "ignored": made.ignored, "notes": made.notes}
        _print_json({"schema": "edgebert.convert/1", "checkpoint": str(checkpoint), **about, **facts})
    _next(f"edgebert export {checkpoint} {checkpoint}.bundle")


@cli.command()
@click.argument("checkpoint")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-c", "--config", type=click.Path(path_type=Path), help="Take the section `export` of this file.")
@click.option("--method", help="The method, for random:SHAPE, such as random:minilm-l6.")
@click.option("--opset", type=int, help="ONNX operator set.")
@click.option("--link/--no-link", default=None, help="Join each exit with the layer before it: one call, not two.")
@click.option("--verify-samples", type=int, help="Random inputs on which torch and the bundle are compared.")
@click.option("--tolerance", type=float, help="Largest difference the comparison allows.")
@_force
@_json
def export(
    checkpoint: str,
    bundle: Path,
    config: Path | None,
    method: str | None,
    opset: int | None,
    link: bool | None,
    verify_samples: int | None,
    tolerance: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a checkpoint (or random:bert-base) into a bundle of ONNX graphs."""
    from edgebert.config import read_config

    given = read_config(config).export if config else None
    overrides = {"opset": opset, "link": link, "verify_samples": verify_samples, "tolerance": tolerance}
    for module in ("torch", "transformers", "onnx", "onnxscript"):
        require(module, extra="export", purpose="edgebert export")
    from edgebert.export import export_model

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

        _print_json(describe_bundle(bundle))
    follow = f'run {bundle} "a text"' if made.has("tokenizer.json") else f"bench {bundle}"
    _next(f"edgebert {follow}")


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--reference", help="The checkpoint it was made from: compare with torch too.")
@click.option("--samples", default=64, show_default=True, help="Random inputs of that comparison.")
@click.option("--tolerance", default=1.0e-4, show_default=True)
@_json
def verify(bundle: Path, reference: str | None, samples: int, tolerance: float, as_json: bool) -> None:
    """Check every file of a bundle, load every graph, and compare with torch if a reference is given."""
    from edgebert.verify import verify_bundle

    result = verify_bundle(bundle, reference=reference, samples=samples, tolerance=tolerance)
    for note in result["notes"]:
        click.echo(f"note: {note}", err=True)
    if as_json:
        _print_json(result)
        return
    click.echo(f"{bundle}: {result['files']} files and {result['graphs']} graphs are as they were made")
    if result["parity"]:
        click.echo(
            f"agrees with {reference} on {result['parity']['samples']} inputs: largest difference "
            f"{result['parity']['max_difference']:.1e}, {result['parity']['differing_decisions']} decisions differ"
        )


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_json
def info(bundle: Path, as_json: bool) -> None:
    """Show what a bundle is: method, labels, program, operating points, knobs."""
    from edgebert.describe import describe_bundle, describe_text

    facts = describe_bundle(bundle)
    if as_json:
        _print_json(facts)
    else:
        click.echo(describe_text(facts))


@cli.command()
@click.argument("bundle")
@click.argument("texts", nargs=-1)
@click.option("--pair", "pairs", nargs=2, multiple=True, metavar="A B", help="A pair of texts; may be repeated.")
@click.option("-i", "--input", "source", help="File of texts (txt, tsv, csv, jsonl, parquet), or - for stdin lines.")
@click.option("--columns", help="Which column is which field, such as text=sentence.")
@_policy
@click.option("--set", "settings", multiple=True, metavar="KNOB=VALUE", help="Set a knob, such as threshold=0.9.")
@click.option("--top-k", type=click.IntRange(min=1), help="Show this many labels.")
@click.option("--threads", type=click.IntRange(min=1))
@_provider
@click.option("--trace", is_flag=True, help="Show layers, tokens and cost of each text.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "jsonl", "csv"]), default="table", show_default=True
)
@_json
def run(
    bundle: str,
    texts: tuple[str, ...],
    pairs: tuple[tuple[str, str], ...],
    source: str | None,
    columns: str | None,
    policy: str,
    settings: tuple[str, ...],
    top_k: int | None,
    threads: int | None,
    provider: str,
    trace: bool,
    form: str,
    as_json: bool,
) -> None:
    """Answer texts: label, score and how deep each had to go."""
    from edgebert.answers import print_answers, read_texts
    from edgebert.config import parse_setting
    from edgebert.runtime.model import EdgeModel

    inputs = read_texts(texts, pairs, source, columns=_columns(columns))
    with EdgeModel.from_pretrained(bundle, policy=policy, threads=threads, provider=provider) as model:
        model.set_policy(policy, **dict(parse_setting(text) for text in settings))
        window = 1 if source == "-" else 256
        form = "json" if as_json else form
        truncated = print_answers(inputs, model, form=form, trace=trace, top_k=top_k, window=window)
    if truncated:
        click.echo(f"note: {truncated} texts were cut to {model.manifest.encoder.max_length} tokens", err=True)


@cli.command(name="eval")
@click.argument("bundles", nargs=-1, required=True)
@click.option("--data", required=True, multiple=True, help="Labelled file, folder or hub id; several count together.")
@click.option("--split", default="validation", show_default=True, help="Which split of a folder or hub id.")
@click.option("--columns", help="Which column is which field, such as text=sentence,label=label.")
@click.option("--policy", "policies", multiple=True, help="Operating point or policy; may be repeated.")
@click.option("--set", "settings", multiple=True, metavar="KNOB=VALUE", help="Set a knob of every policy.")
@click.option(
    "--against", multiple=True, help="static-frontier, fixed-exits, or a bundle to compare with text by text."
)
@click.option("--min-metric", type=float, help="Exit with 4 when the first row's metric is below this (0 to 1).")
@click.option("-b", "--batch-size", default=32, show_default=True, help="1 gives latency percentiles.")
@click.option("--max-length", type=click.IntRange(min=4))
@click.option("-t", "--threads", type=click.IntRange(min=1))
@_provider
@_json
def evaluate(
    bundles: tuple[str, ...],
    data: tuple[str, ...],
    split: str,
    columns: str | None,
    policies: tuple[str, ...],
    settings: tuple[str, ...],
    against: tuple[str, ...],
    min_metric: float | None,
    batch_size: int,
    max_length: int | None,
    threads: int | None,
    provider: str,
    as_json: bool,
) -> None:
    """Measure accuracy, layers and time on labelled texts."""
    from edgebert.config import parse_setting
    from edgebert.evaluate import evaluate_bundle, evaluation_table

    result = evaluate_bundle(
        bundles,
        data,
        policies=policies or ("default",),
        settings=dict(parse_setting(text) for text in settings),
        columns=_columns(columns),
        split=split,
        against=against,
        threads=threads,
        batch_size=batch_size,
        max_length=max_length,
        provider=provider,
        reporter=ConsoleReporter(),
    )
    _print_json(result) if as_json else click.echo(evaluation_table(result))
    metric = result["rows"][0]["metric"]
    if min_metric is not None and metric < min_metric:
        raise QualityError(f"{bundles[0]}: expected a metric of at least {min_metric}, got {metric:.4f}.")


@cli.command()
@click.argument("bundles", nargs=-1, required=True)
@click.option("--data", help="Labelled or plain file whose texts are timed; else random ids of --lengths.")
@click.option("--columns", help="Which column is which field, such as text=sentence.")
@_policy
@click.option("--set", "settings", multiple=True, metavar="KNOB=VALUE", help="Set a knob of the policy.")
@click.option("-t", "--threads", default="1", show_default=True, help="Thread counts, such as 1,2.")
@click.option("-b", "--batches", default="1", show_default=True, help="Batch sizes, such as 1,32.")
@click.option("-l", "--lengths", help="Lengths in tokens; by default 16, 32 and 128, as far as the bundles take them.")
@click.option("--against", help="A bundle, whole, uncompacted, torch or optimum.")
@click.option("--against-batch", type=click.IntRange(min=1), help="Batch size of the other side.")
@click.option("--reference", help="A plain checkpoint for torch and optimum; else random weights of the same shape.")
@click.option(
    "--scenario",
    type=click.Choice(["single-stream", "offline"]),
    default="single-stream",
    show_default=True,
    help="One text after the other, or the whole file in batches.",
)
@click.option("--per-layer", is_flag=True, help="Fit time = fixed + k x layer.")
@click.option("--repeats", default=5, show_default=True, help="Turns of each side.")
@click.option("--max-texts", default=500, show_default=True)
@_provider
@_json
def bench(
    bundles: tuple[str, ...],
    data: str | None,
    columns: str | None,
    policy: str,
    settings: tuple[str, ...],
    threads: str,
    batches: str,
    lengths: str | None,
    against: str | None,
    against_batch: int | None,
    reference: str | None,
    scenario: str,
    per_layer: bool,
    repeats: int,
    max_texts: int,
    provider: str,
    as_json: bool,
) -> None:
    """Time bundles, and rivals beside them: child processes that take turns."""
    from edgebert.bench import bench_bundles, table
    from edgebert.config import parse_setting

    result = bench_bundles(
        bundles,
        data=data,
        columns=_columns(columns) or None,
        policy=policy,
        settings=dict(parse_setting(text) for text in settings),
        threads=_numbers(threads, "--threads"),
        batches=_numbers(batches, "--batches"),
        lengths=_numbers(lengths, "--lengths") if lengths else None,
        against=against,
        against_batch=against_batch,
        reference=reference,
        scenario=scenario,  # type: ignore[arg-type]  # click.Choice has checked it
        per_layer=per_layer,
        repeats=repeats,
        max_texts=max_texts,
        provider=provider,
        reporter=ConsoleReporter(),
    )
    _print_json(result) if as_json else click.echo(table(result))


def main() -> NoReturn:
    """Runs the command line; every error is one line on stderr and an exit code."""
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        _fail("interrupted", 130)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except click.ClickException as error:
        hint = f" Try: {error.ctx.command_path} --help" if isinstance(error, click.UsageError) and error.ctx else ""
        _fail(error.format_message() + hint, 2)
    except EdgeBertError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("EDGEBERT_DEBUG"):
            raise
        _fail(f"{type(error).__name__}: {error} (a bug: set EDGEBERT_DEBUG=1 for the traceback)", 1)


def _require_training(command: str) -> None:
    """Says which extra is missing before anything heavy is imported."""
    for module in ("torch", "transformers", "accelerate", "sklearn", "scipy"):
        require(module, extra="demo" if command == "demo" else "train", purpose=f"edgebert {command}")


def _name_environment_variables() -> None:
    """Gives every option the environment variable of its long flag: EDGEBERT_RUN_FORMAT is `run --format`."""
    for name, command in cli.commands.items():
        for option in command.params:
            flags = [flag for flag in option.opts if flag.startswith("--")]
            if flags:
                option.envvar = f"EDGEBERT_{name}_{flags[0].lstrip('-')}".replace("-", "_").upper()


_name_environment_variables()


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _next(command: str) -> None:
    click.echo(f"next: {command}", err=True)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _columns(text: str | None) -> dict[str, str]:
    """Reads `text=sentence,label=label`."""
    columns = {}
    for part in text.split(",") if text else []:
        field, equals, column = part.partition("=")
        if not equals or not field or not column:
            raise ConfigError(f"--columns {text}: expected field=column, such as text=sentence,label=label.")
        columns[field] = column
    return columns


def _numbers(text: str, option: str) -> list[int]:
    """Reads `1,2,4`."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} {text}: expected numbers with commas between, such as 1,2.") from error
    if min(numbers) < 1:
        raise ConfigError(f"{option} {text}: expected numbers of 1 or more.")
    return numbers


if __name__ == "__main__":
    main()
