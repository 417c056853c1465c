"""What the machine was like around a measurement, as it is read, flagged and sent."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hurricane.agents import conditions, wire
from hurricane.agents.backends.base import Loaded, Session
from hurricane.agents.client import AgentClient
from hurricane.agents.conditions import Conditions, read_conditions, since
from hurricane.agents.results import ArtifactResult, BatchConditions, Protocol
from hurricane.agents.worker import Heartbeat

from .agents_stand_ins import FORMAT, OneMillisecond, bench_of
from .agents_support import serving

# Cores 1 and 2, of all ticks 10% idle, 5% stolen, 25% of this process.
EARLIER = Conditions(steal_share=0.5, ticks=(0b110, 1000, 500, 200, 100))
LATER = Conditions(steal_share=0.4, ticks=(0b110, 1200, 520, 210, 150))
NOTHING_READ = Conditions(unwatched=("busy", "steal"))


@pytest.fixture
def board_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine of cores 1 and 2 in use, to be filled with files as a kernel shows them."""
    for name in ("_THERMAL", "_HWMON", "_CPU", "_PROC"):
        folder = tmp_path / name.strip("_").lower()
        folder.mkdir()
        monkeypatch.setattr(conditions, name, folder)
    monkeypatch.setattr(conditions, "_cores", lambda: [1, 2])
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def put_core(board: Path, core: int, **files: object) -> None:
    for name, text in files.items():
        put(board / f"cpu/cpu{core}" / name.replace("__", "/"), f"{text}\n")


# --- reading --------------------------------------------------------------------------------


def test_what_a_machine_does_not_tell_is_zero_or_empty_and_unwatched(board_files: Path) -> None:
    read = read_conditions()
    assert read == Conditions(unwatched=("load", "busy", "steal", "throttling"))
    assert read.interference_unwatched


@pytest.mark.parametrize(
    ("file", "text", "watched"),
    [
        ("proc/loadavg", "0.00 0.00 0.00 1/100 4242\n", {"load"}),
        ("proc/stat", "cpu1 9 0 0 9 0 0 0 0 0 0\ncpu2 9 0 0 9 0 0 0 0 0 0\n", {"busy", "steal"}),
        ("proc/stat", "cpu1 0 0 0 0 0 0 0 0 0 0\ncpu2 0 0 0 0 0 0 0 0 0 0\n", set()),
        ("cpu/cpu1/thermal_throttle/core_throttle_count", "0\n", {"throttling"}),
    ],
)
def test_what_reads_zero_is_watched_and_what_cannot_be_read_is_not(
    file: str, text: str, watched: set[str], board_files: Path
) -> None:
    put(board_files / file, text)
    read = read_conditions()
    assert (read.load_1m, read.steal_share, read.throttle_events) == (0.0, 0.0, 0)
    assert {"load", "busy", "steal", "throttling"} - set(read.unwatched) == watched


