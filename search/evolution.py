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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from ..ops.errors import BadRequest, HurricaneError
from .feasible import FeasibleSet

Codes = NDArray[np.int64]
"""Architectures [N × layers]; a code indexes its layer's candidates."""

Evaluate = Callable[[Codes], Sequence[float]]
"""From codes [N × layers] to fitness, the higher the better."""

_ATTEMPTS_PER_CHILD = 2
"""Crossovers or mutations tried at once for each child that is still wanted."""

_MUTATION_ROUNDS = 4
"""Times that mutations are tried; what is then short is drawn anew. Crossovers are tried once, as
parents that are much alike have few different children: what is short of them is mutated."""

_DRAW_ROUNDS = 20
_SPARE_DRAWS = 8  # beyond what is short, as some were seen before
_LISTED_AT_ONCE = 50  # a set that is evaluated completely is still recorded in portions
_SMALL_SET = 10
"""Feasible sets up to this many times the evaluations are listed rather than sampled."""


class ScoredOnce:
    """An `Evaluate` that asks another only for architectures whose fitness is not known.

    Args:
        evaluate: is asked; its answers must not depend on what was evaluated before.
        known: fitness by codes.
    """

    def __init__(
        self, evaluate: Evaluate, known: Mapping[tuple[int, ...], float] | None = None
    ) -> None:
        self._evaluate = evaluate
        self.known = dict(known or {})

    def __call__(self, codes: Codes) -> list[float]:
        rows = list(map(tuple, codes.tolist()))
        fresh = [row for row in dict.fromkeys(rows) if row not in self.known]
        if fresh:
            found = self._evaluate(np.array(fresh, dtype=np.int64))
            self.known.update(zip(fresh, found, strict=True))
        return [self.known[row] for row in rows]


@dataclass(frozen=True, slots=True)
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


class History(Sequence[Evaluated]):
    """Everything evaluated, in order, with what strategies ask of it."""

    def __init__(self, evaluated: Iterable[Evaluated] = ()) -> None:
        self._items: list[Evaluated] = []
        self._fitness: list[float] = []
        self.keys: set[bytes] = set()
        """One for each architecture, as `_keys` makes them."""
        self.extend(evaluated)

    @classmethod
    def of(cls, history: Sequence[Evaluated]) -> History:
        """The history itself, or one of any sequence."""
        return history if isinstance(history, cls) else cls(history)

    def extend(self, batch: Iterable[Evaluated], codes: Codes | None = None) -> None:
        """Adds what was evaluated next; its codes as an array, where they are at hand."""
        items = list(batch)
        self._items += items
        self._fitness += [e.fitness for e in items]
        if codes is None and items:
            codes = np.array([e.codes for e in items], dtype=np.int64)
        if codes is not None:
            self.keys.update(_keys(codes))

    def best(self, count: int) -> list[Evaluated]:
        """The first of `best_first`."""
        if len(self) <= count:
            return best_first(self)
        fitness = np.array(self._fitness)
        least = np.partition(fitness, -count)[-count]
        return best_first([self._items[i] for i in np.flatnonzero(fitness >= least)])[:count]

    @overload
    def __getitem__(self, index: int) -> Evaluated: ...
    @overload
    def __getitem__(self, index: slice) -> list[Evaluated]: ...
    def __getitem__(self, index: int | slice) -> Evaluated | list[Evaluated]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Evaluated]:
        return iter(self._items)


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
            history: everything evaluated so far, in order; `History.of` has more to ask of it.
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
            best = History.of(history).best(self.top)
            parents = np.array([e.codes for e in best], dtype=np.int64)
            sizes = np.array(feasible.sizes)
            crossed = min(size, round(self.crossover * size / self.population))
            mutated = min(size, crossed + round(self.mutation * size / self.population))
            brood.breed(partial(_cross, rng, parents), crossed, 1)
            mutate = partial(self._mutate, rng, parents, sizes)
            brood.breed(mutate, mutated, _MUTATION_ROUNDS)
        brood.fill(rng)
        return brood.codes

    def _mutate(
        self, rng: np.random.Generator, parents: Codes, sizes: NDArray[np.int64], count: int
    ) -> Codes:
        children = parents[rng.integers(len(parents), size=count)]
        rows, layers = np.nonzero(rng.random(children.shape) < self.probability)
        children[rows, layers] = rng.integers(sizes[layers])
        return children


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
    history = History()
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
        history.extend(known)
        rest = codes[len(known) :]
        if len(rest):
            found = _finite(evaluate(rest), rest)
            rest_ms = latencies[len(known) :].tolist()
            rows = map(tuple, rest.tolist())
            batch = list(map(Evaluated, rows, found, rest_ms, repeat(generation)))
            record(batch)
            history.extend(batch, rest)
    return list(history)


