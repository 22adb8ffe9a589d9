"""What it takes to get a first answer: bundles and rivals, each start a fresh process.

A bundle is started as `edgebert run BUNDLE` is, with the text on its stdin; a rival as its users open what they have on
disk (`edgebert/rivals/_cold`). The time runs from before the process is made until its answer is there: the
interpreter, imports, loading, the tokenizer and one text. Each side is started once before anything is timed, so files
come from the system's page cache and modules are compiled; then the sides take turns, their order reversed from each
repeat to the next. Private memory is read from outside, right after the answer, and is the whole process's.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgebert.arguments import check_count, one_or_more, one_or_more_counts
from edgebert.bench._cases import check_tokenizers, read_data
from edgebert.bench._rows import compare
from edgebert.bench._sides import add_rivals, bundle_sides
from edgebert.data import texts_of
from edgebert.errors import ConfigError, EdgeBertError
from edgebert.host import host_facts
from edgebert.output import Reporter
from edgebert.rivals._memory import private_mb
from edgebert.rivals._process import SideProcess, environment
from edgebert.rivals._protocol import Spec
from edgebert.rivals._turns import TimedSide
from edgebert.runtime.prepared import usable_prepared
from edgebert.runtime.sessions import provider_name
from edgebert.tasks import load_task
from edgebert.text import Text

SCHEMA = "edgebert.cold/1"
_TEXT = "a gripping film"
_QUESTION = ("what is gripping ?", "it is a gripping film")
_NO_START = "uncompacted"


@dataclass(frozen=True, kw_only=True)
class _Starter:
    """A side and the command that starts it.

    Attributes:
        side: The side.
        command: Answers each line of its stdin with a line.
        precision: Of the model.
        cold_ms: From before the process to the answer, by repeat.
        private_mb: Private memory after the answer, by repeat; None where psutil is not installed.
    """

    side: TimedSide
    command: list[str]
    precision: str
    cold_ms: list[float] = field(default_factory=list)
    private_mb: list[float | None] = field(default_factory=list)


def bench_cold(
    bundles: str | Path | Sequence[str | Path],
    *,
    data: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    policy: str = "default",
    settings: Mapping[str, Any] | None = None,
    threads: Sequence[int] = (1,),
    against: str | Path | Sequence[str | Path] | None = None,
    against_policy: str = "default",
    reference: str | None = None,
    repeats: int = 5,
    provider: str = "cpu",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Times process start to first answer, and measures private memory then; the page cache is warm.

    In a row, `cold_ms` is the median of `repeats_ms`, with `min_ms` and `max_ms`; `private_mb` the median, in millions
    of bytes; `prepared` says whether a bundle is prepared for this machine (`edgebert prepare`) and so opened from
    there. A ratio is the bundle's time over the rival's.

    Args:
        bundles: Bundle folders, or one.
        data: Its first text is answered; None answers a short one.
        columns: The data's column for a field.
        policy: Operating point or policy of the bundles.
        settings: Knobs on top of it.
        threads: Numbers of threads inside an operator.
        against: The rival or rivals, as `bench_bundles` takes them, but for `uncompacted`.
        against_policy: Operating point or policy of a rival that is a bundle folder.
        reference: Checkpoint of the rivals that are static models; None gives them random weights.
        repeats: Timed starts of each side.
        provider: Where the bundles' graphs run: a file in `edgebert/runtime/providers`.
        reporter: Where progress goes.

    Returns:
        Plain data: `schema`, `host`, `rows` and `ratios`.

    Raises:
        ConfigError: An option or a name makes no sense, or rivals are asked questions.
        DataError: The data cannot be read.
        BundleError: A bundle is refused.
        MissingExtraError: A rival's package is not installed.
        EdgeBertError: A process died.
    """
    threads, repeats = one_or_more_counts("threads", threads), check_count("repeats", repeats)
    rivals = one_or_more("against", against or ())
    if _NO_START in map(str, rivals):
        raise ConfigError(f"--cold: {_NO_START} starts as the bundle itself does; leave it out.")
    spec = Spec(side="bundle", bundle="", provider=provider, policy=policy, knobs=dict(settings or {}))
    sides = bundle_sides(one_or_more("bundles", bundles), spec)
    pairs = add_rivals(sides, [str(rival) for rival in rivals], None, against_policy, reference)
    check_tokenizers(sides, cure="--cold answers one")
    examples = read_data(sides, data, columns, 1)
    line = _line(sides, texts_of(examples)[0] if examples else None)
    result: dict[str, Any] = {"schema": SCHEMA, "host": host_facts(), "rows": [], "ratios": []}
    with (reporter or Reporter()).track("bench", len(threads) * len(sides) * (repeats + 1)) as advance:
        for count in threads:
            with _starters(sides, count) as starters:
                for starter in starters:
                    _start(starter, line, count)
                    advance(1, starter.side.label)
                for repeat in range(repeats):
                    for starter in starters if repeat % 2 == 0 else reversed(starters):
                        cold_ms, private = _start(starter, line, count)
                        starter.cold_ms.append(cold_ms)
                        starter.private_mb.append(private)
                        advance(1, starter.side.label)
            result["rows"] += [_row(starter, count) for starter in starters]
            result["ratios"] += [_ratio(starters[ours], starters[rival], count) for ours, rival in pairs]
    return result


