"""Comparing a search's winner with baselines: found, timed in the same rounds, trained likewise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..lookup_tables.architecture import Accuracy, Architecture
from ..ops.backbone import Backbone
from ..ops.errors import HurricaneError
from .baseline_searches import SEARCHES, Contest, Ranking
from .baselines import Baseline, Comparison
from .confirm import Candidate, confirm
from .evolution import Codes, Evaluated, ScoredOnce, Strategy, run_strategy
from .feasible import FeasibleSet
from .measuring import Measurement, NotMeasurable
from .rundir import RunDirectory, leads, wait_for_leader
from .scaling import WIDTHS, reference, scale
from .space import SearchSpace
from .two_stage import Candidates, StageResult

if TYPE_CHECKING:
    from ..lookup_tables.model import LatencyModel
    from ..ops.reference import ReferenceNetwork
    from ..profiler.networks import WholeNetwork
    from .data import ImageData
    from .training import Preset
    from .training_log import TrainingStatus

WINNER = "winner"


class MeasureTogether(Protocol):
    """Times networks side by side on the target (`measuring.TargetMeasurer.together`)."""

    def __call__(
        self, backbone: Backbone, networks: Sequence[WholeNetwork], gate: str
    ) -> Sequence[Measurement | str]: ...


@dataclass(frozen=True)
class BaselineSettings:
    """What a search is to be compared with.

    Attributes:
        names: of `BASELINES`.
        train: whether baselines are trained from scratch as the winner is.
        time: times networks; None: latencies are the table's, and published networks, of which it
            knows nothing, are left out.
    """

    names: tuple[str, ...]
    train: bool = False
    time: MeasureTogether | None = None


class Workshop(Protocol):
    """What a run has of data, supernets and trainings."""

    backbone: Backbone

    @property
    def data(self) -> ImageData: ...
    @property
    def preset(self) -> Preset: ...
    def tell(self, label: str, done: int, total: int) -> None: ...
    def trained(self, label: str) -> Callable[[TrainingStatus], None]: ...
    def reopen(self, stage: int, candidates: Candidates) -> None: ...
    def evaluate(self, codes: Codes) -> list[float]: ...
    def figures(self, result: StageResult) -> list[Accuracy]: ...


@dataclass(frozen=True)
class Compared:
    """A run whose winner is compared.

    Attributes:
        run: where everything is kept.
        workshop: of the run.
        space: what was searched.
        stage: that found the winner.
        winner: with its figures.
        population: of evolutions.
        seed: of the search.
        model: latencies of all operators; None where the table is not at hand.
    """

    run: RunDirectory
    workshop: Workshop
    space: SearchSpace
    stage: StageResult
    winner: Architecture
    population: int
    seed: int
    model: LatencyModel | None

    @property
    def backbone(self) -> Backbone:
        return self.workshop.backbone

    @property
    def budget_ms(self) -> float:
        return self.space.budget_ms

    @cached_property
    def feasible(self) -> FeasibleSet:
        """The stage's architectures within the budget."""
        known = [
            dict(zip(names, ms, strict=True))
            for names, ms in zip(self.space.candidates, self.space.latency_ms, strict=True)
        ]
        layers = [[ms[n] for n in c] for ms, c in zip(known, self.stage.candidates, strict=True)]
        return FeasibleSet(layers, self.space.fixed_ms, self.space.budget_ms)

    @cached_property
    def uniform(self) -> dict[str, float]:
        """Operators that can stand everywhere, with the predicted latency of their network."""
        from ..profiler.draws import uniform_networks

        if self.model is None:
            return {}
        networks = uniform_networks(self.model)
        return {n.label: self.model.latency_of(n.operators) for n in networks}

    def predicted(self, operators: Sequence[str]) -> float:
        """A network's latency by the table."""
        if self.codes(operators) is None:
            return self.uniform[operators[0]]
        return float(self.feasible.latency_ms(np.array([self.codes(operators)]))[0])

    def codes(self, operators: Sequence[str]) -> tuple[int, ...] | None:
        """A network by the stage's candidates; None where it has another operator."""
        pairs = list(zip(self.stage.candidates, operators, strict=True))
        if not all(name in names for names, name in pairs):
            return None
        return tuple(names.index(name) for names, name in pairs)


def compare(compared: Compared, settings: BaselineSettings) -> Comparison:
    """Finds, times and trains what of the baselines the run's directory does not hold yet.

    Under ``torchrun`` every process calls it; networks are timed by rank 0.

    Returns:
        All baselines that the directory holds by then.
    """
    path = compared.run.baselines_path
    if path.exists():
        known = Comparison.load(path)
    else:
        origin = compared.space.table.origin if compared.space.table else "measured"
        known = Comparison(compared.budget_ms, origin)
    wait_for_leader()  # all have read it
    wanted = [name for name in settings.names if not _is_done(known.get(name), settings)]
    searcher = _Searcher(compared)
    rankings = {name: searcher.rank(name) for name in wanted if name in SEARCHES}
    published = [name for name in wanted if name not in SEARCHES]
    untimed = settings.time is not None and any(
        b.found and b.measured is None for b in known.baselines
    )
    if leads() and (wanted or untimed):
        timer = _Timer(compared, settings.time)
        found = [_picked(compared, timer, name, ranking) for name, ranking in rankings.items()]
        found += _scaled(compared, timer, published)
        known = _side_by_side(compared, timer, known.with_baselines(found))
        known.save(path)
    wait_for_leader()
    known = Comparison.load(path) if path.exists() else known
    for name in settings.names if settings.train else ():
        baseline = known.get(name)
        if baseline is not None and baseline.found and not baseline.trained:
            known = known.with_baselines([_trained(compared, baseline)])
            if leads():
                known.save(path)
    return known


