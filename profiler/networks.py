"""Whole networks: drawing them for a check, timing them, and comparing with a table's sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from ..agents.errors import AgentError
from ..agents.results import ArtifactResult, Protocol
from ..lookup_tables.model import LatencyModel
from ..lookup_tables.verdict import ErrorFigures, GroupCheck
from ..ops.artifacts import Artifact
from ..ops.artifacts.cache import Make
from ..ops.backbone import Backbone
from ..ops.errors import BadRequest
from ..ops.export import export_architecture
from ..ops.pool import GATES
from .estimate import location_ms
from .measuring import Bench, MeasuringSettings, cold_calls
from .rotation import DISTURBED, slowest_quiet
from .witnesses import Witnesses

MIN_CALIBRATION = 3
"""Networks that a scale and an offset can be fitted to, with one to spare."""

FITTED = 10
"""Networks that a calibration is fitted to where as many are left to check it on."""

SWEEPS = 2
"""Times that each batch of networks is timed where there are several."""

DRAWS = 20_000
"""Random architectures among which the stratified ones are picked."""


@dataclass(frozen=True)
class WholeNetwork:
    """A network to be timed.

    Attributes:
        group: ``random``, ``uniform`` or ``given``.
        label: tells it apart in its group.
        operators: one name for each layer.
        gate: of squeeze-and-excitation.
    """

    group: str
    label: str
    operators: tuple[str, ...]
    gate: str = GATES[0]


@dataclass(frozen=True)
class NetworkTime:
    """A whole network's measured latency.

    Attributes:
        network: which.
        measured_ms: by `location_ms` of its calls, on a device as fast as the table's
            where there are witnesses.
        first_ms: over the first half of the rounds.
        second_ms: over the second half: the retest.
        as_timed_ms: what it took, however fast the device was.
        flags: of the agent; ``disturbed`` where the device was much slower than for others.
        error: why there is no time; empty where there is one.
    """

    network: WholeNetwork
    measured_ms: float
    first_ms: float = float("nan")
    second_ms: float = float("nan")
    as_timed_ms: float = float("nan")
    flags: tuple[str, ...] = ()
    error: str = ""


def random_networks(model: LatencyModel, count: int, seed: int) -> list[WholeNetwork]:
    """Random architectures, one in each of `count` equal steps of the latency range drawn.

    Architectures drawn uniformly crowd around the mean; here each draw leans towards fast or
    slow operators by a random amount, and one is picked from each stratum.
    """
    random = np.random.default_rng(seed)
    latency = model.latency_ms
    layers = latency.shape[0]
    scale = np.nanmean(latency, axis=1, keepdims=True)
    lean = random.uniform(-4.0, 4.0, (DRAWS, 1))
    codes = np.empty((DRAWS, layers), dtype=np.int64)
    for layer in range(layers):
        present = np.flatnonzero(np.isfinite(latency[layer]))
        logits = -lean * (latency[layer, present] / scale[layer])[None, :]
        gumbel = random.gumbel(size=logits.shape)
        codes[:, layer] = present[np.argmax(logits + gumbel, axis=1)]
    predicted = model.predict(codes)
    edges = np.linspace(predicted.min(), predicted.max(), count + 1)
    stratum = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, count - 1)
    chosen: list[int] = []
    for number in range(count):
        members = np.flatnonzero(stratum == number)
        if members.size:
            chosen.append(int(random.choice(members)))
    taken = set(chosen)
    rest = [i for i in random.permutation(DRAWS) if i not in taken]
    chosen += [int(i) for i in rest[: count - len(chosen)]]
    return [
        WholeNetwork("random", f"random-{n}", tuple(model.decode(codes[i])))
        for n, i in enumerate(chosen)
    ]


def uniform_networks(model: LatencyModel) -> list[WholeNetwork]:
    """The networks with one operator in all layers, of those with a latency in every layer."""
    layers = model.latency_ms.shape[0]
    everywhere = [bool(column.all()) for column in np.isfinite(model.latency_ms).T]
    return [
        WholeNetwork("uniform", name, (name,) * layers)
        for name, there in zip(model.operators, everywhere, strict=True)
        if there
    ]


def time_networks(
    bench: Bench,
    backbone: Backbone,
    networks: Sequence[WholeNetwork],
    settings: MeasuringSettings,
    artifacts: Mapping[str, Artifact] | None = None,
    on_progress: Callable[[str, float], None] | None = None,
    witnesses: Witnesses | None = None,
) -> list[NetworkTime]:
    """Times whole networks, interleaved, with the protocol that rows are timed with.

    Args:
        bench: target and agent.
        backbone: of all of them.
        networks: with labels that differ.
        settings: rounds and limits.
        artifacts: by label; other networks get seeded weights.
        on_progress: called with (what, share).
        witnesses: tell how fast the device is meanwhile; that is divided out.

    Returns:
        One time for each network, in order.
    """
    note = on_progress or (lambda what, share: None)
    if len({(n.group, n.label) for n in networks}) != len(networks):
        raise BadRequest("two networks to be timed have the same name")
    given = artifacts or {}
    makes: dict[WholeNetwork, Make] = {
        network: partial(export_architecture, backbone, network.operators, gate=network.gate)
        for network in networks
        if network.label not in given
    }
    bench.prepare(makes.values(), lambda done, n: note("convert", 0.2 * done / n))
    digests: list[str] = []
    for index, network in enumerate(networks):
        if network in makes:
            key = (backbone, network.operators, network.gate)
            digests.append(bench.send(key, makes[network]))
        else:
            digests.append(bench.hold(given[network.label]))
        note("send", 0.2 + 0.1 * (index + 1) / len(networks))
    sizes = [4 * backbone.params(network.operators) for network in networks]
    # Where not all of them can be loaded at once, every batch is timed several times over, so
    # that a slow time does not fall on one batch alone.
    room, most = bench.max_bytes // 2, len(networks)
    if witnesses is not None:
        room, most = room - witnesses.bytes, witnesses.networks
    batches = _batches(sizes, room, most)
    sweeps = _split(settings.rounds, SWEEPS if len(batches) > 1 else 1)
    turns = [(rounds, batch) for rounds in sweeps for batch in batches]
    count = len(turns)
    along = [] if witnesses is None else witnesses.digests(bench)

    def time_turn(number: int) -> _Turn:
        rounds, batch = turns[number % count]

        def report(step: str, share: float) -> None:
            within = 0.2 * share if step == "load" else 0.2 + 0.8 * share
            note(step, min(1.0, 0.3 + 0.7 * (number + within) / count))

        timed = bench.time(
            [*(digests[i] for i in batch), *along],
            Protocol(
                rounds=rounds,
                calls_per_visit=1,
                warmup_calls=settings.warmup_calls,
                seed=settings.seed + 101 + number,
                artifact_timeout_s=settings.timeout_s,
                keep_loaded=bool(along),
            ),
            report,
        )
        level = 1.0 if witnesses is None else witnesses.level(bench, timed)
        return _Turn({i: timed[digests[i]] for i in batch}, level)

    done = [time_turn(number) for number in range(count)]
    # Turns that were much slower than most are made up for, as with rows.
    for number in (slow := _slow(done)):
        try:
            done[number] = min(done[number], time_turn(count + number), key=_Turn.order)
        except AgentError:
            break  # there are times of all networks
    slow = [number for number in _slow(done) if number in slow]
    levels = np.array([turn.level for turn in done])
    if not np.isfinite(levels).all():
        levels = np.ones(count)
    times = []
    for index, network in enumerate(networks):
        mine = [n for n, turn in enumerate(done) if index in turn.results]
        parts = [done[n].results[index] for n in mine]
        error = next((part.error for part in parts if part.error is not None), None)
        if error is not None:
            times.append(NetworkTime(network, float("nan"), error=str(error)))
            continue
        timed_ms = [cold_calls(part) for part in parts]
        calls = np.concatenate([ms / levels[n] for ms, n in zip(timed_ms, mine, strict=True)])
        half = max(1, len(calls) // 2)
        flags = dict.fromkeys(flag for part in parts for flag in part.flags)
        flags |= {DISTURBED: None} if any(n in slow for n in mine) else {}
        times.append(
            NetworkTime(
                network,
                float(location_ms(calls)),
                float(location_ms(calls[:half])),
                float(location_ms(calls[half:])) if len(calls) > 1 else float("nan"),
                float(location_ms(np.concatenate(timed_ms))),
                tuple(flags),
            )
        )
    return times


@dataclass(frozen=True)
class _Turn:
    """A batch timed once: what networks took, by index, and how slow the device was meanwhile."""

    results: Mapping[int, ArtifactResult]
    level: float

    def order(self) -> tuple[bool, float]:
        """The less, the better."""
        failed = any(result.error is not None for result in self.results.values())
        return failed, self.level if np.isfinite(self.level) else np.inf


def _slow(turns: Sequence[_Turn]) -> list[int]:
    """Turns in which the device was much slower than in most, or nobody knows."""
    levels = np.array([turn.level for turn in turns])
    known = levels[np.isfinite(levels)]
    if not known.size:
        return []
    limit = slowest_quiet(known, [1.0] * known.size)
    return np.flatnonzero(~(levels <= limit)).tolist()


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
            open_to = [seat for seat in range(count) if len(batches[seat]) < most]
            seat = min(open_to, key=held.__getitem__)
            batches[seat].append(index)
            held[seat] += sizes[index]
        if max(held) <= max_bytes:
            return batches
    return [[index] for index in range(len(sizes))]


def compare(predicted_ms: ArrayLike, measured_ms: ArrayLike) -> ErrorFigures:
    """Error figures of predictions against measurements, both [N] ms."""
    a, b = np.asarray(predicted_ms, float), np.asarray(measured_ms, float)
    error = a / b - 1
    return ErrorFigures(
        count=len(a),
        bias=float(error.mean()),
        rmspe=float(np.sqrt((error**2).mean())),
        within_5=float((np.abs(error) <= 0.05).mean()),
        within_10=float((np.abs(error) <= 0.10).mean()),
        kendall_tau=kendall_tau(a, b),
    )


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b of two series [N]; NaN where one of them does not vary."""
    upper = np.triu_indices(len(a), 1)
    da = np.sign(np.subtract.outer(a, a))[upper]
    db = np.sign(np.subtract.outer(b, b))[upper]
    varied = np.sqrt(float((da != 0).sum()) * float((db != 0).sum()))
    return float((da * db).sum() / varied) if varied else float("nan")


