"""Shared by all tests: an export cache of their own, and where outside data lies."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hurricane.agents.worker import Heartbeat

os.environ.setdefault(
    "HURRICANE_CACHE", str(Path(__file__).resolve().parent.parent / ".cache" / "hurricane")
)


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
