"""End-to-end networks, timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..agents.errors import AgentError
from ..agents.results import ArtifactResult
from ..lookup_tables.cells import INTERFERENCE
from ..lookup_tables.spread import QUIET
from ..ops.artifacts import Artifact
from ..ops.artifacts.cache import Make
from ..ops.backbone import Backbone
from ..ops.errors import BadRequest
from ..ops.export import export_architecture
from ..ops.pool import GATES
from ..ops.reference import ReferenceNetwork
from .controls import Controls
from .outcomes import cold_calls
from .protocol import TimingProtocol
from .session import TargetSession
from .timing.interference import slowest_accepted
from .timing.location import quiet_ms


@dataclass(frozen=True)
class WholeNetwork:
    """A network to be timed.

    Attributes:
        group: ``random``, ``uniform`` or ``given``.
        label: its name within the group.
        operators: one name for each layer.
        gate: of squeeze-and-excitation.
        reference: a published network, which has no operators; None: one of the backbone.
    """

    group: str
    label: str
    operators: tuple[str, ...]
    gate: str = GATES[0]
    reference: ReferenceNetwork | None = None

    def params(self, backbone: Backbone) -> int:
        """Its weights; the backbone is that of networks with operators."""
        if self.reference is not None:
            return self.reference.params
        return backbone.params(self.operators)

    def maker(self, backbone: Backbone) -> Make:
        """What gives its graph, with seeded weights."""
        if self.reference is not None:
            return self.reference.export
        return partial(export_architecture, backbone, self.operators, gate=self.gate)


@dataclass(frozen=True)
class NetworkTime:
    """An end-to-end network's measured latency.

    Attributes:
        network: which.
        measured_ms: its quiet time, drift-corrected where there are controls.
        first_ms: the same of the first half of the rounds.
        second_ms: of the second half.
        as_timed_ms: its quiet time, however fast the device was.
        calls_ms: all its calls, as timed.
        flags: of the agent; ``interference`` where the device was much slower than for others.
        error: why there is no time; empty where there is one.
    """

    network: WholeNetwork
    measured_ms: float
    first_ms: float = float("nan")
    second_ms: float = float("nan")
    as_timed_ms: float = float("nan")
    calls_ms: np.ndarray = field(default_factory=lambda: np.empty(0), compare=False)
    flags: tuple[str, ...] = ()
    error: str = ""

    def of(self, statistic: str) -> tuple[float, float, float]:
        """A statistic of its calls, one of `spread.STATISTICS`, and that of each half, in ms.

        The quiet time is drift-corrected; the others are as timed.
        """
        if statistic == QUIET:
            return self.measured_ms, self.first_ms, self.second_ms
        percent, half = {"median": 50, "p90": 90}[statistic], max(1, len(self.calls_ms) // 2)
        parts = (self.calls_ms, self.calls_ms[:half], self.calls_ms[half:])
        whole, first, second = (
            float(np.percentile(calls, percent)) if calls.size else float("nan") for calls in parts
        )
        return whole, first, second


def time_networks(
    session: TargetSession,
    backbone: Backbone,
    networks: Sequence[WholeNetwork],
    protocol: TimingProtocol,
    artifacts: Mapping[str, Artifact] | None = None,
    on_progress: Callable[[str, float], None] | None = None,
    controls: Controls | None = None,
) -> list[NetworkTime]:
    """Times networks, interleaved, with the protocol that rows are timed with.

    Args:
        session: target and agent.
        backbone: of all of them that are no published ones.
        networks: with labels that differ.
        protocol: rounds and limits.
        artifacts: by label; other networks get seeded weights.
        on_progress: called with (what, share).
        controls: show how fast the device is meanwhile; that is divided out.

    Returns:
        One time for each network, in order.
    """
    note = on_progress or (lambda what, share: None)
    if len({(n.group, n.label) for n in networks}) != len(networks):
        raise BadRequest("two networks to be timed have the same name")
    digests = _send(session, backbone, networks, artifacts or {}, note)
    sizes = [4 * network.params(backbone) for network in networks]
    # Where not all of them can be loaded at once, every batch is timed several times over, so
    # that a slow time does not fall on one batch alone.
    room, most = session.batch_bytes, len(networks)
    if controls is not None:
        room, most = room - controls.bytes, controls.networks
    batches = _batches(sizes, room, most)
    sweeps = _split(protocol.network_rounds, protocol.network_sweeps if len(batches) > 1 else 1)
    turns = [(rounds, batch) for rounds in sweeps for batch in batches]
    count = len(turns)
    along = [] if controls is None else list(dict.fromkeys(controls.series.values()))

    def time_batch(number: int) -> _Batch:
        rounds, batch = turns[number % count]

        def report(step: str, share: float) -> None:
            within = 0.2 * share if step == "load" else 0.2 + 0.8 * share
            note(step, min(1.0, 0.3 + 0.7 * (number + within) / count))

        timed = session.time(
            [*(digests[i] for i in batch), *along],
            protocol.networks(rounds, number, bool(along)),
            report,
        )
        slowdown = 1.0 if controls is None else controls.slowdown(timed)
        return _Batch({i: timed[digests[i]] for i in batch}, slowdown)

    done = [time_batch(number) for number in range(count)]
    # Batches that were much slower than most are repeated, as with rows.
    for number in (slow := _slow(done, protocol.max_slowdown)):
        try:
            done[number] = min(done[number], time_batch(count + number), key=_Batch.order)
        except AgentError:
            break  # there are times of all networks
    slow = [number for number in _slow(done, protocol.max_slowdown) if number in slow]
    return [_network_time(network, index, done, slow) for index, network in enumerate(networks)]


def _send(
    session: TargetSession,
    backbone: Backbone,
    networks: Sequence[WholeNetwork],
    artifacts: Mapping[str, Artifact],
    note: Callable[[str, float], None],
) -> list[str]:
    """Makes sure that the agent holds the networks, and gives their artefacts' digests."""
    makes: dict[WholeNetwork, Make] = {
        network: network.maker(backbone) for network in networks if network.label not in artifacts
    }
    session.prepare(makes.values(), lambda done, n: note("convert", 0.2 * done / n))
    digests: list[str] = []
    for index, network in enumerate(networks):
        if network in makes:
            key = network.reference or (backbone, network.operators, network.gate)
            digests.append(session.send(key, makes[network]))
        else:
            digests.append(session.hold(artifacts[network.label]))
        note("send", 0.2 + 0.1 * (index + 1) / len(networks))
    return digests


