"""What benchmarks of formats have in common: the graphs that they go through, their command line,
and their measure.

The graphs are every operator at every layer shape of a backbone, its stem and head, and random
networks.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from hurricane.ops.backbone import load_backbone
from hurricane.ops.export import export_architecture, export_operator
from hurricane.ops.graph import Piece, prepare_templates
from hurricane.ops.pool import GATES, POOL


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


def image_shape(content: bytes) -> list[int]:
    """Channels, height and width of an ONNX graph's input."""
    dims = onnx.load_from_string(content).graph.input[0].type.tensor_type.shape.dim
    return [d.dim_value for d in dims][1:]


def sqnr_db(expected: np.ndarray, got: np.ndarray) -> float:
    """Signal over quantisation noise."""
    signal, noise = (np.square(v, dtype=np.float64).sum() for v in (expected, expected - got))
    return float(10 * np.log10(signal / noise))


def run(
    description: str | None,
    figures: Callable[[str, bytes], dict[str, Any]],
    line: Callable[[dict[str, Any]], str],
    summary: Callable[[list[dict[str, Any]]], dict[str, Any]],
    versions: Mapping[str, str],
    own: argparse.ArgumentParser | None = None,
) -> None:
    """Goes through the graphs that the command line asks for, and prints a JSON object.

    Args:
        description: of the command.
        figures: of a graph, by its name and ONNX bytes.
        line: figures in words, printed as they come unless only the object is wanted.
        summary: of the figures of all operators, stem and head.
        versions: of the runtimes.
        own: options of the benchmark's own, without help.
    """
    parser = argparse.ArgumentParser(description=description, parents=[own] if own else [])
    parser.add_argument("--backbone", default="imagenet224")
    parser.add_argument("--gate", choices=GATES, default=GATES[0])
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    arguments = parser.parse_args()
    rows, networks = [], []
    for name, content in graphs(arguments.backbone, arguments.gate, arguments.networks):
        found = figures(name, content)
        (networks if name.startswith("random") else rows).append(found)
        if not arguments.json:
            print(line(found), flush=True)
    result = {
        "backbone": arguments.backbone,
        "gate": arguments.gate,
        "machine": platform.processor() or platform.machine(),
        **versions,
        "rows": summary(rows),
        "networks": networks,
    }
    print(json.dumps(result, indent=2))