def fit_line(predicted_ms: ArrayLike, measured_ms: ArrayLike) -> tuple[float, float]:
    """Scale and offset (ms) that bring predictions nearest to measurements.

    Relative errors are minimised, so that slow networks do not outweigh fast ones.

    Args:
        predicted_ms, measured_ms: [N], of at least three networks.
    """
    a, b = np.asarray(predicted_ms, float), np.asarray(measured_ms, float)
    if len(a) < MIN_CALIBRATION:
        raise BadRequest(
            f"a calibration needs at least {MIN_CALIBRATION} networks, there are {len(a)}"
        )
    (scale, offset), *_ = np.linalg.lstsq(
        np.column_stack([a / b, 1 / b]), np.ones(len(a)), rcond=None
    )
    return float(scale), float(offset)


@dataclass(frozen=True)
class Fit:
    """A calibration with its error on networks that it was not fitted to.

    Attributes:
        scale: positive.
        offset_ms: may be negative.
        fitted: networks that it was fitted to.
        held_out: other networks that it was checked on; 0: each was left out in turn.
        figures: error of calibrated predictions on those; None: too few networks to tell.
        plain: error of predictions as they are on the same networks.
    """

    scale: float
    offset_ms: float
    fitted: int
    held_out: int
    figures: ErrorFigures | None
    plain: ErrorFigures | None

    @property
    def helps(self) -> bool:
        """Whether it lowers the RMSPE of networks that it was not fitted to."""
        if self.figures is None or self.plain is None:
            return False
        return self.figures.rmspe < self.plain.rmspe

    def apply(self, predicted_ms: ArrayLike) -> np.ndarray:
        """Calibrated predictions [N], in ms."""
        return self.scale * np.asarray(predicted_ms, float) + self.offset_ms


