"""Search strategies: which architectures to evaluate next.

A strategy proposes architectures for a generation; `run_strategy` has them evaluated and keeps
the history. A proposal is a function of (seed, generation, history) alone, so a search that was
killed is carried on by running it again over its recorded history.

Source of the evolution: HURRICANE ("evolutionary search over 1,000 architectures"), with the
population of SPOS: 50 a generation, parents from the best 10, 25 by crossover, 25 by mutation
with probability 0.1 a layer. Unlike SPOS's code it ends on small feasible sets, evaluates
nothing twice, and its last generation counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..ops.errors import BadRequest, HurricaneError
from .feasible import FeasibleSet

Codes = NDArray[np.int64]
"""Architectures [N × layers]; a code indexes its layer's candidates."""

Evaluate = Callable[[Codes], Sequence[float]]
"""From codes [N × layers] to fitness, the higher the better."""

_ATTEMPTS_PER_CHILD = 20
"""Crossovers or mutations tried for each child wanted; what is then short is drawn anew."""

_DRAW_ROUNDS = 20
_LISTED_AT_ONCE = 50  # a set that is evaluated completely is still recorded in portions
_SMALL_SET = 10
"""Feasible sets up to this many times the evaluations are listed rather than sampled."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluated architecture.

    Attributes:
        codes: one a layer.
        fitness: what `Evaluate` gave.
        latency_ms: predicted.
        generation: in which it was proposed, from 0.
    """

    codes: tuple[int, ...]
    fitness: float
    latency_ms: float
    generation: int


def best_first(history: Sequence[Evaluated]) -> list[Evaluated]:
    """By falling fitness; of equals the faster first, then the earlier evaluated."""
    return sorted(history, key=lambda e: (-e.fitness, e.latency_ms))


class Strategy(Protocol):
    """Proposes what to evaluate."""

    @property
    def name(self) -> str:
        """How a run's configuration calls it."""
        ...

    def propose(
        self,
        feasible: FeasibleSet,
        history: Sequence[Evaluated],
        rng: np.random.Generator,
        wanted: int,
    ) -> Codes:
        """Feasible architectures that are not in the history, all different.

        Args:
            feasible: what may be proposed.
            history: everything evaluated so far, in order.
            rng: to be used for all draws.
            wanted: evaluations that are left.

        Returns:
            At most `wanted` of them; none when nothing new can be found.
        """
        ...


@dataclass(frozen=True)
class RandomSearch:
    """Uniform samples of the feasible set: what any other strategy has to beat."""

    generation: int = 50
    name: str = "random"

    def propose(
        self,
        feasible: FeasibleSet,
        history: Sequence[Evaluated],
        rng: np.random.Generator,
        wanted: int,
    ) -> Codes:
        brood = _Brood(feasible, history, min(wanted, self.generation))
        brood.fill(rng)
        return brood.codes


