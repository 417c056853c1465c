"""The batches of one device so far: calls by graph, how slow the device was, what is accepted.

Times are *raw*: as on the device at slowdown 1, the mean of its first batches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from ..agents.results import ArtifactResult
from .outcomes import BatchOutcome, Series, clock_ms
from .timing.drift import ANCHOR_BATCHES, fit_slowdown, quiet_slowdown, steady_change
from .timing.interference import BatchQuality, judge_batches
from .timing.location import quiet_ms
from .timing.samples import SampleStore


class BatchHistory:
    """What was timed on one device, with the drift of its speed.

    Args:
        max_slowdown: of an accepted batch, see `judge_batches`.
    """

    def __init__(self, max_slowdown: float) -> None:
        self.outcomes: list[BatchOutcome] = []
        self.quality: BatchQuality = judge_batches(np.ones(0), (), 0, max_slowdown)
        self._max_slowdown = max_slowdown
        self._samples: SampleStore[Series] = SampleStore()
        self._anchor_batches = ANCHOR_BATCHES

    def __len__(self) -> int:
        return len(self.outcomes)

    @property
    def slowdown(self) -> np.ndarray:
        """How slow the device was [batches]."""
        return self.quality.slowdown

    @property
    def quiet_slowdown(self) -> float:
        """The slowdown at which the device was quiet; 1 before the first batch."""
        if not self.outcomes:
            return 1.0
        whole = self._whole
        return quiet_slowdown(self.slowdown[whole], self.quality.quiet[whole])

    @property
    def _whole(self) -> np.ndarray:
        """Which batches say how fast the device is [batches]: those of at least half of the most
        graphs. The few graphs of the last rows may find themselves in a cache."""
        graphs = np.array([len(outcome.results) for outcome in self.outcomes])
        return graphs >= graphs.max(initial=0) / 2

    @property
    def rejected(self) -> int:
        """Batches that are not used."""
        return int((~self.quality.accepted).sum())

    @property
    def drift(self) -> float:
        """Standard deviation of the device's speed over the batches, as a share."""
        whole = self._whole
        return float(np.std(np.log(self.slowdown[whole]))) if self.outcomes else 0.0

    @property
    def steady_change(self) -> float:
        """By how much the device got steadily slower, as a share; 0: its speed just wandered."""
        whole = self._whole
        ended_ms = np.array([outcome.facts.ended_ms for outcome in self.outcomes])
        return steady_change(self.slowdown[whole], ended_ms[whole])

    def add(self, outcome: BatchOutcome, events_at_rest: int) -> None:
        """Takes in a batch.

        Args:
            outcome: of it.
            events_at_rest: throttling events counted before anything was timed.
        """
        self.outcomes.append(outcome)
        self._samples.add({s: clock_ms(r) for s, r in outcome.results.items() if r.error is None})
        slowdown = fit_slowdown(self._samples.quiet_by_batch(), self._anchor_batches)
        facts = [batch.facts for batch in self.outcomes]
        self.quality = judge_batches(slowdown, facts, events_at_rest, self._max_slowdown)

    @property
    def has_run(self) -> Collection[Series]:
        """All that ran in a batch."""
        return self._samples.series

    def keep_scale(self) -> None:
        """Raw times mean the same from now on: some of them are written down."""
        self._anchor_batches = min(self._anchor_batches, len(self))

    def rounds(self, numbers: Iterable[int]) -> int:
        """Rounds of some batches."""
        return sum(self.outcomes[number].facts.rounds for number in numbers)

    def latest(self, one: Series) -> ArtifactResult | None:
        """The last result of a series; None: it was in no batch yet."""
        found = (outcome.results.get(one) for outcome in reversed(self.outcomes))
        return next(filter(None, found), None)

    def batches_with(self, series: Sequence[Series], first: int = 0) -> list[int]:
        """Batches from the first on in which all of these were timed."""
        return [
            number
            for number in range(first, len(self))
            if all(self._samples.has(one, number) for one in series)
        ]

    def calls(self, series: Sequence[Series], numbers: Sequence[int]) -> np.ndarray:
        """Calls in batches that hold all of these, [series, visits, calls] ms, raw."""
        return self._samples.calls(series, numbers, self.slowdown)

    def quiet_of(self, series: Sequence[Series]) -> float | None:
        """The quiet time of a graph, the mean over its replicas, raw in ms.

        None where it was not timed, every replica of it failed once, or its time is 0, as on a
        coarse counter of the device.
        """
        good = [one for one in series if self._never_failed(one)]
        numbers = self.batches_with(good) if good else []
        if not numbers:
            return None
        calls = self.calls(good, numbers)
        ms = float(quiet_ms(calls.reshape(len(calls), -1), axis=1).mean())
        return ms if ms > 0 else None

    def wall_of(
        self, series: Series, numbers: Sequence[int] | None = None
    ) -> tuple[float, np.ndarray] | None:
        """The quiet time of a graph on the wall clock, raw in ms, and its calls as timed.

        Args:
            series: a graph.
            numbers: of batches; None: all that hold it, and nothing where it failed in one.
        """
        if numbers is None:
            if not self._never_failed(series):
                return None
            numbers = [n for n, outcome in enumerate(self.outcomes) if series in outcome.results]
        walls = [np.asarray(self.outcomes[n].results[series].wall_ms).reshape(-1) for n in numbers]
        raw = [wall / self.slowdown[n] for n, wall in zip(numbers, walls, strict=True)]
        return float(quiet_ms(np.concatenate(raw))), np.concatenate(walls)

    def _never_failed(self, series: Series) -> bool:
        """Whether a series was timed in every batch that it was part of, and in one at least."""
        there = [outcome.results[series] for outcome in self.outcomes if series in outcome.results]
        return bool(there) and all(result.error is None for result in there)