def fit_calibration(predicted_ms: ArrayLike, measured_ms: ArrayLike, seed: int = 0) -> Fit | None:
    """Fits a calibration and checks it on networks that played no part in it.

    From twice `FITTED` networks on, it is fitted to `FITTED` of them, one drawn from each of as
    many strata of latency, and checked on the others. Of fewer it is fitted to all, and checked
    by leaving out each in turn.

    Args:
        predicted_ms, measured_ms: [N], of at least three networks.
        seed: of the draw.

    Returns:
        None where measured networks do not get slower with their predictions.
    """
    a, b = np.asarray(predicted_ms, float), np.asarray(measured_ms, float)
    fitted = np.ones(len(a), dtype=bool)
    if len(a) >= 2 * FITTED:
        fitted = stratified(a, FITTED, np.random.default_rng(seed))
    scale, offset = fit_line(a[fitted], b[fitted])
    if not scale > 0:
        return None
    figures = plain = None
    if not fitted.all():
        figures = compare(scale * a[~fitted] + offset, b[~fitted])
        plain = compare(a[~fitted], b[~fitted])
    elif len(a) > MIN_CALIBRATION:
        figures, plain = leave_one_out(a, b), compare(a, b)
    return Fit(scale, offset, int(fitted.sum()), int((~fitted).sum()), figures, plain)


