"""Which device does what next: a state machine over rows, without threads, clocks or numbers.

A row goes PENDING → ACTIVE (among the graphs that a device times) → MEASURED → LOOPING (its own
graph is timed alone) → DONE, or ends FAILED. What a device had in work when it was lost goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)


class State(Enum):
    """Where a row stands."""

    PENDING = "pending"
    ACTIVE = "active"
    MEASURED = "measured"
    LOOPING = "looping"
    DONE = "done"
    FAILED = "failed"


_ENDED = (State.DONE, State.FAILED)


@dataclass(frozen=True)
class MeasureBatch(Generic[R]):
    """Time all rows that are active on the device, these from now on."""

    activated: tuple[R, ...]


@dataclass(frozen=True)
class TimeLoops(Generic[R]):
    """Time these rows' own graphs alone."""

    rows: tuple[R, ...]


@dataclass(frozen=True)
class Wait:
    """Nothing to do now, but rows in others' work may come back."""


@dataclass(frozen=True)
class Finished:
    """Every row has ended."""


class RowScheduler(Generic[R]):
    """Shares rows out to devices.

    Args:
        rows: to be measured, in the order in which they are given out.
        measured: rows of which only the timing of their own graphs is missing.
        size: bytes that a row takes on a device.
        max_active: rows in work at once on a device.
    """

    def __init__(
        self,
        rows: Iterable[R],
        measured: Iterable[R],
        size: Callable[[R], int],
        max_active: int,
    ) -> None:
        self._states: dict[R, State] = dict.fromkeys(rows, State.PENDING)
        self._states |= dict.fromkeys(measured, State.MEASURED)
        self._holders: dict[R, str] = {}
        self._capacities: dict[str, int] = {}
        self._begun: set[str] = set()  # devices that have timed a batch
        self._size = size
        self._max_active = max_active

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return all(state in _ENDED for state in self._states.values())

    @property
    def devices(self) -> int:
        """How many work."""
        return len(self._capacities)

    @property
    def progress(self) -> float:
        """Share of the work that is done; measuring a row counts as much as its loop."""
        steps = sum(_STEPS[state] for state in self._states.values())
        return steps / (2 * len(self._states)) if self._states else 1.0

    def rows(self, state: State, device: str | None = None) -> tuple[R, ...]:
        """Rows in a state, of one device or of all."""
        return tuple(
            row
            for row, there in self._states.items()
            if there is state and (device is None or self._holders.get(row) == device)
        )

    def on_joined(self, device: str, capacity_bytes: int) -> None:
        """A device works from now on."""
        self._capacities[device] = capacity_bytes

    def on_lost(self, device: str) -> None:
        """A device is gone; what it had in work is to be done by others, or by it again.

        It is first in line, as rows are given out in their order.
        """
        self._capacities.pop(device, None)
        self._begun.discard(device)
        back = [row for row, holder in self._holders.items() if holder == device]
        for row in back:
            del self._holders[row]
            active = self._states[row] is State.ACTIVE
            self._states[row] = State.PENDING if active else State.MEASURED

    def on_batch(self, device: str, measured: Iterable[R], failed: Iterable[R]) -> None:
        """A device has timed a batch; rows that are in neither list stay active."""
        self._begun.add(device)
        self._move(device, measured, State.ACTIVE, State.MEASURED)
        self._move(device, failed, State.ACTIVE, State.FAILED)

    def on_loops(self, device: str, rows: Iterable[R]) -> None:
        """A device has timed rows' own graphs."""
        self._move(device, rows, State.LOOPING, State.DONE)

    def suggest(self, device: str) -> MeasureBatch[R] | TimeLoops[R] | Wait | Finished:
        """What a device that works is to do next."""
        activated = self._activate(device)
        if self.rows(State.ACTIVE, device):
            return MeasureBatch(activated)
        waiting = self.rows(State.MEASURED)
        if waiting:
            share = min(self._max_active, -(-len(waiting) // self.devices))
            for row in waiting[:share]:
                self._hold(device, row, State.LOOPING)
            return TimeLoops(waiting[:share])
        return Finished() if self.finished else Wait()

    def _activate(self, device: str) -> tuple[R, ...]:
        """Gives a device its share of the pending rows, as far as it has memory for them.

        As many as the others have; half of that for a start, so that there are some left for
        those that are done with a batch first.
        """
        active, pending = self.rows(State.ACTIVE, device), self.rows(State.PENDING)
        share = -(-(len(self.rows(State.ACTIVE)) + len(pending)) // self.devices)
        if self.devices > 1 and device not in self._begun:
            share = -(-share // 2)
        held = sum(map(self._size, active))
        activated: list[R] = []
        for row in pending:
            count = len(active) + len(activated)
            held += self._size(row)
            if count and (count >= min(share, self._max_active) or held > self._capacities[device]):
                break
            self._hold(device, row, State.ACTIVE)
            activated.append(row)
        return tuple(activated)

    def _hold(self, device: str, row: R, state: State) -> None:
        self._states[row] = state
        self._holders[row] = device

    def _move(self, device: str, rows: Iterable[R], before: State, after: State) -> None:
        for row in rows:
            if self._states[row] is not before or self._holders.get(row) != device:
                raise ValueError(f"{row} is {self._states[row].value}, not {before.value} here")
            del self._holders[row]
            self._states[row] = after


_STEPS = {
    State.PENDING: 0,
    State.ACTIVE: 0,
    State.MEASURED: 1,
    State.LOOPING: 1,
    State.DONE: 2,
    State.FAILED: 2,
}
