"""What the threads of a run share: the scheduler behind a lock, and why the run ends early.

Whoever holds the lock does no input or output.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Queue
from typing import TypeVar

from .plan import Graph, PlannedRow
from .scheduler import Finished, MeasureBatch, RowScheduler, TimeLoops

T = TypeVar("T")

_JOIN_S = 0.05
POLL_S = 0.5
"""Between two looks at what nobody tells of: whether a device is back."""


class DevicePool:
    """What the threads of a run share.

    Attributes:
        scheduler: of the rows.
        changed: the lock; is notified when anything below changes.
        losses: of devices, by graph.
        failure: why the run ends before its time.
    """

    def __init__(self, scheduler: RowScheduler[PlannedRow]) -> None:
        self.scheduler = scheduler
        self.changed = threading.Condition()
        self.losses: Counter[Graph] = Counter()
        self.failure: Exception | None = None

    @property
    def progress(self) -> float:
        """Share of the work that is done."""
        with self.changed:
            return self.scheduler.progress

    def is_over(self) -> bool:
        """Whether no device works any more, nor would get work."""
        with self.changed:
            over = self.failure is not None or self.scheduler.finished
            return over and not self.scheduler.devices

    def join(self, device: str, capacity_bytes: int) -> bool:
        """A device works from now on; False where there is nothing left to do."""
        with self.changed:
            if self.failure is not None or self.scheduler.finished:
                return False
            self.scheduler.on_joined(device, capacity_bytes)
            return True

    def leave(self, device: str) -> None:
        """A device works no more; what it has in work is nobody's."""
        with self.changed:
            self.scheduler.on_lost(device)
            self.changed.notify_all()

    def next_work(
        self, device: str
    ) -> MeasureBatch[PlannedRow] | TimeLoops[PlannedRow] | Finished | None:
        """What a device is to do next, waiting for it if need be; None: the run has failed."""
        with self.changed:
            while self.failure is None:
                work = self.scheduler.suggest(device)
                if isinstance(work, MeasureBatch | TimeLoops | Finished):
                    return work
                self.changed.wait(POLL_S)
            return None

    def fail(self, error: Exception, everybody: bool) -> None:
        """A device's work ends for good.

        Args:
            error: why.
            everybody: end the run; otherwise only where no device is left and there is work.
        """
        with self.changed:
            alone = not self.scheduler.devices and not self.scheduler.finished
            if everybody or (alone and self.failure is None):
                self.failure = error
            self.changed.notify_all()

    def wait_for_change(self) -> bool | None:
        """Waits a little for others' work.

        Returns:
            Whether no device is left; None: there is no work any more, or the run has failed.
        """
        with self.changed:
            if self.failure is None and not self.scheduler.finished:
                self.changed.wait(POLL_S)
            if self.failure is not None or self.scheduler.finished:
                return None
            return not self.scheduler.devices


def on_every(
    count: int, work: Callable[[int], None], late: Callable[[], bool] = lambda: False
) -> None:
    """Does this for every index at once; waits for all, or until those that are left are late."""
    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not late():
            thread.join(0.2)


def ahead(items: Iterable[T], most: int = 0) -> Generator[list[T], None, None]:
    """Goes through items in a thread of its own, which has ended when this is closed.

    Args:
        items: any; what their making raises is raised here.
        most: that may wait here; 0: any number.

    Yields:
        What has come since the last time, one at least.
    """
    ready: Queue[T | _End] = Queue(most)
    unwanted = threading.Event()

    def work() -> None:
        end = _End()
        try:
            for item in items:
                ready.put(item)
                if unwanted.is_set():
                    return
        except BaseException as error:
            end = _End(error)
        ready.put(end)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        end: _End | None = None
        while end is None:
            found = [ready.get()]
            with suppress(Empty):
                while True:
                    found.append(ready.get_nowait())
            end = next((one for one in found if isinstance(one, _End)), None)
            if items_found := [one for one in found if not isinstance(one, _End)]:
                yield items_found
        if end.error is not None:
            raise end.error
    finally:
        unwanted.set()
        while thread.is_alive():
            with suppress(Empty):
                ready.get_nowait()  # lets go what waits for room
            thread.join(_JOIN_S)


@dataclass(frozen=True)
class _End:
    """No item comes any more: there are none, or making one failed."""

    error: BaseException | None = None
