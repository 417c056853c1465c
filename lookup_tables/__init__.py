"""What has been measured: the table format, and the latency model made from a table.

>>> from hurricane.lookup_tables import LatencyModel, open_table
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import Calibration as Calibration
    from .journal import Journal as Journal
    from .model import LatencyModel as LatencyModel
    from .model import guess_backbone as guess_backbone
    from .shipped import open_table as open_table
    from .shipped import shipped_tables as shipped_tables
    from .table import LookupTable as LookupTable
    from .table import Row as Row
    from .table import TableError as TableError
    from .table import Target as Target

_HOME = {
    "Calibration": "calibration",
    "Journal": "journal",
    "LatencyModel": "model",
    "LookupTable": "table",
    "Row": "table",
    "TableError": "table",
    "Target": "table",
    "guess_backbone": "model",
    "open_table": "shipped",
    "shipped_tables": "shipped",
}

__all__ = [
    "Calibration",
    "Journal",
    "LatencyModel",
    "LookupTable",
    "Row",
    "TableError",
    "Target",
    "guess_backbone",
    "open_table",
    "shipped_tables",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
