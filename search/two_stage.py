"""The two stages of the search: later layers first, earlier layers second.

Source: HURRICANE, two-stage search. a_win0 is the top-scored operator in every layer. Stage 1
searches the later layers with the first t fixed to a_win0 and gives a_win1; stage 2 searches
the first t with the later fixed to a_win1 and gives a_win2. Stage 2 starts from a_win1, which
is one of its architectures, so that it is compared with what stage 2 finds.

A space with t = 0 has one stage, which searches all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..lookup_tables.proportion import interval_of
from ..ops.errors import BadRequest
from .evolution import Codes, Evaluated, EvolutionSearch, Strategy, best_first, run_strategy
from .feasible import FeasibleSet
from .space import SearchSpace

Candidates = tuple[tuple[str, ...], ...]
"""For each layer, the operators that may be chosen; one where the layer is fixed."""

Sampler = Callable[[np.random.Generator, int], Codes]
"""From a generator and n to n feasible architectures, drawn uniformly."""


class StageEvaluator(Protocol):
    """Trains the supernet of a stage and scores architectures with it."""

    def prepare(
        self,
        stage: int,
        candidates: Candidates,
        sampler: Sampler,
        previous: Candidates | None = None,
    ) -> None:
        """Trains the stage's supernet, or carries on where it was left.

        Args:
            stage: from 1.
            candidates: operators of every layer; one where the layer is fixed.
            sampler: draws paths that meet the budget; codes index `candidates`.
            previous: the candidates of the stage before, whose weights are inherited
                wherever an operator stays.
        """
        ...

    def evaluate(self, codes: Codes) -> list[float]:
        """Validation accuracies, 0 to 1, of codes [N × layers] into the stage's candidates."""
        ...


class SearchLog(Protocol):
    """Keeps what a search evaluated, so that it can be carried on."""

    def read_evaluated(self, stage: int, candidates: Candidates) -> list[Evaluated]:
        """What was evaluated in a stage before, in order."""
        ...

    def append_evaluated(
        self, stage: int, candidates: Candidates, batch: Sequence[Evaluated]
    ) -> None:
        """Keeps newly evaluated architectures."""
        ...


@dataclass(frozen=True)
class StageResult:
    """What a stage found.

    Attributes:
        stage: from 1.
        candidates: what it chose from.
        operators: the winner, one name a layer.
        fitness: the winner's validation accuracy with inherited weights.
        latency_ms: the winner's predicted latency.
        feasible: architectures that met the budget.
        evaluated: everything evaluated, in order; codes index `candidates`.
    """

    stage: int
    candidates: Candidates
    operators: tuple[str, ...]
    fitness: float
    latency_ms: float
    feasible: int
    evaluated: tuple[Evaluated, ...]

    def within_noise(self, images: int) -> list[Evaluated]:
        """The winner and all whose accuracy lies in its 95% interval, best first.

        Args:
            images: that the accuracies are of.
        """
        low, _ = interval_of(self.fitness, images)
        return [e for e in best_first(self.evaluated) if e.fitness >= low]

    def names(self, codes: Sequence[int]) -> tuple[str, ...]:
        """Operators of an architecture."""
        return tuple(names[code] for names, code in zip(self.candidates, codes, strict=True))


@dataclass(frozen=True)
class TwoStageResult:
    """Both stages; the last one's winner is the search's."""

    stages: tuple[StageResult, ...]

    @property
    def winner(self) -> StageResult:
        return self.stages[-1]


