"""A side's child process: `python -m edgebert.rivals`, spoken to as `_protocol.py` says."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgebert import registry
from edgebert.errors import EdgeBertError
from edgebert.rivals._measure import Measurement, Side, predict, prepare, time_turn
from edgebert.rivals._memory import PrivateMemory
from edgebert.rivals._protocol import (
    Failed,
    Predict,
    Predicted,
    Prepare,
    Ready,
    Reply,
    Request,
    Save,
    Saved,
    Spec,
    TimeSteps,
)
from edgebert.rivals._static import StaticSide
from edgebert.rivals._steps import time_steps


def main() -> None:
    """Loads the side that the first line names and answers the lines after it."""
    # An interrupt on a terminal reaches the whole group; the parent ends this process itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with _private_stdout() as out:
        try:
            for reply in _serve(sys.stdin.buffer):
                _send(out, reply)
        except EdgeBertError as error:
            _send(out, Failed(type(error).__name__, str(error)))


def _private_stdout() -> BinaryIO:
    """Keeps stdout for the protocol; what libraries print goes to stderr from now on."""
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return out


def _serve(lines: BinaryIO) -> Iterator[Reply]:
    side: Side
    side, ready, memory = _load(msgspec.json.decode(lines.readline(), type=Spec))
    yield ready
    measurements: list[Measurement] = []
    for line in lines:
        request = msgspec.json.decode(line, type=Request)
        if isinstance(request, Prepare):
            measurement, prepared = prepare(side, request.case, len(measurements))
            measurements.append(measurement)
            yield prepared
        elif isinstance(request, TimeSteps):
            yield time_steps(side, measurements[request.case])
        elif isinstance(request, Predict):
            yield Predicted(predict(side, measurements[request.case].case))
        elif isinstance(request, Save):
            assert isinstance(side, StaticSide)
            yield Saved(side.save(Path(request.folder)))
        else:
            yield time_turn(side, measurements[request.case], memory)


def _load(spec: Spec) -> tuple[Side, Ready, PrivateMemory]:
    start = time.perf_counter()
    module = registry.load("edgebert.rivals", spec.side)
    memory = PrivateMemory()  # libraries cost the same whatever the model
    side: Side = module.Side(spec)
    load_ms = (time.perf_counter() - start) * 1000.0
    about = side.describe()
    ready = Ready(
        pid=os.getpid(),
        load_ms=load_ms,
        method=about.method,
        policy=about.policy,
        knobs=about.knobs,
        precision=about.precision,
    )
    return side, ready, memory


def _send(out: BinaryIO, reply: Reply) -> None:
    out.write(msgspec.json.encode(reply) + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
