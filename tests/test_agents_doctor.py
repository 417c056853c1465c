"""`agent doctor`: what it makes of machines, by their texts of /proc and /sys, and of this one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hurricane.agents import cli, conditions, doctor
from hurricane.agents.backends.base import Availability, TargetInfo
from hurricane.agents.conditions import Conditions, read_conditions, read_text, since
from hurricane.agents.doctor import Finding, Readings, State, Verdict, findings, verdict_of
from hurricane.agents.sandbox import Isolation
from hurricane.agents.supervisor import Discovery

GIB = 2**30
BACKEND = Path(__file__).with_name("agents_faulty_backend.py")
AGENT = [sys.executable, "-m", "hurricane.agents.cli"]
SANDBOX = Isolation(("resource limits", "landlock (ABI 3)", "seccomp"))
OK, WARNING, FAILED, UNKNOWN, UNAVAILABLE = State


def target(name: str = "cpu-onnxruntime-fp32", **facts: object) -> TargetInfo:
    fields = {
        "name": name, "device": "d", "processor": "cpu", "runtime": "onnxruntime",
        "runtime_version": "1.20.0", "precision": "fp32",
        "availability": Availability.AVAILABLE, "reason": "", "formats": ("onnx",), **facts,
    }  # fmt: skip
    return TargetInfo(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Machine:
    """Files of a machine's kernel, by path, and what else is read of it."""

    files: dict[str, str]
    cores: tuple[int, ...]
    later: dict[str, str] = field(default_factory=dict)
    free_bytes: int | None = 20 * GIB
    targets: tuple[TargetInfo, ...] = (target(),)
    isolation: Isolation = SANDBOX

    def but(self, changes: Mapping[str, str | None]) -> Machine:
        """With other texts in files that are named by a part of their paths; None: not there."""
        changed = dict(self.files)
        for part, text in changes.items():
            paths = [path for path in self.files if part in path]
            assert paths, part
            for path in paths:
                changed.pop(path) if text is None else changed.update({path: text})
        return replace(self, files=changed)


def stat(cores: int, user: int, idle: int, stolen: int = 0) -> str:
    """/proc/stat after so many ticks on every core."""
    lines = [f"cpu{core} {user} 0 0 {idle} 0 0 0 {stolen} 0 0" for core in range(cores)]
    return "\n".join(["cpu  0 0 0 0 0 0 0 0 0 0", *lines, "intr 1 2 3"])


def cpufreq(cores: int, driver: str, governor: str, *khz: int) -> dict[str, str]:
    """Of all cores: lowest and highest that may be, highest that can be, and now."""
    files = {}
    for core in range(cores):
        folder = f"/sys/devices/system/cpu/cpu{core}/cpufreq"
        files[f"{folder}/scaling_driver"] = driver
        files[f"{folder}/scaling_governor"] = governor
        names = ("scaling_min_freq", "scaling_max_freq", "cpuinfo_max_freq", "scaling_cur_freq")
        for name, value in zip(names, khz, strict=True):
            files[f"{folder}/{name}"] = str(value)
    return files


CLOCK = "/sys/devices/system/clocksource/clocksource0"
MEMINFO = "MemTotal: 16000000 kB\nMemAvailable: {} kB\nSwapTotal: {} kB\nSwapFree: {} kB"
SIBLINGS = "/sys/devices/system/cpu/cpu{0}/topology/thread_siblings_list"

