"""When a row is known well enough."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    """What is known of an active row.

    Attributes:
        accepted_rounds: in batches that are used.
        rejected_rounds: in the others, since the row is active.
        width: half-width of its interval, in multiples of what is aimed at, over the accepted
            rounds; infinite where there are none.
        width_of_all: the same over all rounds.
        is_over_budget: the device's time is spent.
    """

    accepted_rounds: int
    rejected_rounds: int
    width: float
    width_of_all: float
    is_over_budget: bool = False


@dataclass(frozen=True)
class Accept:
    """A row is done.

    Attributes:
        narrow: its interval is as narrow as was asked for.
        of_all: rejected rounds are used as well: there is hardly anything else.
    """

    narrow: bool = True
    of_all: bool = False


@dataclass(frozen=True)
class PrecisionRule:
    """Goes on until the interval is narrow enough, within limits.

    Attributes:
        min_rounds: accepted rounds that a row has at least; half of them once the time is spent.
        max_rounds: rounds that a row has at most, rejected ones included.
    """

    min_rounds: int
    max_rounds: int

    def fewest_rounds(self, is_over_budget: bool) -> int:
        """Rounds before which no row is done."""
        return -(-self.min_rounds // 2) if is_over_budget else self.min_rounds

    def decide(self, evidence: Evidence) -> Accept | None:
        """Whether a row is done; None: it goes on."""
        least = self.fewest_rounds(evidence.is_over_budget)
        rounds = evidence.accepted_rounds + evidence.rejected_rounds
        last = rounds >= (least if evidence.is_over_budget else self.max_rounds)
        if evidence.accepted_rounds >= least:
            if evidence.width <= 1:
                return Accept()
            return Accept(narrow=False) if last else None
        if not last:
            return None
        return Accept(evidence.width_of_all <= 1, of_all=True)
