"""A side's child process as its parent sees it: started, asked, and always ended."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import TypeVar

import msgspec

from edgebert import errors
from edgebert.errors import EdgeBertError
from edgebert.rivals._protocol import (
    Case,
    Failed,
    Predict,
    Predicted,
    Prepare,
    Prepared,
    Ready,
    Reply,
    Request,
    Save,
    Saved,
    Spec,
    Steps,
    Time,
    Timed,
    TimeSteps,
)

R = TypeVar("R", Ready, Prepared, Timed, Steps, Predicted, Saved)

_log = logging.getLogger(__name__)
_PATIENCE_S = 5.0
_LINES_SHOWN = 20


def environment(threads: int) -> dict[str, str]:
    """Returns the environment of a process that is timed."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}


class SideProcess:
    """A side in a process of its own; a context manager.

    Attributes:
        label: What messages call it.
        threads: Threads inside an operator.
        ready: What the side said once it was loaded.
    """

    ready: Ready

    def __init__(self, spec: Spec, *, label: str) -> None:
        self.label = label
        self.threads = spec.threads
        self._spec = spec

    def __enter__(self) -> SideProcess:
        """Starts the process and waits until the side is loaded.

        Raises:
            EdgeBertError: Whatever the side could not do, as the error class that the child named.
        """
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgebert.rivals"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment(self._spec.threads),
        )
        try:
            self.ready = self._ask(self._spec, Ready)
        except BaseException:
            self._end(at_once=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(at_once=kind is not None)

    def prepare(self, case: Case) -> Prepared:
        """Makes and warms up a case."""
        return self._ask(Prepare(case), Prepared)

    def time(self, case: int) -> Timed:
        """Times one turn of a prepared case."""
        return self._ask(Time(case), Timed)

    def time_steps(self, case: int) -> Steps:
        """Times the steps inside one turn of a prepared case."""
        return self._ask(TimeSteps(case), Steps)

    def predict(self, case: int) -> Predicted:
        """Returns what the side answers to the texts of a prepared case."""
        return self._ask(Predict(case), Predicted)

    def save(self, folder: str) -> Saved:
        """Lets a static side write its model into a folder."""
        return self._ask(Save(folder), Saved)

    def _ask(self, message: Spec | Request, expected: type[R]) -> R:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            request = msgspec.json.encode(message)
        except UnicodeEncodeError as error:
            raise errors.ConfigError(
                f"bench: expected text, got the lone surrogate in {error.object!r:.40}."
            ) from error
        try:
            self._process.stdin.write(request + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise self._death()
        reply = msgspec.json.decode(line, type=Reply)
        if isinstance(reply, Failed):
            raise getattr(errors, reply.error, EdgeBertError)(reply.message)
        assert isinstance(reply, expected), reply
        return reply

    def _death(self) -> EdgeBertError:
        """Returns the error for a process that ended without a word, and logs the last of what it wrote."""
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()[-_LINES_SHOWN:]
        if lines:
            _log.error("%s: its process wrote:\n%s", self.label, "\n".join(lines))
        last = lines[-1].strip() if lines else "it wrote nothing; was it killed, for want of memory?"
        return EdgeBertError(f"bench: the process of {self.label} ended with code {code}: {last}")

    def _end(self, *, at_once: bool) -> None:
        """Ends the process: it goes by itself when its stdin ends, else it is told to, else it is killed."""
        process = self._process
        try:
            if at_once:
                process.terminate()
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_PATIENCE_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            self._stderr.close()