# Nothing is wrong with it: cores without siblings, boost off, idle.
WORKSTATION = Machine(
    files={
        **cpufreq(8, "intel_pstate", "performance", 800_000, 3_400_000, 3_400_000, 3_390_000),
        "/sys/devices/system/cpu/intel_pstate/no_turbo": "1",
        "/sys/devices/system/cpu/online": "0-7",
        SIBLINGS.format(7): "7",
        "/sys/devices/system/cpu/cpu7/thermal_throttle/core_throttle_count": "0",
        "/sys/class/hwmon/hwmon0/name": "coretemp",
        "/sys/class/hwmon/hwmon0/temp1_input": "41000",
        f"{CLOCK}/current_clocksource": "tsc",
        f"{CLOCK}/available_clocksource": "tsc hpet acpi_pm",
        "/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu avx2\n",
        "/proc/loadavg": "0.05 0.10 0.08 1/200 1234",
        "/proc/meminfo": MEMINFO.format(12_000_000, 2_000_000, 2_000_000),
        "/proc/stat": stat(8, 1000, 9000),
        "/proc/self/cgroup": "0::/user.slice/session-1.scope",
        "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids",
    },
    cores=tuple(range(8)),
    later={"/proc/stat": stat(8, 1001, 9100)},
)
PI = Machine(
    files={
        **cpufreq(4, "cpufreq-dt", "ondemand", 600_000, 1_500_000, 1_500_000, 600_000),
        "/sys/devices/system/cpu/online": "0-3",
        SIBLINGS.format(3): "3",
        "/sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "/sys/class/thermal/thermal_zone0/temp": "48686",
        "/sys/devices/platform/soc/soc:firmware/get_throttled": "0",
        f"{CLOCK}/current_clocksource": "arch_sys_counter",
        f"{CLOCK}/available_clocksource": "arch_sys_counter",
        "/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\n",
        "/proc/loadavg": "0.00 0.01 0.00 1/140 900",
        "/proc/meminfo": MEMINFO.format(3_300_000, 102_396, 102_396),
        "/proc/stat": stat(4, 100, 90_000),
        "/proc/self/cgroup": "0::/system.slice/agent.service",
        "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids",
        "/sys/fs/cgroup/system.slice/agent.service/cpu.max": "max 100000",
    },
    cores=(0, 1, 2, 3),
    later={"/proc/stat": stat(4, 100, 90_100)},
)
# On battery, with a browser open.
LAPTOP = Machine(
    files={
        **WORKSTATION.files,
        **cpufreq(8, "intel_pstate", "powersave", 400_000, 1_400_000, 4_200_000, 900_000),
        "/sys/devices/system/cpu/intel_pstate/no_turbo": "0",
        SIBLINGS.format(7): "3,7",
        "/sys/devices/system/cpu/cpu7/thermal_throttle/core_throttle_count": "12",
        "/sys/class/hwmon/hwmon0/temp1_input": "86000",
        "/proc/loadavg": "3.10 2.10 1.08 3/900 1234",
        "/proc/meminfo": MEMINFO.format(900_000, 2_000_000, 1_200_000),
    },
    cores=tuple(range(8)),
    later={"/proc/stat": stat(8, 1020, 9080)},
)
# Files are those of a Firecracker machine.
CLOUD = Machine(
    files={
        "/sys/devices/system/cpu/online": "0-1",
        SIBLINGS.format(1): "1",
        f"{CLOCK}/current_clocksource": "tsc",
        f"{CLOCK}/available_clocksource": "tsc kvm-clock",
        "/proc/cpuinfo": "processor\t: 1\nflags\t\t: fpu hypervisor avx2\ncpu MHz\t\t: 2596.1\n",
        "/proc/loadavg": "0.20 0.10 0.05 1/80 77",
        "/proc/meminfo": MEMINFO.format(12_000_000, 0, 0),
        "/proc/stat": stat(2, 1000, 9000, 40),
        "/proc/self/cgroup": "3:cpuset:/\n1:cpu:/\n0::/",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "/sys/fs/cgroup/unified/cgroup.controllers": "",
    },
    cores=(0, 1),
    later={"/proc/stat": stat(2, 1002, 9088, 52)},
)
CONTAINER = replace(
    WORKSTATION,
    files={
        **WORKSTATION.files,
        "/proc/self/cgroup": "0::/",
        "/sys/fs/cgroup/cpu.max": "50000 100000",
        "/sys/fs/cgroup/memory.max": "536870912",
        SIBLINGS.format(3): "3",
        "/sys/devices/system/cpu/cpu3/thermal_throttle/core_throttle_count": "0",
    },
    cores=(2, 3),
)
# Its group is called as on its host, and mounted as the root.
CONTAINER_V1 = replace(
    WORKSTATION,
    files={
        **{path: text for path, text in WORKSTATION.files.items() if "cgroup" not in path},
        "/proc/self/cgroup": "9:memory:/docker/4a\n4:cpu,cpuacct:/docker/4a\n1:name=systemd:/",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    },
)

Examine = Callable[[Machine], dict[str, Finding]]


