"""Talking to agents: finding the target, sending graphs, timing a batch in both ways."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..agents.backends._simulation_device import device_names
from ..agents.backends.base import Availability, TargetInfo
from ..agents.client import AgentClient, check_artifact, private_agent
from ..agents.conditions import Conditions
from ..agents.errors import AgentError, BadAnswer, UnsupportedOperator
from ..agents.results import ArtifactResult, Event, Finished, Progress, Protocol
from ..lookup_tables.table import Target, format_options, parse_options
from ..ops.artifacts import Artifact, ArtifactInfo, Recipe, choose_recipe
from ..ops.artifacts.cache import Make, cached, fill
from ..ops.errors import BadRequest, UnsupportedNode
from ..ops.export import sha256
from ..ops.pool import GATES
from .boards import Board, Boards
from .plan import Graph, graph_bytes

_THREADS = re.compile(r"(?P<name>.+)-t(?P<threads>[1-9][0-9]*)")

GATE_OPTION = "gate"
"""In a table's options, where squeeze-and-excitation has another gate than the default."""

RUN_S = 60.0
"""How long `Bench.run` waits for outputs."""

ORIGIN = {
    Availability.AVAILABLE: "measured",
    Availability.EMULATED: "emulated",
    Availability.SIMULATED: "simulated",
    Availability.ESTIMATED: "estimated",
}


