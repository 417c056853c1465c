"""How far a table's sums can be trusted: whole networks, measured and compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ..lookup_tables.calibration import Calibration, without_nan
from ..lookup_tables.model import LatencyModel
from ..lookup_tables.table import LookupTable, Target
from ..lookup_tables.verdict import (
    MIN_RANDOM,
    ErrorFigures,
    GroupCheck,
    Verdict,
    judge,
)
from ..ops.errors import HurricaneError
from .measuring import Bench, MeasuringSettings, without_gate
from .networks import (
    MIN_CALIBRATION,
    Fit,
    NetworkCheck,
    WholeNetwork,
    check_networks,
    compare,
    fit_calibration,
    time_networks,
)
from .witnesses import find_witnesses


@dataclass(frozen=True)
class Verification:
    """Whole networks against a table's sums.

    Attributes:
        table_target: what the table is of.
        measured_on: what the networks were timed on.
        groups: error figures by group, each with the networks' own retest.
        networks: one by one.
        backbone: name of their backbone.
        fit: a calibration from the random networks; None: too few, or none fits.
    """

    table_target: Target
    measured_on: Target
    groups: tuple[GroupCheck, ...]
    networks: tuple[NetworkCheck, ...]
    backbone: str = ""
    fit: Fit | None = None

    @property
    def drawn(self) -> int:
        """Random networks that were measured."""
        return sum(c.group == "random" and not c.error for c in self.networks)

    @property
    def level(self) -> float:
        """How slow the device was, as a multiple of what it was for the table; divided out."""
        levels = [c.as_timed_ms / c.measured_ms for c in self.networks if not c.error]
        return float(np.median(levels)) if levels else 1.0

    @property
    def same_target(self) -> bool:
        """Whether table and networks are of the same target; the gate is in the networks."""
        return self.measured_on == without_gate(self.table_target)

    @property
    def judgement(self) -> tuple[Verdict, str] | None:
        """The verdict on the table, and why; None: too few random networks, or elsewhere."""
        return judge(self.groups) if self.same_target else None

    def calibration(self, table: LookupTable) -> Calibration:
        """What is kept beside the table: calibration, verdict and figures.

        The calibration is applied where the sums hold only with it, where they hold and it
        lowers the error of networks held out, and where there are too few networks for a
        verdict.

        Raises:
            HurricaneError: there are too few random networks for a verdict, and no calibration
                fits them.
        """
        fit, judgement = self.fit, self.judgement
        if fit is None and judgement is None:
            raise HurricaneError(
                f"no calibration fits the {self.drawn} random networks that were measured; "
                "profile the table again on a quiet device"
            )
        verdict, reason = judgement or (None, "")
        known = Calibration(
            self.table_target,
            rows_sha256=table.select(self.table_target).sha256(),
            fitted_at=datetime.now(UTC).isoformat(timespec="seconds"),
            backbone=self.backbone,
            applied=False,
            verdict=verdict,
            reason=reason,
            groups=self.groups,
        )
        if fit is None:
            return known
        return replace(
            known,
            scale=fit.scale,
            offset_ms=fit.offset_ms,
            networks=fit.fitted,
            held_out=fit.held_out,
            rmspe=None if fit.figures is None else fit.figures.rmspe,
            applied=verdict in (None, Verdict.HOLDS_CALIBRATED)
            or (verdict is Verdict.HOLDS and fit.helps),
        )

    def to_dict(self, table_name: str) -> dict[str, Any]:
        """What ``hurricane verify --json`` prints."""
        verdict, reason = self.judgement or (None, "")
        return without_nan(
            {
                "table": table_name,
                "table_target": str(self.table_target),
                "measured_on": str(self.measured_on),
                "backbone": self.backbone,
                "verdict": verdict,
                "reason": reason,
                "level": self.level,
                "calibration": asdict(self.fit) if self.fit is not None else None,
                "groups": [asdict(g) for g in self.groups],
                "networks": [asdict(c) for c in self.networks],
            }
        )

    def text(self) -> str:
        """The figures for a terminal."""

        def line(name: str, f: ErrorFigures) -> str:
            return (
                f"  {name:<13}{f.count:>4}  {f.bias:>+7.1%}  {f.rmspe:>6.1%}  "
                f"{f.within_5:>6.0%}  {f.within_10:>6.0%}  {f.kendall_tau:>6.3f}"
            )

        lines = [
            f"Sums of the table against whole networks on {self.measured_on}",
            f"  {'':<13}{'n':>4}  {'bias':>7}  {'RMSPE':>6}  {'±5%':>6}  {'±10%':>6}  {'tau':>6}",
        ]
        for group in self.groups:
            lines.append(line(group.group, group.prediction))
            if group.calibrated is not None:
                lines.append(line("  calibrated", group.calibrated))
            lines.append(line("  retest", group.retest))
            if group.failed:
                lines.append(f"  {group.failed} networks of this group could not be measured")
        if self.level != 1.0:
            group = self.groups[0].group
            timed = [c for c in self.networks if c.group == group and not c.error]
            bias = np.mean([c.predicted_ms / c.as_timed_ms - 1 for c in timed])
            lines.append(
                f"  the device took {self.level:.3f} times as long as when the table was made: "
                f"divided out ({group} networks as timed: bias {bias:+.1%})"
            )
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

    def verdict_text(self, calibration: Calibration) -> str:
        """Calibration and verdict for a terminal."""
        lines = [f"calibration: {calibration.text()}"]
        if calibration.verdict is None:
            return "\n".join([*lines, f"no verdict: --random {MIN_RANDOM} or more gives one"])
        lines.append(f"verdict: {calibration.verdict.words} ({calibration.reason})")
        if calibration.verdict.advice:
            lines.append(calibration.verdict.advice)
        return "\n".join(lines)


def verify_table(
    bench: Bench,
    model: LatencyModel,
    networks: Sequence[WholeNetwork],
    settings: MeasuringSettings,
    on_progress: Callable[[str, float], None] | None = None,
) -> Verification:
    """Times whole networks, interleaved, and puts the model's latencies beside them.

    Args:
        bench: what to time them on.
        model: of the table, uncalibrated.
        networks: random ones, in group ``random``, also give a calibration and a verdict.
        settings: rounds, and the seed of what is drawn.
        on_progress: called with (what, share).
    """
    times = time_networks(
        bench,
        model.backbone,
        networks,
        settings,
        on_progress=on_progress,
        witnesses=find_witnesses(model, bench),
    )
    groups, checks = check_networks(model, times)
    fit = _fit(model, checks, settings.seed)
    if fit is not None:
        groups = [replace(g, calibrated=_calibrated(g.group, checks, fit)) for g in groups]
    return Verification(
        model.target,
        bench.target,
        tuple(groups),
        tuple(checks),
        model.backbone.name,
        fit,
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
