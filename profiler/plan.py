"""The plan: which rows a table needs, and the graphs whose times give each row.

Layers of equal shape share rows. A row's marginal latency is a difference of two graphs,
T(with the operator) - T(baseline), so that the price of a call, which a network pays once, drops
out:

- an operator stands between a fixed neighbour and a global pool, against neighbour and pool;
- the head stands behind the neighbour, against neighbour and pool;
- the stem stands before the pool, against the pool alone, which is the price of a call: what a
  graph costs that takes the image and does next to nothing with it.

Where times are estimated a call costs nothing, and the pool, which is cheap on a device, may cost
more than an operator. There the pool is left out, and the stem stands before a neighbour.

Seams differ with the neighbour, so there are two of them, and a row is the mean over both; behind
one of them, in turns, stands an operator beside which the seam is small. The pool makes all these
graphs end in a vector, so that their last edges are alike. What the pool itself costs at each
tensor cancels when the rows of a network are summed. Baselines are few and cheap, shared by all
rows of a shape, and timed as long as one of them is: they also show whether the device is as fast
as it was before.
`docs/design/measurement.md` has reasons and figures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..ops.backbone import POOL_NAME, Backbone, is_head, is_stem, load_backbone, row_costs
from ..ops.errors import BadRequest
from ..ops.export import CanonicalGraph, architecture_pieces
from ..ops.graph import Part, Piece
from ..ops.pool import GATES, Operator, parse_operator
from ..ops.shapes import LayerShape

Graph = tuple[Piece, ...]
"""A chain of pieces that is measured as one artefact."""

NEIGHBOURS = ("SEP_3", "Choice_3")
"""Fixed neighbours: cheap everywhere, and unlike each other. Where one does not apply, the other
stands alone."""

HEAVY = 4
"""From so many times the multiply-accumulates of either neighbour on, one neighbour does: such rows
differ by 0.9% (root mean square) from means over both, and take four fifths of the time."""

AFTER_STEM = "SEP_7"
"""Stands behind the stem where times are estimated: behind small stems, what is cheaper by itself
becomes so much cheaper that nothing is left for the stem."""

REFERENCE_NETWORKS = 6
"""Networks that are timed among the rows; more change a ratio of medians by less than 1%."""

REFERENCE_DRAWS = 200
"""Random architectures that they are picked from."""

OPERATOR = "neighbours"
STEM = "pool"
UNPOOLED = "neighbours-unpooled"

ESTIMATED = "estimated"
"""The origin of times that are calculated: nothing is called."""


@dataclass(frozen=True)
class Context:
    """Two graphs whose times differ by a row's marginal latency."""

    with_operator: Graph
    baseline: Graph


@dataclass(frozen=True)
class PlannedRow:
    """One row of the table to come.

    Attributes:
        name: an operator's, a stem's or a head's name.
        shape: its layer shape.
        alone: the row's own graph; its digest is the row's `graph_sha256`.
        contexts: the marginal latency is the mean of their differences.
        estimator: how the marginal latency is obtained, as the table names it.
        spare: contexts for a device that runs the neighbour of none of the others.
    """

    name: str
    shape: LayerShape
    alone: Graph
    contexts: tuple[Context, ...]
    estimator: str
    spare: tuple[Context, ...] = ()

    @property
    def with_operator(self) -> tuple[Graph, ...]:
        """The graphs that are the row's own."""
        return tuple(context.with_operator for context in self.contexts)

    @property
    def baselines(self) -> tuple[Graph, ...]:
        """The graphs that it shares with other rows."""
        return tuple(context.baseline for context in (*self.contexts, *self.spare))

    @cached_property
    def bytes(self) -> int:
        """About how many bytes of weights its graphs with the operator hold."""
        return sum(map(weight_bytes, self.with_operator))

    @property
    def graphs(self) -> tuple[Graph, ...]:
        return (self.alone, *self.with_operator, *self.baselines)


def plan_row(
    name: str, shape: LayerShape, gate: str = GATES[0], origin: str = "measured"
) -> PlannedRow:
    """The graphs that one row needs, for a target whose times have this origin."""
    piece = Piece(name, shape, gate)
    estimated = origin == ESTIMATED
    out = (shape.out_height, shape.out_width, shape.out_channels)
    if is_stem(name) and estimated:
        after = Piece(AFTER_STEM, LayerShape(*out, shape.out_channels, 1), gate)
        return PlannedRow(name, shape, (piece,), (Context((piece, after), (after,)),), UNPOOLED)
    if is_stem(name):
        pooled = (piece, _pool(*out))
        image = (_pool(shape.height, shape.width, shape.in_channels),)
        return PlannedRow(name, shape, (piece,), (Context(pooled, image),), STEM)
    kept = replace(shape, out_channels=shape.in_channels, stride=1)
    pool = () if estimated else (_pool(shape.height, shape.width, shape.in_channels),)
    pool_after = () if estimated or is_head(name) else (_pool(*out),)
    contexts = tuple(
        Context(
            (Piece(neighbour, kept, gate), piece, *pool_after),
            (Piece(neighbour, kept, gate), *pool),
        )
        for neighbour in NEIGHBOURS
        if parse_operator(neighbour).applies_to(kept)
    )
    if estimated:
        return PlannedRow(name, shape, (piece,), contexts, UNPOOLED)
    if _macs(piece) >= HEAVY * max(_macs(context.with_operator[0]) for context in contexts):
        first = hashlib.sha256(repr((name, shape)).encode()).digest()[0] % len(contexts)
        spare = contexts[:first] + contexts[first + 1 :]
        return PlannedRow(name, shape, (piece,), (contexts[first],), OPERATOR, spare)
    return PlannedRow(name, shape, (piece,), contexts, OPERATOR)


