"""What a phone over adb tells of itself, and what its backends need here."""

from __future__ import annotations

from .backends.base import one_line
from .commands import COMMAND_S, PROGRAMS, CommandRunner
from .conditions import BUSY, LOAD, STEAL, THROTTLING, Conditions
from .sandbox import Needs

PHONE_NEEDS = Needs(read=PROGRAMS, scratch_bytes=2**30, processes=True, network=True)
"""The client of adb, a folder for files on their way, and adb's server."""

_HOTTEST_C = 150.0


def phone_name(runner: CommandRunner) -> str:
    """What a phone calls itself; empty: it does not tell."""
    output = runner.run(("getprop", "ro.product.model"), COMMAND_S)
    return one_line(output.text, 80) if output.status == 0 else ""


def phone_conditions(runner: CommandRunner) -> Conditions:
    """The hottest of a phone's sensors; what else it does is not watched."""
    output = runner.run(
        ("sh", "-c", "cat /sys/class/thermal/thermal_zone*/temp 2>/dev/null"), COMMAND_S
    )
    degrees = [int(word) / 1e3 for word in output.text.split() if word.isdigit()]
    possible = [value for value in degrees if 0 < value < _HOTTEST_C]
    return Conditions(
        temperature_c=max(possible, default=0.0), unwatched=(LOAD, BUSY, STEAL, THROTTLING)
    )
