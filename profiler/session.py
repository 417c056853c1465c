"""Sessions with agents: a target found, graphs sent, batches timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..agents.client import AgentClient, private_agent
from ..agents.devices import device_names
from ..agents.errors import AgentError, BadAnswer, UnsupportedOperator
from ..agents.results import ArtifactResult, Event, Finished, Progress, Protocol
from ..lookup_tables.table import WITHOUT_LATENCY, Target, format_options
from ..ops.artifacts import Artifact, ArtifactInfo, Recipe, choose_recipe
from ..ops.artifacts.cache import Make, cached, fill
from ..ops.errors import BadRequest, UnsupportedNode
from ..ops.export import sha256
from .boards import Board, Boards
from .device_log import DeviceLog
from .origin import ORIGIN
from .plan import Graph, graph_bytes
from .target import TargetRequest, table_target

RUN_S = 60.0
"""How long `TargetSession.run` waits for outputs."""


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
class _Artifacts:
    """Artefacts that a session knows of.

    Attributes:
        known: by what they were asked for with.
        sent: that the agent holds.
        refused: that cannot be sent, with the reason.
    """

    known: dict[object, ArtifactInfo] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)
    refused: dict[str, AgentError] = field(default_factory=dict)


@dataclass(eq=False)
class TargetSession:
    """One target on one agent, ready to time graphs; all that is asked of an agent is asked here.

    Attributes:
        client: the agent.
        request: what was asked for.
        target: the target as a table names it.
        recipe: how artefacts for it are made.
        resident: whether the target keeps many graphs loaded.
        max_bytes: artefact bytes that one batch may hold.
        agent_version: for provenance.
        log: what the device was like meanwhile.
    """

    client: AgentClient
    request: TargetRequest
    target: Target
    recipe: Recipe
    resident: bool
    max_bytes: int
    agent_version: str
    log: DeviceLog = field(default_factory=DeviceLog)
    _artifacts: _Artifacts = field(default_factory=_Artifacts, repr=False)

    @classmethod
    def open(cls, client: AgentClient, request: TargetRequest, timed: bool = True) -> TargetSession:
        """Asks the agent for the target.

        Args:
            client: the agent.
            request: the target.
            timed: whether anything is to be timed.

        Raises:
            BadRequest: the agent does not know the target, says why it is not available, or
                emulates one that is to be timed.
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
        origin = ORIGIN[found.availability]
        if timed and origin in WITHOUT_LATENCY:
            raise BadRequest(
                f"{request.name} is {origin} here, and {WITHOUT_LATENCY[origin]}: it takes a "
                "device; hurricane support tells which operators it takes"
            )
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

    def info_of(self, graph: Graph, replica: int = 0) -> ArtifactInfo:
        """What is known of the artefact of a graph; nothing is sent."""
        return self._info((graph, replica), partial(graph_bytes, graph, replica))[0]

    def digest_of(self, graph: Graph, replica: int = 0) -> str:
        """Makes sure that the agent holds a replica of a graph, and gives its artefact's digest."""
        return self.send((graph, replica), partial(graph_bytes, graph, replica))

    def send(self, key: object, make: Make) -> str:
        """Makes sure that the agent holds a graph's artefact, and gives the artefact's digest.

        One that the target's format cannot express is not sent; `time` says so of it, and times
        the others.

        Args:
            key: known by this session from its first sending on; `make` is then not called.
            make: gives the ONNX graph.
        """
        return self.made(key, make)()

    def made(self, key: object, make: Make) -> Callable[[], str]:
        """The first half of `send`: makes the artefact, and gives the second half."""
        info, artifact = self._info(key, make)
        digest = info.artifact_sha256
        return lambda: self._hold(digest, lambda: artifact or cached(make, self.recipe))

    def hold(self, artifact: Artifact) -> str:
        """Makes sure that the agent holds an artefact, and gives its digest; as `send`."""
        return self._hold(artifact.info.artifact_sha256, lambda: artifact)

    @property
    def batch_bytes(self) -> int:
        """Bytes of weights that one batch should hold at most."""
        return self.max_bytes // 2

    def _hold(self, digest: str, artifact: Callable[[], Artifact]) -> str:
        if digest not in self._artifacts.sent and digest not in self._artifacts.refused:
            with self.log.timed("upload"):
                if self.client.missing([digest]):
                    self.client.upload(artifact().content, digest=digest)
            self._artifacts.sent.add(digest)
        return digest

    def _info(self, key: object, make: Make) -> tuple[ArtifactInfo, Artifact | None]:
        """What is known of an artefact, and the artefact itself if it was made just now."""
        if key in self._artifacts.known:
            return self._artifacts.known[key], None
        try:
            with self.log.timed("make"):
                artifact = cached(make, self.recipe)
        except UnsupportedNode as error:
            digest = sha256(make())  # there is no artefact: the graph stands for it
            self._artifacts.refused[digest] = UnsupportedOperator(str(error))
            artifact = Artifact(b"", ArtifactInfo(digest, digest, self.recipe.converter))
        self._artifacts.known[key] = artifact.info
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
                self.log.spent_ms += event.elapsed_ms
            if isinstance(event, Progress) and event.step == "load":
                ends["load"] = time.perf_counter()

        spent_ms, started = self.log.spent_ms, time.perf_counter()
        ends = {"load": started}
        unique = list(dict.fromkeys(digests))
        refused = self._artifacts.refused
        results = {d: ArtifactResult(d, refused[d]) for d in unique if d in refused}
        if sent := [digest for digest in unique if digest not in refused]:
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
            self.log.note(answer, self.log.spent_ms - spent_ms)
        ended = time.perf_counter()
        loaded = ends["load"] if protocol.rounds else ended
        self.log.seconds["load"] += loaded - started
        self.log.seconds["measure"] += ended - loaded
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
