"""What the machine was like around a measurement: temperature, clock, load, steal, throttling.

Everything is read from /proc and /sys; what a machine does not tell is 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

_THERMAL = Path("/sys/class/thermal")
_HWMON = Path("/sys/class/hwmon")
_CPU = Path("/sys/devices/system/cpu")
_PROC = Path("/proc")
# Sensors that speak of the processor; where none of them is there, the hottest zone stands in.
_CPU_SENSORS = ("cpu", "soc", "pkg", "core", "coretemp", "k10temp", "x86_pkg_temp")


@dataclass(frozen=True)
class Conditions:
    """Facts at one moment; 0 means that the machine does not tell.

    Args:
        temperature_c: of the processor, in degrees Celsius.
        frequency_mhz: mean over the cores that the process may use.
        load_1m: load average of the last minute.
        steal_share: share of processor time that a hypervisor gave to others, since boot or
            (see `since`) since an earlier moment.
        throttle_events: thermal throttling events since boot.
        ticks: all and stolen processor ticks since boot, to take differences of.
    """

    temperature_c: float = 0.0
    frequency_mhz: float = 0.0
    load_1m: float = 0.0
    steal_share: float = 0.0
    throttle_events: int = 0
    ticks: tuple[int, int] = (0, 0)


def read_conditions() -> Conditions:
    """The machine's conditions now."""
    total, stolen = _ticks()
    return Conditions(
        temperature_c=_temperature_c(),
        frequency_mhz=_frequency_mhz(),
        load_1m=_load_1m(),
        steal_share=stolen / total if total else 0.0,
        throttle_events=_throttle_events(),
        ticks=(total, stolen),
    )


def since(before: Conditions, after: Conditions) -> Conditions:
    """`after`, with the steal share of the time since `before` in place of that since boot."""
    total = after.ticks[0] - before.ticks[0]
    if total <= 0:
        return after
    return replace(after, steal_share=(after.ticks[1] - before.ticks[1]) / total)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _read_number(path: Path) -> float:
    try:
        return float(_read(path))
    except ValueError:
        return 0.0


def _sensors() -> Iterator[tuple[str, float]]:
    for zone in sorted(_THERMAL.glob("thermal_zone*")):
        yield _read(zone / "type").lower(), _read_number(zone / "temp") / 1e3
    for chip in sorted(_HWMON.glob("hwmon*")):
        name = _read(chip / "name").lower()
        for sensor in sorted(chip.glob("temp*_input")):
            yield name, _read_number(sensor) / 1e3


def _temperature_c() -> float:
    # Unconnected sensors read absurd values (-274, 0, 255).
    readings = [(name, value) for name, value in _sensors() if 0 < value < 150]
    of_cpu = [value for name, value in readings if any(word in name for word in _CPU_SENSORS)]
    return max(of_cpu or [value for _, value in readings], default=0.0)


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _frequency_mhz() -> float:
    cores = _cores()
    values = [
        _read_number(_CPU / f"cpu{core}" / "cpufreq" / "scaling_cur_freq") / 1e3 for core in cores
    ]
    values = [value for value in values if value > 0]
    if not values:
        listed: dict[int, float] = {}
        core = -1
        for line in _read(_PROC / "cpuinfo").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "processor":
                core = int(value)
            elif key.strip() == "cpu MHz":
                listed[core] = float(value)
        values = [listed[core] for core in cores if core in listed]
    return sum(values) / len(values) if values else 0.0


def _load_1m() -> float:
    words = _read(_PROC / "loadavg").split()
    return float(words[0]) if words else 0.0


def _ticks() -> tuple[int, int]:
    words = _read(_PROC / "stat").split("\n", 1)[0].split()
    if len(words) < 9 or words[0] != "cpu":
        return 0, 0
    # user nice system idle iowait irq softirq steal; guest time is already part of user.
    ticks = [int(word) for word in words[1:9]]
    return sum(ticks), ticks[7]


def _throttle_events() -> int:
    counts = [_read_number(path) for path in _CPU.glob("cpu*/thermal_throttle/core_throttle_count")]
    return int(sum(counts))