def _macs(piece: Piece) -> int:
    return sum(cost.macs for cost in row_costs(piece.name, piece.shape))


def _pool(height: int, width: int, channels: int) -> Piece:
    return Piece(POOL_NAME, LayerShape(height, width, channels, channels, 1))


def baseline_graphs(rows: Sequence[PlannedRow]) -> tuple[Graph, ...]:
    """The baselines of a plan, each once."""
    return tuple(dict.fromkeys(graph for row in rows for graph in row.baselines))


def graph_bytes(graph: Graph, replica: int = 0) -> CanonicalGraph:
    """The ONNX artefact of a graph; every piece, and every replica, has its own seeded weights."""
    first = replica * len(graph)
    return CanonicalGraph.of([Part(piece, first + index) for index, piece in enumerate(graph)])


@dataclass(frozen=True)
class Layers:
    """What ``--layers`` names: a backbone and some or all of its layers."""

    backbone: Backbone
    indices: tuple[int, ...]
    whole: bool

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        return tuple(dict.fromkeys(self.backbone.layers[i] for i in self.indices))


def parse_layers(text: str) -> Layers:
    """Reads ``imagenet224``, ``imagenet224:0-7,12`` or ``my-backbone.toml:3``.

    Raises:
        BadRequest: unknown backbone, or a layer that it does not have.
    """
    name, colon, chosen = text.rpartition(":")
    if not colon or "/" in chosen or chosen.endswith(".toml"):
        name, chosen = text, ""
    backbone = load_backbone(name)
    count = len(backbone.layers)
    if not chosen:
        return Layers(backbone, tuple(range(count)), True)
    indices: set[int] = set()
    for part in chosen.split(","):
        first, dash, last = part.partition("-")
        try:
            start, stop = int(first), int(last if dash else first)
        except ValueError:
            raise BadRequest(f"--layers {text!r}: {part!r} is neither N nor N-M") from None
        if not 0 <= start <= stop < count:
            raise BadRequest(
                f"--layers {text!r}: {part} is outside {backbone.name}'s layers 0-{count - 1}"
            )
        indices.update(range(start, stop + 1))
    return Layers(backbone, tuple(sorted(indices)), False)


def plan_rows(
    layers: Layers, operators: Sequence[Operator], gate: str = GATES[0]
) -> tuple[PlannedRow, ...]:
    """Every row for these operators at these layers; stem and head come with whole backbones."""
    rows = [
        plan_row(operator.name, shape, gate)
        for operator in operators
        for shape in layers.shapes
        if operator.applies_to(shape)
    ]
    if layers.whole:
        backbone = layers.backbone
        rows.insert(0, plan_row(backbone.stem_name, backbone.stem_shape, gate))
        rows.append(plan_row(backbone.head_name, backbone.head_shape, gate))
    if not rows:
        raise BadRequest("none of these operators applies to any of these layers")
    return tuple(rows)


@dataclass(frozen=True)
class PlannedNetwork:
    """An end-to-end network that is timed among the rows.

    Attributes:
        backbone: its name.
        operators: one name for each layer.
        graph: the whole of it.
    """

    backbone: str
    operators: tuple[str, ...]
    graph: Graph


def reference_networks(
    layers: Layers, rows: Sequence[PlannedRow], gate: str = GATES[0]
) -> tuple[PlannedNetwork, ...]:
    """Networks that show what calls of networks take beyond their quiet times.

    Random ones of the plan's operators, at equal steps of their multiply-accumulates. None where
    the plan has no whole backbone, or a layer has no operator.
    """
    backbone = layers.backbone
    names: dict[LayerShape, list[str]] = {}
    for row in rows:
        if not (is_stem(row.name) or is_head(row.name)):
            names.setdefault(row.shape, []).append(row.name)
    if not layers.whole or not all(shape in names for shape in backbone.layers):
        return ()
    random = np.random.default_rng(0)
    drawn = {
        tuple(names[shape][random.integers(len(names[shape]))] for shape in backbone.layers)
        for _ in range(REFERENCE_DRAWS)
    }
    ordered = sorted(drawn, key=lambda operators: (backbone.macs(operators), operators))
    picked = np.linspace(0, len(ordered) - 1, REFERENCE_NETWORKS).round().astype(int)
    return tuple(
        PlannedNetwork(
            backbone.name, ordered[i], tuple(architecture_pieces(backbone, ordered[i], gate))
        )
        for i in dict.fromkeys(picked.tolist())
    )


def weight_bytes(graph: Graph) -> int:
    """About how large a graph's artefact is, without making it."""
    return 4 * sum(c.params for piece in graph for c in row_costs(piece.name, piece.shape))


def batches(
    rows: Sequence[PlannedRow], max_bytes: int, most: int | None = None
) -> Iterator[list[PlannedRow]]:
    """Rows in lists whose own graphs an agent can hold at once.

    Args:
        rows: of a plan.
        max_bytes: that an agent holds loaded.
        most: rows of a list; None: any number.
    """
    batch: list[PlannedRow] = []
    held = 0
    for row in rows:
        size = weight_bytes(row.alone)
        if batch and (held + size > max_bytes or len(batch) == most):
            yield batch
            batch, held = [], 0
        batch.append(row)
        held += size
    if batch:
        yield batch