@pytest.fixture
def examine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """What is found on a machine, by check."""

    def put(files: dict[str, str], root: Path) -> None:
        for path, text in files.items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")

    def examined(machine: Machine) -> dict[str, Finding]:
        root = tmp_path / "root"
        shutil.rmtree(root, ignore_errors=True)
        conditions._sensors.cache_clear()
        for name, folder in (
            ("_THERMAL", "sys/class/thermal"),
            ("_HWMON", "sys/class/hwmon"),
            ("_CPU", "sys/devices/system/cpu"),
            ("_PROC", "proc"),
        ):
            monkeypatch.setattr(conditions, name, root / folder)
        monkeypatch.setattr(conditions, "_cores", lambda: list(machine.cores))
        monkeypatch.setattr(conditions, "_TICKS_A_SECOND", 100)
        put(machine.files, root)
        before = read_conditions()
        put({path: text for path, text in machine.later.items() if path in machine.files}, root)
        # Ticks of the process that reads are none of the machine's.
        after = read_conditions()
        own = before.ticks[4]
        after = since(before, replace(after, ticks=(*after.ticks[:4], own)))
        found = findings(
            Readings(
                before=before,
                after=after,
                cores=machine.cores,
                read=lambda path: read_text(root / path.lstrip("/")),
                free_bytes={"temporary folder /tmp": machine.free_bytes},
                targets=machine.targets,
                isolation=machine.isolation,
                python=(3, 9, 18),
            )
        )
        by_check = {finding.check: finding for finding in found}
        assert len(by_check) == len(found)
        return by_check

    return examined


def states(found: dict[str, Finding], but: State = OK) -> dict[str, State]:
    return {check: finding.state for check, finding in found.items() if finding.state is not but}


# --- machines -------------------------------------------------------------------------------


def test_a_quiet_machine_of_which_all_is_known_is_ready(examine: Examine) -> None:
    found = examine(WORKSTATION)
    assert states(found) == {}
    assert verdict_of(found.values()) is Verdict.READY
    assert all(not finding.why and not finding.remedy for finding in found.values())
    assert found["frequency"].found == "800 to 3400 of 3400 MHz, 3390 MHz now"
    assert found["thermal"].found == "41 °C, 0 throttling events since boot"


def test_a_raspberry_pi_needs_another_governor_and_nothing_else(examine: Examine) -> None:
    found = examine(PI)
    assert states(found) == {"governor": WARNING}
    assert found["governor"].found == "ondemand"
    assert "echo performance | sudo tee" in found["governor"].remedy
    assert found["boost"].found == "none (cpufreq-dt)"
    assert verdict_of(found.values()) is Verdict.DEGRADED


def test_a_laptop_on_battery_is_told_all_that_slows_it(examine: Examine) -> None:
    found = examine(LAPTOP)
    assert states(found) == dict.fromkeys(
        ("governor", "frequency", "boost", "thermal", "load", "busy", "smt", "memory", "swap"),
        WARNING,
    )
    assert "400 to 1400 of 4200 MHz" in found["frequency"].found
    assert "4200000" in found["frequency"].remedy
    assert "charger" in found["frequency"].remedy
    assert "no_turbo" in found["boost"].remedy
    assert found["thermal"].found == "86 °C, 12 throttling events since boot"
    assert found["busy"].found.startswith("other processes took 20% of the cores")
    assert found["smt"].found == "core 7 is measured, online beside it: 3"
    assert found["swap"].found == "781 MiB of 1.9 GiB in use"


def test_a_cloud_machine_hides_its_clock_and_loses_time_to_others(examine: Examine) -> None:
    found = examine(CLOUD)
    hidden = dict.fromkeys(("governor", "frequency", "boost", "thermal", "smt"), UNKNOWN)
    assert states(found) == {**hidden, "steal": WARNING}
    assert found["steal"].found.startswith("11.8%")
    assert found["frequency"].found == "range unknown, 2596 MHz now"
    assert all("virtual machine" in found[check].remedy for check in hidden)


def test_a_hypervisor_that_never_stole_may_just_not_tell(examine: Examine) -> None:
    silent = replace(CLOUD, later={"/proc/stat": stat(2, 1002, 9100)})
    assert examine(silent.but({"proc/stat": stat(2, 1000, 9000)}))["steal"].state is UNKNOWN
    # On a machine of its own there is nobody to steal.
    assert examine(WORKSTATION)["steal"].state is OK


