"""The additivity check: do a table's sums predict end-to-end networks? With its three answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

SPLIT_HALF_FACTOR = 2.0
"""Difference of two halves of the rounds as a multiple of the error of all rounds together.

Each half has twice the variance of the whole and their difference the sum of both: 2 where noise
is independent. Simulated with the estimator of latencies and 24 rounds: 2.04."""

MIN_RANDOM = 10
"""Random networks that an answer takes."""

RMSPE_LIMITS = {"random": 0.05, "uniform": 0.10}
"""RMSPE that a group may have. Operators' errors average out in random networks; in networks of
one operator they add up, so that these, and networks that were given, may have the looser one."""

FLOOR_FACTOR = 3.0
"""Where a group's noise floor times this is more than its limit, that is its limit."""

BIAS_LIMIT = 0.05
"""Bias that the random networks may have, either way."""

TAU_MARGIN = 0.1
"""How far Kendall's tau of calibrated sums may lie below that between the halves."""

NOISE_LIMIT = 0.03
"""Noise floor of the random networks beyond which there is no answer: they would be allowed an
RMSPE of 9%, nearly what networks of one operator are."""

DRIFT_LIMIT = 0.15
"""Change of the device's speed up to which correcting for it was shown to work: a factor of 1.15
either way, since profiling or between the batches that networks were timed in."""

INTERFERENCE_LIMIT = 0.25
"""Share of the networks that may have been timed under interference."""

FAILED_LIMIT = 0.20
"""Share of a group's networks that may have failed: what is left is no fair sample beyond it."""


class Verdict(StrEnum):
    """Whether operators' latencies add up to those of networks. Former words are read too."""

    ADDITIVE = "additive"
    ADDITIVE_CALIBRATED = "additive-calibrated"
    NOT_ADDITIVE = "not-additive"
    INCONCLUSIVE = "inconclusive"

    @classmethod
    def _missing_(cls, value: object) -> Verdict | None:
        return _FORMER.get(value) if isinstance(value, str) else None

    @property
    def words(self) -> str:
        """How the additivity check ended."""
        return _WORDS[self]

    @property
    def verified(self) -> bool:
        """Whether predictions were checked and found good, after calibration if need be."""
        return self in (Verdict.ADDITIVE, Verdict.ADDITIVE_CALIBRATED)


_WORDS = {
    Verdict.ADDITIVE: "passed",
    Verdict.ADDITIVE_CALIBRATED: "passed after calibration",
    Verdict.NOT_ADDITIVE: "failed",
    Verdict.INCONCLUSIVE: "inconclusive",
}
_FORMER = {
    "holds": Verdict.ADDITIVE,
    "holds-calibrated": Verdict.ADDITIVE_CALIBRATED,
    "broken": Verdict.NOT_ADDITIVE,
    "undecided": Verdict.INCONCLUSIVE,
}
_EXIT_STATUS = {Verdict.NOT_ADDITIVE: 1, Verdict.INCONCLUSIVE: 3}


class Cause(StrEnum):
    """Why an additivity check did not pass."""

    ERROR = "error"
    OTHER_TARGET = "other-target"
    FAILED = "failed-networks"
    TOO_FEW = "too-few-networks"
    DRIFT = "drift"
    INTERFERENCE = "interference"
    NOISE = "noise"
    INTERVAL = "wide-interval"

    @property
    def remedy(self) -> str:
        """What to do about it, as an imperative."""
        return _REMEDIES[self]


_REMEDIES = {
    Cause.ERROR: "profile again on a quiet device, with more rounds, and verify again; where that "
    "changes nothing, latencies do not add up on this target",
    Cause.OTHER_TARGET: "verify on the table's own target: name its agent with --agent",
    Cause.FAILED: "mend what the failed networks' errors name, and verify again",
    Cause.TOO_FEW: f"time more networks: --random {2 * MIN_RANDOM}",
    Cause.DRIFT: "verify while the device is as fast as at profiling time and stays so "
    "(governor, temperature, other load), or profile it again",
    Cause.INTERFERENCE: "stop other work on the device, let it cool, and verify again",
    Cause.NOISE: "stop other work on the device, or time more --rounds",
    Cause.INTERVAL: f"time more networks: --random {6 * MIN_RANDOM} or more",
}


@dataclass(frozen=True)
class AdditivityCheck:
    """The answer of an additivity check.

    Attributes:
        verdict: the answer.
        reason: group, figure and limit that decided, in words.
        cause: why it did not pass; None where it did, or an earlier version kept none.
    """

    verdict: Verdict
    reason: str = ""
    cause: Cause | None = None

    @property
    def remedy(self) -> str:
        """What to do about it; empty where nothing is to be done."""
        return "" if self.cause is None else self.cause.remedy

    @property
    def exit_status(self) -> int:
        """0 additive, 1 not additive, 3 inconclusive."""
        return _EXIT_STATUS.get(self.verdict, 0)

    def text(self) -> str:
        """The answer in one line."""
        reason = f" ({self.reason})" if self.reason else ""
        return f"additivity check: {self.verdict.words}{reason}"


