"""The graphs that benchmarks of formats go through: every operator, shape, and random networks."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hurricane.ops.backbone import load_backbone
from hurricane.ops.export import export_architecture, export_operator
from hurricane.ops.graph import Piece, prepare_templates
from hurricane.ops.pool import POOL


def graphs(backbone: str, gate: str, networks: int) -> Iterator[tuple[str, bytes]]:
    """Name and ONNX bytes of each graph."""
    frame = load_backbone(backbone)
    rows = [(op.name, s) for op in POOL for s in frame.distinct_shapes if op.applies_to(s)]
    rows += [(frame.stem_name, frame.stem_shape), (frame.head_name, frame.head_shape)]
    prepare_templates([Piece(name, shape, gate) for name, shape in rows])
    for name, shape in rows:
        yield f"{name} {shape}", export_operator(name, shape, gate)
    for seed in range(networks):
        draw = random.Random(seed)
        chosen = [
            draw.choice([op.name for op in POOL if op.applies_to(shape)]) for shape in frame.layers
        ]
        yield f"random network {seed}", export_architecture(frame, chosen, gate=gate)