@dataclass(frozen=True)
class EvolutionSearch:
    """Evolution: the best so far are crossed and mutated.

    Attributes:
        population: architectures of a generation.
        top: parents, the best of all evaluated so far.
        crossover: children of two parents in a generation.
        mutation: children of one parent in a generation.
        probability: that a mutation draws a layer's operator anew.
    """

    population: int = 50
    top: int = 10
    crossover: int = 25
    mutation: int = 25
    probability: float = 0.1
    name: str = "evolution"

    def __post_init__(self) -> None:
        if min(self.population, self.top) < 1 or min(self.crossover, self.mutation) < 0:
            raise BadRequest("population and top must be at least 1")
        if not 0 < self.probability <= 1:
            raise BadRequest("the probability of a mutation must lie above 0 and up to 1")

    @classmethod
    def of_population(cls, population: int) -> EvolutionSearch:
        """The default proportions for another population: half crossed, half mutated."""
        half = population // 2
        return cls(population, max(1, population // 5), half, population - half)

    def propose(
        self,
        feasible: FeasibleSet,
        history: Sequence[Evaluated],
        rng: np.random.Generator,
        wanted: int,
    ) -> Codes:
        size = min(self.population, wanted)
        brood = _Brood(feasible, history, size)
        if history:
            parents = np.array([e.codes for e in best_first(history)[: self.top]], dtype=np.int64)
            crossed = min(size, round(self.crossover * size / self.population))
            mutated = min(size, crossed + round(self.mutation * size / self.population))
            brood.add(_cross(rng, parents, crossed * _ATTEMPTS_PER_CHILD), crossed)
            attempts = (mutated - crossed) * _ATTEMPTS_PER_CHILD
            brood.add(self._mutate(rng, parents, feasible.sizes, attempts), mutated)
        brood.fill(rng)
        return brood.codes

    def _mutate(
        self, rng: np.random.Generator, parents: Codes, sizes: Sequence[int], count: int
    ) -> Codes:
        children = parents[rng.integers(len(parents), size=count)]
        fresh = rng.integers(np.array(sizes), size=children.shape)
        return np.where(rng.random(children.shape) < self.probability, fresh, children)


STRATEGIES: dict[str, Callable[[int], Strategy]] = {
    "evolution": EvolutionSearch.of_population,
    "random": RandomSearch,
}
"""From the name that the command line takes to a strategy for a population."""


def run_strategy(
    strategy: Strategy,
    feasible: FeasibleSet,
    evaluate: Evaluate,
    evaluations: int,
    seed: int,
    recorded: Sequence[Evaluated] = (),
    record: Callable[[Sequence[Evaluated]], None] = lambda batch: None,
    start: Codes | None = None,
) -> list[Evaluated]:
    """Evaluates what a strategy proposes until the evaluations are used up.

    A feasible set no larger than `evaluations` is evaluated completely.

    Args:
        strategy: proposes.
        feasible: what may be evaluated.
        evaluate: gives fitness; must not depend on what was evaluated before.
        evaluations: architectures to evaluate at most.
        seed: of all draws.
        recorded: what an interrupted run of the same search evaluated; is not evaluated again.
        record: is given each generation's newly evaluated architectures, before the next.
        start: architectures that the first generation must contain.

    Returns:
        Everything evaluated, in order.

    Raises:
        BadRequest: nothing is feasible, or the recorded evaluations are another search's.
        HurricaneError: an evaluation is not a number.
    """
    if evaluations < 1:
        raise BadRequest(f"evaluations must be at least 1, got {evaluations}")
    listed = feasible.enumerate(evaluations)
    if listed is not None and len(listed) == 0:
        feasible.require_members()
    history: list[Evaluated] = []
    for generation, codes in enumerate(
        _proposals(strategy, feasible, listed, evaluations, seed, start, history)
    ):
        latencies = feasible.latency_ms(codes)
        known = recorded[len(history) : len(history) + len(codes)]
        if [e.codes for e in known] != [tuple(c) for c in codes[: len(known)].tolist()]:
            raise BadRequest(
                f"the recorded evaluations differ from this search's from number {len(history)} "
                "on: they were made with other settings; start a new run directory"
            )
        history += known
        rest = codes[len(known) :]
        if len(rest):
            batch = [
                Evaluated(tuple(code), _finite(fitness, code), float(latency), generation)
                for code, fitness, latency in zip(
                    rest.tolist(), evaluate(rest), latencies[len(known) :], strict=True
                )
            ]
            record(batch)
            history += batch
    return history


def _proposals(
    strategy: Strategy,
    feasible: FeasibleSet,
    listed: Codes | None,
    evaluations: int,
    seed: int,
    start: Codes | None,
    history: list[Evaluated],
) -> Iterator[Codes]:
    """The batches to evaluate; `history` grows between them."""
    if listed is not None:
        for first in range(0, len(listed), _LISTED_AT_ONCE):
            yield listed[first : first + _LISTED_AT_ONCE]
        return
    generation = 0
    while len(history) < evaluations:
        rng = np.random.default_rng([seed, generation])
        wanted = evaluations - len(history)
        codes = strategy.propose(feasible, history, rng, wanted)
        if generation == 0 and start is not None:
            both = np.concatenate([start[feasible.contains(start)], codes])
            _, first = np.unique(both, axis=0, return_index=True)
            codes = both[np.sort(first)][: max(len(codes), 1)]
        if not len(codes):
            return
        yield codes
        generation += 1


class _Brood:
    """A generation in the making: feasible, new, no two alike, up to a size."""

    def __init__(self, feasible: FeasibleSet, history: Sequence[Evaluated], size: int) -> None:
        self._feasible = feasible
        self._seen = {e.codes for e in history}
        self._size = size
        self._chosen: list[tuple[int, ...]] = []

    @property
    def codes(self) -> Codes:
        return np.array(self._chosen, dtype=np.int64).reshape(-1, len(self._feasible.sizes))

    def add(self, candidates: Codes, up_to: int) -> None:
        """Takes candidates in order until there are `up_to` architectures."""
        for code in candidates[self._feasible.contains(candidates)].tolist():
            if len(self._chosen) >= up_to:
                return
            if tuple(code) not in self._seen:
                self._seen.add(tuple(code))
                self._chosen.append(tuple(code))

    def fill(self, rng: np.random.Generator) -> None:
        """Fills up with uniform samples; where few are left unseen, with those."""
        for _ in range(_DRAW_ROUNDS):
            short = self._size - len(self._chosen)
            if short <= 0:
                return
            self.add(self._feasible.sample(rng, 2 * short), self._size)
        everything = self._feasible.enumerate(_SMALL_SET * (len(self._seen) + self._size))
        if everything is not None:
            self.add(rng.permutation(everything), self._size)


def _cross(rng: np.random.Generator, parents: Codes, count: int) -> Codes:
    """Children that take each layer from one of two parents."""
    mothers = parents[rng.integers(len(parents), size=count)]
    fathers = parents[rng.integers(len(parents), size=count)]
    return np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)


def _finite(fitness: float, code: Sequence[int]) -> float:
    if not math.isfinite(fitness):
        raise HurricaneError(f"the evaluation of architecture {list(code)} gave {fitness}")
    return float(fitness)
