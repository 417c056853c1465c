"""Whether a device is as fast as it was when a table was made, told while networks are timed.

The table's anchors are timed among the networks, and graphs of cheap rows with them: a network
leaves the caches colder than a row does, so there are enough of these for an anchor to stand
behind a network seldom. Without them anchors come out up to 10% slower than the device is.
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
from ..ops.pool import GATES
from .measuring import GATE_OPTION, Bench, without_gate
from .plan import COPIES, Graph, PlannedRow, anchor_graphs, plan_row, weight_bytes
from .rotation import copies_of, level_ms

ROWS = 100
"""Rows whose graphs go along; fewer, and anchors feel the networks."""

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

    def digests(self, bench: Bench) -> list[str]:
        """Their artefacts, which the agent holds from now on."""
        anchors = copies_of(bench, tuple(self.anchors_ms), COPIES)
        return [
            *(digest for group in anchors.values() for digest in group),
            *(bench.digest_of(graph) for graph in self.company),
        ]

    def level(self, bench: Bench, timed: Mapping[str, ArtifactResult]) -> float:
        """How slow the device was, as a multiple of what it was for the table.

        The median over the anchors; 1.0 where none could be timed.
        """
        levels = []
        for graph, group in copies_of(bench, tuple(self.anchors_ms), COPIES).items():
            results = [timed[digest] for digest in group]
            if all(result.error is None for result in results):
                levels.append(level_ms(results) / self.anchors_ms[graph])
        return float(np.median(levels)) if levels else 1.0


def find_witnesses(model: LatencyModel, bench: Bench) -> Witnesses | None:
    """Witnesses for a table, or None where its anchors are not known or of another target.

    Targets that keep one graph at a time have none: nothing is cold or warm there, and each
    visit is loaded anew.
    """
    target = model.target
    if model.table_path is None or without_gate(target) != bench.target or not bench.resident:
        return None
    known = load_anchors(model.table_path, target)
    gate = parse_options(target.options).get(GATE_OPTION, GATES[0])
    planned = {plan_row(row.operator, row.shape, gate): row.latency_ms or 0.0 for row in model.rows}
    anchors = anchor_graphs(tuple(planned))
    digests = {graph: bench.digest_of(graph) for graph in anchors} if known else {}
    anchors_ms = {graph: known[d] for graph, d in digests.items() if d in known}
    if not anchors_ms:
        return None

    def goes_along(row: PlannedRow) -> bool:
        light = sum(weight_bytes(graph) for graph in row.longer) <= ROW_BYTES
        return light and not is_stem(row.name) and not is_head(row.name)

    cheap = sorted((row for row in planned if goes_along(row)), key=planned.__getitem__)
    return Witnesses(anchors_ms, tuple(g for row in cheap[:ROWS] for g in row.longer))