def _line(sides: Sequence[TimedSide], text: Text | None) -> str:
    """Returns the line that asks every side the text; of a pair of texts, one text with the words of both."""
    asked = load_task(sides[0].bundle.manifest.task).ASKED
    if asked == "questions":
        if any(side.spec.side != "bundle" for side in sides):
            raise ConfigError("--cold: the rivals answer texts, not questions; name bundles with --against.")
        question, context = text if isinstance(text, tuple) else _QUESTION
        return msgspec.json.encode({"question": question, "context": context}).decode()
    words = text or _TEXT
    return " ".join((words if isinstance(words, str) else " ".join(words)).split())


@contextlib.contextmanager
def _starters(sides: Sequence[TimedSide], threads: int) -> Iterator[list[_Starter]]:
    """Gives every side its command; what rivals have on disk is there while the context lasts."""
    with contextlib.ExitStack() as stack:
        starters = []
        for side in sides:
            if side.spec.side == "bundle":
                command = ["edgebert.cli", *_run_arguments(side.spec, threads)]
                precision = side.bundle.manifest.precision
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                spec = msgspec.structs.replace(side.spec, threads=threads)
                with SideProcess(spec, label=side.label) as process:
                    command = ["edgebert.rivals._cold", *process.save(folder).arguments]
                    precision = process.ready.precision
            starters.append(_Starter(side=side, command=[sys.executable, "-m", *command], precision=precision))
        yield starters


def _run_arguments(spec: Spec, threads: int) -> list[str]:
    """Returns the arguments of `edgebert` that answer the lines of stdin one by one."""
    knobs = [part for knob, value in spec.knobs.items() for part in ("--set", f"{knob}={value}")]
    options = ["--policy", spec.policy, *knobs, "--provider", spec.provider, "--threads", str(threads)]
    return ["run", spec.bundle, "-i", "-", "--format", "jsonl", *options]


def _start(starter: _Starter, line: str, threads: int) -> tuple[float, float | None]:
    """Starts a side's process, lets it answer and ends it; returns the time, in ms, and its private memory, in MB."""
    with tempfile.TemporaryFile() as messages:
        start = time.perf_counter()
        process = subprocess.Popen(
            starter.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            env=environment(threads),
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(f"{line}\n".encode())
                process.stdin.flush()
            answer = process.stdout.readline()
            cold_ms = (time.perf_counter() - start) * 1000.0
            if not answer:
                code = process.wait()
                messages.seek(0)
                raise _death(starter, code, messages.read())
            return cold_ms, private_mb(process.pid)
        finally:
            process.kill()
            process.communicate()


def _death(starter: _Starter, code: int, messages: bytes) -> EdgeBertError:
    last = messages.decode("utf-8", "replace").strip().rpartition("\n")[2] or "it wrote nothing"
    return EdgeBertError(f"bench --cold: the process of {starter.side.label} ended with code {code}: {last}")


def _row(starter: _Starter, threads: int) -> dict[str, Any]:
    private = [value for value in starter.private_mb if value is not None]
    return {
        "bundle": starter.side.label,
        "rival_of": starter.side.rival_of,
        "policy": starter.side.spec.policy if starter.side.spec.side == "bundle" else "never",
        "knobs": dict(starter.side.spec.knobs),
        "provider": starter.side.spec.provider,
        "precision": starter.precision,
        "threads": threads,
        "prepared": _is_prepared(starter.side),
        "cold_ms": float(np.median(starter.cold_ms)),
        "min_ms": min(starter.cold_ms),
        "max_ms": max(starter.cold_ms),
        "private_mb": float(np.median(private)) if private else None,
        "repeats_ms": starter.cold_ms,
    }


def _is_prepared(side: TimedSide) -> bool:
    """Says whether a side opens graphs prepared for this machine."""
    is_ours = side.spec.side == "bundle" and provider_name(side.spec.provider) == "cpu"
    return is_ours and usable_prepared(side.bundle) is not None


def _ratio(ours: _Starter, rival: _Starter, threads: int) -> dict[str, Any]:
    return {
        "bundle": ours.side.label,
        "against": rival.side.label,
        "threads": threads,
        **compare(np.array(ours.cold_ms) / np.array(rival.cold_ms), ours.side.label, rival.side.label),
    }