@dataclass(frozen=True)
class _Batch:
    """A batch timed once: results by network, and how slow the device was meanwhile."""

    results: Mapping[int, ArtifactResult]
    slowdown: float

    def order(self) -> tuple[bool, float]:
        """The less, the better."""
        failed = any(result.error is not None for result in self.results.values())
        return failed, self.slowdown if np.isfinite(self.slowdown) else np.inf


def _network_time(
    network: WholeNetwork, index: int, done: Sequence[_Batch], slow: Sequence[int]
) -> NetworkTime:
    """The latency of one network from its batches."""
    slowdowns = np.array([batch.slowdown for batch in done])
    if not np.isfinite(slowdowns).all():
        slowdowns = np.ones(len(done))
    own = [number for number, batch in enumerate(done) if index in batch.results]
    parts = [done[number].results[index] for number in own]
    error = next((part.error for part in parts if part.error is not None), None)
    if error is not None:
        return NetworkTime(network, float("nan"), error=str(error))
    timed_ms = [cold_calls(part) for part in parts]
    calls = np.concatenate([ms / slowdowns[n] for ms, n in zip(timed_ms, own, strict=True)])
    as_timed, half = np.concatenate(timed_ms), max(1, len(calls) // 2)
    flags = dict.fromkeys(flag for part in parts for flag in part.flags)
    flags |= {INTERFERENCE: None} if any(n in slow for n in own) else {}
    return NetworkTime(
        network,
        float(quiet_ms(calls)),
        float(quiet_ms(calls[:half])),
        float(quiet_ms(calls[half:])) if len(calls) > 1 else float("nan"),
        float(quiet_ms(as_timed)),
        as_timed,
        tuple(flags),
    )


def _slow(batches: Sequence[_Batch], max_slowdown: float) -> list[int]:
    """Batches in which the device was much slower than in most, or nobody knows."""
    slowdowns = np.array([batch.slowdown for batch in batches])
    known = slowdowns[np.isfinite(slowdowns)]
    if not known.size:
        return []
    limit = slowest_accepted(known, np.ones(known.size), max_slowdown)
    return np.flatnonzero(~(slowdowns <= limit)).tolist()


def _split(rounds: int, sweeps: int) -> list[int]:
    """Rounds shared out to sweeps, as evenly as can be."""
    share, rest = divmod(rounds, sweeps)
    return [n for i in range(sweeps) if (n := share + (i < rest))]


def _batches(sizes: Sequence[int], max_bytes: int, most: int) -> list[list[int]]:
    """Indices dealt out so that no batch exceeds the agent's memory, or holds more than `most`."""
    for count in range(max(1, -(-len(sizes) // most)), len(sizes) + 1):
        batches: list[list[int]] = [[] for _ in range(count)]
        held = [0] * count
        for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            open_to = [number for number in range(count) if len(batches[number]) < most]
            number = min(open_to, key=held.__getitem__)
            batches[number].append(index)
            held[number] += sizes[index]
        if max(held) <= max_bytes:
            return batches
    return [[index] for index in range(len(sizes))]
