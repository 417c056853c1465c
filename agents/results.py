"""The values that a benchmark takes and gives: protocol, samples, statistics, events."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Optional, Union

import numpy as np

from .conditions import Conditions
from .errors import AgentError


@dataclass(frozen=True)
class Protocol:
    """How a batch is measured.

    Args:
        rounds: passes over the batch; every artefact is visited once a pass. 0, with
            `keep_loaded`: the batch is loaded only.
        calls_per_visit: timed calls in a row at each visit; the first is the cold one.
        warmup_calls: untimed calls after loading.
        seed: order of the visits within each pass.
        artifact_timeout_s: for loading with its warm-up calls, and for one visit, in seconds.
        keep_loaded: leave the batch loaded for a following request.
    """

    rounds: int = 12
    calls_per_visit: int = 3
    warmup_calls: int = 3
    seed: int = 0
    artifact_timeout_s: float = 60.0
    keep_loaded: bool = False


@dataclass(frozen=True)
class Statistics:
    """Summary of all timed calls of one artefact, in ms."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    mean_ms: float
    min_ms: float
    samples: int


def summarise(samples_ms: np.ndarray) -> Statistics:
    """Statistics over samples of any shape, in ms."""
    p10, median, p90 = np.percentile(samples_ms, (10, 50, 90))
    return Statistics(
        median_ms=float(median),
        p10_ms=float(p10),
        p90_ms=float(p90),
        mean_ms=float(np.mean(samples_ms)),
        min_ms=float(np.min(samples_ms)),
        samples=int(samples_ms.size),
    )


@dataclass(frozen=True)
class BatchConditions:
    """What the device was like around timed calls: those of all results that follow it.

    Args:
        before, after: the calls; throttling events of `before` are those before the batch was
            loaded. The shares of steal and of others are in `after`, of the time between the two.
        flags: what the reader of all these numbers must know (``throttled``, ``busy`` …).
    """

    before: Conditions = field(default_factory=Conditions)
    after: Conditions = field(default_factory=Conditions)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ArtifactResult:
    """What was measured of one artefact; where `error` is set, nothing else holds.

    Args:
        sha256: digest of the artefact.
        error: what went wrong, typed.
        wall: statistics over all timed calls; None where nothing but loading was asked for.
        wall_ms: [rounds, calls_per_visit] wall time on the device's clock, in ms.
        device_ms: the same from the runtime's own counter, or None.
        load_ms: time to load; of the first loading where the artefact was kept loaded.
        first_call_ms: the first call after loading; 0: it was not made apart from the others.
        compute_unit: where it really ran.
        flags: what the reader of the numbers must know (``throttled``, ``fallback:cpu`` …).
        before, after: as in `BatchConditions`.
    """

    sha256: str
    error: Optional[AgentError] = None
    wall: Optional[Statistics] = None
    wall_ms: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    device_ms: Optional[np.ndarray] = None
    load_ms: float = 0.0
    first_call_ms: float = 0.0
    compute_unit: str = ""
    flags: tuple[str, ...] = ()
    before: Conditions = field(default_factory=Conditions)
    after: Conditions = field(default_factory=Conditions)

    def under(self, conditions: BatchConditions) -> ArtifactResult:
        """The same with the conditions of its batch."""
        flags = tuple(dict.fromkeys((*self.flags, *conditions.flags)))
        return replace(self, flags=flags, before=conditions.before, after=conditions.after)


@dataclass(frozen=True)
class Queued:
    """The request waits; `ahead` requests run before this one."""

    ahead: int


@dataclass(frozen=True)
class Progress:
    """`done` of `total` artefacts loaded (step ``load``) or visits made (step ``measure``)."""

    step: str
    done: int
    total: int


@dataclass(frozen=True)
class Finished:
    """The batch is done; `elapsed_ms` on the device's clock (virtual for a simulated one)."""

    elapsed_ms: float


@dataclass(frozen=True)
class Activity:
    """What an agent is busy with; fields are those of ``Activity`` in agent.proto.

    Args:
        measuring: a request runs; where False, nothing below but `waiting` holds.
        waiting: requests in line behind those that run, over all processors.
        target: of the request that has run longest, with ``-tN``.
        step: what it does, and `done` of `total`, as in `Progress`.
        elapsed_s: since its turn came, in seconds.
    """

    measuring: bool = False
    waiting: int = 0
    target: str = ""
    step: str = ""
    done: int = 0
    total: int = 0
    elapsed_s: float = 0.0

    def __str__(self) -> str:
        if not self.measuring:
            return "idle"
        share = f" {self.step} {self.done}/{self.total}" if self.total else ""
        return f"measuring {self.target}{share}, {self.elapsed_s:.0f} s"


Event = Union[Queued, Progress, BatchConditions, ArtifactResult, Finished]
