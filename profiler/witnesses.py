"""Whether a device is as fast as it was when a table was made, told while networks are timed.

The table's anchors and the graphs of some of its rows are timed among the networks, and compared
with what they took for the table. A network leaves the caches colder than a row does, so there
are enough of them for one to stand behind a network seldom: with nothing but the anchors among
the networks the device seems 5 to 10% slower than it is. The rows are drawn at random, as company
of the table's own laps is: light ones leave the caches warmer, and networks seem slow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..agents.results import ArtifactResult
from ..lookup_tables.anchors import load_anchors
from ..lookup_tables.model import LatencyModel
from ..ops.backbone import is_head, is_stem
from ..ops.errors import BadRequest
from .measuring import Bench, gate_of, without_gate
from .plan import COPIES, Graph, PlannedRow, anchor_graphs, plan_row, weight_bytes
from .rotation import copies_of, graph_times

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
        company_ms: the same of graphs of rows; NaN where it is not known.
    """

    anchors_ms: Mapping[Graph, float]
    company_ms: Mapping[Graph, float]

    @property
    def bytes(self) -> int:
        """Weights that they hold on the agent."""
        return _bytes(self.anchors_ms, self.company_ms)

    @property
    def networks(self) -> int:
        """Networks that may be timed among them at once."""
        return max(1, len(self.company_ms) // GRAPHS_OF_A_NETWORK)

    def digests(self, bench: Bench) -> list[str]:
        """Their artefacts, which the agent holds from now on."""
        return [digest for group in self._copies(bench).values() for digest in group]

    def level(self, bench: Bench, timed: Mapping[str, ArtifactResult]) -> float:
        """How slow the device was, as a multiple of what it was for the table.

        The median over the graphs; NaN where none could be timed.
        """
        known_ms = {**self.company_ms, **self.anchors_ms}
        times = graph_times(self._copies(bench), timed)
        levels = np.array([ms / known_ms[graph] for graph, ms in times.items()])
        levels = levels[np.isfinite(levels)]
        return float(np.median(levels)) if levels.size else float("nan")

    def _copies(self, bench: Bench) -> dict[Graph, list[str]]:
        anchors = copies_of(bench, tuple(self.anchors_ms), COPIES)
        return copies_of(bench, tuple(self.company_ms), 1) | anchors


def find_witnesses(model: LatencyModel, bench: Bench) -> Witnesses | None:
    """Witnesses for a table, or None where there are none.

    That is where its anchors are not known or of another target, or the agent has little memory.
    Targets that keep one graph at a time have none: nothing is cold or warm there, and each
    visit is loaded anew.
    """
    target = model.target
    if model.table_path is None or without_gate(target) != bench.target or not bench.resident:
        return None
    known = load_anchors(model.table_path, target)
    if not known:
        return None
    gate, origin = gate_of(target), target.origin
    planned = [plan_row(row.operator, row.shape, gate, origin) for row in model.rows]
    anchors = anchor_graphs(planned)
    room = bench.max_bytes // 4 - _bytes(anchors, ())
    light = [row for row in planned if _goes_along(row)]
    company: list[Graph] = []
    for index in np.random.default_rng(0).permutation(len(light))[:ROWS]:
        if light[index].bytes <= room:
            company += light[index].longer
            room -= light[index].bytes
    least = min(GRAPHS_OF_A_NETWORK, sum(len(row.longer) for row in light))
    if room < 0 or len(company) < least:
        return None
    anchors_ms = {graph: known[d] for graph in anchors if (d := bench.digest_of(graph)) in known}
    company_ms = {graph: known.get(bench.digest_of(graph), float("nan")) for graph in company}
    return Witnesses(anchors_ms, company_ms) if anchors_ms else None


def _bytes(anchors: Iterable[Graph], company: Iterable[Graph]) -> int:
    return COPIES * sum(map(weight_bytes, anchors)) + sum(map(weight_bytes, company))


def _goes_along(row: PlannedRow) -> bool:
    if is_stem(row.name) or is_head(row.name):
        return False
    try:
        return row.bytes <= ROW_BYTES
    except BadRequest:  # an operator of a plugin that is not loaded
        return False