def _is_done(baseline: Baseline | None, settings: BaselineSettings) -> bool:
    """Whether a baseline is settled: timed, trained, not to be timed, or too slow at any width."""
    if baseline is None:
        return False
    if not baseline.found:  # one that could not run is tried again
        return bool(baseline.tried) and baseline.tried[-1][1] is not None
    return baseline.measured is not None or baseline.trained or settings.time is None


class _Searcher:
    """Runs search baselines with the supernet of the stage that found the winner."""

    def __init__(self, compared: Compared) -> None:
        self._compared = compared
        known = {e.codes: e.fitness for e in compared.stage.evaluated}
        self._score = ScoredOnce(self._evaluate, known)
        self._opened = False

    def rank(self, name: str) -> Ranking | str:
        """The networks of a baseline, or why there are none."""
        c = self._compared
        contest = Contest(
            c.backbone,
            c.budget_ms,
            c.stage,
            c.feasible,
            tuple(c.uniform.items()),
            c.population,
            _seed(c.seed, name),
            self.search,
            self._score,
        )
        try:
            return SEARCHES[name](contest)
        except HurricaneError as error:
            return str(error)

    def _evaluate(self, codes: Codes) -> list[float]:
        """Accuracies of codes [N × layers]; the supernet is opened for the first."""
        workshop, stage = self._compared.workshop, self._compared.stage
        if not self._opened:
            workshop.reopen(stage.stage, stage.candidates)
            self._opened = True
        return workshop.evaluate(codes)

    def search(self, name: str, strategy: Strategy, within: FeasibleSet) -> list[Evaluated]:
        """Evaluates what a strategy proposes, as many networks as the stage did.

        On the disk and in what is returned latencies are the table's; while it runs they are what
        the set is of.
        """
        c = self._compared
        wanted = len(c.stage.evaluated)
        recorded = c.run.read_evaluated(name, c.stage.candidates)
        done = len(recorded)

        def record(batch: Sequence[Evaluated]) -> None:
            nonlocal done
            c.run.append_evaluated(name, c.stage.candidates, _by(c.feasible, batch))
            done += len(batch)
            c.workshop.tell(f"baseline {name}: architectures evaluated", done, wanted)

        wait_for_leader()  # all have read what is recorded
        seed = _seed(c.seed, name)
        known = _by(within, recorded)
        found = run_strategy(strategy, within, self._score, wanted, seed, known, record)
        return _by(c.feasible, found)


def _seed(seed: int, name: str) -> int:
    """A seed of its own for each baseline."""
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0])


def _by(sums: FeasibleSet, evaluated: Sequence[Evaluated]) -> list[Evaluated]:
    """The same architectures with a set's sums as their latencies."""
    if not evaluated:
        return []
    values = sums.latency_ms(np.array([e.codes for e in evaluated], dtype=np.int64)).tolist()
    return [replace(e, latency_ms=ms) for e, ms in zip(evaluated, values, strict=True)]


class _Timer:
    """Times networks side by side, and remembers why it cannot.

    Attributes:
        unable: why nothing can be timed; empty as long as it can.
    """

    def __init__(self, compared: Compared, measure: MeasureTogether | None) -> None:
        self._compared = compared
        self._measure = measure
        self.unable = "" if measure is not None else "nothing was to be measured"

    def __call__(self, networks: Sequence[WholeNetwork]) -> list[Measurement | str]:
        """A latency for each, or why there is none; one that fails does not take others along."""
        if self.unable or self._measure is None:
            return [self.unable] * len(networks)
        try:
            return list(self._measure(self._compared.backbone, networks, self._compared.space.gate))
        except NotMeasurable as error:
            self.unable = str(error)
        except HurricaneError as error:
            if len(networks) == 1:
                return [str(error)]
            return [answer for network in networks for answer in self([network])]
        return [self.unable] * len(networks)


def _network(
    compared: Compared, label: str, operators: Sequence[str] = (), multiplier: float | None = None
) -> WholeNetwork:
    """A network to be timed; one with a multiplier is the published one of that name."""
    from ..profiler.networks import WholeNetwork

    one = None if multiplier is None else reference(label, multiplier, compared.backbone)
    return WholeNetwork("baseline", label, tuple(operators), compared.space.gate, one)


