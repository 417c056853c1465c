"""Holds the stages of MYRIAD's compiler against the simulated Myriad X.

Takes a support report of the target vpu-myriad_compiler-fp16, whose flags count the stages of every
operator and layer shape, and prices the same graphs on the simulated device:

    hurricane support --layers imagenet224 --target vpu-myriad_compiler-fp16 --agent HOST:PORT \\
        -o stages.csv
    python benchmarks/myriad_compiler.py stages.csv --json

With ``--agent HOST:PORT`` three end-to-end networks are compiled as well. What follows from the
figures is in `docs/design/myriad-compiler.md`. The compiler's cycles are its own cost of stages in
hardware, on one engine; it tells no time of the others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import click
import numpy as np
from scipy.stats import kendalltau

from hurricane.agents.backends._simulation_device import Device, load_device, price
from hurricane.agents.backends._simulation_graph import COMPUTE_KINDS, WorkGraph, read_graph
from hurricane.agents.client import AgentClient, Protocol
from hurricane.lookup_tables.support import SupportReport, SupportRow
from hurricane.ops.backbone import load_backbone
from hurricane.ops.export import export_architecture, export_operator
from hurricane.ops.graph import Piece, prepare_templates
from hurricane.ops.pool import parse_operator

TARGET = "vpu-myriad_compiler-fp16"
CLOCK_HZ = 700e6
"""Of the Myriad X, by its data sheet."""
NETWORKS = ("MB_3_3", "Choice_3", "SEP_3_SE")
Key = tuple[str, str]
"""Operator and layer shape."""


def counts_of(row: SupportRow) -> dict[str, int]:
    """Numbers among the flags of a row, by name."""
    words = (flag.partition(":") for flag in row.flag_words)
    return {name: int(value) for name, _, value in words if value.isdigit()}


def kinds_of(row: SupportRow) -> Counter[str]:
    """How often a row's graph has each kind of SHAVE stage."""
    counts = counts_of(row).items()
    kinds = {name.partition("shave-")[2]: count for name, count in counts}
    return Counter({kind: count for kind, count in kinds.items() if kind not in ("", "bytes")})


def hardware_ms(graph: WorkGraph, device: Device) -> float:
    """What the simulated device takes for the nodes that the compiler puts on its engines."""
    return sum(device.node_ms(n.work) for n in graph.nodes if n.work.kind in COMPUTE_KINDS)


def off_chip_bytes(graph: WorkGraph, device: Device) -> float:
    """Bytes of activations that the simulated device moves to and from memory off the chip."""
    limit = device.memory.on_chip_kib * 1024
    sizes = [
        elements * device.element_bytes
        for node in graph.nodes
        if not device.is_free(node.work)
        for elements in (*node.work.reads, *node.work.writes)
    ]
    return sum(max(0.0, size - limit) for size in sizes)


