"""Looks at this machine before its latencies are trusted: READY, DEGRADED or NOT READY.

Every check is a function of what was read, and its answer one `Finding`: what was found, why it
matters for latencies, and the command that mends it. What cannot be read is unknown, never good.
`examine` reads; it changes nothing.
"""

from __future__ import annotations

import enum
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Callable, Optional

from .backends.base import Availability, TargetInfo, allowed_cores
from .conditions import (
    BUSY,
    BUSY_LIMIT,
    LOAD,
    STEAL,
    STEAL_LIMIT,
    THROTTLING,
    Conditions,
    read_conditions,
    read_text,
    since,
)
from .sandbox import Isolation
from .supervisor import Discovery

Reader = Callable[[str], str]
"""What stands in the file of that path; empty where it cannot be read."""

WATCH_S = 0.5
"""Time over which steal and other processes are watched, at least."""

# Load averages by core: beyond the first somebody else works most of the time, from the second on
# there is more to do than cores to do it, and whatever is timed waits.
_LOAD_A_CORE, _FULL_LOAD_A_CORE = 0.25, 1.0
_MUCH_STEAL = 0.20
# Below this share of its ceiling, a clock is held down.
_CLOCK_SHARE = 0.95
_HOT_C = 80.0  # a Raspberry Pi lowers its clock from here on
_SWAP_BYTES = 64 * 2**20
# An agent gives a batch at least 256 MiB of loaded graphs, and the store half of the free space.
_LOW_MEMORY_BYTES, _NO_MEMORY_BYTES = 2**30, 256 * 2**20
_LOW_SPACE_BYTES, _NO_SPACE_BYTES = 2**30, 128 * 2**20
_OLDEST_PYTHON = (3, 9)
_UNWATCHED = "/proc/stat tells nothing of these cores; batches are flagged unwatched"

_CPU = "/sys/devices/system/cpu"
_CLOCK_SOURCES = "/sys/devices/system/clocksource/clocksource0"
_PI_THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
_GROUPS = PurePosixPath("/sys/fs/cgroup")
# Bits of the Raspberry Pi's firmware: now, and 16 higher since boot.
_PI_BITS = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
_NO_TURBO, _BOOST = f"{_CPU}/intel_pstate/no_turbo", f"{_CPU}/cpufreq/boost"
# Drivers of processors that have a boost; with others, the ceiling is the ceiling.
_BOOST_DRIVERS = ("intel", "amd", "acpi")
# Those that are read without a system call, and those that take a microsecond or more.
_FAST_CLOCKS = (
    "tsc", "tsc-early", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page",
    "riscv_clocksource", "timebase", "tod",
)  # fmt: skip
_SLOW_CLOCKS = ("hpet", "acpi_pm", "xen", "jiffies", "refined-jiffies", "hyperv_clocksource_msr")


