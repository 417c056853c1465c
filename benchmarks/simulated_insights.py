"""Whether the simulated devices show what the paper says of the real ones.

Prices every operator at every distinct shape of a backbone on the three shipped devices,
noise-free and without the price of a call (the marginal latency of an additive device), and
tells, over the shapes where the operators apply:

- which plain operator is fastest (paper: Choice_3 on the CPU, SEP_3 on the DSP);
- what squeeze-and-excitation costs Choice_3 on the VPU against the DSP (paper: 24 times);
- what going from kernel 3 to 7 costs (paper: least on the VPU, most on the DSP);
- how far latency follows MACs, and whether the best operator changes from layer to layer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations

import click
import numpy as np

from hurricane.agents.backends._simulation_device import Device, load_device, price
from hurricane.agents.backends._simulation_graph import WorkGraph, read_graph
from hurricane.ops.backbone import Backbone, load_backbone
from hurricane.ops.graph import Piece, prepare_templates, template
from hurricane.ops.pool import POOL, Operator, parse_operator
from hurricane.ops.shapes import LayerShape

CPU, DSP, VPU = "snapdragon845-cpu", "hexagon685-dsp", "myriadx-vpu"
DEVICES = (CPU, DSP, VPU)
BUDGETS_MS = {CPU: 310.0, DSP: 17.0, VPU: 36.0}
"""Latency constraints of the paper."""

ALPHAS = (0.0, 0.3, 0.35, 0.4, 0.45, 0.5)
PLAIN = tuple(o for o in POOL if not o.se)
Times = Mapping[tuple[str, LayerShape], float]
"""Operator and shape to ms; holds only the shapes that the operator applies to."""


@cache
def _graph(piece: Piece) -> WorkGraph:
    return read_graph(template(piece).SerializeToString())


def piece_ms(piece: Piece, device: Device) -> float:
    """Noise-free time of one piece without the price of a call, in ms."""
    return price(_graph(piece), device).device_ms


def operator_times(backbone: Backbone, device: Device) -> Times:
    """Every operator of the pool at every distinct shape, in ms."""
    cells = [(o, s) for s in backbone.distinct_shapes for o in POOL if o.applies_to(s)]
    prepare_templates([Piece(o.name, s) for o, s in cells])
    return {(o.name, s): piece_ms(Piece(o.name, s), device) for o, s in cells}


def fastest(times: Times, backbone: Backbone, expected: str) -> dict[str, object]:
    """Where the expected operator is the fastest plain one.

    Shapes of stride 2 are told apart: a two-branch Choice holds the depthwise convolution of
    SEP, and more pointwise MACs than SEP in all, so it cannot be the faster one there.
    """
    best = {
        s: min((o.name for o in PLAIN if (o.name, s) in times), key=lambda n: times[n, s])
        for s in backbone.distinct_shapes
    }
    keeping = [s for s in best if s.keeps_shape]
    medians = {
        o.name: float(np.median([times[o.name, s] for s in backbone.layers]))
        for o in PLAIN
        if all((o.name, s) in times for s in best)
    }
    advantage = [
        times[expected, s]
        / min(times[o.name, s] for o in PLAIN if o.name != expected and (o.name, s) in times)
        for s in backbone.layers
    ]
    return {
        "operator": expected,
        "share_of_shapes": float(np.mean([best[s] == expected for s in best])),
        "share_of_stride_1_shapes": float(np.mean([best[s] == expected for s in keeping])),
        "share_of_layers": float(np.mean([best[s] == expected for s in backbone.layers])),
        "median_over_next_best": float(np.median(advantage)),
        "lowest_median_over_layers": min(medians, key=lambda n: medians[n]),
        "lowest_uniform_network": _lowest_uniform(times, backbone),
        "by_shape": {str(s): name for s, name in best.items()},
    }


def _lowest_uniform(times: Times, backbone: Backbone) -> str:
    sums = {
        o.name: sum(times[o.name, s] for s in backbone.layers)
        for o in PLAIN
        if all((o.name, s) in times for s in backbone.layers)
    }
    return min(sums, key=lambda n: sums[n])


def squeeze_gap(vpu: Times, dsp: Times, operator: str = "Choice_3") -> dict[str, object]:
    """What SE multiplies an operator's latency by on the VPU, over the same on the DSP."""
    gaps = {}
    for name, shape in vpu:
        if name == operator:
            on_vpu = vpu[f"{name}_SE", shape] / vpu[name, shape]
            gaps[str(shape)] = on_vpu / (dsp[f"{name}_SE", shape] / dsp[name, shape])
    values = np.array(list(gaps.values()))
    return {
        "median": float(np.median(values)),
        "lowest": float(values.min()),
        "highest": float(values.max()),
        "share_between_10_and_40": float(np.mean((values >= 10) & (values <= 40))),
        "by_shape": gaps,
    }