@dataclass(frozen=True)
class ErrorFigures:
    """How far one series of latencies is from another; fractions, not percent.

    Attributes:
        count: networks compared.
        bias: mean of a/b - 1.
        rmspe: root of the mean of (a/b - 1)².
        within_5, within_10: share with |a/b - 1| at most 0.05, 0.10.
        kendall_tau: rank correlation, tau-b; NaN for fewer than two.
        rmspe_low, rmspe_high, bias_low, bias_high: ends of the 95% intervals, of what the networks
            are a sample of; NaN where they are not known.
    """

    count: int
    bias: float
    rmspe: float
    within_5: float
    within_10: float
    kendall_tau: float
    rmspe_low: float = math.nan
    rmspe_high: float = math.nan
    bias_low: float = math.nan
    bias_high: float = math.nan


@dataclass(frozen=True)
class GroupCheck:
    """Prediction error of a group of networks, with the noise of its latencies beside it.

    Attributes:
        group: ``random``, ``uniform`` or ``given``.
        prediction: of the table's sums.
        split_half: first half of the rounds against the second.
        failed: networks that could not be timed.
        calibrated: of calibrated sums, on networks that the calibration was not fitted to; None
            where there is none.
    """

    group: str
    prediction: ErrorFigures
    split_half: ErrorFigures
    failed: int
    calibrated: ErrorFigures | None = None

    @property
    def noise_floor(self) -> float:
        """RMSPE that a perfect prediction would show, a fraction."""
        return noise_floor(self.split_half.rmspe)

    @property
    def rmspe_limit(self) -> float:
        """The RMSPE that the group may have, a fraction."""
        limit = RMSPE_LIMITS.get(self.group, RMSPE_LIMITS["uniform"])
        return max(limit, FLOOR_FACTOR * self.noise_floor)


@dataclass(frozen=True)
class Conditions:
    """What end-to-end networks were timed under.

    Attributes:
        same_target: whether on the table's target.
        lost_groups: groups of which every network failed.
        slowdowns: lowest and highest slowdown of the device, against profiling time, that
            networks were corrected for; 1 where it is not known.
        disturbed: share of the networks that were timed under interference.
    """

    same_target: bool = True
    lost_groups: tuple[str, ...] = ()
    slowdowns: tuple[float, float] = (1.0, 1.0)
    disturbed: float = 0.0


def noise_floor(split_half: float) -> float:
    """The error of latencies by all rounds together, a fraction.

    Args:
        split_half: RMSPE of the first half of the rounds against the second.
    """
    return split_half / SPLIT_HALF_FACTOR


def error_beyond_noise(figures: ErrorFigures, floor: float) -> float:
    """The part of an RMSPE that is the prediction's, not the latencies' noise; a fraction."""
    return math.sqrt(max(0.0, figures.rmspe**2 - floor**2))


def judge(groups: Sequence[GroupCheck], conditions: Conditions | None = None) -> AdditivityCheck:
    """The answer of the additivity check.

    Sums are additive where every group's RMSPE is within its limit and the random networks' bias
    is; they are additive after calibration where calibrated sums are, on networks that were held
    out, and order the random networks about as well as the halves of the rounds order each other.
    Random networks are a sample: their 95% interval must lie within the limit for a pass and
    beyond it for a failure. Uniform and given networks are all there are, and judged by the
    figure itself.

    Args:
        groups: of networks, in order.
        conditions: what they were timed under; None: nothing is to be said of it.
    """
    random = next((g for g in groups if g.group == "random"), None)
    if (found := _no_answer(groups, random, conditions or Conditions())) is not None:
        return found
    assert random is not None  # or there are too few
    plain = [test for g in groups for test in _tests(g, g.prediction)]
    if all(test.passed for test in plain):
        return AdditivityCheck(Verdict.ADDITIVE, _told(plain))
    wrong = [test for test in plain if not test.passed]
    line = [t for g in groups if g.calibrated is not None for t in _tests(g, g.calibrated)]
    line += _order(random)
    fits = random.calibrated is not None
    if fits and all(test.passed for test in line):
        reason = f"{_told(wrong)}; after calibration {_told(line)}"
        return AdditivityCheck(Verdict.ADDITIVE_CALIBRATED, reason)
    rest = [test for test in line if not test.passed]
    after = f"after calibration {_told(rest)}" if fits else "no calibration fits"
    if any(test.failed for test in plain) and (not fits or any(test.failed for test in rest)):
        failed = f"{_told(wrong)}; {after}"
        return AdditivityCheck(Verdict.NOT_ADDITIVE, failed, Cause.ERROR)
    return AdditivityCheck(Verdict.INCONCLUSIVE, f"{_told(wrong)}; {after}", Cause.INTERVAL)


