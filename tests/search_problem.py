"""A small backbone with a space of its own, for tests of runs."""

from __future__ import annotations

from pathlib import Path

from hurricane.lookup_tables.model import LatencyModel
from hurricane.lookup_tables.table import LookupTable, Row, Target
from hurricane.ops.backbone import Backbone, load_backbone
from hurricane.ops.pool import POOL
from hurricane.search.space import SearchSpace, build_space

BACKBONE = """
classes = 10
split = 1
exploring_layers = 1
[input]
channels = 1
height = 8
width = 8
[[stem]]
channels = 8
kernel = 3
stride = 1
[[stages]]
channels = 16
repeats = 3
stride = 2
[head]
channels = 16
"""
Problem = tuple[Backbone, SearchSpace]


def make_problem(path: Path, operators: list[str] | None = None) -> Problem:
    """A small backbone in a file, and a space of these operators (all of them)."""
    path.write_text(BACKBONE)
    backbone = load_backbone(path)
    target = Target("board", "dsp", "qnn", "1.0", precision="int8")
    rows = []
    fixed = [(backbone.stem_name, backbone.stem_shape), (backbone.head_name, backbone.head_shape)]
    for name, shape in fixed:
        values = {"latency_ms": 0.05, "call_ms": 0.01, "estimator": "made up"}
        rows.append(Row.of(target, name, shape, status="ok", **values))
    for shape in backbone.distinct_shapes:
        for index, op in enumerate(POOL):
            ms = 0.02 + op.macs(shape) / 3e6 + 0.001 * index
            values = {"latency_ms": ms, "call_ms": 0.01, "estimator": "made up"}
            rows.append(Row.of(target, op.name, shape, status="ok", **values))
    model = LatencyModel(LookupTable(rows), backbone, operators=operators)
    low, high = model.bounds()
    budget_ms = low + 0.4 * (high - low)
    return backbone, build_space(model, backbone, budget_ms, gate="hard-sigmoid")


def predicted(space: SearchSpace, operators: tuple[str, ...]) -> float:
    """The latency of a network by the space."""
    codes = [names.index(name) for names, name in zip(space.candidates, operators, strict=True)]
    cells = zip(space.latency_ms, codes, strict=True)
    return space.fixed_ms + sum(row[code] for row, code in cells)