def two_stage_search(
    space: SearchSpace,
    evaluator: StageEvaluator,
    stages: int = 2,
    strategy: Strategy | None = None,
    evaluations: int = 1000,
    seed: int = 0,
    log: SearchLog | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    finished: Callable[[StageResult], None] | None = None,
) -> TwoStageResult:
    """Searches a space for its most accurate architecture within the budget.

    A stage's supernet is trained when its first architecture has to be evaluated: a stage
    whose evaluations are all in the log costs nothing.

    Args:
        space: what to choose from, with the budget.
        evaluator: trains supernets and scores architectures.
        stages: 2, or 1 to keep the first layers at a_win0; a space with no first layers has but
            one.
        strategy: what to evaluate next; evolution by default.
        evaluations: in each stage, at most.
        seed: of all draws.
        log: where evaluated architectures are kept, and read from when a search goes on.
        progress: is told (stage, evaluations done, evaluations in all).
        finished: is given each stage's result when it is there.

    Raises:
        BadRequest: `stages` is neither 1 nor 2, nothing meets the budget, or the log holds
            another search's evaluations.
    """
    if stages not in (1, 2):
        raise BadRequest(f"stages must be 1 or 2, got {stages}")
    strategy = strategy or EvolutionSearch()
    t = space.split
    later = Stage(
        number=1,
        candidates=tuple((c[0],) if i < t else c for i, c in enumerate(space.candidates)),
        feasible=space.feasible_set.restrict(dict.fromkeys(range(t), 0)),
    )
    results: list[StageResult] = []

    def run(stage: Stage) -> StageResult:
        result = run_stage(stage, evaluator, strategy, evaluations, seed, log, progress)
        results.append(result)
        if finished is not None:
            finished(result)
        return result

    a_win1 = run(later).operators
    if min(stages, space.stages) == 2:
        fixed = {i: space.candidates[i].index(a_win1[i]) for i in range(t, space.layers)}
        run(
            Stage(
                number=2,
                candidates=tuple(
                    c if i < t else (a_win1[i],) for i, c in enumerate(space.candidates)
                ),
                feasible=space.feasible_set.restrict(fixed),
                previous=later.candidates,
                # a_win1 has the top-scored operator, code 0, wherever stage 2 can choose.
                start=np.zeros((1, space.layers), dtype=np.int64),
            )
        )
    return TwoStageResult(tuple(results))


@dataclass(frozen=True)
class Stage:
    """What a stage chooses from, and what it starts with.

    Attributes:
        number: from 1.
        candidates: of every layer; one where it is fixed.
        feasible: the architectures that meet the budget.
        previous: candidates of the stage whose weights are inherited.
        start: architectures that the first generation contains.
    """

    number: int
    candidates: Candidates
    feasible: FeasibleSet
    previous: Candidates | None = None
    start: Codes | None = None


def run_stage(
    stage: Stage,
    evaluator: StageEvaluator,
    strategy: Strategy,
    evaluations: int,
    seed: int,
    log: SearchLog | None,
    progress: Callable[[int, int, int], None] | None,
) -> StageResult:
    """Searches one stage; arguments as in `two_stage_search`."""
    feasible = stage.feasible
    feasible.require_members()
    recorded = log.read_evaluated(stage.number, stage.candidates) if log is not None else []
    count = feasible.count
    total = min(evaluations, count) if feasible.exact else evaluations
    done = len(recorded)
    prepared = False

    def evaluate(codes: Codes) -> list[float]:
        nonlocal prepared
        if not prepared:
            evaluator.prepare(stage.number, stage.candidates, feasible.sample, stage.previous)
            prepared = True
        if progress is not None:
            progress(stage.number, done, total)
        return evaluator.evaluate(codes)

    def record(batch: Sequence[Evaluated]) -> None:
        nonlocal done
        done += len(batch)
        if log is not None:
            log.append_evaluated(stage.number, stage.candidates, batch)
        if progress is not None:
            progress(stage.number, done, total)

    evaluated = run_strategy(
        strategy,
        feasible,
        evaluate,
        evaluations,
        seed=int(np.random.SeedSequence([seed, stage.number]).generate_state(1)[0]),
        recorded=recorded,
        record=record,
        start=stage.start,
    )
    best = best_first(evaluated)[0]
    return StageResult(
        stage=stage.number,
        candidates=stage.candidates,
        operators=tuple(names[c] for names, c in zip(stage.candidates, best.codes, strict=True)),
        fitness=best.fitness,
        latency_ms=best.latency_ms,
        feasible=count,
        evaluated=tuple(evaluated),
    )
