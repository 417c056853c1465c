"""Whether a device is as fast as it was when a table was made, told while networks are timed.

The table's anchors are timed among the networks, and graphs of cheap rows with them: a network
leaves the caches colder than a row does, so there are enough of these for an anchor to stand
behind a network seldom. Without them anchors come out 5 to 10% slower than the device is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..agents.results import ArtifactResult
from ..lookup_tables.anchors import load_anchors
from ..lookup_tables.model import LatencyModel
from ..lookup_tables.table import parse_options
from ..ops.backbone import is_head, is_stem
from ..ops.errors import BadRequest
from ..ops.pool import GATES
from .measuring import GATE_OPTION, Bench, without_gate
from .plan import COPIES, Graph, PlannedRow, anchor_graphs, plan_row, weight_bytes
from .rotation import anchor_times, copies_of

ROWS = 100
"""Rows whose graphs go along."""

GRAPHS_OF_A_NETWORK = 6
"""Graphs that go along for each network in a request."""

ROW_BYTES = 8 * 2**20
"""Weights that such a row's graphs hold at most."""


@dataclass(frozen=True)
class Witnesses:
    """Graphs to time among networks.

    Attributes:
        anchors_ms: what each anchor took when the table was made.
        company: graphs that only keep the anchors from the networks.
    """

    anchors_ms: Mapping[Graph, float]
    company: tuple[Graph, ...]

    @property
    def bytes(self) -> int:
        """Weights that they hold on the agent."""
        anchors = COPIES * sum(weight_bytes(graph) for graph in self.anchors_ms)
        return anchors + sum(weight_bytes(graph) for graph in self.company)

    @property
    def networks(self) -> int:
        """Networks that may be timed among them at once."""
        return max(1, len(self.company) // GRAPHS_OF_A_NETWORK)

    def digests(self, bench: Bench) -> list[str]:
        """Their artefacts, which the agent holds from now on."""
        anchors = copies_of(bench, tuple(self.anchors_ms), COPIES)
        return [
            *(digest for group in anchors.values() for digest in group),
            *(bench.digest_of(graph) for graph in self.company),
        ]

    def level(self, bench: Bench, timed: Mapping[str, ArtifactResult]) -> float:
        """How slow the device was, as a multiple of what it was for the table.

        The median over the anchors; NaN where none could be timed.
        """
        anchors = anchor_times(copies_of(bench, tuple(self.anchors_ms), COPIES), timed)
        levels = [ms / self.anchors_ms[graph] for graph, ms in anchors.items()]
        return float(np.median(levels)) if levels else float("nan")


def find_witnesses(model: LatencyModel, bench: Bench) -> Witnesses | None:
    """Witnesses for a table, or None where its anchors are not known or of another target.

    Targets that keep one graph at a time have none: nothing is cold or warm there, and each
    visit is loaded anew.
    """
    target = model.target
    if model.table_path is None or without_gate(target) != bench.target or not bench.resident:
        return None
    known = load_anchors(model.table_path, target)
    if not known:
        return None
    gate = parse_options(target.options).get(GATE_OPTION, GATES[0])
    planned = {plan_row(row.operator, row.shape, gate): row.latency_ms or 0.0 for row in model.rows}
    digests = {graph: bench.digest_of(graph) for graph in anchor_graphs(tuple(planned))}
    anchors_ms = {graph: known[d] for graph, d in digests.items() if d in known}
    cheap = sorted((row for row in planned if _goes_along(row)), key=planned.__getitem__)[:ROWS]
    found = Witnesses(anchors_ms, tuple(graph for row in cheap for graph in row.longer))
    return found if anchors_ms and found.bytes <= bench.max_bytes // 4 else None


def _goes_along(row: PlannedRow) -> bool:
    if is_stem(row.name) or is_head(row.name):
        return False
    try:
        return sum(weight_bytes(graph) for graph in row.longer) <= ROW_BYTES
    except BadRequest:  # an operator of a plugin that is not loaded
        return False