def test_a_machine_that_loses_much_is_not_ready(examine: Examine) -> None:
    found = examine(replace(CLOUD, later={"/proc/stat": stat(2, 1002, 9070, 70)}))
    assert found["steal"].state is FAILED


def test_a_container_with_half_a_core_is_not_ready(examine: Examine) -> None:
    found = examine(CONTAINER)
    assert states(found) == {"quota": FAILED, "cpuset": WARNING, "memory": WARNING}
    assert found["quota"].found == "0.5 cores"
    assert found["cpuset"].found == "2 of 8 cores"
    assert found["memory"].found == "512 MiB available"
    assert verdict_of(found.values()) is Verdict.NOT_READY


def test_a_container_under_version_1_with_a_core_and_a_half_is_degraded(examine: Examine) -> None:
    found = examine(CONTAINER_V1)
    assert states(found) == {"quota": WARNING}
    assert found["quota"].found == "1.5 cores"


def test_of_a_machine_that_tells_nothing_nothing_is_good_but_what_is_installed(
    examine: Examine,
) -> None:
    found = examine(Machine({}, (0,), free_bytes=None, isolation=Isolation()))
    good = {check for check, finding in found.items() if finding.state is not UNKNOWN}
    assert good == {"runtime", "python"}
    assert verdict_of(found.values()) is Verdict.DEGRADED


@pytest.mark.parametrize("machine", [WORKSTATION, PI, LAPTOP, CLOUD, CONTAINER, CONTAINER_V1])
def test_what_is_not_good_has_a_reason_and_a_remedy(machine: Machine, examine: Examine) -> None:
    for files in (machine.files, {}):
        for finding in examine(replace(machine, files=files)).values():
            assert finding.found
            assert bool(finding.why) == bool(finding.remedy) == (finding.state is not OK)


@pytest.mark.parametrize(
    ("path", "checks"),
    [
        ("scaling_governor", {"governor"}),
        ("scaling_max_freq", {"frequency"}),
        ("scaling_cur_freq", {"frequency"}),
        ("no_turbo", {"boost"}),
        ("temp1_input", {"thermal"}),
        ("loadavg", {"load"}),
        ("proc/stat", {"busy", "steal"}),
        ("cgroup", {"quota"}),
        ("cpu/online", {"cpuset"}),
        ("thread_siblings_list", {"smt"}),
        ("current_clocksource", {"clock source"}),
        ("meminfo", {"memory", "swap"}),
    ],
)
def test_what_cannot_be_read_is_unknown_and_never_good(
    path: str, checks: set[str], examine: Examine
) -> None:
    machine = WORKSTATION.but({path: None})
    found = examine(machine)
    assert states(found) == dict.fromkeys(checks, UNKNOWN)
    assert verdict_of(found.values()) is Verdict.DEGRADED


# --- single checks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "check", "state"),
    [
        ({"scaling_governor": "schedutil"}, "governor", WARNING),
        ({"scaling_min_freq": "3400000", "scaling_governor": "powersave"}, "governor", OK),
        ({"scaling_max_freq": "3300000"}, "frequency", OK),
        ({"scaling_max_freq": "3200000"}, "frequency", WARNING),
        # With a boost the ceiling is not for every core.
        ({"scaling_cur_freq": "2000000"}, "frequency", OK),
        ({"scaling_cur_freq": "2000000", "no_turbo": None}, "frequency", WARNING),
        ({"no_turbo": "0"}, "boost", WARNING),
        ({"no_turbo": None, "scaling_driver": "amd-pstate"}, "boost", UNKNOWN),
        ({"no_turbo": None, "scaling_driver": "cppc_cpufreq"}, "boost", OK),
        ({"temp1_input": "79900"}, "thermal", OK),
        ({"temp1_input": "80000"}, "thermal", WARNING),
        ({"core_throttle_count": "1"}, "thermal", WARNING),
        ({"loadavg": "2.00 0 0 1/1 1"}, "load", OK),
        ({"loadavg": "2.01 0 0 1/1 1"}, "load", WARNING),
        ({"loadavg": "7.99 0 0 1/1 1"}, "load", WARNING),
        ({"loadavg": "8.00 0 0 1/1 1"}, "load", FAILED),
        ({"current_clocksource": "hpet"}, "clock source", WARNING),
        ({"current_clocksource": "xen"}, "clock source", WARNING),
        ({"current_clocksource": "kvm-clock"}, "clock source", OK),
        ({"current_clocksource": "sundial"}, "clock source", UNKNOWN),
        ({"meminfo": MEMINFO.format(1_048_576, 0, 0)}, "memory", OK),
        ({"meminfo": MEMINFO.format(1_048_575, 0, 0)}, "memory", WARNING),
        ({"meminfo": MEMINFO.format(262_143, 0, 0)}, "memory", FAILED),
        ({"meminfo": MEMINFO.format(9_000_000, 65_536, 0)}, "swap", OK),
        ({"meminfo": MEMINFO.format(9_000_000, 65_537, 0)}, "swap", WARNING),
    ],
)
def test_a_check_judges_by_its_limits(
    change: dict[str, str | None], check: str, state: State, examine: Examine
) -> None:
    assert examine(WORKSTATION.but(change))[check].state is state


