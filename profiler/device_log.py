"""What a device was like while it was asked."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..agents.conditions import Conditions
from ..agents.results import ArtifactResult


@dataclass(eq=False)
class DeviceLog:
    """Conditions of a device over all requests, as reported by its agent.

    Attributes:
        before: conditions before the first of them; None: there was none yet.
        after: after the last.
        events_at_rest: throttling events counted before anything was timed; a device that boots
            meanwhile counts anew. None: not known yet.
        throttle_events: during all requests.
        spent_ms: that requests took, on the device's clock.
        seconds: wall time on the host by what it was spent on: ``prepare`` (before anything is
            timed), ``make`` and ``upload`` of artefacts, ``load`` (with waiting in the agent's
            queue), ``measure``, and ``statistics`` of what was measured. Where these went side
            by side, ``overlap`` is negative, so that the sum is right.
    """

    before: Conditions | None = None
    after: Conditions | None = None
    events_at_rest: int | None = None
    throttle_events: int = 0
    spent_ms: float = 0.0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _steal_ms: float = 0.0
    _busy_ms: float = 0.0

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the time that something takes to `seconds`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started

    @contextmanager
    def side_by_side(self) -> Iterator[None]:
        """Within it, what threads of one device do goes on at the same time."""
        started, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            spent_s = sum(self.seconds.values()) - before
            self.seconds["overlap"] += time.perf_counter() - started - spent_s

    def note(self, result: ArtifactResult, elapsed_ms: float) -> None:
        """Takes in one request.

        Args:
            result: any of its results that is no error.
            elapsed_ms: what the request took; is part of `spent_ms` already.
        """
        before, after = result.before, result.after
        self.before, self.after = self.before or before, after
        known = self.events_at_rest
        events = before.throttle_events
        self.events_at_rest = events if known is None else min(known, events)
        self.throttle_events += max(0, after.throttle_events - events)
        self._steal_ms += elapsed_ms * after.steal_share
        self._busy_ms += elapsed_ms * after.busy_share

    @property
    def steal_share(self) -> float:
        """Share of the time that a hypervisor gave to other machines."""
        return self._steal_ms / self.spent_ms if self.spent_ms else 0.0

    @property
    def busy_share(self) -> float:
        """Share of the time that other processes took."""
        return self._busy_ms / self.spent_ms if self.spent_ms else 0.0
