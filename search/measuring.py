"""Measuring a found network on the target that its table is of: latency and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..lookup_tables.architecture import ArtifactAccuracy, TableSource
from ..lookup_tables.shipped import open_table
from ..lookup_tables.spread import QUIET
from ..lookup_tables.table import COMPUTING, Target, parse_options
from ..ops.errors import BadRequest, HurricaneError

if TYPE_CHECKING:
    from ..ops.artifacts import Artifact, Recipe
    from ..ops.backbone import Backbone
    from ..profiler.networks import NetworkTime, WholeNetwork
    from ..profiler.session import TargetSession
    from ..profiler.target import TargetRequest
    from .data import ImageData

Count = Callable[[int, int], None]
"""Told (images done, images in all)."""

ROUNDS = 48
"""Rounds of one network: more than those that check a table, as nothing averages its noise out."""

BACKGROUND_NETWORKS = 12
"""Networks timed beside it, see `background_networks`."""


class NotMeasurable(BadRequest):
    """No agent was named and this machine is not the table's target, or it computes nothing."""


@dataclass(frozen=True)
class Measurement:
    """A network's latency, and that of each half of the rounds, in ms."""

    ms: float
    first_ms: float
    second_ms: float

    @classmethod
    def read(cls, where: str, ms: float, first_ms: float, second_ms: float) -> Measurement:
        """One that a file holds.

        Args:
            where: file and field, for errors.
            ms, first_ms, second_ms: as there.

        Raises:
            BadRequest: a latency is 0.
        """
        if not (ms and first_ms and second_ms):
            raise BadRequest(f"{where}: latencies must be more than 0")
        return cls(ms, first_ms, second_ms)

    @property
    def halves_ms(self) -> tuple[float, float]:
        """Of the first and the second half of the rounds."""
        return self.first_ms, self.second_ms

    @property
    def careful_ms(self) -> float:
        """The latency with the halves' difference to spare, which a budget is compared with."""
        spread = abs(self.first_ms / self.second_ms - 1)
        return self.ms * (1 + spread)


@dataclass(frozen=True)
class TargetMeasurer:
    """Measures networks on one target.

    Attributes:
        target: what the table is of; another device, runtime or precision is refused.
        agents: addresses; none stands for a private agent on this machine.
        credentials: keyword arguments of `AgentClient`.
        rounds: of the network.
        statistic: of a network's calls, one of `spread.STATISTICS`.
    """

    target: Target
    agents: Sequence[str] = ()
    credentials: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = ROUNDS
    statistic: str = QUIET

    @classmethod
    def of_table(cls, source: TableSource, **settings: Any) -> TargetMeasurer:
        """A measurer for the target of a table."""
        target = open_table(source.path).target(source.target)
        return cls(target, statistic=source.statistic, **settings)

    def check(self) -> None:
        """Raises BadRequest unless the agent has the target, NotMeasurable if none was named."""
        with self._session():
            pass

    def __call__(
        self,
        backbone: Backbone,
        operators: Sequence[str],
        gate: str,
        make: Callable[[Recipe], Artifact] | None = None,
    ) -> Measurement:
        """Measures one network among others, as the networks that check a table are.

        Args:
            backbone, operators, gate: the network.
            make: gives its artefact, once the target's format is known; None for seeded weights,
                which take as long.

        Raises:
            BadRequest: the named agent does not have the target.
            NotMeasurable: no agent was named and this machine does not have it.
            HurricaneError: the target could not run the network.
        """
        from ..profiler.networks import WholeNetwork

        network = WholeNetwork("given", "winner", tuple(operators), gate)
        time, *_ = self._times(backbone, [network], gate, make)
        if time.error:
            raise HurricaneError(f"the network could not be timed on {self.target}: {time.error}")
        return Measurement(*time.of(self.statistic))

    def together(
        self, backbone: Backbone, networks: Sequence[WholeNetwork], gate: str
    ) -> list[Measurement | str]:
        """Measures networks side by side, in the same rounds, with seeded weights.

        Args:
            backbone: of all of them that are no published ones.
            networks: with labels that differ.
            gate: of the networks that stand beside them.

        Returns:
            For each a latency, or why the target could not run it.

        Raises:
            BadRequest, NotMeasurable: as for one network.
        """
        times = self._times(backbone, networks, gate)
        return [t.error or Measurement(*t.of(self.statistic)) for t in times[: len(networks)]]

    def _times(
        self,
        backbone: Backbone,
        networks: Sequence[WholeNetwork],
        gate: str,
        make: Callable[[Recipe], Artifact] | None = None,
    ) -> list[NetworkTime]:
        """Times of networks, the first of the artefact given, and of those in the background."""
        from ..profiler.networks import WholeNetwork, time_networks
        from ..profiler.protocol import TimingProtocol

        background = [
            WholeNetwork("background", str(number), names, gate)
            for number, names in enumerate(background_networks(backbone, BACKGROUND_NETWORKS))
        ]
        with self._session() as session:
            return time_networks(
                session,
                backbone,
                [*networks, *background],
                TimingProtocol(network_rounds=self.rounds),
                artifacts={} if make is None else {networks[0].label: make(session.recipe)},
            )

    def accuracy(
        self,
        make: Callable[[Recipe], Artifact],
        data: ImageData,
        count: Count | None = None,
    ) -> ArtifactAccuracy:
        """Accuracy of a network on the test split, of the target's artefact in its runtime.

        Args:
            make: gives the artefact, once the target's format is known.
            data: its test split is what the artefact is run on.
            count: is told how many images are done.

        Raises:
            BadRequest, NotMeasurable, HurricaneError: as for a latency; simulations and estimates
                have no accuracy either.
        """
        _check_computes(self.target)
        with self._session() as session:
            return artifact_accuracy(session, make(session.recipe), data, count)

    @contextmanager
    def _session(self) -> Iterator[TargetSession]:
        from ..profiler.target import TargetRequest, parse_target, without_gate

        named = parse_target(self.target.name)
        options = parse_options(without_gate(self.target).options)
        request = TargetRequest(named.name, named.threads, options)
        with open_session(request, self.agents, self.credentials) as session:
            found = replace(
                session.target,
                runtime_version=self.target.runtime_version,
                options=self.target.options,
            )
            if found != self.target:
                words = f"the table is of {self.target}, the agent has {session.target}"
                if self.agents:
                    raise BadRequest(f"{words}; name the right agent with --agent")
                raise NotMeasurable(f"{words}; name the board's agent with --agent")
            yield session


