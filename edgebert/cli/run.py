"""`edgebert run`: answers texts, or questions over passages."""

from __future__ import annotations

import click

from edgebert.cli._options import json_option, policy_option, positive_range, provider_option, read_columns


@click.command(name="run")
@click.argument("bundle")
@click.argument("texts", nargs=-1)
@click.option("--pair", "pairs", nargs=2, multiple=True, metavar="A B", help="A pair of texts; may be repeated.")
@click.option("--question", "questions", multiple=True, metavar="Q", help="A question; may be repeated.")
@click.option("--context", metavar="TEXT|@FILE", help="The passage that the questions are about.")
@click.option(
    "-i", "--input", "source", help="File of texts (txt, tsv, csv, jsonl, parquet) or questions, or - for stdin lines."
)
@click.option("--columns", help="Which column is which field, such as text=sentence.")
@policy_option
@click.option("--set", "settings", multiple=True, metavar="KNOB=VALUE", help="Set a knob, such as threshold=0.9.")
@click.option("--top-k", type=click.IntRange(min=1), help="Show this many labels or answers.")
@click.option("--threads", type=click.IntRange(min=1))
@provider_option
@click.option("--prepare", is_flag=True, help="Prepare the bundle for this machine first, unless it is.")
@click.option("--memory-budget-mb", type=positive_range, help="Most that loaded graphs may hold.")
@click.option("--trace", is_flag=True, help="Show layers, tokens and cost of each text.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "jsonl", "csv"]), default="table", show_default=True
)
@json_option
def command(
    bundle: str,
    texts: tuple[str, ...],
    pairs: tuple[tuple[str, str], ...],
    questions: tuple[str, ...],
    context: str | None,
    source: str | None,
    columns: str | None,
    policy: str,
    settings: tuple[str, ...],
    top_k: int | None,
    threads: int | None,
    provider: str,
    prepare: bool,
    memory_budget_mb: float | None,
    trace: bool,
    form: str,
    as_json: bool,
) -> None:
    """Answer texts: label, score and how deep each had to go. Or questions, with words of their passage.

    Lines of questions, from a file (.jsonl) or stdin, are JSON: {"question": "...", "context": "..."}.
    """
    from edgebert.answers import print_answers, read_given
    from edgebert.config import parse_setting
    from edgebert.runtime.model import EdgeModel

    given = read_given(texts, pairs, questions, context, source, has_columns=columns is not None)
    with EdgeModel.from_pretrained(
        bundle,
        policy=policy,
        threads=threads,
        provider=provider,
        prepare=prepare or None,
        memory_budget_mb=memory_budget_mb,
    ) as model:
        model.set_policy(policy, **dict(parse_setting(text) for text in settings))
        inputs = given.inputs(model, columns=read_columns(columns))
        window = 1 if source == "-" else 256
        form = "json" if as_json else form
        truncated = print_answers(inputs, model, form=form, trace=trace, top_k=top_k, window=window)
    if memory_budget_mb is not None:
        use = model.memory
        click.echo(f"note: graphs held {use.peak_mb:.1f} MB at most, and were loaded {use.loads} times", err=True)
    if truncated:
        what = "text" if model.task.ASKED == "texts" else "question"  # of a passage nothing is cut: it takes windows
        many = f"1 {what} was" if truncated == 1 else f"{truncated} {what}s were"
        click.echo(f"note: {many} cut: the model takes {model.manifest.encoder.max_length} tokens", err=True)
