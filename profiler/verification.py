"""How far a table's sums can be trusted: end-to-end networks, timed and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ..lookup_tables.calibration import Calibration
from ..lookup_tables.cells import INTERFERENCE, THROTTLED
from ..lookup_tables.model import LatencyModel
from ..lookup_tables.table import LookupTable, Target
from ..lookup_tables.verdict import (
    MIN_RANDOM,
    AdditivityCheck,
    Cause,
    Conditions,
    ErrorFigures,
    GroupCheck,
    Verdict,
    judge,
    speed_text,
)
from ..ops.jsonfile import without_nan
from .accuracy import MIN_CALIBRATION, Fit, compare, fit_calibration
from .additivity import NetworkCheck, check_networks, check_statistics
from .controls import find_controls
from .networks import WholeNetwork, time_networks
from .protocol import TimingProtocol
from .session import TargetSession
from .target import without_gate

SLOW_FLAGS = frozenset({INTERFERENCE, THROTTLED})
"""Flags of a network that was timed while the device was slower than for the others."""


@dataclass(frozen=True)
class Verification:
    """End-to-end networks against a table's sums.

    Attributes:
        table_target: what the table is of.
        measured_on: what the networks were timed on.
        groups: error figures by group, each with its split-half difference.
        networks: one by one.
        backbone: name of their backbone.
        fit: a calibration from the random networks; None: too few, or none fits.
        statistics: error of predicted medians and percentiles of random networks, as timed.
    """

    table_target: Target
    measured_on: Target
    groups: tuple[GroupCheck, ...]
    networks: tuple[NetworkCheck, ...]
    backbone: str = ""
    fit: Fit | None = None
    statistics: Mapping[str, ErrorFigures] = field(default_factory=dict)

    @property
    def slowdowns(self) -> list[float]:
        """The device's slowdown against profiling time that each network was corrected for."""
        return [c.as_timed_ms / c.measured_ms for c in self.networks if not c.error]

    @property
    def slowdown(self) -> float:
        """The median slowdown; 1 where it is not known."""
        return float(np.median(slowdowns)) if (slowdowns := self.slowdowns) else 1.0

    @property
    def same_target(self) -> bool:
        """Whether table and networks are of the same target; the gate is in the networks."""
        return self.measured_on == without_gate(self.table_target)

    @property
    def conditions(self) -> Conditions:
        """What the networks were timed under."""
        timed = [c for c in self.networks if not c.error]
        groups = dict.fromkeys(c.group for c in self.networks)
        slowdowns = self.slowdowns or [1.0]
        slow = sum(not SLOW_FLAGS.isdisjoint(c.flags) for c in timed)
        return Conditions(
            self.same_target,
            tuple(g for g in groups if g not in {c.group for c in timed}),
            (min(slowdowns), max(slowdowns)),
            slow / max(1, len(timed)),
        )

    @property
    def check(self) -> AdditivityCheck | None:
        """The additivity check; None: no random network was asked for."""
        if not any(c.group == "random" for c in self.networks):
            return None
        return judge(self.groups, self.conditions)

    def calibration(self, table: LookupTable) -> Calibration:
        """What is kept beside the table: calibration, additivity check and figures.

        The calibration is applied where the sums are additive only with it, where they are
        additive and it lowers the error of networks held out, and where there are too few
        networks for an answer.
        """
        fit, check = self.fit, self.check
        known = Calibration(
            self.table_target,
            rows_sha256=table.select(self.table_target).sha256(),
            fitted_at=datetime.now(UTC).isoformat(timespec="seconds"),
            backbone=self.backbone,
            applied=False,
            check=check,
            groups=self.groups,
        )
        if fit is None:
            return known
        verdict = known.verdict
        return replace(
            known,
            scale=fit.scale,
            offset_ms=fit.offset_ms,
            networks=fit.fitted,
            held_out=fit.held_out,
            rmspe=None if fit.figures is None else fit.figures.rmspe,
            applied=verdict is Verdict.ADDITIVE_CALIBRATED
            or (verdict is Verdict.ADDITIVE and fit.helps)
            or (check is not None and check.cause is Cause.TOO_FEW),
        )

    def to_dict(self, table_name: str) -> dict[str, Any]:
        """What ``hurricane verify --json`` prints."""
        check = self.check
        return without_nan(
            {
                "table": table_name,
                "table_target": str(self.table_target),
                "measured_on": str(self.measured_on),
                "backbone": self.backbone,
                "verdict": None if check is None else check.verdict,
                "cause": None if check is None else check.cause,
                "reason": "" if check is None else check.reason,
                "remedy": "" if check is None else check.remedy,
                "slowdown": self.slowdown,
                "calibration": asdict(self.fit) if self.fit is not None else None,
                "groups": [{**asdict(g), "noise_floor": g.noise_floor} for g in self.groups],
                "statistics": {name: asdict(f) for name, f in self.statistics.items()},
                "networks": [asdict(c) for c in self.networks],
            }
        )

    def text(self) -> str:
        """The figures for a terminal."""

        def line(name: str, f: ErrorFigures, floor: float | None = None) -> str:
            noise = "" if floor is None else f"{floor:.1%}"
            return (
                f"  {name:<23}{f.count:>4}  {f.bias:>+6.1%}  {f.rmspe:>5.1%}  {noise:>11}  "
                f"{f.within_5:>5.0%}  {f.within_10:>5.0%}  {f.kendall_tau:>6.3f}"
            )

        lines = [
            f"Sums of the table against end-to-end networks on {self.measured_on}",
            f"  {'':<23}{'n':>4}  {'bias':>6}  {'RMSPE':>5}  noise floor  {'±5%':>5}  {'±10%':>5}"
            f"  {'tau':>6}",
        ]
        for group in self.groups:
            lines.append(line(group.group, group.prediction, group.noise_floor))
            if group.calibrated is not None:
                lines.append(line("  calibrated", group.calibrated, group.noise_floor))
            lines.append(line("  split-half difference", group.split_half))
            if group.failed:
                lines.append(f"  {group.failed} networks of this group could not be measured")
        for statistic, figures in self.statistics.items():
            lines.append(line(f"random, {statistic} as timed", figures))
        if self.slowdown != 1.0:
            group = self.groups[0].group
            timed = [c for c in self.networks if c.group == group and not c.error]
            bias = np.mean([c.predicted_ms / c.as_timed_ms - 1 for c in timed])
            lines.append(
                f"  {speed_text(self.slowdown)} (drift-corrected; {group} networks as timed: "
                f"bias {bias:+.1%})"
            )
        elif self.networks and self.same_target and self.measured_on.origin != "estimated":
            lines.append("  device speed at profiling time not known: not drift-corrected")
        told = dict.fromkeys(flag for c in self.networks for flag in c.flags)
        if flags := [flag for flag in told if flag != self.measured_on.origin]:
            lines.append(f"  flagged meanwhile: {', '.join(flags)}")
        for check in self.networks:
            if check.error:
                lines.append(f"  {check.label}: {check.error}")
            elif check.group == "given":
                lines.append(
                    f"  {check.label}: predicted {check.predicted_ms:.3f} ms, measured "
                    f"{check.measured_ms:.3f} ms (halves {check.first_ms:.3f}, "
                    f"{check.second_ms:.3f})"
                )
        return "\n".join(lines)

    def check_text(self) -> str:
        """The additivity check for a terminal, with what is to be done."""
        check = self.check
        if check is None:
            return f"additivity check: not run (--random {MIN_RANDOM} or more runs it)"
        return "\n".join([check.text(), *([check.remedy] if check.remedy else [])])


