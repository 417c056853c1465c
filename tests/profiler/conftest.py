"""What all tests of the profiler have in common."""

from __future__ import annotations

import pytest

from hurricane.profiler import pool


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is lost is looked for more often than in earnest."""
    monkeypatch.setattr(pool, "POLL_S", 0.01)
