"""What timing a batch gave, and what became of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..agents.conditions import Conditions
from ..agents.errors import AgentError, BoardNotReady, ErrorKind
from ..agents.results import ArtifactResult
from ..lookup_tables.cells import THROTTLED
from .plan import Graph, PlannedRow
from .timing.interference import BatchFacts
from .timing.marginal import Estimate

Series = tuple[Graph, int]
"""A replica of a graph."""

CONTENDED = ("busy", "steal")
"""Flags of a batch during which other work had the processor."""


@dataclass(frozen=True)
class BatchOutcome:
    """What timing one batch gave.

    Attributes:
        results: of every series.
        facts: of the batch.
    """

    results: Mapping[Series, ArtifactResult]
    facts: BatchFacts

    @staticmethod
    def of(
        results: Mapping[Series, ArtifactResult], rounds: int, rows: int, ended_ms: float = 0.0
    ) -> BatchOutcome:
        """The outcome of a batch from its results.

        Args:
            results: of every series.
            rounds: made.
            rows: that were active.
            ended_ms: on the device's clock, since its first request.
        """
        answers = [result for result in results.values() if result.error is None]
        contended = any(is_contended(result) for result in answers)
        events = max((result.after.throttle_events for result in answers), default=0)
        throttled = any(THROTTLED in result.flags for result in answers)
        facts = BatchFacts(rounds, rows, contended, events, ended_ms, throttled)
        return BatchOutcome(results, facts)

    @cached_property
    def errors(self) -> Mapping[Graph, AgentError]:
        """Why graphs could not be timed."""
        return {s[0]: result.error for s, result in self.results.items() if result.error}


@dataclass(frozen=True)
class RowOutcome:
    """What became of a row. Times are *raw*: as on a device of slowdown 1 in this measurement.

    Attributes:
        row: the plan's.
        estimate: None where `error` is set.
        error: why there is no estimate.
        rounds: that it rests on.
        slowdown: of the device in these, the median; divided out.
        results: of the first batch and of the last, of its graphs with the operator.
        call_ms: of the stem, what an empty call takes.
        graphs_ms: what its graphs with the operator take.
    """

    row: PlannedRow
    estimate: Estimate | None = None
    error: AgentError | None = None
    rounds: int = 0
    slowdown: float = 1.0
    results: tuple[tuple[ArtifactResult, ...], tuple[ArtifactResult, ...]] = ((), ())
    call_ms: float | None = None
    graphs_ms: Mapping[Graph, float] | None = None

    @property
    def before(self) -> Conditions:
        """What the device was like before the first batch."""
        return self.results[0][0].before


def abandoning_error(
    results: Mapping[Series, ArtifactResult], losses: Counter[Graph], max_losses: int
) -> AgentError | None:
    """The first error of a batch that is no evidence about its graph; the batch is then void.

    The loss of a device is evidence about the graph that was on it then, if others could be
    timed, and it happened before: the row fails, and does not stop the others.

    Args:
        results: of the batch.
        losses: of devices, by graph; is added to.
        max_losses: from which on a loss is the graph's fault.
    """
    failed = {s: r.error for s, r in results.items() if r.error and r.error.kind.is_of_board}
    if any(result.error is None for result in results.values()):
        lost = {s[0] for s, error in failed.items() if error.kind is ErrorKind.DEVICE_LOST}
        losses.update(lost)
        failed = {s: e for s, e in failed.items() if s[0] not in lost or losses[s[0]] < max_losses}
    return next(iter(failed.values()), None)


def board_error(
    results: Mapping[Series, ArtifactResult], has_run: Collection[Series]
) -> BoardNotReady | None:
    """What is wrong with the board, where no graph of a batch runs; the batch is then void.

    A vendor's tool often says the same of a graph that its processor does not take, and of a
    processor that it does not find. So what it says of every graph is evidence about none, unless
    others have run before, and none of these.

    Args:
        results: of the batch.
        has_run: all that ran on the device before.
    """
    errors = [result.error for result in results.values() if result.error is not None]
    if not errors or len(errors) < len(results):
        return None
    if has_run and not any(series in has_run for series in results):
        return None
    again = "any more" if has_run else "there"
    return BoardNotReady(
        f"none of {len(results)} graphs runs {again}, so it is the board: {errors[0]}; put that "
        "right, and run the same command again"
    )


def is_contended(result: ArtifactResult) -> bool:
    """Whether other work on the machine had the processor during the batch of a result."""
    return not set(CONTENDED).isdisjoint(result.flags)


def clock_ms(result: ArtifactResult) -> np.ndarray:
    """Times on the clock that differences are taken on, [rounds, calls] ms.

    The runtime's own counter where it has one: the price of a call, with its noise, is not in it.
    """
    return np.asarray(result.wall_ms if result.device_ms is None else result.device_ms)


def cold_calls(result: ArtifactResult) -> np.ndarray:
    """The first call of each visit, [rounds] ms."""
    return np.asarray(result.wall_ms)[:, 0]
