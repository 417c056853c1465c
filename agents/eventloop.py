"""The one thread that gRPC servers of this process run in.

gRPC's asyncio servers of several loops in one process get in each other's way, so there is one.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


def call_in_loop(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Runs a coroutine in the loop's thread and waits for what it returns or raises."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()


async def within(limit_s: float, work: Awaitable[_T]) -> _T:
    """What some work gives, if it ends in time; if not, or if the caller is cancelled, so is it.

    As `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes as the work
    ends: a request whose caller has gone would hold the processor until its time is over.

    Raises:
        asyncio.TimeoutError: it did not end in time.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=limit_s)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    raise asyncio.TimeoutError


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="event loop", daemon=True).start()
    return loop
