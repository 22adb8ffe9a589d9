"""Runs commands of edgebert in forks of a process that has imported everything, and ends them where it is told to.

Reads lines of JSON, each a list of jobs that run at once, and answers each with a line: a list of what became of them.
A job is an object with `arguments` (of edgebert) and perhaps

    environment         variables to set
    watch               the folder whose file operations are counted
    starts_after_s      wait so long before anything else
    ends_at             a signal just before the file operation of this number, counted from 1
    ends_after_s        a signal after so many seconds
    signal              which: SIGKILL, if not given
    largest_file_bytes  no file may grow beyond this: writing fails with EFBIG
    dies_beyond         die, in the middle of writing, as a file grows beyond `largest_file_bytes`
    output              where stdout goes
    user                run as this user id
    two_steps           as where the system cannot swap two folders

What became of it: `code` (negative: the signal it died of), `messages` (stdout and stderr), `operations` (the file
operations it came to; none where it was killed) and `seconds`. `{"warm": [CHECKPOINT, BUNDLE]}` exports in the process
itself, so that its forks need not prepare for that each.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NoReturn

HEAVY = ("cli.export", "export", "single", "quantize.onnxruntime", "tune", "training", "convert", "report", "describe")
ENCODINGS = ("utf-8-sig", "utf-16", "utf-32", "latin-1", "idna")
"""What Python would import only when it meets them, and cannot as another user from a folder that is not his."""
OPERATIONS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link", "shutil.rmtree")


class _Count:
    """Counts file operations, each before it happens, and ends the process at one of them."""

    def __init__(self, watch: str, ends_at: int | None, number: int) -> None:
        self.watch, self.ends_at, self.signal = watch, ends_at, number
        self.found: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._is_counted(event, arguments):
            self.found.append(event)
            if len(self.found) == self.ends_at:
                os.kill(os.getpid(), self.signal)

    def _is_counted(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "ctypes.dlopen":  # a rename with flags is about to be called
            return arguments[0] is None
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return False
        elif event in OPERATIONS:
            path = arguments[0]
        else:
            return False
        path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        return not os.path.isabs(path) or path.startswith(self.watch)


def _run(job: dict[str, Any], log: Path) -> NoReturn:
    """Runs one job, in a fork; never returns."""
    messages = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(job["output"], os.O_WRONLY) if "output" in job else messages, 1)
    os.dup2(messages, 2)
    os.environ.update(job.get("environment", {}))
    time.sleep(job.get("starts_after_s", 0.0))
    code, count = 70, _Count(job.get("watch", "/"), job.get("ends_at"), job.get("signal", signal.SIGKILL))
    try:
        if (user := job.get("user")) is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        if job.get("two_steps"):
            import edgebert.bundle.publish

            edgebert.bundle.publish.exchange = lambda first, second: False
        if (limit := job.get("largest_file_bytes")) is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if job.get("dies_beyond") else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        sys.addaudithook(count)
        sys.argv = ["edgebert", *job["arguments"]]
        from edgebert import cli

        cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.write(messages, f"\n{json.dumps(count.found)}".encode())
        os._exit(code)


def _run_all(jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    start = time.monotonic()
    left: dict[int, int] = {}
    for number, job in enumerate(jobs):
        child = os.fork()
        if child == 0:
            _run(job, folder / str(number))
        left[child] = number
    ended: list[dict[str, Any]] = [{} for _ in jobs]
    while left:
        for child, number in list(left.items()):
            passed, job = time.monotonic() - start, jobs[number]
            if passed >= job.get("ends_after_s", float("inf")):
                os.kill(child, job.get("signal", signal.SIGKILL))
                job["ends_after_s"] = float("inf")
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                del left[child]
                messages, _, found = (folder / str(number)).read_text(errors="replace").rpartition("\n")
                ended[number] = {
                    "code": os.waitstatus_to_exitcode(status),
                    "messages": messages,
                    "operations": json.loads(found) if found.startswith("[") else [],
                    "seconds": passed,
                }
        time.sleep(0.001)
    return ended


def main() -> None:
    """Serves until stdin ends."""
    for name in ENCODINGS:
        codecs.lookup(name)
    for name in HEAVY:
        importlib.import_module(f"edgebert.{name}")
    for name in ("altair", "vl_convert", "transformers.trainer", "onnxscript", "torch.onnx", "sklearn.metrics"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    warnings.resetwarnings()
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            jobs = json.loads(line)
            if isinstance(jobs, dict):
                from edgebert.export import export_model

                with contextlib.redirect_stdout(sys.stderr):
                    export_model(*jobs["warm"])
                jobs = []
            sys.stdout.write(json.dumps(_run_all(jobs, Path(folder))) + "\n")
            sys.stdout.flush()
    os._exit(0)  # to take down all that was imported takes seconds


if __name__ == "__main__":
    main()
