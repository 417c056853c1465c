"""Talking to agents: finding the target, sending graphs, timing a batch in both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from ..agents.backends._simulation_device import device_names
from ..agents.backends.base import Availability, TargetInfo
from ..agents.client import AgentClient, private_agent
from ..agents.results import ArtifactResult, Event, Progress, Protocol
from ..lookup_tables.table import Target, format_options
from ..ops.errors import BadRequest
from ..ops.export import sha256
from .plan import Graph, graph_bytes

_THREADS = re.compile(r"(?P<name>.+)-t(?P<threads>[1-9][0-9]*)")

GATE_OPTION = "gate"
"""In a table's options, where squeeze-and-excitation has another gate than the default."""

ORIGIN = {
    Availability.AVAILABLE: "measured",
    Availability.EMULATED: "emulated",
    Availability.SIMULATED: "simulated",
}


@dataclass(frozen=True)
class MeasuringSettings:
    """How graphs are timed; the defaults are those of `docs/measurement.md`.

    Attributes:
        rounds: passes over a batch; every graph is called once a pass, in shuffled order, so
            that its weights are as cold as inside a network.
        warm_rounds: passes that loop each row's own graph, for ``warm_ms``.
        warm_calls: calls in such a loop; the first `warm_skipped` are dropped.
        warm_skipped: see `warm_calls`.
        warmup_calls: untimed calls after loading.
        timeout_s: for loading a graph, and for one visit.
        seed: of the shuffles.
    """

    rounds: int = 24
    warm_rounds: int = 3
    warm_calls: int = 8
    warm_skipped: int = 3
    warmup_calls: int = 3
    timeout_s: float = 60.0
    seed: int = 0


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
    addresses: Sequence[str], request: TargetRequest, **credentials: object
) -> Iterator[list[AgentClient]]:
    """Clients of the agents named, or of a private one on loopback where none is.

    The private agent simulates the device that the request names, if it names one.
    """
    if not addresses:
        device = request.simulated_device
        if device is not None and device not in device_names():
            raise BadRequest(
                f"no simulated device is called {device!r}; there are {', '.join(device_names())}"
            )
        with private_agent(simulate=(device,) if device else ()) as client:
            yield [client]
        return
    clients = [AgentClient(address, **credentials) for address in addresses]  # type: ignore[arg-type]
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


@dataclass(frozen=True)
class Bench:
    """One target on one agent, ready to time graphs.

    Attributes:
        client: the agent.
        request: what was asked for.
        target: the target as a table names it.
        resident: whether the target keeps many graphs loaded.
        max_bytes: artefact bytes that one batch may hold.
        agent_version: for provenance.
    """

    client: AgentClient
    request: TargetRequest
    target: Target
    resident: bool
    max_bytes: int
    agent_version: str
    _digests: dict[object, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, client: AgentClient, request: TargetRequest) -> Bench:
        """Asks the agent for the target.

        Raises:
            BadRequest: the agent does not know the target, or says why it is not available.
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
        return cls(
            client,
            request,
            table_target(found, request),
            found.resident,
            description.max_resident_bytes,
            description.agent_version,
        )

    def digest_of(self, graph: Graph) -> str:
        """Makes sure that the agent holds a graph, and gives its digest."""
        return self.send(graph, lambda: graph_bytes(graph))

    def send(self, key: object, make: Callable[[], bytes]) -> str:
        """Makes sure that the agent holds an artefact, and gives its digest.

        Args:
            key: known by this bench from its first sending on; `make` is then not called.
            make: gives the artefact.
        """
        digest = self._digests.get(key)
        if digest is None:
            content = make()
            digest = sha256(content)
            if self.client.missing([digest]):
                self.client.upload(content)
            self._digests[key] = digest
        return digest

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

        return self.client.benchmark(
            list(dict.fromkeys(digests)),
            target=self.request.name,
            threads=self.request.threads,
            options=self.request.runtime_options,
            protocol=protocol,
            on_event=watch,
        )


def table_target(info: TargetInfo, request: TargetRequest) -> Target:
    """The target as a table's identity columns name it."""
    return Target(
        device=info.device,
        processor=info.processor,
        runtime=info.runtime,
        runtime_version=info.runtime_version,
        options=format_options(request.options),
        precision=info.precision,
        threads=request.threads,
        origin=ORIGIN[info.availability],
    )


def cold_calls(result: ArtifactResult) -> np.ndarray:
    """The first call of each visit, [rounds] ms."""
    return np.asarray(result.wall_ms)[:, 0]
