"""The version of this distribution."""

from __future__ import annotations

import importlib.metadata


def agent_version() -> str:
    """The installed version, or ``unknown`` where the files were merely copied."""
    try:
        return importlib.metadata.version("hurricane-nas")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
