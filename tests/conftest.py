"""Shared by all tests: an export cache of their own, and where outside data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
