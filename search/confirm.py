"""Closing the loop before the long training: does the network found meet its budget as measured?

A prediction has an error, and a search goes right up to its budget, so about half of all winners
would miss it on the device. Untrained networks run as fast as trained ones: the winner is
measured first, and where it misses, predictions are corrected by what was seen and the next most
accurate architecture that was evaluated takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..ops.errors import BadRequest, HurricaneError
from ..ops.jsonfile import Fields, write_json
from .evolution import Evaluated, best_first
from .measuring import Measurement
from .two_stage import StageResult

FORMAT_VERSION = 1
ATTEMPTS = 6
"""Networks measured at most."""


@dataclass(frozen=True)
class Candidate:
    """An architecture that was evaluated in the search's last stage."""

    operators: tuple[str, ...]
    fitness: float
    predicted_ms: float


def ranked(result: StageResult, evaluated: Sequence[Evaluated]) -> list[Candidate]:
    """Candidates of a stage, best first.

    Args:
        result: of the stage.
        evaluated: architectures of its candidates.
    """
    return [
        Candidate(result.names(e.codes), e.fitness, e.latency_ms) for e in best_first(evaluated)
    ]


@dataclass(frozen=True)
class Attempt:
    """A candidate and its latency on the target, before training.

    Attributes:
        candidate: what was measured.
        measured: latency and the two halves of its rounds.
        met: whether the budget holds with the halves' spread to spare.
    """

    candidate: Candidate
    measured: Measurement
    met: bool


@dataclass(frozen=True)
class Confirmation:
    """What was measured before training.

    Attributes:
        attempts: in order; empty where nothing could be measured.
        chosen: index of the attempt that was taken: the first that met the budget, or the fastest
            where none did.
    """

    attempts: tuple[Attempt, ...]
    chosen: int

    @property
    def candidate(self) -> Candidate:
        return self.attempts[self.chosen].candidate

    @property
    def finalists(self) -> list[Candidate]:
        """The one taken, then the others that met the budget."""
        others = [a.candidate for i, a in enumerate(self.attempts) if a.met and i != self.chosen]
        return [self.candidate, *others]

    def save(self, path: Path) -> None:
        """Writes the file atomically."""
        write_json(
            path,
            {
                "format_version": FORMAT_VERSION,
                "chosen": self.chosen,
                "attempts": [
                    {
                        "operators": list(a.candidate.operators),
                        "accuracy": a.candidate.fitness,
                        "predicted_ms": a.candidate.predicted_ms,
                        "measured_ms": a.measured.ms,
                        "measured_halves_ms": list(a.measured.halves_ms),
                        "met": a.met,
                    }
                    for a in self.attempts
                ],
            },
        )

    @classmethod
    def of_search(cls, path: Path, candidates: Collection[Candidate]) -> Confirmation:
        """Reads the file of a search that evaluated these candidates.

        Raises:
            BadRequest: a field is missing or wrong, or a network is none of the candidates.
        """
        found = cls.load(path)
        if not {attempt.candidate for attempt in found.attempts} <= set(candidates):
            raise BadRequest(
                f"{path} names a network that this search did not evaluate; "
                "start a new run directory"
            )
        return found

    @classmethod
    def load(cls, path: Path) -> Confirmation:
        """Reads the file.

        Raises:
            BadRequest: a field is missing or wrong.
        """
        fields = Fields.load(path, "confirmation file", FORMAT_VERSION)
        attempts = []
        for item in fields.objects("attempts"):
            values = item.number("measured_ms"), *item.pair("measured_halves_ms")
            attempts.append(
                Attempt(
                    Candidate(
                        item.texts("operators"),
                        item.number("accuracy"),
                        item.number("predicted_ms"),
                    ),
                    Measurement.read(item.where, *values),
                    item.flag("met"),
                )
            )
        chosen = fields.integer("chosen")
        if not chosen < len(attempts):
            raise fields.fail("chosen", f"the number of one of {len(attempts)} attempts")
        return cls(tuple(attempts), chosen)


def confirm(
    candidates: Sequence[Candidate],
    budget_ms: float,
    measure: Callable[[Candidate], Measurement],
    wanted: int = 1,
) -> Confirmation:
    """Measures candidates, best first, until as many as are wanted meet the budget.

    Args:
        candidates: best first.
        budget_ms: what the device must keep to.
        measure: latency of an untrained network of the candidate.
        wanted: candidates that are to meet the budget.

    Returns:
        All attempts; where none met the budget within `ATTEMPTS` for each wanted, the fastest one
        is chosen.
    """
    if not candidates:
        raise HurricaneError("the search evaluated nothing, so there is nothing to measure")
    correction = 1.0
    attempts: list[Attempt] = []
    left = list(candidates)
    met_by: list[int] = []
    while left and len(attempts) < ATTEMPTS * wanted and len(met_by) < wanted:
        hopeful = [c for c in left if c.predicted_ms * correction <= budget_ms]
        if met_by and not hopeful:
            break
        candidate = hopeful[0] if hopeful else min(left, key=lambda c: c.predicted_ms)
        left.remove(candidate)
        measured = measure(candidate)
        careful_ms = measured.careful_ms
        met = careful_ms <= budget_ms
        attempts.append(Attempt(candidate, measured, met))
        if met:
            met_by.append(len(attempts) - 1)
            continue
        if not hopeful:
            break
        correction = max(correction, careful_ms / candidate.predicted_ms)
    if met_by:
        return Confirmation(tuple(attempts), met_by[0])
    fastest = min(range(len(attempts)), key=lambda i: attempts[i].measured.ms)
    return Confirmation(tuple(attempts), fastest)
