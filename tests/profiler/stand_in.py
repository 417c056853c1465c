"""A device without an agent: it takes as long for a graph as a test says."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from hurricane.agents.conditions import Conditions
from hurricane.agents.errors import AgentError, OutOfMemory
from hurricane.agents.results import ArtifactResult, Protocol
from hurricane.lookup_tables.table import Target
from hurricane.ops.artifacts import ArtifactInfo
from hurricane.ops.pool import select_operators
from hurricane.profiler.outcomes import Series
from hurricane.profiler.plan import Graph, PlannedRow, parse_layers, plan_rows
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.session import DeviceLog
from hurricane.profiler.target import parse_target

T = TypeVar("T")

COST_MS = {"SEP_3": 1.0, "SEP_5": 2.0, "MB_3_3": 3.0, "Choice_3": 0.5}
POOL_MS, CALL_MS = 0.25, 0.5
MIN_ROUNDS, BATCH = 12, 3
"""Rounds of a row at least, and of a batch."""

BATCHES = MIN_ROUNDS // BATCH
"""Batches of a row at least."""


def timing(**changes: Any) -> TimingProtocol:
    """A protocol that does not depend on how many rounds are the default."""
    usual: dict[str, Any] = {
        "min_rounds": MIN_ROUNDS,
        "batch_rounds": BATCH,
        "baseline_replicas": 2,
        "min_batch_bytes": 0,
        "compare_timeout_s": 30.0,
    }
    return replace(TimingProtocol(), **{**usual, **changes})


@cache
def planned(
    operators: str = "SEP_3,SEP_5,MB_3_3", layers: str = "digits32:1"
) -> tuple[PlannedRow, ...]:
    """Rows of these operators at these layers."""
    return plan_rows(parse_layers(layers), select_operators(operators))


def cost_ms(row: PlannedRow) -> float:
    """What the stand-in takes for a row's operator, stem or head."""
    return COST_MS.get(row.name, POOL_MS)


def true_ms(graph: Graph) -> float:
    """What the stand-in takes for a graph, without the price of a call."""
    return sum(COST_MS.get(piece.name, POOL_MS) for piece in graph)


def in_batches(*numbers: int, value: Any, other: Any) -> Callable[[int], Any]:
    """Says one thing of some requests, and another of all others."""
    return lambda number: value if number in numbers else other


def limited(work: Callable[[], T], limit_s: float = 60.0) -> T:
    """Does this, with a limit, as what is tried could wait for ever."""
    told: list[T | Exception] = []

    def do() -> None:
        try:
            told.append(work())
        except Exception as error:
            told.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(limit_s)
    assert told, "it does not end"
    if isinstance(told[0], Exception):
        raise told[0]
    return told[0]


@cache
def digest(graph: Graph, replica: int = 0) -> str:
    """Of a graph's artefact; the same on every device."""
    return hashlib.sha256(repr((graph, replica)).encode()).hexdigest()


@dataclass(eq=False)
class StandIn:
    """Takes the place of a `TargetSession`. Requests are counted from 0.

    Attributes:
        slowdown: of the device in the nth request.
        flags: of the nth request.
        noise: sigma of the graphs that hold a piece of that name, as a share.
        refused: names of pieces that it does not run, and what it says then.
        fallen: names of pieces that fall back to another unit.
        no_room: whether there is no memory for a replica of a graph.
        events: throttling events counted up to the end of the nth request; -1 is before all.
        before: called with the number of a request; may raise.
        requests: replicas of graphs and protocol of each.
    """

    address: str = "stand-in:1"
    resident: bool = True
    max_bytes: int = 10**9
    device_time: bool = False
    request_ms: float = 1.0
    no_room: Callable[[Graph, int], bool] = lambda graph, replica: False
    slowdown: Callable[[int], float] = lambda number: 1.0
    flags: Callable[[int], tuple[str, ...]] = lambda number: ()
    noise: dict[str, float] = field(default_factory=dict)
    refused: dict[str, AgentError] = field(default_factory=dict)
    fallen: tuple[str, ...] = ()
    events: Callable[[int], int] = lambda number: 0
    before: Callable[[int], None] = lambda number: None
    requests: list[tuple[list[Series], Protocol]] = field(default_factory=list)
    agent_version: str = "0"
    log: DeviceLog = field(default_factory=DeviceLog)
    origin: str = "simulated"

    def __post_init__(self) -> None:
        self.client: Any = SimpleNamespace(address=self.address)
        self.request = parse_target("cpu-standin-fp32")
        self.target = Target("stand-in", "cpu", "standin", "1", origin=self.origin)
        self._known: dict[str, Series] = {}

    # What a session has.

    @property
    def batch_bytes(self) -> int:
        return self.max_bytes // 2

    def digest_of(self, graph: Graph, replica: int = 0) -> str:
        found = digest(graph, replica)
        self._known[found] = (graph, replica)
        return found

    def made(self, series: Series, make: Any) -> Callable[[], str]:
        return lambda: self.digest_of(*series)

    def info_of(self, graph: Graph, replica: int = 0) -> ArtifactInfo:
        found = digest(graph, replica)
        return ArtifactInfo(found, found)

    def prepare(self, makes: Any, on_progress: Any = None) -> None:
        pass

    def time(
        self, digests: Sequence[str], protocol: Protocol, on_progress: Any = None
    ) -> dict[str, ArtifactResult]:
        if not protocol.rounds:
            return {}  # only loaded
        unique = dict.fromkeys(digests)
        answers = self.answer([self._known[one] for one in unique], protocol)
        self.log.spent_ms += self.request_ms
        results = {digest(*series): result for series, result in answers.items()}
        for result in [r for r in results.values() if r.error is None][:1]:
            self.log.note(result, self.request_ms)
        return results

    # What the device does.

    def answer(self, series: Sequence[Series], protocol: Protocol) -> dict[Series, ArtifactResult]:
        """Times replicas of graphs."""
        number = len(self.requests)
        self.requests.append((list(series), protocol))
        self.before(number)
        return {one: self._result(*one, number, protocol) for one in series}

    def _result(
        self, graph: Graph, replica: int, number: int, protocol: Protocol
    ) -> ArtifactResult:
        name = digest(graph, replica)
        for piece in graph:
            if piece.name in self.refused:
                return ArtifactResult(name, self.refused[piece.name])
        if self.no_room(graph, replica):
            return ArtifactResult(name, OutOfMemory("no room"))
        random = np.random.default_rng([number, int(name, 16)])
        size = (protocol.rounds, protocol.calls_per_visit)
        sigma = max(self.noise.get(piece.name, 0.0) for piece in graph)
        device_ms = (
            true_ms(graph) * self.slowdown(number) * np.exp(sigma * random.normal(size=size))
        )
        call_ms = random.exponential(CALL_MS, size) if self.device_time else CALL_MS
        fallen = [f"fallback:{piece.name}" for piece in graph if piece.name in self.fallen]
        return ArtifactResult(
            name,
            wall_ms=device_ms + call_ms * self.slowdown(number),
            device_ms=device_ms if self.device_time else None,
            flags=(*fallen, *self.flags(number)),
            compute_unit="STAND-IN",
            before=Conditions(frequency_mhz=1000 + number, throttle_events=self.events(number - 1)),
            after=Conditions(
                frequency_mhz=1001 + number,
                throttle_events=self.events(number),
                steal_share=0.25,
            ),
        )

    # What a test asks.

    def batches(self) -> list[list[Series]]:
        """The series of each request for a batch; loops are no batches."""
        return [series for series, protocol in self.requests if protocol.keep_loaded]
