"""Work on all cores, in processes of its own."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from types import ModuleType
from typing import TypeVar

from .errors import HurricaneError

A = TypeVar("A")
B = TypeVar("B")


def on_all_cores(
    work: Callable[[A], B],
    items: Sequence[A],
    workers: int,
    preload: Sequence[str],
    what: str,
    at_once: int = 1,
) -> Iterator[B]:
    """Does this for every item; gives results in the items' order.

    Args:
        work: a function of a module; a process imports that and nothing of the caller's script.
        items: can be pickled, as the results.
        workers: processes.
        preload: modules that are imported once for all processes.
        what: does the work, in the words of an error.
        at_once: items that a process is given at a time.

    Raises:
        HurricaneError: a process was killed.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    try:
        with ProcessPoolExecutor(workers, context, initializer=ignore_interrupt) as pool:
            with _without_script():
                results = pool.map(work, items, chunksize=at_once)
            yield from results
    except BrokenProcessPool as error:
        raise HurricaneError(
            f"a process that {what} was killed, perhaps for want of memory; run it again: what "
            "was finished is kept"
        ) from error


_SCRIPT = threading.Lock()


@contextmanager
def _without_script() -> Iterator[None]:
    """Processes that start within do not run the caller's script once more.

    `multiprocessing` has each of them import it, so that a script without
    ``if __name__ == "__main__"`` would begin anew in every process.
    """
    with _SCRIPT:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script


def ignore_interrupt() -> None:
    """In a worker: the interrupt is the main process's to handle, in one voice."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
