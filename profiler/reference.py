"""Whose speed the rows of a run are given at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..lookup_tables.baselines import BASELINES, Times
from ..lookup_tables.journal import Journal, load_with_journal
from ..lookup_tables.raw import ROWS_FROM_BEFORE, Reference
from ..lookup_tables.table import Row, Target
from ..ops.errors import BadRequest
from .plan import NEIGHBOURS, Graph, PlannedRow, baseline_graphs, plan_row
from .session import TargetSession
from .target import gate_of


@dataclass(frozen=True)
class Speed:
    """The speed that rows are given at.

    Attributes:
        reference: whose it is; empty: the device's own.
        slowdown: how slow the device was, as a multiple of that; divided out.
    """

    reference: str = ""
    slowdown: float = 1.0


def speed_of(reference: str | Path, target: Target) -> Times:
    """What graphs took for an earlier table, by their digests, in ms.

    Raises:
        BadRequest: there is no such table, or its speed is not known.
    """
    if not Path(reference).is_file():
        raise BadRequest(f"{reference}: there is no such table to refer to")
    known = BASELINES.load(reference).get(target)
    if not known:
        raise BadRequest(
            f"{BASELINES.path(reference)} does not tell how fast {target} was; a reference is a "
            "table that profile-ops made of the same target, with that file beside it"
        )
    return known


def find_reference(
    session: TargetSession,
    missing: Sequence[PlannedRow],
    journal: Journal,
    reference_ms: Mapping[str, float],
    linking_shapes: int,
) -> tuple[tuple[Graph, ...], Reference | None]:
    """The baselines of a run, and whose speed its rows are to be given at; None: their own.

    Rows of an unfinished run, which are in the journal, are rows from before like the table's.
    """
    path, target = journal.table_path, journal.target
    baselines = baseline_graphs(missing)
    there = [row for row in load_with_journal(path).rows if row.target == target and row.ok]
    known = {**BASELINES.load(path).get(target, {}), **journal.data.graphs_ms()} if there else {}
    own = _digests(session, baselines)
    if missing and known and own.isdisjoint(known):
        # Other layers than those that are there: some of their baselines are timed as well.
        baselines = tuple(dict.fromkeys((*baselines, *_linking_baselines(there, linking_shapes))))
        own = _digests(session, baselines)
    # With what the unfinished run goes by, or its rows would change their speed.
    linked = own.union(*(run.baselines_ms for run in journal.data.runs.values()))
    before = {digest: ms for digest, ms in known.items() if digest in linked}
    if before:
        return baselines, Reference(ROWS_FROM_BEFORE, before)
    if not missing or not reference_ms:
        return baselines, None
    if there:
        raise BadRequest(
            f"{path} holds rows whose speed is not known; a reference is for a new table: give "
            "another name, or leave it out"
        )
    if own.isdisjoint(reference_ms):
        raise BadRequest("the reference has no layer shape in common with these layers")
    return baselines, Reference("reference", reference_ms)


def _linking_baselines(rows: Sequence[Row], count: int) -> tuple[Graph, ...]:
    """Baselines of a few of the shapes that a table holds; what they took is known."""
    shapes = {row.shape: row for row in rows if not (row.is_stem or row.is_head)}
    some = list(shapes.values())[:: -(-len(shapes) // count) or 1]
    return baseline_graphs(
        [plan_row(NEIGHBOURS[0], row.shape, gate_of(row.target), row.target.origin) for row in some]
    )


def _digests(session: TargetSession, graphs: Sequence[Graph]) -> set[str]:
    """Digests of the graphs' artefacts."""
    return {session.info_of(graph).artifact_sha256 for graph in graphs}