class State(enum.Enum):
    """What a check came to; an unavailable target speaks for or against nothing by itself."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"
    UNAVAILABLE = "unavailable"


_WORSE = (State.OK, State.WARNING, State.FAILED)


class Verdict(enum.Enum):
    """Whether latencies of a machine can be trusted."""

    READY = "READY"
    DEGRADED = "DEGRADED"
    NOT_READY = "NOT READY"


@dataclass(frozen=True)
class Finding:
    """The answer of one check.

    Args:
        check: what was looked at.
        found: what was read, with units.
        why: what it does to latencies; empty where nothing is to be said.
        remedy: the command, or the deed, that mends it; empty likewise, and where there is none.
    """

    check: str
    state: State
    found: str
    why: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Readings:
    """What the checks look at.

    Args:
        before: the machine before anything was done.
        after: the machine later, with the shares of steal and of others since `before`.
        cores: that this process may run on; the last of them is the one that is measured.
        read: of files of the kernel.
        free_bytes: by folder that has to hold something; None: unknown.
        targets, isolation: what the backends say.
        python: version.
    """

    before: Conditions
    after: Conditions
    cores: Sequence[int]
    read: Reader
    free_bytes: Mapping[str, Optional[int]]
    targets: Sequence[TargetInfo]
    isolation: Isolation
    python: tuple[int, ...]


def examine(
    discover: Callable[[], Discovery],
    store: Optional[Path] = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Finding, ...]:
    """Reads this machine, asks its backends, and checks both.

    Steal and other processes are watched while the backends are asked: a hypervisor takes time
    only from who wants it. What the backends' processes take counts as our own.

    Args:
        discover: asks the backends.
        store: folder that the agent keeps artefacts in; None: the temporary one.
    """
    started_s, before = clock(), read_conditions(children=True)
    found = discover()
    left_s = WATCH_S - (clock() - started_s)
    if left_s > 0:
        sleep(left_s)
    after = since(before, read_conditions(children=True))
    temporary = Path(tempfile.gettempdir())
    folders = {f"temporary folder {temporary}": temporary}
    if store is not None:
        folders[f"store {store}"] = store
    readings = Readings(
        before=before,
        after=after,
        cores=allowed_cores(),
        read=lambda path: read_text(Path(path)),
        free_bytes={name: _free_bytes(folder) for name, folder in folders.items()},
        targets=found.targets,
        isolation=found.isolation,
        python=sys.version_info[:3],
    )
    return findings(readings)


def findings(readings: Readings) -> tuple[Finding, ...]:
    """The answers of all checks."""
    before, after, read = readings.before, readings.after, readings.read
    core, limits = readings.cores[-1], clock_range(read, readings.cores[-1])
    online = cpu_list(read(f"{_CPU}/online"))
    virtual = is_virtual(read("/proc/cpuinfo"))
    boosts = bool(read(_NO_TURBO) or read(_BOOST))
    return (
        check_governor(after.governor, limits, virtual),
        check_frequency(after.frequency_mhz, after.governor, limits, boosts, virtual),
        check_boost(read, core, virtual),
        check_thermal(before, after, read(_PI_THROTTLED), virtual),
        check_load(before, len(online or readings.cores)),
        check_busy(after),
        check_steal(after, virtual),
        check_quota(cpu_quota(read), len(readings.cores)),
        check_cpuset(readings.cores, online),
        check_siblings(core, read, virtual),
        check_clock_source(read),
        check_memory(available_memory(read)),
        check_swap(read("/proc/meminfo")),
        *(check_space(name, free) for name, free in readings.free_bytes.items()),
        *check_runtimes(readings.targets),
        check_sandbox(readings.isolation),
        check_python(readings.python),
    )


def verdict_of(found: Iterable[Finding]) -> Verdict:
    """READY where everything was read and is good; NOT READY where something failed."""
    states = {finding.state for finding in found}
    if State.FAILED in states:
        return Verdict.NOT_READY
    if states & {State.WARNING, State.UNKNOWN}:
        return Verdict.DEGRADED
    return Verdict.READY


# --- clock and heat -------------------------------------------------------------------------


@dataclass(frozen=True)
class ClockRange:
    """Limits of a core's clock, in MHz.

    Args:
        least, most: that the governor may choose.
        ceiling: of the hardware.
    """

    least: float
    most: float
    ceiling: float


def clock_range(read: Reader, core: int) -> Optional[ClockRange]:
    """Of one core; None: the kernel does not tell."""
    names = ("scaling_min_freq", "scaling_max_freq", "cpuinfo_max_freq")
    texts = [read(f"{_CPU}/cpu{core}/cpufreq/{name}") for name in names]
    if not all(text.isdigit() for text in texts):
        return None
    least, most, ceiling = (int(text) / 1e3 for text in texts)
    return ClockRange(least, most, ceiling)


def check_governor(governor: str, limits: Optional[ClockRange], virtual: bool) -> Finding:
    """The clock does not follow the load.

    Args:
        governor: of the cores in use; several with commas; empty: unknown.
    """
    why = "a clock that follows the load makes the same graph take longer after a pause"
    remedy = f"echo performance | sudo tee {_CPU}/cpu*/cpufreq/scaling_governor"
    if not governor:
        return _unknown("governor", "no cpufreq in the kernel", why, _hidden(virtual))
    if governor != "performance" and limits is not None and limits.least == limits.most:
        return _ok("governor", f"{governor}, clock fixed at {limits.most:.0f} MHz")
    state = State.OK if governor == "performance" else State.WARNING
    return _finding("governor", state, governor, why, remedy)


def check_frequency(
    now_mhz: float, governor: str, limits: Optional[ClockRange], boosts: bool, virtual: bool
) -> Finding:
    """The clock may go as high as the hardware can, and does.

    Args:
        now_mhz: mean over the cores in use; 0: unknown.
        governor: of these.
        boosts: there is a boost, so the ceiling is only for few cores and cool ones.
    """
    why = "where the clock is held down, graphs take longer than on the same device elsewhere"
    now = f"{now_mhz:.0f} MHz now" if now_mhz else "unknown now"
    if limits is None:
        return _unknown("frequency", f"range unknown, {now}", why, _hidden(virtual))
    found = f"{limits.least:.0f} to {limits.most:.0f} of {limits.ceiling:.0f} MHz, {now}"
    if limits.most < _CLOCK_SHARE * limits.ceiling:
        highest = f"echo {limits.ceiling * 1e3:.0f} | sudo tee {_CPU}/cpu*/cpufreq/scaling_max_freq"
        remedy = f"{highest}; a laptop: on its charger"
        return _finding("frequency", State.WARNING, found, why, remedy)
    if not now_mhz:
        return _unknown("frequency", found, why, _hidden(virtual))
    held = governor == "performance" and not boosts and now_mhz < _CLOCK_SHARE * limits.most
    remedy = "cool the board, and give it the power supply that its maker asks for"
    return _finding("frequency", State.WARNING if held else State.OK, found, why, remedy)


def check_boost(read: Reader, core: int, virtual: bool) -> Finding:
    """The clock does not go beyond what it can keep."""
    why = "a boosted clock depends on heat and on what other cores do: latencies drift"
    no_turbo, boost = read(_NO_TURBO), read(_BOOST)
    if no_turbo in ("0", "1"):
        on, remedy = no_turbo == "0", f"echo 1 | sudo tee {_NO_TURBO}"
    elif boost in ("0", "1"):
        on, remedy = boost == "1", f"echo 0 | sudo tee {_BOOST}"
    else:
        driver = read(f"{_CPU}/cpu{core}/cpufreq/scaling_driver")
        if not driver:
            return _unknown("boost", "no cpufreq in the kernel", why, _hidden(virtual))
        if not driver.startswith(_BOOST_DRIVERS):
            return _ok("boost", f"none ({driver})")
        remedy = "turn boost off in the firmware's setup (BIOS)"
        return _unknown("boost", f"no switch ({driver})", why, remedy)
    state = State.WARNING if on else State.OK
    return _finding("boost", state, "on" if on else "off", why, remedy)


def check_thermal(before: Conditions, after: Conditions, firmware: str, virtual: bool) -> Finding:
    """The processor is cool, and has not throttled.

    Args:
        firmware: what a Raspberry Pi's firmware says, hexadecimal; empty elsewhere.
    """
    why = "a processor that is too hot lowers its clock: graphs take longer the longer it works"
    remedy = "cool it (fan, heat sink, pauses); counters start anew with a reboot"
    facts, states = [], [State.OK]
    if after.temperature_c:
        facts.append(f"{after.temperature_c:.0f} °C")
        states += [State.WARNING] if after.temperature_c >= _HOT_C else []
    if THROTTLING not in after.unwatched:
        meanwhile = after.throttle_events - before.throttle_events
        facts.append(f"{after.throttle_events} throttling events since boot")
        states += [State.WARNING] if after.throttle_events else []
        if meanwhile > 0:
            facts.append(f"{meanwhile} of them just now")
            states.append(State.FAILED)
    bits = _hexadecimal(firmware)
    if bits is not None:
        now, past = (
            [text for bit, text in enumerate(_PI_BITS) if bits >> (first + bit) & 1]
            for first in (0, 16)
        )
        facts += [f"{', '.join(now)} now"] if now else []
        facts += [f"{', '.join(past)} since boot"] if past else []
        states += [State.FAILED] if now else [State.WARNING] if past else []
        if _PI_BITS[0] in now + past:
            remedy = f"use the power supply that the board's maker asks for; {remedy}"
    state = max(states, key=_WORSE.index)
    found = ", ".join(facts) or "no sensor"
    if state is State.OK and not after.temperature_c:
        return _unknown("thermal", found, why, _hidden(virtual))
    return _finding("thermal", state, found, why, remedy)


# --- others on the machine ------------------------------------------------------------------


def check_load(before: Conditions, cores: int) -> Finding:
    """Little else has been running.

    Args:
        cores: of the machine.
    """
    why = "others take the core, the caches and the memory's bandwidth: graphs take longer"
    remedy = "close what runs (see: top -o %CPU) and wait a minute"
    if LOAD in before.unwatched:
        return _unknown("load", "/proc/loadavg cannot be read", why, remedy)
    found = f"{before.load_1m:.2f} over the last minute, {cores} cores"
    state = _above(before.load_1m / cores, _LOAD_A_CORE, _FULL_LOAD_A_CORE)
    return _finding("load", state, found, why, remedy)


def check_busy(after: Conditions) -> Finding:
    """Nothing else runs at the moment."""
    why = "graphs wait for what other processes take; batches are flagged busy"
    remedy = "close what runs (see: top -o %CPU)"
    if BUSY in after.unwatched:
        return _unknown("busy", _UNWATCHED, why, remedy)
    found = f"other processes took {after.busy_share:.0%} of the cores just now"
    return _finding("busy", _above(after.busy_share, BUSY_LIMIT), found, why, remedy)


def check_steal(after: Conditions, virtual: bool) -> Finding:
    """No hypervisor takes time away."""
    why = "a hypervisor that runs other machines stops graphs for milliseconds; flag: steal"
    remedy = "take a machine with cores of its own (dedicated, bare metal), or a quieter hour"
    if STEAL in after.unwatched:
        return _unknown("steal", _UNWATCHED, why, remedy)
    if virtual and not after.ticks[3]:
        return _unknown("steal", "none since boot: this hypervisor may not tell", why, remedy)
    found = f"{after.steal_share:.1%} of the cores just now"
    return _finding(
        "steal", _above(after.steal_share, STEAL_LIMIT, _MUCH_STEAL), found, why, remedy
    )


def check_quota(quota_cores: Optional[float], cores: int) -> Finding:
    """No control group limits the processor time.

    Args:
        quota_cores: from `cpu_quota`.
        cores: that may be used.
    """
    why = "who has used up the share of a period (100 ms) is stopped until the next one begins"
    remedy = "start the container without --cpus and --cpu-quota, the service without CPUQuota="
    if quota_cores is None:
        return _unknown("quota", "control groups cannot be read", why, remedy)
    if math.isinf(quota_cores):
        return _ok("quota", "none")
    state = _below(quota_cores, cores, 1)
    return _finding("quota", state, f"{quota_cores:.3g} cores", why, remedy)


def check_cpuset(cores: Sequence[int], online: Sequence[int]) -> Finding:
    """The agent may use the whole machine.

    Args:
        cores: that it may use.
        online: of the machine; empty: unknown.
    """
    why = "the cores that are left may be shared with others, and graphs of more threads have none"
    remedy = (
        "start the agent without taskset, the container without --cpuset-cpus, the service "
        "without AllowedCPUs="
    )
    if not online:
        return _unknown("cpuset", f"{len(cores)} cores, of how many is unknown", why, remedy)
    state = State.OK if set(online) <= set(cores) else State.WARNING
    return _finding("cpuset", state, f"{len(cores)} of {len(online)} cores", why, remedy)


def check_siblings(core: int, read: Reader, virtual: bool) -> Finding:
    """No other hardware thread shares the measured core."""
    why = "two hardware threads share a core: what runs on one slows the other down"
    siblings = cpu_list(read(f"{_CPU}/cpu{core}/topology/thread_siblings_list"))
    if core not in siblings:
        return _unknown("smt", f"siblings of core {core} unknown", why, _hidden(virtual))
    others = [str(sibling) for sibling in siblings if sibling != core]
    if virtual and not others:
        found = f"core {core} shows no siblings: a hypervisor may hide them"
        return _unknown("smt", found, why, _hidden(virtual))
    found = f"core {core} is measured, online beside it: {', '.join(others) or 'none'}"
    remedy = f"echo off | sudo tee {_CPU}/smt/control"
    return _finding("smt", State.WARNING if others else State.OK, found, why, remedy)


# --- clock source, memory, disk -------------------------------------------------------------


def check_clock_source(read: Reader) -> Finding:
    """Reading the time costs nothing to speak of."""
    why = "reading the time takes a microsecond or more: short graphs seem to take longer"
    remedy = "see why the kernel has no better one: dmesg | grep -i clocksource"
    source = read(f"{_CLOCK_SOURCES}/current_clocksource")
    if "tsc" in read(f"{_CLOCK_SOURCES}/available_clocksource").split():
        remedy = f"echo tsc | sudo tee {_CLOCK_SOURCES}/current_clocksource"
    if source not in (*_FAST_CLOCKS, *_SLOW_CLOCKS):
        return _unknown("clock source", source or "cannot be read", why, remedy)
    state = State.OK if source in _FAST_CLOCKS else State.WARNING
    return _finding("clock source", state, source, why, remedy)


def check_memory(available_bytes: Optional[int]) -> Finding:
    """Graphs find room.

    Args:
        available_bytes: from `available_memory`.
    """
    why = "a batch that does not fit is split, swapped, or its worker killed"
    remedy = "close what takes memory (see: top -o %MEM), or give the container more (--memory)"
    if available_bytes is None:
        return _unknown("memory", "/proc/meminfo cannot be read", why, remedy)
    state = _below(available_bytes, _LOW_MEMORY_BYTES, _NO_MEMORY_BYTES)
    return _finding("memory", state, f"{_size(available_bytes)} available", why, remedy)


def check_swap(meminfo: str) -> Finding:
    """Nothing was moved out of memory."""
    why = "what was moved out of memory is fetched in the middle of a call"
    remedy = "close what takes memory, then: sudo swapoff -a && sudo swapon -a"
    amounts = memory_kb(meminfo)
    if not {"SwapTotal", "SwapFree"} <= set(amounts):
        return _unknown("swap", "/proc/meminfo cannot be read", why, remedy)
    total, used = amounts["SwapTotal"], amounts["SwapTotal"] - amounts["SwapFree"]
    found = f"{_size(1024 * used)} of {_size(1024 * total)} in use" if total else "none"
    return _finding("swap", _above(1024 * used, _SWAP_BYTES), found, why, remedy)


def check_space(folder: str, free_bytes: Optional[int]) -> Finding:
    """Uploads find room.

    Args:
        folder: what it is, and where.
    """
    why = "the agent gives graphs half of what is free; where they do not fit, uploads are refused"
    remedy = "make room, or keep graphs elsewhere: agent serve --store FOLDER"
    if free_bytes is None:
        return _unknown("disk", f"{folder}: cannot be looked at", why, remedy)
    state = _below(free_bytes, _LOW_SPACE_BYTES, _NO_SPACE_BYTES)
    return _finding("disk", state, f"{folder}: {_size(free_bytes)} free", why, remedy)


# --- software -------------------------------------------------------------------------------


def check_runtimes(targets: Sequence[TargetInfo]) -> list[Finding]:
    """Something here can be measured; and what else could be, if it were installed."""
    why, remedy = "no graph can be timed here", "pip install 'hurricane-nas[onnxruntime]'"
    measured = [t for t in targets if t.availability == Availability.AVAILABLE]
    missing = [t for t in targets if t.availability == Availability.UNAVAILABLE]
    found = [
        _ok("runtime", f"{runtime}: {names}")
        for runtime, names in _names(measured, lambda t: f"{t.runtime} {t.runtime_version}".strip())
    ]
    found = found or [_finding("runtime", State.FAILED, "none that measures", why, remedy)]
    for reason, names in _names(missing, lambda target: target.reason):
        text, _, remedy = reason.partition("; run: ")
        why = "cannot be timed here; all else can"
        found.append(_finding("runtime", State.UNAVAILABLE, f"{names}: {text}", why, remedy))
    return found


def check_sandbox(isolation: Isolation) -> Finding:
    """The kernel keeps uploaded graphs in."""
    why = "latencies are the same without; a hostile graph reaches more"
    remedy = "take a kernel (5.13 or newer) with Landlock and seccomp, or agent serve --user NAME"
    if not isolation.means and not isolation.missing:
        return _unknown("sandbox", "no backend answered", why, remedy)
    found = "; no ".join((", ".join(isolation.means) or "nothing", *isolation.missing))
    state = State.WARNING if isolation.missing else State.OK
    return _finding("sandbox", state, found, why, remedy)


def check_python(version: tuple[int, ...]) -> Finding:
    """Python is one that the agent runs on."""
    found, oldest = (".".join(map(str, v)) for v in (version, _OLDEST_PYTHON))
    state = State.OK if version >= _OLDEST_PYTHON else State.FAILED
    why, remedy = f"the agent needs {oldest}", f"install Python {oldest} or newer"
    return _finding("python", state, found, why, remedy)


# --- reading --------------------------------------------------------------------------------


def cpu_quota(read: Reader) -> Optional[float]:
    """Cores' worth of time that this process's control groups leave it; inf: all; None: unknown."""
    quotas = [math.inf]
    known = False
    for folder in _group_folders(read, "cpu"):
        text = read(f"{folder}/cpu.max") or " ".join(
            read(f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period")
        )
        quota, _, period = text.partition(" ")
        # The root of all groups has no quota, and nor has a group without the controller.
        known |= bool(quota or read(f"{folder}/cgroup.controllers") or read(f"{folder}/cpu.shares"))
        if quota.isdigit() and period.isdigit() and int(period):  # neither "max" nor -1
            quotas.append(int(quota) / int(period))
    return min(quotas) if known else None


def available_memory(read: Reader) -> Optional[int]:
    """Bytes that can be had, within what the control groups allow; None: unknown."""
    available = memory_kb(read("/proc/meminfo")).get("MemAvailable")
    if available is None:
        return None
    limits = [1024 * available]
    for folder in _group_folders(read, "memory"):
        texts = (read(f"{folder}/{name}") for name in ("memory.max", "memory.limit_in_bytes"))
        limits += [int(text) for text in texts if text.isdigit()]
    return min(limits)


def _group_folders(read: Reader, controller: str) -> list[str]:
    """Folders of the control groups that this process is in, and of those above.

    A container sees its own group as the root, though it may know its name outside: then only
    the folders above are there.
    """
    folders: list[str] = []
    for line in read("/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        mounts: tuple[str, ...] = ()
        if not controllers:  # version 2; the second beside version 1
            mounts = ("", "unified")
        elif controller in controllers.split(","):
            mounts = (controllers, controller)
        path = PurePosixPath(group.lstrip("/"))
        for mount in mounts:
            folders += [str(_GROUPS / mount / place) for place in (path, *path.parents)]
    return list(dict.fromkeys(folders))


def is_virtual(cpuinfo: str) -> bool:
    """Whether an x86 processor says that it is a hypervisor's; others do not tell."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return any(key.strip() == "flags" and "hypervisor" in text.split() for key, _, text in lines)


