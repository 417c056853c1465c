"""Shared by all tests: an export cache of their own, and where outside data lies."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from hurricane.agents.telemetry import turn_off_telemetry
from hurricane.agents.worker import Heartbeat

# Fixtures of several files.
from .adb_support import adb_server  # noqa: F401
from .python39_support import agent39, board39, python39, wheel  # noqa: F401

turn_off_telemetry()  # before a test imports a runtime

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell without job control starts background jobs with SIGINT ignored, and they would hand it on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault(
    "HURRICANE_CACHE", str(Path(__file__).resolve().parent.parent / ".cache" / "hurricane")
)


# Tests that start processes have the marker, so that ``-m "not process"`` leaves the quick ones.
_started: list[str] = []
sys.addaudithook(
    lambda event, args: _started.append(event) if event in ("subprocess.Popen", "os.fork") else None
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    _started.clear()


@pytest.fixture(autouse=True)
def _processes_are_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if _started and request.node.get_closest_marker("process") is None:
        pytest.fail("it starts a process: mark it with @pytest.mark.process")


# Where backends of the tests may read and write; workers get nothing else of the environment.
os.environ["HURRICANE_BACKEND_FOLDER"] = tempfile.gettempdir()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real images and published latencies; skips where there is none."""
    folder = os.environ.get("HURRICANE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("HURRICANE_DATA does not name a folder with images and published latencies")
    return Path(folder)


@pytest.fixture
def heartbeat() -> Iterator[Heartbeat]:
    """What a worker tells of its progress, in a memory of its own."""
    with tempfile.TemporaryFile() as memory:
        memory.truncate(Heartbeat.SIZE)
        heartbeat = Heartbeat(memory.fileno())
    yield heartbeat
    heartbeat.close()
