"""Models and forks: what a process may do in the child it forks, and that it never hangs there.

A fork copies memory with every lock as it is at that moment, and of the threads only the one that forks. A lock that
another thread held stays locked in the child for ever, and a pool whose threads are gone waits for them when it is
used or taken down. So a fork waits until no other thread is inside a model, the child lets pools go without taking
them down, and a model that needs one is refused there; one that computes on the calling thread alone goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import weakref
from typing import Any

from edgebert.errors import EdgeBertError

_COURTESY_SECONDS = 1.0
"""How long threads stay out of a model for a fork that waits; one that is inside, and comes again by way of a signal,
must not wait for it without end."""

_OPEN_HERE = "open it here, open it with threads=1 before the fork, or start processes by spawn."


class _Watch:
    """What a fork has to wait for, and what its child must not take down."""

    def __init__(self) -> None:
        self.pools: weakref.WeakSet[Any] = weakref.WeakSet()
        self._registering = threading.Lock()
        self._threads: weakref.WeakSet[Any] = weakref.WeakSet()
        self._own = threading.local()
        self._held: list[Any] = []
        self._no_fork_waits = threading.Event()
        self._no_fork_waits.set()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._in_child)

    def lock(self) -> Any:
        """Returns the lock that the calling thread holds while it is inside a model.

        One that goes from call to call would take it again before a fork that waits for it got it.
        """
        if not self._no_fork_waits.is_set():
            self._no_fork_waits.wait(_COURTESY_SECONDS)
        lock = getattr(self._own, "lock", None)
        if lock is None:
            lock = threading.RLock()
            with self._registering:
                self._threads.add(lock)
            self._own.lock = lock
        return lock

    def _before(self) -> None:
        self._registering.acquire()
        self._no_fork_waits.clear()
        for lock in list(self._threads):
            lock.acquire()
            self._held.append(lock)

    def _after(self) -> None:
        while self._held:
            self._held.pop().release()
        self._no_fork_waits.set()
        self._registering.release()

    def _in_child(self) -> None:
        for pool in list(self.pools):
            # One reference that nobody gives back: taking it down would wait for threads that are not here.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(pool))
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its pool is one of those whose threads are gone
        self._no_fork_waits = threading.Event()  # another thread may have held the lock inside of it
        self._after()
        own = getattr(self._own, "lock", None)
        self._threads = weakref.WeakSet([] if own is None else [own])


@functools.cache
def _watch() -> _Watch:
    return _Watch()


def inside_model() -> contextlib.AbstractContextManager[bool]:
    """Returns what a thread holds while it runs or loads graphs; a fork in another thread waits for it."""
    lock: contextlib.AbstractContextManager[bool] = _watch().lock()
    return lock


def keep_in_child(pool: object) -> None:
    """Marks an object with threads of its own, such as a session, as one that a forked child must not take down."""
    _watch().pools.add(pool)


class Origin:
    """The process a model, or a stream of one, was opened in."""

    def __init__(self, *, has_threads: bool) -> None:
        """Notes the present process.

        Args:
            has_threads: Whether it computes on other threads than the calling one.
        """
        self._process = os.getpid() if has_threads else None

    def check(self, name: str, *, cure: str = _OPEN_HERE) -> None:
        """Refuses it in a fork of the process it was opened in, unless it has no threads of its own.

        Args:
            name: What the message calls it.
            cure: What the message says to do.

        Raises:
            EdgeBertError: It was opened before the fork.
        """
        if self._process is not None and self._process != os.getpid():
            raise EdgeBertError(
                f"{name}: opened in process {self._process}, of which this one is a fork that has not its threads; "
                f"{cure}"
            )