def cpu_list(text: str) -> list[int]:
    """Numbers of a list as the kernel writes it (``0-3,8``); empty where it is none."""
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdigit() and last.isdigit()):
            return []
        numbers += range(int(first), int(last) + 1)
    return numbers


def memory_kb(meminfo: str) -> dict[str, int]:
    """Amounts of /proc/meminfo, in kB."""
    amounts = {}
    for line in meminfo.splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            amounts[key] = int(words[0])
    return amounts


def _free_bytes(folder: Path) -> Optional[int]:
    """Free space where a folder is, or would be made."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def _hexadecimal(text: str) -> Optional[int]:
    try:
        return int(text, 16)
    except ValueError:
        return None


def _names(
    targets: Iterable[TargetInfo], key: Callable[[TargetInfo], str]
) -> Iterable[tuple[str, str]]:
    """Names of targets that have something in common, with commas, by that."""
    groups: dict[str, list[str]] = {}
    for target in targets:
        groups.setdefault(key(target), []).append(target.name)
    return [(common, ", ".join(names)) for common, names in groups.items()]


def _ok(check: str, found: str) -> Finding:
    return Finding(check, State.OK, found)


def _unknown(check: str, found: str, why: str, remedy: str) -> Finding:
    return Finding(check, State.UNKNOWN, found, why, remedy)


def _finding(check: str, state: State, found: str, why: str, remedy: str) -> Finding:
    """A finding; one that is good needs no reason and no remedy."""
    return _ok(check, found) if state is State.OK else Finding(check, state, found, why, remedy)


def _above(value: float, high: float, much: float = math.inf) -> State:
    return State.FAILED if value >= much else State.WARNING if value > high else State.OK


def _below(value: float, low: float, none: float) -> State:
    return State.FAILED if value < none else State.WARNING if value < low else State.OK


def _hidden(virtual: bool) -> str:
    if virtual:
        return "nothing inside a virtual machine; where it matters, measure on a bare one"
    return "look at it with the maker's own tools, or in the firmware's setup"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