def verify_table(
    session: TargetSession,
    model: LatencyModel,
    networks: Sequence[WholeNetwork],
    protocol: TimingProtocol,
    on_progress: Callable[[str, float], None] | None = None,
) -> Verification:
    """Times end-to-end networks, interleaved, and puts the model's latencies beside them.

    Args:
        session: what to time them on.
        model: of the table, uncalibrated.
        networks: random ones, in group ``random``, also give a calibration and the
            additivity check.
        protocol: rounds, and the seed of what is drawn.
        on_progress: called with (what, share).
    """
    times = time_networks(
        session,
        model.backbone,
        networks,
        protocol,
        on_progress=on_progress,
        controls=find_controls(model, session, protocol),
    )
    groups, checks = check_networks(model, times)
    fit = _fit(model, checks, protocol.seed)
    if fit is not None:
        groups = [replace(g, calibrated=_calibrated(g.group, checks, fit)) for g in groups]
    return Verification(
        model.target,
        session.target,
        tuple(groups),
        tuple(checks),
        model.backbone.name,
        fit,
        check_statistics(model, times),
    )


def _fit(model: LatencyModel, checks: Sequence[NetworkCheck], seed: int) -> Fit | None:
    """The calibration from the random networks, if one fits that leaves no latency negative."""
    predicted, measured = _series("random", checks)
    if len(predicted) < MIN_CALIBRATION:
        return None
    fit = fit_calibration(predicted, measured, seed)
    return fit if fit is not None and fit.apply(model.bounds()[0]) > 0 else None


def _calibrated(group: str, checks: Sequence[NetworkCheck], fit: Fit) -> ErrorFigures | None:
    """Error of calibrated predictions on networks that the calibration was not fitted to."""
    if group == "random":
        return fit.figures
    predicted, measured = _series(group, checks)
    return compare(fit.apply(predicted), measured)


def _series(group: str, checks: Sequence[NetworkCheck]) -> tuple[list[float], list[float]]:
    """Predicted and measured latencies of a group, in ms."""
    good = [c for c in checks if c.group == group and not c.error]
    return [c.predicted_ms for c in good], [c.measured_ms for c in good]