def _picked(compared: Compared, timer: _Timer, name: str, ranking: Ranking | str) -> Baseline:
    """A search baseline with its best network that meets the budget, timed as the winner was.

    By the table where nothing can be timed.
    """
    if isinstance(ranking, str):
        return Baseline(name, problem=ranking)
    if not ranking.candidates:
        return Baseline(name, problem="no operator is known to have a latency at every layer")
    label = f"baseline {name}: timed"

    def latency(candidate: Candidate) -> Measurement:
        (answer,) = timer([_network(compared, name, candidate.operators)])
        if timer.unable:
            predicted = compared.predicted(candidate.operators)
            return Measurement(predicted, predicted, predicted)
        if isinstance(answer, str):
            raise HurricaneError(answer)
        return answer

    compared.workshop.tell(label, 0, 1)
    try:
        attempts = confirm(ranking.candidates, compared.budget_ms, latency)
    except HurricaneError as error:
        return Baseline(name, ranking.detail, problem=str(error))
    finally:
        compared.workshop.tell(label, 1, 1)
    operators = attempts.candidate.operators
    own = [e for e in ranking.evaluated if e.codes == compared.codes(operators)]
    figures: list[Accuracy] = []
    for one in own[:1]:
        among = ranking.evaluated if ranking.by_accuracy else (one,)
        stage = replace(compared.stage, operators=operators, fitness=one.fitness, evaluated=among)
        figures = compared.workshop.figures(stage)
    same = f": {operators[0]}" if len(set(operators)) == 1 else ""
    return Baseline(
        name,
        ranking.detail + same,
        operators,
        macs=compared.backbone.macs(operators),
        params=compared.backbone.params(operators),
        predicted_ms=compared.predicted(operators),
        accuracy=tuple(figures),
    )


def _scaled(compared: Compared, timer: _Timer, names: Sequence[str]) -> list[Baseline]:
    """Published networks at the highest width that fits."""
    if not names:
        return []
    tell = compared.workshop.tell
    label, steps = "baselines: published networks timed", len(WIDTHS).bit_length()

    def times(batch: Sequence[ReferenceNetwork]) -> list[Measurement | str]:
        return timer([_network(compared, n.name, multiplier=n.multiplier) for n in batch])

    def progress(step: int) -> None:
        tell(label, min(step, steps), steps)

    found = scale(names, compared.backbone, compared.budget_ms, times, progress)
    tell(label, steps, steps)
    if timer.unable:
        return [Baseline(name, problem=f"not timed: {timer.unable}") for name in names]
    return [
        Baseline(name, tried=one.tried, problem=one.problem)
        if one.network is None
        else Baseline(
            name,
            "the widest that fits",
            multiplier=one.network.multiplier,
            macs=one.network.macs,
            params=one.network.params,
            tried=one.tried,
        )
        for name, one in found.items()
    ]


def _side_by_side(compared: Compared, timer: _Timer, known: Comparison) -> Comparison:
    """The baselines and the winner timed in the same rounds."""
    there = [b for b in known.baselines if b.found]
    if all(b.measured is not None for b in there):
        return known
    networks = [_network(compared, b.name, b.operators, b.multiplier) for b in there]
    compared.workshop.tell("baselines and winner timed", 0, 1)
    winner, *others = timer([_network(compared, WINNER, compared.winner.operators), *networks])
    compared.workshop.tell("baselines and winner timed", 1, 1)
    if timer.unable:
        return known
    timed = [
        replace(b, measured=None, problem=answer)
        if isinstance(answer, str)
        else replace(b, measured=answer)
        for b, answer in zip(there, others, strict=True)
    ]
    own = None if isinstance(winner, str) else winner
    return replace(known.with_baselines(timed), winner=own)


def _trained(compared: Compared, baseline: Baseline) -> Baseline:
    """A baseline with its figures when trained from scratch as the winner is."""
    from .retrain import scratch_accuracies, train_architecture, train_module
    from .training import INITIAL, seeded

    if baseline.operators == compared.winner.operators:
        own = [figure for figure in compared.winner.accuracy if not figure.inherited]
        if own:
            return replace(baseline, accuracy=(*baseline.accuracy, *own))
    workshop, data = compared.workshop, compared.workshop.data
    settings = workshop.preset.retrain
    folder = compared.run.baseline_path(baseline.name)
    progress = workshop.trained(f"baseline {baseline.name}: trained")
    if baseline.multiplier is None:
        gate = compared.space.gate
        done = train_architecture(
            compared.backbone, baseline.operators, data, settings, folder, gate, progress
        )
        validation, test = done.validation_accuracy, done.test_accuracy
    else:
        one = reference(baseline.name, baseline.multiplier, compared.backbone)
        with seeded(settings.seed, INITIAL):
            module = one.build()
        identity = {"published": repr(one)}
        checkpoint = folder / "training.pt"
        validation, test = train_module(module, data, settings, identity, checkpoint, progress)
    shares = (validation, len(data.validation)), (test, len(data.test))
    figures = scratch_accuracies(data.spec, settings, *shares)
    return replace(baseline, accuracy=(*baseline.accuracy, *figures))
