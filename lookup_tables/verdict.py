"""Whether a table's sums can be trusted: error figures against whole networks, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

MIN_RANDOM = 10
"""Random networks that a verdict takes."""

RMSPE_LIMITS = {"random": 0.05, "uniform": 0.10}
"""RMSPE that a group may have. Operators' errors average out in random networks; in networks of
one operator they add up, so that these, and networks that were given, may have the looser one."""

RETEST_FACTOR = 1.5
"""Where a group's own retest times this is more than its limit, that is its limit."""

BIAS_LIMIT = 0.05
"""Bias that the random networks may have, either way."""

TAU_MARGIN = 0.1
"""How far Kendall's tau of calibrated sums may lie below that of the retest."""

RETEST_LIMIT = 0.10
"""RMSPE of the random networks' retest beyond which nothing can be said of a table."""


class Verdict(StrEnum):
    """What whole networks say of a table's sums."""

    HOLDS = "holds"
    HOLDS_CALIBRATED = "holds-calibrated"
    BROKEN = "broken"
    UNDECIDED = "undecided"

    @property
    def words(self) -> str:
        """The verdict as a predicate of the sums."""
        return _WORDS[self]

    @property
    def advice(self) -> str:
        """What to do about it, in an imperative; empty where nothing is to be done."""
        return _ADVICE.get(self, "")


_WORDS = {
    Verdict.HOLDS: "holds",
    Verdict.HOLDS_CALIBRATED: "holds after calibration",
    Verdict.BROKEN: "does not hold",
    Verdict.UNDECIDED: "undecided",
}
_ADVICE = {
    Verdict.BROKEN: (
        "profile again on a quiet device, with more rounds, and verify again; where that changes "
        "nothing, latencies do not add up on this target"
    ),
    Verdict.UNDECIDED: "measure on a quiet device, or with more --rounds",
}


@dataclass(frozen=True)
class ErrorFigures:
    """How far one series of latencies is from another; fractions, not percent.

    Attributes:
        count: networks compared.
        bias: mean of a/b - 1.
        rmspe: root of the mean of (a/b - 1)².
        within_5, within_10: share with |a/b - 1| at most 0.05, 0.10.
        kendall_tau: rank correlation, tau-b; NaN for fewer than two.
    """

    count: int
    bias: float
    rmspe: float
    within_5: float
    within_10: float
    kendall_tau: float


@dataclass(frozen=True)
class GroupCheck:
    """Prediction error of a group of networks, with the group's own retest beside it.

    Attributes:
        group: ``random``, ``uniform`` or ``given``.
        prediction: of the table's sums.
        retest: first half of the rounds against the second.
        failed: networks that could not be measured.
        calibrated: of calibrated sums, on networks that the calibration was not fitted to; None
            where there is none.
    """

    group: str
    prediction: ErrorFigures
    retest: ErrorFigures
    failed: int
    calibrated: ErrorFigures | None = None


def judge(groups: Sequence[GroupCheck]) -> tuple[Verdict, str] | None:
    """The verdict on a table, and why, in words that name group, figure and limit.

    Sums hold where every group's RMSPE is within its limit and the random networks' bias is;
    they hold after calibration where calibrated sums do, on networks that were held out, and
    order the random networks about as well as their own retest does.

    Returns:
        None where there are fewer than `MIN_RANDOM` random networks.
    """
    random = next((g for g in groups if g.group == "random"), None)
    if random is None or random.prediction.count < MIN_RANDOM:
        return None
    if random.retest.rmspe > RETEST_LIMIT:
        return (
            Verdict.UNDECIDED,
            f"the random networks' own retest has an RMSPE of {random.retest.rmspe:.1%}, over "
            f"{RETEST_LIMIT:.0%}: nothing can be said of the table",
        )
    wrong = [words for g in groups for words in _problems(g, g.prediction)]
    if not wrong:
        return Verdict.HOLDS, "; ".join(_figures(g, g.prediction) for g in groups)
    if random.calibrated is None:
        return Verdict.BROKEN, "; ".join([*wrong, "no calibration fits"])
    corrected = [(g, g.calibrated) for g in groups if g.calibrated is not None]
    left = [words for g, figures in corrected for words in _problems(g, figures)]
    lost = random.retest.kendall_tau - random.prediction.kendall_tau
    if lost > TAU_MARGIN:  # a calibration changes no order; NaN is not over
        left.append(
            f"random networks: tau {random.prediction.kendall_tau:.3f}, over {TAU_MARGIN:g} below "
            f"the retest's {random.retest.kendall_tau:.3f}"
        )
    if left:
        return Verdict.BROKEN, "after calibration " + "; ".join(left)
    told = "; ".join(_figures(g, figures) for g, figures in corrected)
    return Verdict.HOLDS_CALIBRATED, f"{'; '.join(wrong)}; after calibration {told}"


def rmspe_limit(group: GroupCheck) -> float:
    """The RMSPE that a group may have, a fraction."""
    limit = RMSPE_LIMITS.get(group.group, RMSPE_LIMITS["uniform"])
    return max(limit, RETEST_FACTOR * group.retest.rmspe)


def error_beyond_retest(figures: ErrorFigures, retest: ErrorFigures) -> float:
    """The part of an RMSPE that is the prediction's, a fraction.

    The halves of the retest differ by twice what all rounds together are off by, where noise is
    independent: half the retest's RMSPE is the networks' own.
    """
    return math.sqrt(max(0.0, figures.rmspe**2 - (retest.rmspe / 2) ** 2))


def _problems(group: GroupCheck, figures: ErrorFigures) -> Iterable[str]:
    """What of a group's figures is over its limit."""
    limit = rmspe_limit(group)
    if not figures.rmspe <= limit:
        yield f"{group.group} networks: RMSPE {figures.rmspe:.1%}, over {limit:.1%}"
    if group.group == "random" and not abs(figures.bias) <= BIAS_LIMIT:
        yield f"{group.group} networks: bias {figures.bias:+.1%}, over {BIAS_LIMIT:.1%}"


def _figures(group: GroupCheck, figures: ErrorFigures) -> str:
    return f"{group.group} networks: RMSPE {figures.rmspe:.1%}, within {rmspe_limit(group):.1%}" + (
        f", bias {figures.bias:+.1%}" if group.group == "random" else ""
    )
