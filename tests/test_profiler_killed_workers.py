"""Workers that somebody kills while a table is made cost it nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sysconfig
import threading
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="onnx, which simulated devices need, is not installed")

from hurricane.lookup_tables import LookupTable

from .agents_support import Agent, serving

PROFILE_OPS = Path(sysconfig.get_path("scripts")) / "profile-ops"
TARGET = "sim-hexagon685-dsp"
KILLS = 15


def profile(agent: Agent, table: Path) -> LookupTable:
    options = ("--layers", "digits32:0-1", "--target", TARGET, "--agent", agent.address)
    done = subprocess.run(
        [PROFILE_OPS, *options, "-o", table], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return LookupTable.load(table)


class Killer(threading.Thread):
    """Kills the agent's workers at random moments until it is stopped."""

    def __init__(self, agent: Agent, seed: int) -> None:
        super().__init__(daemon=True)
        self._agent, self._random = agent, random.Random(seed)
        self._stopped = threading.Event()
        self.kills = 0

    def run(self) -> None:
        while not self._stopped.wait(self._random.uniform(0.2, 2.5)):
            for worker in self._agent.workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                    self.kills += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join()


@pytest.mark.process
@pytest.mark.parametrize("seed", [0])
def test_a_table_is_complete_and_right_whenever_workers_are_killed(
    tmp_path: Path, seed: int
) -> None:
    with serving("--simulate", "hexagon685-dsp") as agent:
        expected = profile(agent, tmp_path / "undisturbed.csv")
        killer = Killer(agent, seed)
        killer.start()
        tables = []
        try:
            while killer.kills < KILLS:
                tables.append(profile(agent, tmp_path / f"{len(tables)}.csv"))
        finally:
            killer.stop()
    right = {(row.operator, row.shape): row.latency_ms for row in expected}
    for table in tables:
        found = {(row.operator, row.shape): row.latency_ms for row in table}
        assert all(row.status == "ok" for row in table)
        assert found.keys() == right.keys()
        for key, latency_ms in found.items():
            assert latency_ms == pytest.approx(right[key], rel=0.05, abs=0.002), key
