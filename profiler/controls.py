"""Drift controls: whether a device is as fast as it was when a table was made.

The table's baselines and the graphs of some of its rows are timed among networks, and compared
with what they took for the table. A network leaves the caches colder than a row does, so there
are enough controls for one to stand behind a network seldom: with nothing but the baselines among
the networks the device seems 5 to 10% slower than it is. Rows are drawn at random, as background
graphs of the table's own batches are: light ones leave the caches warmer, and networks seem slow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..agents.results import ArtifactResult
from ..lookup_tables.baselines import BASELINES
from ..lookup_tables.model import LatencyModel
from ..ops.backbone import is_head, is_stem
from ..ops.errors import BadRequest
from .outcomes import Series, clock_ms
from .plan import Graph, PlannedRow, baseline_graphs, plan_row, weight_bytes
from .protocol import TimingProtocol
from .session import TargetSession
from .target import gate_of, without_gate
from .timing.location import quiet_ms


@dataclass(frozen=True)
class Controls:
    """Graphs to time among networks.

    Attributes:
        known_ms: what each took when the table was made, by graph; NaN where it is not known.
        series: these graphs with the replicas of each, and their artefacts on the agent.
        bytes: weights that they hold there.
        networks: that may be timed among them at once.
    """

    known_ms: Mapping[Graph, float]
    series: Mapping[Series, str]
    bytes: int
    networks: int

    def slowdown(self, timed: Mapping[str, ArtifactResult]) -> float:
        """How slow the device was, as a multiple of what it was for the table.

        Args:
            timed: results by artefact.

        Returns:
            The median over the graphs; NaN where none could be timed.
        """
        times: dict[Graph, list[float]] = {}
        for (graph, _), digest in self.series.items():
            result = timed[digest]
            ms = float("nan") if result.error is not None else float(quiet_ms(clock_ms(result)))
            times.setdefault(graph, []).append(ms)
        ratios = np.array([np.mean(ms) / self.known_ms[graph] for graph, ms in times.items()])
        ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
        return float(np.median(ratios)) if ratios.size else float("nan")


def find_controls(
    model: LatencyModel, session: TargetSession, protocol: TimingProtocol
) -> Controls | None:
    """Controls for a table, held by the agent from now on, or None where there are none.

    That is where its baselines are not known or of another target, or the agent has little memory.
    Targets that keep one graph at a time have none: nothing is cold or warm there, and each
    visit is loaded anew.
    """
    target = model.target
    if model.table_path is None or without_gate(target) != session.target or not session.resident:
        return None
    known = BASELINES.load(model.table_path).get(target)
    if not known:
        return None
    gate, origin = gate_of(target), target.origin
    planned = [plan_row(row.operator, row.shape, gate, origin) for row in model.rows]
    baselines, replicas = baseline_graphs(planned), protocol.baseline_replicas
    baseline_bytes = replicas * sum(map(weight_bytes, baselines))
    room = session.max_bytes // 4 - baseline_bytes
    light = [row for row in planned if _is_light(row, protocol.control_row_bytes)]
    rows = _fitting(light, room, protocol.control_rows)
    graphs = [graph for row in rows for graph in row.with_operator]
    per_network = protocol.control_graphs_per_network
    if room < 0 or len(graphs) < min(per_network, sum(len(row.with_operator) for row in light)):
        return None
    known_ms = {graph: known.get(session.digest_of(graph), float("nan")) for graph in graphs}
    baselines_ms = {g: known[d] for g in baselines if (d := session.digest_of(g)) in known}
    if not baselines_ms:
        return None
    series = {(graph, 0): session.digest_of(graph) for graph in graphs}
    for graph in baselines_ms:
        for number in range(replicas if weight_bytes(graph) else 1):
            series[graph, number] = session.digest_of(graph, number)
    held = baseline_bytes + sum(row.bytes for row in rows)
    return Controls({**known_ms, **baselines_ms}, series, held, max(1, len(graphs) // per_network))


def _fitting(rows: Iterable[PlannedRow], room: int, count: int) -> list[PlannedRow]:
    """Rows drawn at random, those of them that fit into so many bytes."""
    rows = list(rows)
    chosen: list[PlannedRow] = []
    for index in np.random.default_rng(0).permutation(len(rows))[:count]:
        if rows[index].bytes <= room:
            chosen.append(rows[index])
            room -= rows[index].bytes
    return chosen


def _is_light(row: PlannedRow, max_bytes: int) -> bool:
    if is_stem(row.name) or is_head(row.name):
        return False
    try:
        return row.bytes <= max_bytes
    except BadRequest:  # an operator of a plugin that is not loaded
        return False