def background_networks(backbone: Backbone, count: int) -> list[tuple[str, ...]]:
    """Networks to be timed beside the one in question, so that it is as cold as in a table.

    Timed alone, a small network would find itself in the caches at every call; rows of a table
    and the networks that check it are timed among others.
    """
    import numpy as np

    from ..ops.pool import POOL

    light = [op for op in POOL if op.family != "MB" or op.expansion <= 3]
    random = np.random.default_rng(0)
    chosen = []
    for _ in range(count):
        names = []
        for shape in backbone.layers:
            fit = [op.name for op in light if op.applies_to(shape)]
            names.append(fit[int(random.integers(len(fit)))])
        chosen.append(tuple(names))
    return chosen


@contextmanager
def open_session(
    request: TargetRequest,
    agents: Sequence[str],
    credentials: Mapping[str, Any],
    timed: bool = True,
) -> Iterator[TargetSession]:
    """A target on the agent named, or on a private one on this machine.

    Args:
        request: the target.
        agents: addresses; none: a private one.
        credentials: arguments of `AgentClient`.
        timed: whether anything is to be timed.

    Raises:
        BadRequest: the named agent does not have it.
        NotMeasurable: no agent was named and this machine does not have it.
    """
    from ..profiler.session import TargetSession, connect

    with connect(agents, request, **credentials) as clients:
        try:
            session = TargetSession.open(clients[0], request, timed)
        except BadRequest as error:
            if agents:
                raise
            raise NotMeasurable(f"{error}; name the board's agent with --agent") from error
        yield session


def artifact_accuracy(
    session: TargetSession, artifact: Artifact, data: ImageData, count: Count | None = None
) -> ArtifactAccuracy:
    """Accuracy of an artefact on the test split, one image a call in the target's runtime.

    Raises:
        NotMeasurable: the target computes nothing.
        HurricaneError: the target could not run the artefact.
    """
    import numpy as np

    from ..ops.artifacts import edges
    from ..profiler.origin import keeping

    _check_computes(session.target)
    format = session.recipe.format
    found = edges(artifact.content, format)
    (source,), (target,) = found.inputs, found.outputs
    digest = session.client.upload(artifact.content, format)
    # What a batch leaves loaded, the calls after it need not load each for itself.
    kept = session.time([digest], keeping(session.target.origin))[digest]
    if kept.error is not None:
        raise HurricaneError(f"the network could not be run on {session.target}: {kept.error}")
    labels = data.test.labels.tolist()
    right = 0
    for index, label in enumerate(labels):
        image = data.normalise(data.test.images[index : index + 1]).numpy()
        outputs = session.run(digest, {source.name: source.encode(image)})
        right += int(np.argmax(target.decode(outputs[target.name]))) == label
        if count is not None:
            count(index + 1, len(labels))
    return ArtifactAccuracy(
        right=right,
        images=len(labels),
        data=data.spec,
        target=session.target.name,
        origin=session.target.origin,
        runtime_version=session.target.runtime_version,
        format=format,
        precision=session.target.precision,
        converter=artifact.info.converter,
        calibration=artifact.info.calibration,
        artifact_sha256=digest,
        flags=tuple(kept.flags),
    )


def _check_computes(target: Target) -> None:
    """Raises NotMeasurable for targets that tell times and compute no outputs."""
    if target.origin not in COMPUTING:
        raise NotMeasurable(f"times of {target.name} are {target.origin}: nothing is computed")
