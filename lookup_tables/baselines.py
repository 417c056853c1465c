"""How fast a device was when its table was made: what the graphs of its rows took then.

Kept beside the table as ``table.csv.baselines.json``. Devices get faster and slower by a few
percent within minutes; whoever measures there later times the same graphs and knows by how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .sidecar import Layout, Sidecar, positive

Times = Mapping[str, float]
"""What graphs took, by digest of the artefact, in ms."""


def _read(item: Any) -> Times:
    return {digest: positive(ms, "a latency") for digest, ms in item.items()}


BASELINES: Sidecar[Times] = Sidecar(
    "baselines",
    Layout(".baselines.json", 2, "baselines", "graphs_ms", _read),
    lambda times: dict(sorted(times.items())),
    "the comparison with earlier times",
    earlier=(Layout(".anchors.json", 1, "anchors", "anchors_ms", _read),),
)