def kernel_growth(times: Times) -> dict[str, float]:
    """Median over shapes of the latency with kernel 7 over that with kernel 3, plain operators."""
    growth: dict[str, list[float]] = {}
    for name, shape in times:
        operator = parse_operator(name)
        if operator.kernel != 3 or operator.se:
            continue
        wide = Operator(operator.family, 7, operator.expansion).name
        ratio = times[wide, shape] / times[name, shape]
        for group in (operator.family, "overall"):
            growth.setdefault(group, []).append(ratio)
    return {group: float(np.median(ratios)) for group, ratios in growth.items()}


def macs_against_latency(times: Times, backbone: Backbone) -> dict[str, float]:
    """Latency ratios of pairs of plain operators whose MACs at a shape are within 5%."""
    ratios = []
    for shape in backbone.distinct_shapes:
        cells = [(o.macs(shape), times[o.name, shape]) for o in PLAIN if (o.name, shape) in times]
        for (macs_a, a), (macs_b, b) in combinations(cells, 2):
            if max(macs_a, macs_b) <= 1.05 * min(macs_a, macs_b):
                ratios.append(max(a, b) / min(a, b))
    return {
        "pairs": float(len(ratios)),
        "median_ratio": float(np.median(ratios)),
        "highest_ratio": float(np.max(ratios)),
    }


def best_by_score(times: Times, backbone: Backbone, alpha: float) -> dict[str, int]:
    """How many layers each operator leads by (MACs x parameters)^alpha / latency."""
    leaders: Counter[str] = Counter()
    for shape in backbone.layers:
        cells = [n for n, s in times if s == shape]

        def score(name: str, shape: LayerShape = shape) -> float:
            operator = parse_operator(name)
            product = operator.macs(shape) * operator.params(shape)
            return alpha * np.log(product) - np.log(times[name, shape])

        leaders[max(cells, key=score)] += 1
    return dict(leaders)


def network_ms(times: Times, backbone: Backbone, device: Device) -> dict[str, float]:
    """Whole uniform networks by operator: sums, with stem, head and one price of a call, in ms."""
    ends = [
        Piece(backbone.stem_name, backbone.stem_shape),
        Piece(backbone.head_name, backbone.head_shape),
    ]
    prepare_templates(ends)
    moved = [_graph(ends[0]).elements["input"], _graph(ends[1]).elements["output"]]
    fixed = sum(piece_ms(piece, device) for piece in ends) + device.call.call_ms
    if device.call.transfer_gbs:
        fixed += sum(moved) * device.element_bytes / (device.call.transfer_gbs * 1e6)
    return {
        o.name: fixed + sum(times[o.name, s] for s in backbone.layers)
        for o in POOL
        if all((o.name, s) in times for s in backbone.layers)
    }


def insights(backbone: Backbone, devices: Sequence[str] = DEVICES) -> dict[str, object]:
    """All of it, by name."""
    loaded = {name: load_device(name) for name in devices}
    times = {name: operator_times(backbone, device) for name, device in loaded.items()}
    networks = {name: network_ms(times[name], backbone, loaded[name]) for name in devices}
    return {
        "backbone": backbone.name,
        "fastest_plain": {
            CPU: fastest(times[CPU], backbone, "Choice_3"),
            DSP: fastest(times[DSP], backbone, "SEP_3"),
        },
        "squeeze_gap_vpu_over_dsp": squeeze_gap(times[VPU], times[DSP]),
        "kernel_3_to_7": {name: kernel_growth(times[name]) for name in devices},
        "similar_macs": {name: macs_against_latency(times[name], backbone) for name in devices},
        "best_by_score": {
            name: {str(a): best_by_score(times[name], backbone, a) for a in ALPHAS}
            for name in devices
        },
        "uniform_networks_ms": networks,
        "budgets": {
            name: {
                "budget_ms": BUDGETS_MS[name],
                "lowest_ms": min(networks[name].values()),
                "highest_ms": max(networks[name].values()),
            }
            for name in devices
        },
    }


@click.command(help=__doc__)
@click.option("--backbone", default="imagenet224", show_default=True, help="Name or TOML file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def main(backbone: str, as_json: bool) -> None:
    result = insights(load_backbone(backbone))
    click.echo(json.dumps(result) if as_json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