def speed_text(slowdown: float) -> str:
    """A device's speed in words, from its slowdown against profiling time."""
    word = "slower" if slowdown >= 1 else "faster"
    return f"device {abs(slowdown - 1):.1%} {word} than at profiling time"


def _no_answer(
    groups: Sequence[GroupCheck], random: GroupCheck | None, conditions: Conditions
) -> AdditivityCheck | None:
    """Why nothing can be said of a table, whatever the errors are; None where it can."""

    def inconclusive(cause: Cause, reason: str) -> AdditivityCheck:
        return AdditivityCheck(Verdict.INCONCLUSIVE, reason, cause)

    if not conditions.same_target:
        return inconclusive(Cause.OTHER_TARGET, "timed on another target than the table's")
    if conditions.lost_groups:
        words = " and ".join(conditions.lost_groups)
        return inconclusive(Cause.FAILED, f"all {words} networks failed")
    for group in groups:
        count = group.prediction.count + group.failed
        if group.failed > FAILED_LIMIT * count:
            words = f"{group.failed} of {count} {group.group} networks failed"
            return inconclusive(Cause.FAILED, f"{words}, more than {FAILED_LIMIT:.0%}")
    drawn = 0 if random is None else random.prediction.count
    if random is None or drawn < MIN_RANDOM:
        return inconclusive(Cause.TOO_FEW, f"{drawn} random networks, {MIN_RANDOM} are needed")
    low, high = conditions.slowdowns
    limit = f"more than the {DRIFT_LIMIT:.0%} that can be corrected"
    furthest = max(low, high, key=lambda slowdown: abs(math.log(slowdown)))
    if abs(math.log(furthest)) > math.log(1 + DRIFT_LIMIT):
        return inconclusive(Cause.DRIFT, f"{speed_text(furthest)}, {limit}")
    if high > low * (1 + DRIFT_LIMIT):
        words = f"the device's speed changed by {high / low - 1:.1%} while networks were timed"
        return inconclusive(Cause.DRIFT, f"{words}, {limit}")
    if conditions.disturbed > INTERFERENCE_LIMIT:
        words = f"{conditions.disturbed:.0%} of the networks were timed under interference"
        return inconclusive(Cause.INTERFERENCE, f"{words}, more than {INTERFERENCE_LIMIT:.0%}")
    if not random.noise_floor <= NOISE_LIMIT:
        words = f"random networks: noise floor {random.noise_floor:.1%} > {NOISE_LIMIT:.1%}"
        return inconclusive(Cause.NOISE, words)
    return None


@dataclass(frozen=True)
class _Test:
    """A figure of a group against its limit; neither passed nor failed where both may be.

    Attributes:
        words: figure and limit.
    """

    passed: bool
    failed: bool
    group: str
    words: str


def _told(tests: Iterable[_Test]) -> str:
    return "; ".join(f"{test.group} networks: {test.words}" for test in tests)


def _tests(group: GroupCheck, figures: ErrorFigures) -> Iterable[_Test]:
    """A group's figures against their limits; a bias within its limit is not worth a word."""
    f, name, sample = figures, group.group, group.group == "random"
    interval = (f.rmspe_low, f.rmspe_high) if sample else None
    floor = f", noise floor {group.noise_floor:.1%}"
    limit = group.rmspe_limit
    yield _test(name, f"RMSPE {f.rmspe:.1%}", f.rmspe, interval, limit, floor)
    if sample:
        interval = (f.bias_low, f.bias_high)
        found = _test(name, f"bias {f.bias:+.1%}", f.bias, interval, BIAS_LIMIT)
        if not found.passed:
            yield found


def _test(
    group: str,
    words: str,
    value: float,
    interval: tuple[float, float] | None,
    limit: float,
    more: str = "",
) -> _Test:
    """A figure against its limit, either way.

    Args:
        group, words: name of the group; the figure in words.
        value: the figure.
        interval: its 95% interval; None or NaN: the figure itself decides.
        limit: that its magnitude may have.
        more: further words about it.
    """
    low, high = interval or (value, value)
    if math.isnan(low + high):
        low = high = value
    least, most = max(low, -high, 0.0), max(-low, high)
    if most <= limit:
        return _Test(True, False, group, f"{words} ≤ {limit:.1%}{more}")
    if not least <= limit or math.isnan(value):
        return _Test(False, True, group, f"{words} > {limit:.1%}{more}")
    words = f"{words} (95%: {low:.1%} to {high:.1%}), limit {limit:.1%}"
    return _Test(False, False, group, f"{words}{more}")


def _order(random: GroupCheck) -> list[_Test]:
    """Whether the sums' order is worse than that between the halves; a line changes no order."""
    tau, between = random.prediction.kendall_tau, random.split_half.kendall_tau
    if not between - tau > TAU_MARGIN:  # NaN is not over
        return []
    words = f"tau {tau:.3f}, over {TAU_MARGIN:g} below the {between:.3f} between the halves"
    return [_Test(False, True, "random", words)]
