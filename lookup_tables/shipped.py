"""The tables that come with the package, and opening a table by name or path."""

from __future__ import annotations

import os
from pathlib import Path

from .journal import journal_path
from .table import LookupTable, TableError


def shipped_tables() -> tuple[str, ...]:
    """Names of the shipped tables, e.g. ``imagenet224-sim-hexagon685-dsp``."""
    return tuple(sorted(f.stem for f in _folder().glob("*.csv")))


def open_table(name_or_path: str | Path) -> LookupTable:
    """Loads a shipped table by name, or a user's by path.

    Raises:
        TableError: neither exists, or the file breaks the format.
    """
    text = str(name_or_path)
    if text in shipped_tables():
        return LookupTable.load(_folder() / f"{text}.csv")
    path = Path(text)
    if os.path.exists(path):  # never raises, whatever a file says of where a table lies
        return LookupTable.load(path)
    if path.name and os.path.exists(journal_path(path)):
        raise TableError(
            f"table {path} is not finished: its run was interrupted ({journal_path(path)}); "
            "give the same profile-ops command again to go on"
        )
    shipped = ", ".join(shipped_tables()) or "none"
    raise TableError(f"table {text!r} is neither a file nor shipped (shipped: {shipped})")


def _folder() -> Path:
    return Path(__file__).parent / "data"
