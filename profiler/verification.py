"""How far a table's sums can be trusted: whole networks, measured and compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from ..lookup_tables.calibration import Calibration
from ..lookup_tables.model import LatencyModel
from ..lookup_tables.table import LookupTable, Target
from ..ops.errors import HurricaneError
from .measuring import Bench, MeasuringSettings
from .networks import (
    ErrorFigures,
    GroupCheck,
    NetworkCheck,
    WholeNetwork,
    check_networks,
    fit_line,
    held_out,
    time_networks,
)


@dataclass(frozen=True)
class Verification:
    """Whole networks against a table's sums.

    Attributes:
        table_target: what the table is of.
        measured_on: what the networks were timed on.
        groups: error figures by group, each with the networks' own retest.
        networks: one by one.
    """

    table_target: Target
    measured_on: Target
    groups: tuple[GroupCheck, ...]
    networks: tuple[NetworkCheck, ...]

    def to_dict(self, table_name: str) -> dict[str, Any]:
        """What ``hurricane verify --json`` prints."""
        return _finite(
            {
                "table": table_name,
                "table_target": str(self.table_target),
                "measured_on": str(self.measured_on),
                "groups": [asdict(g) for g in self.groups],
                "networks": [asdict(c) for c in self.networks],
            }
        )

    def fit(self, table: LookupTable) -> Calibration:
        """A linear correction from the random networks.

        Raises:
            BadRequest: fewer than three of them were measured.
        """
        drawn = [c for c in self.networks if c.group == "random" and not c.error]
        predicted = [c.predicted_ms for c in drawn]
        measured = [c.measured_ms for c in drawn]
        scale, offset = fit_line(predicted, measured)
        if scale <= 0:
            raise HurricaneError(
                "the measured networks do not get slower with their predictions; "
                "profile the table again on a quiet device"
            )
        left_out = held_out(predicted, measured).rmspe if len(drawn) > 3 else None
        return Calibration(
            self.table_target,
            scale,
            offset,
            table.select(self.table_target).sha256(),
            len(drawn),
            left_out,
            datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def text(self) -> str:
        """The figures for a terminal."""

        def line(name: str, f: ErrorFigures) -> str:
            return (
                f"  {name:<11}{f.count:>4}  {f.bias:>+7.1%}  {f.rmspe:>6.1%}  "
                f"{f.within_5:>6.0%}  {f.within_10:>6.0%}  {f.kendall_tau:>6.3f}"
            )

        lines = [
            f"Sums of the table against whole networks on {self.measured_on}",
            f"  {'':<11}{'n':>4}  {'bias':>7}  {'RMSPE':>6}  {'±5%':>6}  {'±10%':>6}  {'tau':>6}",
        ]
        for group in self.groups:
            lines += [line(group.group, group.prediction), line("  retest", group.retest)]
            if group.failed:
                lines.append(f"  {group.failed} networks of this group could not be measured")
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


def verify_table(
    bench: Bench,
    model: LatencyModel,
    networks: Sequence[WholeNetwork],
    settings: MeasuringSettings,
    on_progress: Callable[[str, float], None] | None = None,
) -> Verification:
    """Times whole networks, interleaved, and puts the model's latencies beside them."""
    times = time_networks(bench, model.backbone, networks, settings, on_progress=on_progress)
    groups, checks = check_networks(model, times)
    return Verification(model.target, bench.target, tuple(groups), tuple(checks))


def _finite(value: Any) -> Any:
    """NaN as null, for JSON."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value