def test_conditions_are_those_of_the_cores_in_use(
    board_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for core, mhz in ((0, 600), (1, 1000), (2, 2000)):
        put_core(
            board_files,
            core,
            cpufreq__scaling_cur_freq=1000 * mhz,
            cpufreq__scaling_governor="performance" if core else "powersave",
            thermal_throttle__core_throttle_count=3 + core,
        )
    put(board_files / "proc/loadavg", "1.25 0.50 0.10 1/100 4242\n")
    put(
        board_files / "proc/stat",
        "cpu  900 900 900 900 900 900 900 900 0 0\n"
        "cpu0 500 500 500 500 500 500 500 500 0 0\n"
        "cpu1 50 0 10 25 5 0 0 10 7 0\n"
        "cpu2 10 1 2 70 3 4 5 5 0 0\n"
        "intr 12345 1 2 3\n",
    )
    monkeypatch.setattr(time, "process_time", lambda: 0.4321)
    read = read_conditions()
    assert read == Conditions(
        frequency_mhz=1500.0,
        load_1m=1.25,
        steal_share=15 / 200,
        throttle_events=9,
        governor="performance",
        ticks=(0b110, 200, 103, 15, int(0.4321 * os.sysconf("SC_CLK_TCK"))),
    )


def test_cores_under_different_governors_name_both(board_files: Path) -> None:
    put_core(board_files, 1, cpufreq__scaling_governor="schedutil")
    put_core(board_files, 2, cpufreq__scaling_governor="performance")
    assert read_conditions().governor == "performance,schedutil"


def test_a_core_that_the_kernel_does_not_list_leaves_the_shares_out(board_files: Path) -> None:
    put(board_files / "proc/stat", "cpu  9 0 0 9 0 0 0 9 0 0\ncpu1 9 0 0 9 0 0 0 9 0 0\n")
    read = read_conditions()
    assert (read.steal_share, read.ticks) == (0.0, Conditions().ticks)
    assert read.interference_unwatched


def test_temperature_is_that_of_the_processors_sensors_that_are_connected(
    board_files: Path,
) -> None:
    put(board_files / "thermal/thermal_zone0/type", "battery\n")
    put(board_files / "thermal/thermal_zone0/temp", "99000\n")
    put(board_files / "thermal/thermal_zone1/type", "cpu-thermal\n")
    put(board_files / "thermal/thermal_zone1/temp", "48500\n")
    put(board_files / "hwmon/hwmon0/name", "k10temp\n")
    put(board_files / "hwmon/hwmon0/temp1_input", "-274000\n")
    assert read_conditions().temperature_c == 48.5
    put(board_files / "thermal/thermal_zone1/temp", "0\n")
    assert read_conditions().temperature_c == 99.0


def test_sensors_are_looked_for_once_and_others_not_read_where_one_is_the_processors(
    board_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, name in enumerate(("nvme", "coretemp")):
        put(board_files / f"hwmon/hwmon{index}/name", f"{name}\n")
        put(board_files / f"hwmon/hwmon{index}/temp1_input", "50000\n")
    read_conditions()
    read: list[str] = []
    plain = conditions.read_text

    def noting(path: Path) -> str:
        read.append(str(path.relative_to(board_files)))
        return plain(path)

    monkeypatch.setattr(conditions, "read_text", noting)
    assert read_conditions().temperature_c == 50.0
    assert [name for name in read if "hwmon" in name] == ["hwmon/hwmon1/temp1_input"]


def test_frequency_comes_from_cpuinfo_where_there_is_no_governor(board_files: Path) -> None:
    blocks = [f"processor\t: {core}\ncpu MHz\t\t: {1000 + core}.5\n" for core in range(4)]
    put(board_files / "proc/cpuinfo", "\n".join(blocks))
    assert read_conditions().frequency_mhz == 1002.0


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot pin")
def test_the_cores_in_use_are_those_of_all_pinned_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # This thread on core 3; one thread pinned to core 5, one that may run anywhere, one that ended.
    affinities = {0: {3}, 11: {3}, 12: {5}, 13: {0, 1, 2, 3, 4, 5}}

    def affinity(thread: int) -> set[int]:
        if thread not in affinities:
            raise ProcessLookupError
        return affinities[thread]

    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    monkeypatch.setattr(os, "listdir", lambda path: ["11", "12", "13", "14"])
    assert conditions._cores() == [3, 5]


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system has no /proc")
def test_a_real_kernel_tells_this_process_from_all() -> None:
    before = read_conditions()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = read_conditions()
    assert after.ticks[0] == before.ticks[0] > 0
    assert after.ticks[4] - before.ticks[4] >= 0.04 * os.sysconf("SC_CLK_TCK")
    assert after.ticks[1] > before.ticks[1] > before.ticks[2] + before.ticks[3]


# --- since an earlier moment ----------------------------------------------------------------


def test_shares_are_those_of_the_time_in_between() -> None:
    later = since(EARLIER, LATER)
    assert later.steal_share == pytest.approx(0.05)
    # 200 ticks less 20 idle, 10 stolen and 50 of this process.
    assert later.busy_share == pytest.approx(0.6)
    assert replace(later, steal_share=0.4, busy_share=0.0) == LATER


@pytest.mark.parametrize(
    ("ticks", "why"),
    [
        ((0b110, 1059, 500, 259, 100), "shorter than 0.3 s on two cores"),
        ((0b110, 1000, 500, 200, 100), "no time at all"),
        ((0b010, 1200, 520, 210, 150), "another set of cores"),
    ],
)
def test_shares_that_mean_nothing_are_zero(
    ticks: tuple[int, int, int, int, int], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "_TICKS_A_SECOND", 100)
    later = since(EARLIER, replace(LATER, ticks=ticks))
    assert (later.steal_share, later.busy_share) == (0.0, 0.0), why
    assert later.interference_unwatched == (why == "another set of cores")


def test_counters_that_stand_still_watch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_TICKS_A_SECOND", 100)
    # This process alone took more than all of its cores are said to have had.
    later = since(EARLIER, replace(LATER, ticks=(0b110, 1000, 500, 200, 160)))
    assert later.unwatched == ("busy", "steal")


def test_what_was_unwatched_at_either_moment_was_unwatched() -> None:
    before, after = replace(EARLIER, unwatched=("load",)), replace(LATER, unwatched=("throttling",))
    assert set(since(before, after).unwatched) == {"load", "throttling"}
    assert set(since(before, Conditions(unwatched=("steal",))).unwatched) == {"load", "steal"}


def test_shares_of_0_3_s_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_TICKS_A_SECOND", 100)
    later = since(EARLIER, replace(LATER, ticks=(0b110, 1060, 500, 206, 100)))
    assert (later.steal_share, later.busy_share) == (0.1, 0.9)


def test_rounding_makes_no_share_negative() -> None:
    # Ticks are sampled: more of this process' own than there were in all.
    later = since(EARLIER, replace(LATER, ticks=(0b110, 1200, 500, 199, 301)))
    assert (later.steal_share, later.busy_share) == (0.0, 0.0)


def test_a_device_that_counts_no_ticks_speaks_for_itself() -> None:
    later = Conditions(steal_share=0.2, busy_share=0.3)
    assert since(Conditions(), later) == later


# --- flags and wire -------------------------------------------------------------------------


class ScriptedBoard(Session):
    """A session that is in the given conditions, one after the other.

    They are read before loading, before timing, and at the end.
    """

    def __init__(self, *scripted: Conditions) -> None:
        self._scripted = iter(scripted)

    def load(self, content: bytes, format: str) -> Loaded:
        return OneMillisecond()

    def conditions(self) -> Conditions:
        return next(self._scripted)


def ticks_of(steal: float, others: float) -> tuple[int, int, int, int, int]:
    """Those of `EARLIER` and 1000 more, of which shares were stolen or of others."""
    stolen, other = round(1000 * steal), round(1000 * others)
    return (0b110, 2000, 500, 200 + stolen, 1100 - stolen - other)


@pytest.mark.parametrize(
    ("steal", "others", "events", "flags"),
    [
        (0.05, 0.10, 0, []),
        (0.06, 0.10, 0, ["steal"]),
        (0.05, 0.11, 0, ["busy"]),
        (0.0, 0.0, 1, ["throttled"]),
        (0.3, 0.3, 2, ["throttled", "steal", "busy"]),
    ],
)
def test_a_disturbed_batch_is_flagged_and_says_by_how_much(
    steal: float, others: float, events: int, flags: list[str], heartbeat: Heartbeat
) -> None:
    after = replace(EARLIER, ticks=ticks_of(steal, others), throttle_events=events)
    bench = bench_of(ScriptedBoard(EARLIER, EARLIER, after), heartbeat)
    found = bench.measure(["a"], FORMAT, Protocol(), True)["conditions"]
    assert found["flags"] == flags
    assert found["before"]["busy_share"] == 0.0
    assert found["after"]["busy_share"] == pytest.approx(others)
    assert found["after"]["steal_share"] == pytest.approx(steal)


def test_what_was_stolen_since_boot_flags_no_short_batch(heartbeat: Heartbeat) -> None:
    bench = bench_of(ScriptedBoard(EARLIER, EARLIER, EARLIER), heartbeat)
    found = bench.measure(["a"], FORMAT, Protocol(), True)["conditions"]
    assert found["flags"] == []


@pytest.mark.parametrize(
    ("before", "after", "flags"),
    [
        (NOTHING_READ, LATER, ["unwatched"]),
        (EARLIER, replace(EARLIER, unwatched=("steal",)), ["unwatched"]),
        (EARLIER, replace(LATER, ticks=(0b11, 1200, 520, 210, 150)), ["unwatched"]),
        # Few processors but Intel's count their throttling, and load averages judge nothing.
        (EARLIER, replace(EARLIER, unwatched=("load", "throttling")), []),
        # Simulated: nothing is there to be watched.
        (Conditions(), Conditions(), []),
    ],
)
def test_a_batch_whose_interference_could_not_be_watched_is_flagged(
    before: Conditions, after: Conditions, flags: list[str], heartbeat: Heartbeat
) -> None:
    bench = bench_of(ScriptedBoard(before, before, after), heartbeat)
    found = bench.measure(["a"], FORMAT, Protocol(), True)["conditions"]
    assert found["flags"] == flags


def test_conditions_survive_the_wire_without_their_ticks() -> None:
    protocol = Protocol(rounds=1, calls_per_visit=1)
    wall_ms = np.ones((1, 1))
    unwatched = ("load", "steal")
    after = Conditions(40.5, 1800.0, 0.5, 0.01, 7, "schedutil", 0.25, LATER.ticks, unwatched)
    told = BatchConditions(after=after, flags=("busy",))
    back = wire.event_from_wire(wire.event_to_wire(told), protocol)
    assert isinstance(back, BatchConditions)
    assert back.after == replace(after, ticks=Conditions().ticks)
    assert back.before == Conditions()
    assert back.flags == ("busy",)
    result = ArtifactResult("ab", wall_ms=wall_ms, flags=("fallback:cpu", "busy"))
    assert result.under(back).after == back.after
    assert result.under(back).flags == ("fallback:cpu", "busy")


BACKEND = """
from pathlib import Path
from hurricane.agents import conditions
from hurricane.agents.backends.base import Availability, Loaded, Sample, Session, TargetInfo

CHECKS = {"any": lambda content: None}

def targets(context):
    facts = ("d", "cpu", "r", "1", "fp32", Availability.AVAILABLE, "")
    return [TargetInfo(name, *facts, formats=("any",)) for name in ("cpu-seen-x", "cpu-blind-x")]

def open_target(context, target, options, threads):
    if target == "cpu-blind-x":
        conditions._PROC = Path("/nonexistent")
    return Board()

class Graph(Loaded):
    def timed_calls(self, count): return [Sample(1.0)] * count
    def inputs(self): return ()
    def outputs(self, inputs): return {}
    def close(self): pass

class Board(Session):
    def load(self, content, format): return Graph()
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system has no /proc")
def test_a_worker_that_cannot_read_the_counters_says_so_with_its_results(tmp_path: Path) -> None:
    backend = tmp_path / "blind.py"
    backend.write_text(BACKEND)
    with (
        serving(environment={"HURRICANE_BACKENDS": str(backend)}) as agent,
        AgentClient(agent.address) as client,
    ):
        digest = client.upload(b"graph")
        seen, blind = (
            client.benchmark([digest], target, protocol=Protocol(rounds=1))[digest]
            for target in ("cpu-seen-x", "cpu-blind-x")
        )
    assert "unwatched" not in seen.flags
    assert {"load", "busy", "steal"}.isdisjoint(seen.after.unwatched)
    assert blind.flags == ("unwatched",)
    assert {"load", "busy", "steal"} <= set(blind.after.unwatched)
