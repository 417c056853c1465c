"""Export to the one canonical ONNX graph: operators, contexts, whole architectures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .backbone import Backbone
from .graph import Part, Piece, join, module_weights, prepare_templates, serialise
from .pool import GATES
from .shapes import LayerShape

if TYPE_CHECKING:
    from .blocks import Network


class CanonicalGraph(bytes):
    """The bytes of a canonical graph, which also tell what it is made of.

    Attributes:
        pieces: in order; the parameters of number i are in the graph as ``i/name``.
    """

    pieces: tuple[Piece, ...]
    digest: str

    @classmethod
    def of(cls, parts: Sequence[Part]) -> CanonicalGraph:
        """The graph of these parts."""
        graph = cls(serialise(join(parts)))
        graph.pieces = tuple(part.piece for part in parts)
        return graph


def sha256(content: bytes) -> str:
    """The digest an artefact is known by; a canonical graph's is computed once."""
    if isinstance(content, CanonicalGraph):
        if not hasattr(content, "digest"):
            content.digest = hashlib.sha256(content).hexdigest()
        return content.digest
    return hashlib.sha256(content).hexdigest()


def export_operator(name: str, shape: LayerShape, gate: str = GATES[0]) -> CanonicalGraph:
    """An operator (or stem, or head) alone at a layer shape, with seeded weights.

    Args:
        name: operator, stem or head as a table names it.
        shape: where it stands.
        gate: of squeeze-and-excitation.

    Returns:
        ONNX, opset 13, batch 1; equal request, equal bytes.

    Raises:
        BadRequest: the operator is unknown or does not apply to the shape.
    """
    return export_context([Piece(name, shape, gate)])


def export_context(pieces: Sequence[Piece]) -> CanonicalGraph:
    """A short chain of pieces, each with its own seeded weights."""
    return CanonicalGraph.of([Part(piece, index) for index, piece in enumerate(pieces)])


def architecture_pieces(
    backbone: Backbone, operators: Sequence[str], gate: str = GATES[0]
) -> list[Piece]:
    """Stem, layers and head of an architecture, in order."""
    backbone.check(operators)
    return [
        Piece(backbone.stem_name, backbone.stem_shape, gate),
        *(Piece(n, s, gate) for n, s in zip(operators, backbone.layers, strict=True)),
        Piece(backbone.head_name, backbone.head_shape, gate),
    ]


def export_architecture(
    backbone: Backbone,
    operators: Sequence[str],
    network: Network | None = None,
    gate: str = GATES[0],
) -> CanonicalGraph:
    """A whole network.

    Args:
        backbone: its frame.
        operators: one name for each layer.
        network: trained weights; None for seeded ones.
        gate: of squeeze-and-excitation; must be the trained network's.

    Returns:
        ONNX with `input` [1, C, H, W] and `output` [1, classes]; equal request, equal bytes.

    Raises:
        BadRequest: the operators do not make an architecture of the backbone.
    """
    pieces = architecture_pieces(backbone, operators, gate)
    prepare_templates(pieces)
    if network is None:
        return CanonicalGraph.of([Part(piece, index) for index, piece in enumerate(pieces)])
    modules = [network.stem, *network.layers, network.head]
    parts = [Part(p, 0, module_weights(m)) for p, m in zip(pieces, modules, strict=True)]
    return CanonicalGraph.of(parts)
