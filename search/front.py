"""A front: the most accurate networks for several latency budgets, from one supernet.

The supernet's paths meet one of the budgets each, in turn by chance, so that it is trained where
it will be asked. Budgets are then searched from the lowest to the highest; each search starts
with the best networks of those before, which all meet its budget, and what a search finds that
meets a lower budget too counts there as well. So the best accuracy never falls from one budget to
the next; the networks that a run gives for one are others than those of lower budgets, and can be
less accurate.

Once-for-All (Cai et al. 2020, arXiv 1908.09791) has the aim: train once, search for many devices
and budgets. The supernet is SPOS's, as in every search here.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..lookup_tables.architecture import Accuracy, Architecture
from ..ops.errors import BadRequest
from .confirm import Candidate, Confirmation, ranked
from .evolution import Codes, Evaluated, EvolutionSearch, ScoredOnce, Strategy, best_first
from .measuring import Measurement
from .pipeline import (
    Measure,
    SearchSettings,
    Watch,
    check_request,
    confirm_on_target,
    found_architecture,
    open_workshop,
    settings_facts,
    space_facts,
)
from .rundir import SUPERNET_FILE, RunDirectory, leads, read_config, wait_for_leader
from .space import SearchSpace
from .two_stage import (
    Candidates,
    Sampler,
    SearchLog,
    Stage,
    StageEvaluator,
    StageResult,
    run_stage,
)

if TYPE_CHECKING:
    from .training import Preset

COMMAND = "front"
"""What the ``config.json`` of such a run says."""

CARRIED = 10
"""Best networks of the lower budgets that a search starts with; evolution has 10 parents."""


def front_search(
    space: SearchSpace,
    evaluator: StageEvaluator,
    strategy: Strategy | None = None,
    evaluations: int = 1000,
    seed: int = 0,
    log: SearchLog | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> tuple[StageResult, ...]:
    """Searches a space for its most accurate architecture within each of its budgets.

    Args:
        space: what to choose from, with the budgets; of one stage.
        evaluator: trains the supernet, as stage 1, and scores architectures.
        strategy: what to evaluate next; evolution by default.
        evaluations: for each budget, at most; those that it shares with others count for both.
        seed: of all draws.
        log: keeps what was evaluated for the n-th budget as stage n.
        progress: is told (number of the budget, evaluations done, evaluations in all).

    Returns:
        For each budget, the lowest first, what was found; `evaluated` is everything that meets
        the budget, whichever it was evaluated for.

    Raises:
        BadRequest: nothing meets the lowest budget, the space has two stages, or the log holds
            another search's evaluations.
    """
    if space.split:
        raise BadRequest("several budgets are searched in one stage: build the space with split 0")
    shared = _SharedSupernet(evaluator, space)
    results: list[StageResult] = []
    known: dict[tuple[int, ...], Evaluated] = {}
    for number, budget_ms in enumerate(space.budgets_ms, 1):
        best = best_first(list(known.values()))[:CARRIED]
        stage = Stage(
            number,
            space.candidates,
            space.within(budget_ms).feasible_set,
            start=np.array([e.codes for e in best], dtype=np.int64) if best else None,
        )
        found = run_stage(
            stage, shared, strategy or EvolutionSearch(), evaluations, seed, log, progress
        )
        for one in found.evaluated:
            known.setdefault(one.codes, one)
            shared.evaluate.known[one.codes] = one.fitness
        results.append(found)
    everything = list(known.values())
    fronts = []
    for result, budget_ms in zip(results, space.budgets_ms, strict=True):
        feasible = space.within(budget_ms).feasible_set
        meets = feasible.contains(np.array([e.codes for e in everything], dtype=np.int64))
        within = tuple(e for e, met in zip(everything, meets.tolist(), strict=True) if met)
        best = best_first(within)[0]
        fronts.append(
            replace(
                result,
                operators=result.names(best.codes),
                fitness=best.fitness,
                latency_ms=best.latency_ms,
                evaluated=within,
            )
        )
    return tuple(fronts)


def mixed_sampler(space: SearchSpace) -> Sampler:
    """Draws a budget of the space at random, and then a network evenly from those that meet it.

    Drawn from the highest budget alone, few networks would meet the lower ones.
    """
    sets = [space.within(ms).feasible_set for ms in space.budgets_ms]

    def sample(rng: np.random.Generator, count: int) -> Codes:
        chosen = rng.integers(len(sets), size=count)
        codes = np.empty((count, space.layers), dtype=np.int64)
        for number, feasible in enumerate(sets):
            rows = np.flatnonzero(chosen == number)
            codes[rows] = feasible.sample(rng, len(rows))
        return codes

    return sample


class _SharedSupernet:
    """One supernet for the searches of all budgets; no network is scored twice."""

    def __init__(self, evaluator: StageEvaluator, space: SearchSpace) -> None:
        self._evaluator = evaluator
        self._space = space
        self._ready = False
        self.evaluate = ScoredOnce(evaluator.evaluate)

    def prepare(
        self,
        stage: int,
        candidates: Candidates,
        sampler: Sampler,
        previous: Candidates | None = None,
    ) -> None:
        if not self._ready:
            self._evaluator.prepare(1, self._space.candidates, mixed_sampler(self._space))
            self._ready = True


# --- A run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A network of a front.

    Attributes:
        file: of the architecture.
        architecture: with its budget, its latencies and its accuracies.
        met: whether it meets the budget as measured; None where it was not measured.
    """

    file: Path
    architecture: Architecture
    met: bool | None