def test_throttling_at_this_moment_is_not_ready(examine: Examine) -> None:
    counter = "/sys/devices/system/cpu/cpu7/thermal_throttle/core_throttle_count"
    found = examine(replace(WORKSTATION, later={**WORKSTATION.later, counter: "3"}))
    assert found["thermal"].state is FAILED
    assert found["thermal"].found.endswith("3 throttling events since boot, 3 of them just now")


def test_of_several_signs_of_heat_the_worst_counts() -> None:
    cool = Conditions(temperature_c=50.0)
    throttled = replace(cool, throttle_events=1)
    assert doctor.check_thermal(cool, throttled, "40000", False).state is FAILED
    assert doctor.check_thermal(cool, cool, "40000", False).state is WARNING


@pytest.mark.parametrize(
    ("bits", "state", "words"),
    [
        ("0", OK, "49 °C"),
        ("50000", WARNING, "under-voltage, throttled since boot"),
        ("50005", FAILED, "under-voltage, throttled now, under-voltage, throttled since boot"),
        ("80008", FAILED, "soft temperature limit now"),
        ("what?", OK, "49 °C"),
    ],
)
def test_a_pis_firmware_tells_of_heat_and_of_its_power_supply(
    bits: str, state: State, words: str, examine: Examine
) -> None:
    found = examine(PI.but({"get_throttled": bits}))["thermal"]
    assert found.state is state
    assert words in found.found
    assert ("power supply" in found.remedy) == ("under-voltage" in found.found)


def test_a_better_clock_source_is_asked_for_where_there_is_one(examine: Examine) -> None:
    slow = WORKSTATION.but({"current_clocksource": "hpet"})
    assert "echo tsc" in examine(slow)["clock source"].remedy
    without = slow.but({"available_clocksource": "hpet acpi_pm"})
    assert "dmesg" in examine(without)["clock source"].remedy


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"/proc/self/cgroup": "0::/a/b"}, None),
        ({"/proc/self/cgroup": "0::/a/b", "/sys/fs/cgroup/cgroup.controllers": "cpu"}, "inf"),
        ({"/proc/self/cgroup": "0::/a/b", "/sys/fs/cgroup/a/cpu.max": "max 100000"}, "inf"),
        ({"/proc/self/cgroup": "0::/a/b", "/sys/fs/cgroup/a/cpu.max": "200000 100000"}, 2.0),
        (
            {
                "/proc/self/cgroup": "0::/a/b",
                "/sys/fs/cgroup/a/b/cpu.max": "300000 100000",
                "/sys/fs/cgroup/a/cpu.max": "25000 50000",
            },
            0.5,
        ),
        (
            {
                "/proc/self/cgroup": "2:cpu,cpuacct:/x\n0::/x",
                "/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "400000",
                "/sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
                "/sys/fs/cgroup/unified/cgroup.controllers": "pids",
            },
            4.0,
        ),
        (
            {
                "/proc/self/cgroup": "0::/a/b",
                "/sys/fs/cgroup/a/b/cpu.max": "50000 100000",
                "/sys/fs/cgroup/a/cpu.max": "300000 100000",
            },
            0.5,
        ),
        ({"/proc/self/cgroup": "0::/a", "/sys/fs/cgroup/unified/a/cpu.max": "100000 100000"}, 1.0),
        # Another controller's group says nothing of the processor.
        ({"/proc/self/cgroup": "2:cpuset:/x", "/sys/fs/cgroup/cpuset/x/cpu.max": "1 2"}, None),
        # A kernel without quotas has shares.
        ({"/proc/self/cgroup": "2:cpu:/", "/sys/fs/cgroup/cpu/cpu.shares": "1024"}, "inf"),
    ],
)
def test_the_quota_is_the_smallest_on_the_way_up(
    files: dict[str, str], cores: float | str | None
) -> None:
    quota = doctor.cpu_quota(lambda path: files.get(path, ""))
    assert quota == (float(cores) if cores is not None else None)


