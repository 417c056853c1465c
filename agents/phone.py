"""What a phone over adb tells of itself, and what its backends need here."""

from __future__ import annotations

import re
from typing import Optional

from .backends.base import Availability, one_line
from .commands import COMMAND_S, PROGRAMS, CommandRunner
from .conditions import BUSY, LOAD, STEAL, THROTTLING, Conditions
from .errors import Busy
from .sandbox import Needs

PHONE_NEEDS = Needs(read=PROGRAMS, scratch_bytes=2**30, processes=True, network=True)
"""The client of adb, a folder for files on their way, and adb's server."""

_SIMULATED = "ro.hurricane.simulated"  # a property that stand-ins for phones set
_HOTTEST_C = 150.0
_LOWEST_BATTERY = 0.2  # share of its charge; below, many phones slow down to save power
_CONDITIONS = "cat /sys/class/thermal/thermal_zone*/temp; dumpsys thermalservice"
_THERMAL_STATUS = re.compile(r"Thermal Status: (\d)")  # 0: not throttled


class Phone:
    """A phone's own account of itself.

    Args:
        runner: of commands on it.
    """

    def __init__(self, runner: CommandRunner) -> None:
        self._runner = runner
        self._throttled, self._events = False, 0

    def name(self) -> str:
        """What it calls itself; empty: it does not tell."""
        return one_line(self._ask("getprop ro.product.model"), 80)

    def availability(self) -> Availability:
        """Simulated where the phone itself says that its programs are stand-ins."""
        stands_in = self._ask(f"getprop {_SIMULATED}").strip() == "1"
        return Availability.SIMULATED if stands_in else Availability.AVAILABLE

    def check_battery(self) -> None:
        """Raises Busy: the battery is too low for the phone to run at its full speed."""
        charge = _charge(self._ask("dumpsys battery"))
        if charge is not None and charge < _LOWEST_BATTERY:
            raise Busy(
                f"the phone's battery is at {charge:.0%}, where phones save power: charge it to "
                f"{_LOWEST_BATTERY:.0%} or more"
            )

    def conditions(self) -> Conditions:
        """The hottest of its sensors, and whether Android throttles it; no other is watched.

        Android tells how much it throttles now, and keeps no count: each time between two readings
        of which one finds it throttled counts as one event, for it may have been at any moment.
        """
        lines = [line.strip() for line in self._ask(_CONDITIONS).splitlines()]
        degrees = [int(line) / 1e3 for line in lines if line.isascii() and line.isdigit()]
        possible = [value for value in degrees if 0 < value < _HOTTEST_C]
        status = next(filter(None, map(_THERMAL_STATUS.fullmatch, lines)), None)
        before, self._throttled = self._throttled, status is not None and status[1] != "0"
        self._events += before or self._throttled
        unwatched = (LOAD, BUSY, STEAL) if status else (LOAD, BUSY, STEAL, THROTTLING)
        return Conditions(
            temperature_c=max(possible, default=0.0),
            throttle_events=self._events,
            unwatched=unwatched,
        )

    def _ask(self, line: str) -> str:
        """What a line of shell prints; what fails in it prints nothing."""
        return self._runner.run(("sh", "-c", f"{{ {line}; }} 2>/dev/null; true"), COMMAND_S).text


def _charge(battery: str) -> Optional[float]:
    """The share of its charge that a battery has, from what ``dumpsys battery`` prints."""
    found = {
        name: int(value)
        for name, value in re.findall(r"^\s*(level|scale): (\d{1,6})$", battery, re.MULTILINE)
    }
    scale = found.get("scale", 0)
    return found["level"] / scale if "level" in found and scale else None