@dataclass(frozen=True)
class FrontOutcome:
    """What a front's run ends with.

    Attributes:
        directory: of the run.
        space: what was searched.
        results: what was found for each budget, the lowest first.
        points: the networks, budget by budget.
        data: what accuracies are of, as `data.load_data` takes it.
        unmeasured: why nothing was measured, where it was asked for.
    """

    directory: Path
    space: SearchSpace
    results: tuple[StageResult, ...]
    points: tuple[Point, ...]
    data: str
    unmeasured: str = ""

    @property
    def networks(self) -> list[tuple[Path, Sequence[Accuracy]]]:
        """File and accuracies of each network."""
        return [(point.file, point.architecture.accuracy) for point in self.points]

    @property
    def surpassed(self) -> list[Path | None]:
        """For each network, the one of a lower budget that is better here too, if there is one."""
        return surpassed_by(self.networks, [p.architecture.budget_ms or 0.0 for p in self.points])

    @property
    def train_command(self) -> str:
        """Trains the most accurate network."""
        return train_command(self.networks, self.data)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "directory": str(self.directory),
            "budgets": [
                {
                    "budget_ms": budget_ms,
                    "evaluated": len(result.evaluated),
                    "feasible": result.feasible,
                    "accuracy": result.fitness,
                    "predicted_ms": result.latency_ms,
                }
                for budget_ms, result in zip(self.space.budgets_ms, self.results, strict=True)
            ],
            "points": [
                {
                    "met": point.met,
                    "file": str(point.file),
                    "surpassed_by": None if better is None else str(better),
                    **point.architecture.to_dict(),
                }
                for point, better in zip(self.points, self.surpassed, strict=True)
            ],
            "unmeasured": self.unmeasured,
        }


def train_command(networks: Sequence[tuple[Path, Sequence[Accuracy]]], data: str) -> str:
    """What to type to train the most accurate of a front's networks.

    Args:
        networks: file and accuracies of each; the validation split's counts, of equals the first.
        data: that they were searched with.
    """

    file, _ = max(networks, key=lambda network: _validation(network[1]))
    return shlex.join(["hurricane", "train", str(file), "--data", data, "-o", "RUN"])


def surpassed_by(
    networks: Sequence[tuple[Path, Sequence[Accuracy]]], budgets_ms: Sequence[float]
) -> list[Path | None]:
    """For each network of a front, the most accurate one of lower budgets that is more accurate.

    Such a network is the better choice for this budget as well.

    Args:
        networks: as `train_command` takes them.
        budgets_ms: of each.
    """
    known = [
        (budget, _validation(accuracy), file)
        for (file, accuracy), budget in zip(networks, budgets_ms, strict=True)
    ]
    found = []
    for budget, own, _ in known:
        better = [(value, file) for ms, value, file in known if ms < budget and value > own]
        found.append(max(better, key=lambda one: one[0])[1] if better else None)
    return found


def _validation(accuracy: Sequence[Accuracy]) -> float:
    return next((a.value for a in accuracy if a.split == "validation"), 0.0)


@dataclass(frozen=True)
class TrainedSupernet:
    """A supernet that an earlier run trained.

    Attributes:
        directory: of that run.
        space: that it was trained for.
        sha256: of its weights.
        data: that it was trained on, as `data.load_data` takes it.
    """

    directory: Path
    space: SearchSpace
    sha256: str
    data: str

    @classmethod
    def of_run(cls, directory: str | Path) -> TrainedSupernet:
        """The supernet of stage 1 of a run.

        Raises:
            BadRequest: there is no run, no space, or no trained supernet in the directory.
        """
        folder = Path(directory)
        run = RunDirectory(folder, read_config(folder), resumed=True)
        space = SearchSpace.load(folder / "space.json")
        if space.split:
            raise BadRequest(
                f"{folder}: its supernet has the first {space.split} layers fixed; only one of "
                "all layers can be used again (--split 0)"
            )
        weights = folder / SUPERNET_FILE.format(1)
        if not weights.is_file():
            raise BadRequest(f"{folder} holds no trained supernet: it has no {weights.name}")
        if not run.evaluated_path(1).is_file():  # a checkpoint is there from early on
            raise BadRequest(
                f"{folder}: its supernet may be half trained, as it has scored nothing yet; "
                "carry that run on first, by the same command"
            )
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(folder, space, digest, str(run.config.get("data")))