def agreement(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How far two positive series are apart, after one factor."""
    logs = np.log(ours) - np.log(theirs)
    return {
        "factor": float(np.exp(np.median(logs))),
        "rms_log_error": float(np.sqrt(np.mean((logs - np.median(logs)) ** 2))),
        "kendall_tau": float(kendalltau(ours, theirs).statistic),
    }


def growth(values: dict[Key, float], group: str, small: int, large: int) -> float:
    """Median ratio over operators and shapes of one kernel to another."""
    ratios = []
    for (name, shape), value in values.items():
        operator = parse_operator(name)
        if operator.kernel == small and name.startswith(group) and not operator.se:
            other = name.replace(f"{group}_{small}", f"{group}_{large}")
            ratios.append(values[other, shape] / value)
    return float(np.median(ratios))


def less_for_larger_kernels(counts: dict[Key, dict[str, int]]) -> list[str]:
    """Operators and shapes that take fewer stages in hardware, or cycles, than a smaller kernel."""
    found = []
    for (name, shape), larger in counts.items():
        family, kernel, *rest = name.split("_")
        if kernel in ("5", "7"):
            smaller = counts["_".join([family, str(int(kernel) - 2), *rest]), shape]
            if any(larger[count] < smaller[count] for count in ("hardware", "cycles")):
                found.append(f"{name} at {shape}")
    return found


def compare(report: SupportReport, device: Device) -> dict[str, Any]:
    """Figures of all operators of a report."""
    rows = {
        (row.operator, str(row.shape)): row
        for row in report.rows
        if row.ok and not (row.is_stem or row.is_head)
    }
    prepare_templates([Piece(row.operator, row.shape) for row in rows.values()])
    graphs = {k: read_graph(export_operator(r.operator, r.shape)) for k, r in rows.items()}
    counts = {key: counts_of(row) for key, row in rows.items()}
    cycles_ms = {key: 1e3 * found["cycles"] / CLOCK_HZ for key, found in counts.items()}
    ours_ms = {key: hardware_ms(graph, device) for key, graph in graphs.items()}
    plain = [key for key in rows if not parse_operator(key[0]).se]
    pairs = {key: (f"{key[0]}_SE", key[1]) for key in plain}
    dma = {key: counts[key]["dma-bytes"] for key in plain}
    off = {key: off_chip_bytes(graphs[key], device) for key in plain}
    added = Counter(
        "+".join(
            f"{kind}-{count}"
            for kind, count in sorted((kinds_of(rows[gated]) - kinds_of(rows[key])).items())
        )
        for key, gated in pairs.items()
    )
    gate_bytes = [counts[g]["shave-bytes"] - counts[k]["shave-bytes"] for k, g in pairs.items()]
    gate_ms = [
        price(graphs[g], device).device_ms - price(graphs[k], device).device_ms
        for k, g in pairs.items()
    ]
    return {
        "rows": len(report.rows),
        "compiled": sum(row.ok and row.compute_unit == "MYRIAD" for row in report.rows),
        "hardware": agreement([ours_ms[k] for k in plain], [cycles_ms[k] for k in plain]),
        "less_for_larger_kernels": less_for_larger_kernels(counts),
        "kernels": {
            f"{group}_{small}_to_{large}": {
                "compiler": growth({k: cycles_ms[k] for k in plain}, group, small, large),
                "simulated": growth({k: ours_ms[k] for k in plain}, group, small, large),
            }
            for group in ("SEP", "MB", "Choice")
            for small, large in ((3, 5), (3, 7))
        },
        "memory": {
            "largest_cmx_bytes": max(found["cmx-bytes"] for found in counts.values()),
            "simulated_on_chip_bytes": device.memory.on_chip_kib * 1024,
            "dma_mb": sum(dma.values()) / 1e6,
            "simulated_off_chip_mb": sum(off.values()) / 1e6,
            "kendall_tau": float(kendalltau(list(dma.values()), list(off.values())).statistic),
        },
        "gates": {
            "added_shave_stages": dict(added),
            "median_shave_mb": float(np.median(gate_bytes)) / 1e6,
            "simulated_median_ms": float(np.median(gate_ms)),
        },
        "shuffles": dict(
            Counter(kinds_of(rows[key])["Permute"] for key in rows if key[0].startswith("Choice"))
        ),
    }


def sum_of_rows(report: SupportReport, name: str, count: str) -> int:
    """What the rows of a uniform network, its stem and its head come to."""
    backbone = load_backbone("imagenet224")
    rows = {(row.operator, row.shape): counts_of(row)[count] for row in report.rows}
    ends = ((backbone.stem_name, backbone.stem_shape), (backbone.head_name, backbone.head_shape))
    return sum(rows[key] for key in (*ends, *((name, shape) for shape in backbone.layers)))


def networks(report: SupportReport, address: str) -> dict[str, Any]:
    """Three uniform networks on the compiler of an agent."""
    backbone = load_backbone("imagenet224")
    layers = len(backbone.layers)
    make = partial(export_architecture, backbone)
    with AgentClient(address) as client:
        digests = {name: client.upload(make([name] * layers)) for name in NETWORKS}
        protocol = Protocol(0, calls_per_visit=1, keep_loaded=True, artifact_timeout_s=300.0)
        found = client.benchmark([*digests.values()], TARGET, protocol=protocol)
    return {
        name: {
            "compute_unit": result.compute_unit,
            "flags": list(result.flags),
            "sums_of_rows": {
                c: sum_of_rows(report, name, c) for c in ("hardware", "dma", "cycles")
            },
        }
        if (result := found[digest]).error is None
        else {"error": str(result.error)}
        for name, digest in digests.items()
    }


@click.command(help=__doc__)
@click.argument("report", type=click.Path(exists=True, dir_okay=False))
@click.option("--device", default="myriadx-vpu", help="A simulated device, or its TOML file.")
@click.option("--agent", metavar="HOST:PORT", help="Where networks are compiled.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def main(report: str, device: str, agent: str | None, as_json: bool) -> None:
    stages = SupportReport.load(report).select(TARGET)
    result = compare(stages, load_device(device))
    if agent:
        result["networks"] = networks(stages, agent)
    click.echo(json.dumps(result, indent=1))
    if as_json:
        click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