def _proposals(
    strategy: Strategy,
    feasible: FeasibleSet,
    listed: Codes | None,
    evaluations: int,
    seed: int,
    start: Codes | None,
    history: History,
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
        self._seen = History.of(history).keys
        self._size = size
        self._chosen: dict[bytes, None] = {}

    @property
    def codes(self) -> Codes:
        flat = np.frombuffer(bytearray().join(self._chosen), dtype=np.int64)
        return flat.reshape(-1, len(self._feasible.sizes))

    def add(self, candidates: Codes, up_to: int) -> None:
        """Takes candidates in order until there are `up_to` architectures."""
        keys = dict.fromkeys(_keys(candidates[self._feasible.contains(candidates)]))
        seen, chosen = self._seen, self._chosen
        fresh = [key for key in keys if key not in seen and key not in chosen]
        chosen.update(dict.fromkeys(fresh[: max(0, up_to - len(chosen))]))

    def breed(self, make: Callable[[int], Codes], up_to: int, rounds: int) -> None:
        """Fills up with children, as far as some rounds of attempts go.

        Args:
            make: gives as many children as it is asked for, feasible or not.
            up_to: architectures to be there in the end.
            rounds: of attempts.
        """
        for _ in range(rounds):
            short = up_to - len(self._chosen)
            if short <= 0:
                return
            self.add(make(_ATTEMPTS_PER_CHILD * short), up_to)

    def fill(self, rng: np.random.Generator) -> None:
        """Fills up with uniform samples; where few are left unseen, with those."""
        for _ in range(_DRAW_ROUNDS):
            short = self._size - len(self._chosen)
            if short <= 0:
                return
            self.add(self._feasible.sample(rng, short + _SPARE_DRAWS), self._size)
        known = len(self._seen) + len(self._chosen)
        everything = self._feasible.enumerate(_SMALL_SET * (known + self._size))
        if everything is not None:
            self.add(rng.permutation(everything), self._size)


def _keys(codes: Codes) -> list[bytes]:
    """One key for each architecture [N × layers], equal where the architectures are."""
    codes = np.ascontiguousarray(codes, dtype=np.int64)
    return codes.view(f"V{codes.shape[1] * codes.itemsize}").ravel().tolist()


def _cross(rng: np.random.Generator, parents: Codes, count: int) -> Codes:
    """Children that take each layer from one of two parents, different ones if there are two."""
    mothers = rng.integers(len(parents), size=count)
    fathers = mothers + rng.integers(1, max(2, len(parents)), size=count)
    children = parents[mothers]
    others = parents[fathers % len(parents)]
    np.copyto(children, others, where=rng.integers(2, size=children.shape, dtype=np.bool_))
    return children


def _finite(fitness: Sequence[float], codes: Codes) -> list[float]:
    """Fitness as floats, one for each architecture [N × layers]."""
    found = np.asarray(fitness, dtype=np.float64)
    if found.shape != (len(codes),):
        raise HurricaneError(f"the evaluation of {len(codes)} architectures gave {found.size}")
    wrong = np.flatnonzero(~np.isfinite(found))
    if wrong.size:
        first = int(wrong[0])
        raise HurricaneError(
            f"the evaluation of architecture {codes[first].tolist()} gave {found[first]}"
        )
    return found.tolist()