@pytest.mark.parametrize(
    ("quota_cores", "state"),
    [
        (0.99, FAILED),
        (1.0, WARNING),
        (1.9, WARNING),
        (2.0, OK),
        (float("inf"), OK),
        (None, UNKNOWN),
    ],
)
def test_a_quota_matters_that_two_cores_can_use_up(quota_cores: float | None, state: State) -> None:
    assert doctor.check_quota(quota_cores, 2).state is state


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,8", [0, 1, 2, 3, 8]), ("5", [5]), ("", []), ("0-", []), ("all", []), ("1,x", [])],
)
def test_lists_of_cores_are_read_as_the_kernel_writes_them(text: str, numbers: list[int]) -> None:
    assert doctor.cpu_list(text) == numbers


@pytest.mark.parametrize(
    ("free_bytes", "state"),
    [(GIB, OK), (GIB - 1, WARNING), (128 * 2**20 - 1, FAILED), (None, UNKNOWN)],
)
def test_uploads_need_room(free_bytes: int | None, state: State) -> None:
    assert doctor.check_space("store /data", free_bytes).state is state


def test_runtimes_are_listed_with_what_is_missing_and_how_to_get_it() -> None:
    reason = "openvino is not installed; run: pip install 'hurricane-nas[openvino]'"
    missing = {"availability": Availability.UNAVAILABLE, "reason": reason, "runtime": "openvino"}
    found = doctor.check_runtimes(
        [
            target(),
            target("cpu-onnxruntime-int8"),
            target("cpu-openvino-fp32", **missing),
            target("cpu-openvino-int8", **missing),
            target("npu-x-int8", availability=Availability.ESTIMATED),
        ]
    )
    assert [finding.state for finding in found] == [OK, UNAVAILABLE]
    assert found[0].found == "onnxruntime 1.20.0: cpu-onnxruntime-fp32, cpu-onnxruntime-int8"
    assert found[1].found == "cpu-openvino-fp32, cpu-openvino-int8: openvino is not installed"
    assert found[1].remedy == "pip install 'hurricane-nas[openvino]'"
    assert verdict_of(found) is Verdict.READY


@pytest.mark.parametrize("availability", [Availability.SIMULATED, Availability.ESTIMATED])
def test_a_machine_that_measures_nothing_is_not_ready(availability: Availability) -> None:
    found = doctor.check_runtimes([target(availability=availability)])
    assert [finding.state for finding in found] == [FAILED]
    assert "pip install" in found[0].remedy


def test_a_sandbox_with_a_hole_is_named() -> None:
    isolation = Isolation(("resource limits", "seccomp"), ("landlock (the kernel has none)",))
    found = doctor.check_sandbox(isolation)
    assert found.state is WARNING
    assert found.found == "resource limits, seccomp; no landlock (the kernel has none)"
    assert "--user" in found.remedy


@pytest.mark.parametrize(("version", "state"), [((3, 8, 18), FAILED), ((3, 9, 0), OK)])
def test_python_is_new_enough(version: tuple[int, ...], state: State) -> None:
    assert doctor.check_python(version).state is state


# --- reading this machine -------------------------------------------------------------------