def stratified(predicted_ms: ArrayLike, count: int, random: np.random.Generator) -> np.ndarray:
    """Picks networks spread over latency: one from each of `count` equal parts in its order.

    Args:
        predicted_ms: [N], at least `count`.
        count: networks to pick.
        random: what is drawn from.

    Returns:
        Whether each is picked [N].
    """
    order = np.argsort(np.asarray(predicted_ms, float))
    picked = np.zeros(len(order), dtype=bool)
    picked[[random.choice(part) for part in np.array_split(order, count)]] = True
    return picked


def leave_one_out(predicted_ms: ArrayLike, measured_ms: ArrayLike) -> ErrorFigures:
    """Error of calibrated predictions where each network is left out of the fit in turn."""
    a, b = np.asarray(predicted_ms, float), np.asarray(measured_ms, float)
    corrected = np.empty_like(a)
    for index in range(len(a)):
        others = np.arange(len(a)) != index
        scale, offset = fit_line(a[others], b[others])
        corrected[index] = scale * a[index] + offset
    return compare(corrected, b)


@dataclass(frozen=True)
class NetworkCheck:
    """One network: predicted, measured, and measured again; see `NetworkTime`."""

    group: str
    label: str
    operators: tuple[str, ...]
    predicted_ms: float
    measured_ms: float
    first_ms: float
    second_ms: float
    as_timed_ms: float
    flags: tuple[str, ...] = ()
    error: str = ""


def check_networks(
    model: LatencyModel, times: Sequence[NetworkTime]
) -> tuple[list[GroupCheck], list[NetworkCheck]]:
    """Puts the sums of a table beside measured networks, by group."""
    checks = [
        NetworkCheck(
            t.network.group,
            t.network.label,
            t.network.operators,
            model.latency_of(t.network.operators),
            t.measured_ms,
            t.first_ms,
            t.second_ms,
            t.as_timed_ms,
            t.flags,
            t.error,
        )
        for t in times
    ]
    groups = []
    for group in dict.fromkeys(c.group for c in checks):
        members = [c for c in checks if c.group == group]
        good = [c for c in members if not c.error]
        if good:
            groups.append(
                GroupCheck(
                    group,
                    compare([c.predicted_ms for c in good], [c.measured_ms for c in good]),
                    compare([c.first_ms for c in good], [c.second_ms for c in good]),
                    len(members) - len(good),
                )
            )
    return groups, checks
