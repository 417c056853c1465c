"""What a phone over adb tells of itself."""

from __future__ import annotations

from .backends.base import one_line
from .commands import CommandRunner
from .conditions import BUSY, LOAD, STEAL, THROTTLING, Conditions

_SHORT_S = 30.0
_HOTTEST_C = 150.0


def phone_name(runner: CommandRunner) -> str:
    """What a phone calls itself; empty: it does not tell."""
    output = runner.run(("getprop", "ro.product.model"), _SHORT_S)
    return one_line(output.text, 80) if output.status == 0 else ""


def phone_conditions(runner: CommandRunner) -> Conditions:
    """The hottest of a phone's sensors; what else it does is not watched."""
    output = runner.run(
        ("sh", "-c", "cat /sys/class/thermal/thermal_zone*/temp 2>/dev/null"), _SHORT_S
    )
    degrees = [int(word) / 1e3 for word in output.text.split() if word.isdigit()]
    possible = [value for value in degrees if 0 < value < _HOTTEST_C]
    return Conditions(
        temperature_c=max(possible, default=0.0), unwatched=(LOAD, BUSY, STEAL, THROTTLING)
    )