def test_others_are_watched_while_backends_are_asked_and_only_the_rest_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[object] = []
    moments = iter([10.0, 10.2])

    def reading(children: bool = False) -> Conditions:
        told.append(("read", children))
        number = len(told)
        # Of 100 ticks in between, 30 were stolen and 50 of this process and its children.
        ticks = (0b1, 1000, 500, 0, 100) if number == 1 else (0b1, 1100, 510, 30, 150)
        return Conditions(load_1m=float(number), ticks=ticks)

    def discover() -> Discovery:
        told.append("discover")
        return Discovery({target(): "backend"}, Isolation(("seccomp",)))

    monkeypatch.setattr(doctor, "read_conditions", reading)
    store = tmp_path / "not" / "yet"
    found = doctor.examine(discover, store, sleep=told.append, clock=lambda: next(moments))
    assert told == [("read", True), "discover", pytest.approx(0.3), ("read", True)]
    by_check = {finding.check: finding for finding in found}
    assert by_check["steal"].found.startswith("30.0%")
    assert by_check["busy"].found.startswith("other processes took 10%")
    assert by_check["load"].found.startswith("1.00 ")  # before the backends were asked
    disks = [finding for finding in found if finding.check == "disk"]
    assert f"store {store}" in disks[1].found
    assert disks[1].state is not UNKNOWN
    assert not store.exists()


def test_nothing_is_waited_for_where_backends_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    moments, slept = iter([0.0, 0.5]), []
    found = Discovery({target(): "backend"}, Isolation(("seccomp",)))
    doctor.examine(lambda: found, sleep=slept.append, clock=lambda: next(moments))
    assert slept == []


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system has no /proc")
def test_what_children_took_counts_as_own_where_asked_for() -> None:
    program = "import time\nwhile time.process_time() < 0.2: pass"
    plain, all_ = read_conditions(), read_conditions(children=True)
    subprocess.run([sys.executable, "-c", program], check=True)
    took = read_conditions(children=True).ticks[4] - all_.ticks[4]
    assert took >= 0.19 * conditions._TICKS_A_SECOND
    assert read_conditions().ticks[4] - plain.ticks[4] < took


# --- the command ----------------------------------------------------------------------------

READY = Finding("load", OK, "0.00")
DEGRADED = Finding("load", WARNING, "3.00", "why so", "do this")
UNREAD = Finding("load", UNKNOWN, "unread", "why so", "do this")
BROKEN = Finding("load", FAILED, "9.00", "why so", "do this")


@pytest.mark.parametrize(
    ("finding", "verdict", "status", "strict"),
    [
        (READY, "READY", 0, 0),
        (DEGRADED, "DEGRADED", 0, 1),
        (UNREAD, "DEGRADED", 0, 1),
        (BROKEN, "NOT READY", 1, 1),
    ],
)
def test_the_status_is_the_verdicts(
    finding: Finding, verdict: str, status: int, strict: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "examine", lambda *given: (READY, finding))
    for options, expected in (([], status), (["--strict"], strict)):
        done = CliRunner().invoke(cli.cli, ["doctor", *options], standalone_mode=False)
        assert done.return_value == expected
        assert done.output.splitlines()[-1].startswith(f"{verdict}: ")
        assert ("do:  do this" in done.output) == (finding is not READY)


def agent_doctor(*options: str, backends: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGENT, "doctor", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HURRICANE_BACKENDS": backends},
    )


@pytest.mark.process
def test_the_command_examines_this_machine(tmp_path: Path) -> None:
    done = agent_doctor("--json", "--store", str(tmp_path), backends=str(BACKEND))
    assert done.stderr == ""
    told = json.loads(done.stdout)
    found = [Finding(**{**entry, "state": State(entry["state"])}) for entry in told["findings"]]
    verdict = verdict_of(found)
    assert told["verdict"] == verdict.value
    assert done.returncode == (verdict is Verdict.NOT_READY)
    assert any(f"store {tmp_path}: " in finding.found for finding in found)
    assert any("vpu-faulty-fp32: no stick; plug one in" in finding.found for finding in found)
    assert told["device"]["python"].startswith("3.")
    (cpuset,) = (finding for finding in found if finding.check == "cpuset")
    assert cpuset.found.startswith(f"{len(os.sched_getaffinity(0))} of ")


@pytest.mark.process
def test_the_command_says_in_words_what_it_found() -> None:
    done = agent_doctor("--strict", backends=str(BACKEND))
    assert done.stderr == ""
    last = done.stdout.splitlines()[-1]
    assert last.partition(":")[0] in {verdict.value for verdict in Verdict}
    assert done.returncode == (not last.startswith("READY"))