@dataclass(frozen=True)
class MeasuringSettings:
    """How graphs are timed; the defaults are those of `docs/measurement.md`.

    Targets that keep one graph at a time load it for every visit; there a visit is many calls,
    a lap one pass, and few passes do.

    Attributes:
        rounds: passes over whole networks; every graph is called once a pass, in shuffled
            order, so that its weights are as cold as they are between two uses.
        interval: half-width of the interval of a row's latency that is aimed at, as a share.
        floor_ms: half-width that is narrow enough however small the latency is.
        min_rounds, max_rounds: passes that a row is timed in.
        lap_rounds: passes in one request, after which the intervals are looked at.
        visit_calls: calls in a visit, where a target keeps one graph at a time.
        min_visits: visits that a row is timed in there; calls of one visit may all be slow.
        seats: rows in work at once on an agent.
        time_budget_s: on the device's clock, for each agent; once it is spent, rows are left
            as soon as they have had half of the fewest passes.
        warm_rounds: passes that loop each row's own graph, for ``cold_ms`` and ``warm_ms``.
        warm_calls: calls in such a loop; the first is the cold one.
        warm_skipped: calls in such a loop that are not yet warm.
        warmup_calls: untimed calls after loading.
        timeout_s: for loading a graph, and for one visit.
        seed: of the shuffles.
    """

    rounds: int = 24
    interval: float = 0.02
    floor_ms: float = 0.001
    min_rounds: int = 12
    max_rounds: int = 60
    lap_rounds: int = 3
    visit_calls: int = 16
    min_visits: int = 5
    seats: int = 512
    time_budget_s: float = math.inf
    warm_rounds: int = 1
    warm_calls: int = 16
    warm_skipped: int = 8
    warmup_calls: int = 1
    timeout_s: float = 60.0
    seed: int = 0

    def lap(self, resident: bool, seed: int) -> Protocol:
        """The protocol of one lap."""
        return Protocol(
            rounds=self.lap_rounds if resident else 1,
            calls_per_visit=1 if resident else self.visit_calls,
            warmup_calls=self.warmup_calls,
            seed=seed,
            artifact_timeout_s=self.timeout_s,
            keep_loaded=True,
        )

    def plain(self, seed: int) -> Protocol:
        """The protocol of the plain timings of a row's own graph, cold and looped."""
        return Protocol(
            rounds=self.warm_rounds,
            calls_per_visit=self.warm_calls,
            warmup_calls=self.warmup_calls,
            seed=seed,
            artifact_timeout_s=self.timeout_s,
        )

    def rounds_of_a_row(self, resident: bool) -> tuple[int, int]:
        """The fewest and most passes that a row is timed in."""
        if resident:
            return min(self.min_rounds, self.max_rounds), self.max_rounds
        most = -(-self.max_rounds // 4)
        return min(self.min_visits, most), most


@dataclass(frozen=True)
class TargetRequest:
    """What ``--target`` and ``--option`` ask for.

    Attributes:
        name: the target's name without threads.
        threads: at least 1.
        options: everything else that changes the result.
    """

    name: str
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def runtime_options(self) -> dict[str, str]:
        """Options that the agent is told; the gate is in the graphs."""
        return {key: value for key, value in self.options.items() if key != GATE_OPTION}

    @property
    def simulated_device(self) -> str | None:
        """The device file's name if the target is a simulated one."""
        return self.name.removeprefix("sim-") if self.name.startswith("sim-") else None


def parse_target(name: str, options: Sequence[str] = ()) -> TargetRequest:
    """Reads ``cpu-onnxruntime-fp32-t2`` and ``key=value`` options.

    Raises:
        BadRequest: an option is not ``key=value``.
    """
    match = _THREADS.fullmatch(name)
    pairs = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise BadRequest(f"--option {option!r}: write key=value")
        pairs[key] = value
    if match:
        return TargetRequest(match["name"], int(match["threads"]), pairs)
    return TargetRequest(name, 1, pairs)


@contextmanager
def connect(
    agents: Sequence[str | Board] | Boards, request: TargetRequest, **credentials: Any
) -> Iterator[list[AgentClient]]:
    """Clients of the agents named, or of a private one on loopback where none is.

    The private agent simulates the device that the request names, if it names one. Of a whole
    file of boards, those are taken that answer and have the target.

    Args:
        agents: addresses or boards.
        request: the target.
        credentials: arguments of `AgentClient`; a board's own come first.
    """
    if isinstance(agents, Boards):
        agents = agents.having(request.name, **credentials)
    if not agents:
        device = request.simulated_device
        if device is not None and device not in device_names():
            raise BadRequest(
                f"no simulated device is called {device!r}; there are {', '.join(device_names())}"
            )
        with private_agent(simulate=(device,) if device else ()) as client:
            yield [client]
        return
    boards = [agent if isinstance(agent, Board) else Board.at(agent) for agent in agents]
    with ExitStack() as stack:
        yield [stack.enter_context(board.open(**credentials)) for board in boards]


@dataclass(eq=False)
class Machine:
    """What a device was like over all requests, as its agent told.

    Attributes:
        before: conditions before the first of them; None: there was none yet.
        after: after the last.
        at_rest: throttling events that it had counted before anything was timed; a device that
            boots meanwhile counts anew. None: not known yet.
        throttle_events: during all requests.
    """

    before: Conditions | None = None
    after: Conditions | None = None
    at_rest: int | None = None
    throttle_events: int = 0
    _time_ms: float = 0.0
    _steal_ms: float = 0.0
    _busy_ms: float = 0.0

    def note(self, result: ArtifactResult, elapsed_ms: float) -> None:
        """Takes in one request.

        Args:
            result: any of its results that is no error.
            elapsed_ms: what the request took.
        """
        before, after = result.before, result.after
        self.before, self.after = self.before or before, after
        known = before.throttle_events if self.at_rest is None else self.at_rest
        self.at_rest = min(known, before.throttle_events)
        self.throttle_events += max(0, after.throttle_events - before.throttle_events)
        self._time_ms += elapsed_ms
        self._steal_ms += elapsed_ms * after.steal_share
        self._busy_ms += elapsed_ms * after.busy_share

    @property
    def steal_share(self) -> float:
        """Share of the time that a hypervisor gave to other machines."""
        return self._steal_ms / self._time_ms if self._time_ms else 0.0

    @property
    def busy_share(self) -> float:
        """Share of the time that other processes took."""
        return self._busy_ms / self._time_ms if self._time_ms else 0.0


@dataclass(eq=False)
class Bench:
    """One target on one agent, ready to time graphs.

    Attributes:
        client: the agent.
        request: what was asked for.
        target: the target as a table names it.
        recipe: how artefacts for it are made.
        resident: whether the target keeps many graphs loaded.
        max_bytes: artefact bytes that one batch may hold.
        agent_version: for provenance.
        spent_ms: time that requests took so far, on the device's clock.
        machine: what the device was like meanwhile.
    """

    client: AgentClient
    request: TargetRequest
    target: Target
    recipe: Recipe
    resident: bool
    max_bytes: int
    agent_version: str
    spent_ms: float = 0.0
    machine: Machine = field(default_factory=Machine)
    _known: dict[object, ArtifactInfo] = field(default_factory=dict, repr=False)
    _sent: set[str] = field(default_factory=set, repr=False)
    _refused: dict[str, AgentError] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, client: AgentClient, request: TargetRequest) -> Bench:
        """Asks the agent for the target.

        Raises:
            BadRequest: the agent does not know the target, or says why it is not available.
            BadAnswer: it describes the target as no table can.
        """
        description = client.describe()
        known = {t.name: t for t in description.targets}
        found = known.get(request.name)
        if found is None:
            raise BadRequest(
                f"the agent at {client.address} does not know the target {request.name!r}; "
                f"it has {', '.join(sorted(known)) or 'none'}"
            )
        if found.availability not in ORIGIN:
            raise BadRequest(f"{request.name} is not available: {found.reason}")
        try:
            recipe = choose_recipe(found.formats, found.precision)
        except BadRequest as error:
            raise BadRequest(f"{request.name} cannot be measured from here: {error}") from error
        if request.threads > found.max_threads:
            raise BadRequest(
                f"{request.name} takes 1 to {found.max_threads} threads, not {request.threads}"
            )
        unknown = sorted(set(request.runtime_options) - set(found.options))
        if unknown:
            raise BadRequest(
                f"{request.name} has no option {unknown[0]!r}; "
                f"it takes {', '.join(found.options) or 'none'}"
            )
        format_options(request.options)  # what is wrong with these is not the agent's fault
        try:
            target = table_target(found, request)
        except BadRequest as error:
            raise BadAnswer(
                f"the agent at {client.address} describes {request.name} as no table can: {error}"
            ) from error
        return cls(
            client,
            request,
            target,
            recipe,
            found.resident,
            description.max_resident_bytes,
            description.agent_version,
        )

    def prepare(
        self, makes: Iterable[Make], on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Makes artefacts ahead, on all cores, where making them takes time.

        Args:
            makes: give the ONNX graphs; `info_of` and `send` then find the artefacts.
            on_progress: called with (done, total).
        """
        fill(makes, self.recipe, on_progress)

    def info_of(self, graph: Graph, copy: int = 0) -> ArtifactInfo:
        """What is known of the artefact of a graph; nothing is sent."""
        return self._info((graph, copy), partial(graph_bytes, graph, copy))[0]

    def digest_of(self, graph: Graph, copy: int = 0) -> str:
        """Makes sure that the agent holds a copy of a graph, and gives its artefact's digest."""
        return self.send((graph, copy), partial(graph_bytes, graph, copy))

    def send(self, key: object, make: Make) -> str:
        """Makes sure that the agent holds a graph's artefact, and gives the artefact's digest.

        One that the target's format cannot express, or that breaks it, is not sent; `time` says
        so of it, and times the others.

        Args:
            key: known by this bench from its first sending on; `make` is then not called.
            make: gives the ONNX graph.
        """
        info, artifact = self._info(key, make)
        return self._hold(info.artifact_sha256, lambda: artifact or cached(make, self.recipe))

    def hold(self, artifact: Artifact) -> str:
        """Makes sure that the agent holds an artefact, and gives its digest; as `send`."""
        return self._hold(artifact.info.artifact_sha256, lambda: artifact)

    def _hold(self, digest: str, artifact: Callable[[], Artifact]) -> str:
        if digest not in self._sent and digest not in self._refused:
            if self.client.missing([digest]):
                content = artifact().content
                try:
                    check_artifact(content, self.recipe.format)
                except AgentError as error:
                    self._refused[digest] = error
                    return digest
                self.client.upload(content)
            self._sent.add(digest)
        return digest

    def _info(self, key: object, make: Make) -> tuple[ArtifactInfo, Artifact | None]:
        """What is known of an artefact, and the artefact itself if it was made just now."""
        if key in self._known:
            return self._known[key], None
        try:
            artifact = cached(make, self.recipe)
        except UnsupportedNode as error:
            digest = sha256(make())  # there is no artefact: the graph stands for it
            self._refused[digest] = UnsupportedOperator(str(error))
            artifact = Artifact(b"", ArtifactInfo(digest, digest, self.recipe.converter))
        self._known[key] = artifact.info
        return artifact.info, artifact

    def time(
        self,
        digests: Sequence[str],
        protocol: Protocol,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> dict[str, ArtifactResult]:
        """Times a batch of artefacts.

        Args:
            digests: held by the agent.
            protocol: rounds and calls.
            on_progress: called with (step, share done).
        """

        def watch(event: Event) -> None:
            if on_progress and isinstance(event, Progress) and event.total:
                on_progress(event.step, event.done / event.total)
            if isinstance(event, Finished):
                self.spent_ms += event.elapsed_ms

        spent_ms = self.spent_ms
        unique = list(dict.fromkeys(digests))
        results = {d: ArtifactResult(d, self._refused[d]) for d in unique if d in self._refused}
        if sent := [digest for digest in unique if digest not in self._refused]:
            results |= self.client.benchmark(
                sent,
                target=self.request.name,
                threads=self.request.threads,
                options=self.request.runtime_options,
                protocol=protocol,
                format=self.recipe.format,
                on_event=watch,
            )
        answer = next((result for result in results.values() if result.error is None), None)
        if answer is not None:
            self.machine.note(answer, self.spent_ms - spent_ms)
        return results

    def run(
        self, digest: str, inputs: Mapping[str, np.ndarray], timeout_s: float = RUN_S
    ) -> dict[str, np.ndarray]:
        """Outputs of an artefact that the agent holds, by name; not timed.

        Raises:
            AgentError: it failed on the agent.
        """
        return self.client.run(
            digest,
            self.request.name,
            inputs,
            threads=self.request.threads,
            options=self.request.runtime_options,
            format=self.recipe.format,
            timeout_s=timeout_s,
        )


def table_target(info: TargetInfo, request: TargetRequest) -> Target:
    """The target as a table's identity columns name it.

    Raises:
        TableError: the agent describes it as no table can.
    """
    defaults = parse_options(";".join(sorted(info.defaults)))
    return Target(
        device=info.device,
        processor=info.processor,
        runtime=info.runtime,
        runtime_version=info.runtime_version,
        options=format_options({**defaults, **request.options}),
        precision=info.precision,
        threads=request.threads,
        origin=ORIGIN[info.availability],
    )


def gate_of(target: Target) -> str:
    """The gate of squeeze-and-excitation that a table's graphs have."""
    return parse_options(target.options).get(GATE_OPTION, GATES[0])


def without_gate(target: Target) -> Target:
    """The target that a table's graphs ran on: the gate is in the graphs."""
    options = parse_options(target.options)
    options.pop(GATE_OPTION, None)
    return replace(target, options=format_options(options))


def clock_ms(result: ArtifactResult) -> np.ndarray:
    """Times on the clock that differences are taken on, [rounds, calls] ms.

    The runtime's own counter where it has one: the price of a call, with its noise, is not in it.
    """
    return np.asarray(result.wall_ms if result.device_ms is None else result.device_ms)


def cold_calls(result: ArtifactResult) -> np.ndarray:
    """The first call of each visit, [rounds] ms."""
    return np.asarray(result.wall_ms)[:, 0]
