"""The plan: which rows a table needs, and the graphs whose times give each row.

Layers of equal shape share rows. A row's marginal latency is a difference of two graphs,
T(longer) - T(shorter), so that the price of a call, which a network pays once, drops out:

- where an operator keeps its shape, two copies of it against one;
- elsewhere, a fixed neighbour followed by the operator against the neighbour alone;
- for the stem, the stem followed by a fixed neighbour against the neighbour alone.

`docs/measurement.md` has the reasons and the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..ops.backbone import Backbone, is_head, is_stem, load_backbone, row_costs
from ..ops.errors import BadRequest
from ..ops.graph import Part, Piece, join, serialise
from ..ops.pool import GATES, Operator
from ..ops.shapes import LayerShape

Graph = tuple[Piece, ...]
"""A chain of pieces that is measured as one artefact."""

NEIGHBOUR = "SEP_3"
"""The fixed neighbour: it applies to every shape, and is cheap everywhere."""

CHAIN = "chain-2"
CONTEXT = "neighbour-before"
STEM_CONTEXT = "neighbour-after"


@dataclass(frozen=True)
class PlannedRow:
    """One row of the table to come.

    Attributes:
        name: an operator's, a stem's or a head's name.
        shape: its layer shape.
        alone: the row's own graph; its digest is the row's `graph_sha256`.
        longer: the graph whose time exceeds `shorter`'s by the row's marginal latency.
        shorter: see `longer`.
        estimator: how the marginal latency is obtained, as the table names it.
    """

    name: str
    shape: LayerShape
    alone: Graph
    longer: Graph
    shorter: Graph
    estimator: str

    @property
    def ends_elsewhere(self) -> bool:
        """Whether the longer graph ends in another tensor than the shorter one."""
        return self.estimator == CONTEXT and not is_head(self.name)

    @property
    def graphs(self) -> tuple[Graph, ...]:
        return tuple(dict.fromkeys((self.alone, self.longer, self.shorter)))


def plan_row(name: str, shape: LayerShape, gate: str = GATES[0]) -> PlannedRow:
    """The graphs that one row needs."""
    piece = Piece(name, shape, gate)
    if is_stem(name):
        after = Piece(NEIGHBOUR, _kept(shape, after=True), gate)
        return PlannedRow(name, shape, (piece,), (piece, after), (after,), STEM_CONTEXT)
    if shape.keeps_shape and not is_head(name):
        return PlannedRow(name, shape, (piece,), (piece, piece), (piece,), CHAIN)
    before = Piece(NEIGHBOUR, _kept(shape), gate)
    return PlannedRow(name, shape, (piece,), (before, piece), (before,), CONTEXT)


def _kept(shape: LayerShape, after: bool = False) -> LayerShape:
    """The shape of a neighbour that leaves the tensor before (or after) a layer as it is."""
    if after:
        return LayerShape(
            shape.out_height, shape.out_width, shape.out_channels, shape.out_channels, 1
        )
    return LayerShape(shape.height, shape.width, shape.in_channels, shape.in_channels, 1)


def graph_bytes(graph: Graph) -> bytes:
    """The ONNX artefact of a graph; every piece has its own seeded weights."""
    return serialise(join([Part(piece, index) for index, piece in enumerate(graph)]))


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


def anchor_rows(rows: Iterable[PlannedRow]) -> dict[tuple[int, int, int], PlannedRow]:
    """The fixed neighbour's own row at each tensor (height, width, channels) that rows touch.

    Its price of a call, 2·T(one) - T(two), tells what the edges of a graph cost there.
    """
    anchors: dict[tuple[int, int, int], PlannedRow] = {}
    for row in rows:
        sides = []
        if not is_stem(row.name):
            sides.append(_kept(row.shape))
        if not is_head(row.name):
            sides.append(_kept(row.shape, after=True))
        for side in sides:
            key = (side.height, side.width, side.in_channels)
            if key not in anchors:
                anchors[key] = plan_row(NEIGHBOUR, side, row.alone[0].gate)
    return anchors


def weight_bytes(graph: Graph) -> int:
    """About how large a graph's artefact is, without making it."""
    return 4 * sum(c.params for piece in graph for c in row_costs(piece.name, piece.shape))