def run_front(
    space: SearchSpace,
    settings: SearchSettings,
    directory: str | Path,
    preset: Preset | None = None,
    measure: Measure | None = None,
    watch: Watch | None = None,
    reuse: TrainedSupernet | None = None,
) -> FrontOutcome:
    """Finds a front and times its networks on the target; resumes a killed run.

    A budget's networks are others than those of the lower budgets. Nothing is trained from scratch:
    that is for the network that is picked (`hurricane train`).

    Args:
        space: what to choose from, with the budgets.
        settings: how; `finalists` networks are given for each budget.
        directory: of the run.
        preset, measure, watch: as in `pipeline.run_search`.
        reuse: a supernet to search with; None trains one.

    Raises:
        BadRequest: as `pipeline.run_search`, or the supernet was trained on other data.
    """
    if reuse is not None and reuse.data != settings.data:
        raise BadRequest(
            f"{reuse.directory}: its supernet was trained on {reuse.data}, not on {settings.data}; "
            f"give --data {shlex.quote(reuse.data)}"
        )
    check_request(space, directory)
    config: dict[str, Any] = {
        "command": COMMAND,
        **space_facts(space),
        "budgets_ms": list(space.budgets_ms),
        "supernet_sha256": None if reuse is None else reuse.sha256,
        **settings_facts(settings, preset),
    }
    with RunDirectory.open(directory, config) as run:
        workshop = open_workshop(run, space.backbone, space.gate, settings, preset, watch)
        if reuse is not None:
            workshop.reuse(reuse.directory / SUPERNET_FILE.format(1), reuse.space.candidates)
        run.save_space(space)
        results = front_search(
            space,
            workshop,
            settings.make_strategy(),
            settings.evaluations,
            settings.seed,
            log=run,
            progress=lambda number, done, total: workshop.tell(
                f"{space.budgets_ms[number - 1]:g} ms: architectures evaluated", done, total
            ),
        )
        unmeasured = ""
        points: list[Point] = []
        for number, result in enumerate(results, 1):
            one = space.within(space.budgets_ms[number - 1])
            path = run.confirmed_path_of(number)
            given = {point.architecture.operators for point in points}
            candidates = _candidates(result, given)
            to_time = candidates and not path.exists() and not unmeasured
            if measure is not None and leads() and to_time:
                label = f"{one.budget_ms:g} ms: networks timed"
                unmeasured = confirm_on_target(
                    workshop, label, candidates, one, measure, settings.finalists, path
                )
            wait_for_leader()
            for candidate, measured, met in _chosen(path, candidates, settings.finalists):
                found = replace(
                    result,
                    stage=1,
                    operators=candidate.operators,
                    fitness=candidate.fitness,
                    latency_ms=candidate.predicted_ms,
                )
                file = run.point_path(len(points) + 1)
                known = Architecture.load(file) if file.exists() else None
                same = (found.operators, one.budget_ms)
                if known is None or (known.operators, known.budget_ms) != same:
                    known = found_architecture(one, found, settings, *workshop.figures(found))
                if measured is not None:
                    times = {"measured_ms": measured.ms, "measured_halves_ms": measured.halves_ms}
                    known = replace(known, **times)
                if leads():
                    known.save(file)
                points.append(Point(file, known, met))
        if leads():
            run.drop_points(len(points))
        return FrontOutcome(run.path, space, results, tuple(points), settings.data, unmeasured)


def _candidates(result: StageResult, given: Container[tuple[str, ...]]) -> list[Candidate]:
    """What was found for a budget, best first, without networks that are given already."""
    found = ranked(result, result.evaluated)
    return [candidate for candidate in found if candidate.operators not in given]


def _chosen(
    path: Path, candidates: Sequence[Candidate], wanted: int
) -> list[tuple[Candidate, Measurement | None, bool | None]]:
    """The networks of a budget, each with its time and whether that meets the budget.

    Args:
        path: where the confirmation is, if there is one.
        candidates: best first.
        wanted: networks where nothing was timed.
    """
    if path.exists():
        confirmed = Confirmation.of_search(path, candidates)
        attempts = {a.candidate: a for a in confirmed.attempts}
        chosen = [attempts[candidate] for candidate in confirmed.finalists]
        return [(a.candidate, a.measured, a.met) for a in chosen]
    return [(candidate, None, None) for candidate in candidates[:wanted]]
