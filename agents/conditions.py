"""What the machine was like around a measurement: temperature, clock, load, others, throttling.

Everything is read from /proc and /sys, and speaks of the cores that this process is pinned to
where the kernel tells them apart; what a machine does not tell is 0 or empty, and stands in
`Conditions.unwatched` where 0 could also be what was read. One reading takes a fraction of a
millisecond, for it is made before and after every request.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

_THERMAL = Path("/sys/class/thermal")
_HWMON = Path("/sys/class/hwmon")
_CPU = Path("/sys/devices/system/cpu")
_PROC = Path("/proc")
# Sensors that speak of the processor; where none of them is there, the hottest zone stands in.
_CPU_SENSORS = ("cpu", "soc", "pkg", "core", "coretemp", "k10temp", "x86_pkg_temp")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
# The kernel counts in ticks of 10 ms: in less time than this, one of them is too much of a share.
_SHORTEST_S = 0.3

LOAD, BUSY, STEAL, THROTTLING = "load", "busy", "steal", "throttling"
"""What `Conditions.unwatched` may name."""

STEAL_LIMIT, BUSY_LIMIT = 0.05, 0.10
"""A hypervisor, or other processes, that take more than these shares of the cores spoil timings."""


@dataclass(frozen=True)
class Conditions:
    """Facts at one moment; 0 or empty means that the machine does not tell.

    Args:
        temperature_c: of the processor, in degrees Celsius.
        frequency_mhz: mean over the cores in use: those that the process is pinned to.
        load_1m: load average of the last minute, of the whole machine.
        steal_share: share of the time of the cores in use that a hypervisor gave to other
            machines, since boot or (see `since`) since an earlier moment.
        throttle_events: thermal throttling events of the cores in use since boot.
        governor: what sets the clock of the cores in use (``performance``, ``schedutil`` …);
            several with commas.
        busy_share: share of the time of the cores in use that went to anything but this process,
            idling and other machines; only `since` an earlier moment.
        ticks: the cores in use as a bit mask, and their ticks since boot: all, idle, stolen, and
            those of this process; to take differences of.
        unwatched: what could not be watched, so that 0 says nothing of it: ``load``, ``busy``,
            ``steal``, ``throttling``. A device that has nothing of the kind names nothing.
    """

    temperature_c: float = 0.0
    frequency_mhz: float = 0.0
    load_1m: float = 0.0
    steal_share: float = 0.0
    throttle_events: int = 0
    governor: str = ""
    busy_share: float = 0.0
    ticks: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    unwatched: tuple[str, ...] = ()

    @property
    def interference_unwatched(self) -> bool:
        """Whether it is unknown what other processes or a hypervisor took."""
        return BUSY in self.unwatched or STEAL in self.unwatched


def read_conditions(children: bool = False) -> Conditions:
    """The machine's conditions now.

    Args:
        children: what child processes took that have ended counts as this process's own.
    """
    cores = _cores()
    ticks = _ticks(cores, children)
    _, total, _, stolen, _ = ticks
    load_1m, events = _load_1m(), _throttle_events(cores)
    known = {LOAD: load_1m is not None, BUSY: total > 0, STEAL: total > 0}
    known[THROTTLING] = events is not None
    return Conditions(
        temperature_c=_temperature_c(),
        frequency_mhz=_frequency_mhz(cores),
        load_1m=load_1m or 0.0,
        steal_share=stolen / total if total else 0.0,
        throttle_events=events or 0,
        governor=_governor(cores),
        ticks=ticks,
        unwatched=tuple(name for name, there in known.items() if not there),
    )


def since(before: Conditions, after: Conditions) -> Conditions:
    """`after`, with the shares of the time since `before` in place of those since boot.

    The kernel counts in ticks of 10 ms, so shares are good to a few hundredths in a second. In
    less than 0.3 s they would be made of single ticks, and are left 0. They are unwatched where
    the cores in use changed in between, or where the kernel's counters stand still: less than
    this process took.

    Returns:
        With what was unwatched at either moment.
    """
    unwatched = dict.fromkeys((*before.unwatched, *after.unwatched))
    cores = after.ticks[0]
    if not cores:
        return replace(after, unwatched=tuple(unwatched))
    total, idle, stolen, own = (a - b for a, b in zip(after.ticks[1:], before.ticks[1:]))
    shortest = _SHORTEST_S * _TICKS_A_SECOND * bin(cores).count("1")
    if cores != before.ticks[0] or total < shortest:
        if cores != before.ticks[0] or own >= shortest:
            unwatched.update(dict.fromkeys((BUSY, STEAL)))
        return replace(after, steal_share=0.0, busy_share=0.0, unwatched=tuple(unwatched))
    others = total - idle - stolen - own
    return replace(
        after,
        steal_share=max(0, stolen) / total,
        busy_share=max(0, others) / total,
        unwatched=tuple(unwatched),
    )


def read_text(path: Path) -> str:
    """What stands in a file of the kernel; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _read_number(path: Path) -> float:
    return _number(read_text(path))


