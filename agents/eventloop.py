"""The one thread that gRPC servers of this process run in.

gRPC's asyncio servers of several loops in one process get in each other's way, so there is one.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


def call_in_loop(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Runs a coroutine in the loop's thread and waits for what it returns or raises."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="event loop", daemon=True).start()
    return loop