@functools.cache
def _sensors(thermal: Path, hwmon: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Files of the processor's sensors and of the others, in thousandths of a degree Celsius.

    Looked for once: a machine may have many, and some are slow to read.
    """
    found = [(zone / "type", zone / "temp") for zone in sorted(thermal.glob("thermal_zone*"))]
    for chip in sorted(hwmon.glob("hwmon*")):
        found += [(chip / "name", sensor) for sensor in sorted(chip.glob("temp*_input"))]
    of_cpu = [any(word in read_text(name).lower() for word in _CPU_SENSORS) for name, _ in found]
    return (
        tuple(file for (_, file), cpu in zip(found, of_cpu) if cpu),
        tuple(file for (_, file), cpu in zip(found, of_cpu) if not cpu),
    )


def _temperature_c() -> float:
    for files in _sensors(_THERMAL, _HWMON):
        readings = [_read_number(file) / 1e3 for file in files]
        # Unconnected sensors read absurd values (-274, 0, 255).
        readings = [value for value in readings if 0 < value < 150]
        if readings:
            return max(readings)
    return 0.0


def _cores() -> list[int]:
    """The cores in use: those this thread may run on, and those that others are pinned to.

    A runtime with several threads pins each to a core of its own.
    """
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    cores = set(os.sched_getaffinity(0))
    with contextlib.suppress(OSError):
        for thread in os.listdir(_PROC / "self" / "task"):
            with contextlib.suppress(OSError):  # it ended
                own = os.sched_getaffinity(int(thread))
                cores |= own if len(own) == 1 else set()
    return sorted(cores)


def _cpufreq(cores: Collection[int], name: str) -> Iterator[str]:
    texts = (read_text(_CPU / f"cpu{core}" / "cpufreq" / name) for core in cores)
    return (text for text in texts if text)


def _governor(cores: Collection[int]) -> str:
    return ",".join(sorted(set(_cpufreq(cores, "scaling_governor"))))


def _frequency_mhz(cores: Collection[int]) -> float:
    values = [_number(text) / 1e3 for text in _cpufreq(cores, "scaling_cur_freq")]
    values = [value for value in values if value > 0]
    if not values:
        listed: dict[int, float] = {}
        core = -1
        for line in read_text(_PROC / "cpuinfo").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "processor":
                core = int(value)
            elif key.strip() == "cpu MHz":
                listed[core] = float(value)
        values = [listed[core] for core in cores if core in listed]
    return sum(values) / len(values) if values else 0.0


def _load_1m() -> Optional[float]:
    words = read_text(_PROC / "loadavg").split()
    return float(words[0]) if words else None


def _ticks(cores: Collection[int], children: bool) -> tuple[int, int, int, int, int]:
    found: list[list[int]] = []
    for line in read_text(_PROC / "stat").splitlines():
        if not line.startswith("cpu"):
            break
        name, *words = line.split()
        if name[3:].isdigit() and int(name[3:]) in cores and len(words) >= 8:
            # user nice system idle iowait irq softirq steal; guest time is part of user.
            found.append([int(word) for word in words[:8]])
    if len(found) < len(cores):
        return 0, 0, 0, 0, 0
    own_s = time.process_time()
    if children:
        own_s += sum(os.times()[2:4])  # user and system
    return (
        sum(1 << core for core in cores),
        sum(sum(ticks) for ticks in found),
        sum(ticks[3] + ticks[4] for ticks in found),
        sum(ticks[7] for ticks in found),
        int(own_s * _TICKS_A_SECOND),
    )


def _throttle_events(cores: Collection[int]) -> Optional[int]:
    files = (_CPU / f"cpu{core}" / "thermal_throttle" / "core_throttle_count" for core in cores)
    texts = [text for text in map(read_text, files) if text]
    return int(sum(map(_number, texts))) if texts else None
