"""What a simulated device is: its parameters, read from one TOML file, and the time of a graph.

The model, the same for every device: a graph takes the price of a call, plus the sum over its
nodes. A node takes the longer of computing (aligned MACs over the roof of its kind) and moving
(activations and weights over the bandwidth of where they lie), plus a fixed overhead; what
follows a convolution elementwise is free. Nodes that the device cannot run go to its slow unit,
and every activation that crosses over pays for the transfer. `docs/simulated-devices.md` has
the formulas and the source of every parameter.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from ..devices import device_names, device_text
from ..errors import BadRequest, UnsupportedOperator
from ..files import MAX_TOML_BYTES, parse_toml, read_bytes
from ..text import printable
from ._simulation_graph import COMPUTE_KINDS, KINDS, TRAFFIC_KINDS, Work, WorkGraph

MODEL_VERSION = "1"
"""Changes whenever the same parameters would give other times."""

_MOST_HIDDEN = 0.9
"""Share of a graph's nodes that `Disturbances.fusion_growth` hides at most."""

_GIGA_PER_MS = 1e6
"""Units of G…/s in one millisecond: 1 GB/s moves 1e6 bytes a ms."""


@dataclass(frozen=True)
class Call:
    """The price of a call, which a network pays once.

    Args:
        call_ms: fixed part (RPC, driver, interpreter entry), in ms.
        transfer_gbs: rate at which the graph's inputs and outputs reach the device, in GB/s;
            0: they need not be moved.
        load_ms: time to load a graph, in ms.
        load_gbs: rate at which its file is read on top of that, in GB/s.
    """

    call_ms: float = 0.0
    transfer_gbs: float = 0.0
    load_ms: float = 1.0
    load_gbs: float = 1.0


@dataclass(frozen=True)
class Memory:
    """Where tensors lie.

    Args:
        dram_gbs: rate of memory off the chip, which weights always come from, in GB/s.
        on_chip_kib: the part of each activation that stays on the chip, in KiB.
        on_chip_gbs: rate of memory on the chip, in GB/s.
        node_ms: what starting any node costs, in ms.
    """

    dram_gbs: float
    on_chip_kib: float = 0.0
    on_chip_gbs: float = math.inf
    node_ms: float = 0.0


@dataclass(frozen=True)
class Kind:
    """How well a device does one kind of node (`_simulation_graph.KINDS`).

    Args:
        gmacs: compute roof in G multiply-accumulates a second; 0: it only moves data.
        align_in, align_out: channels are padded to a multiple of these.
        align_width: width of the output is padded to a multiple of this.
        kernel_cost: cost of a MAC by side of the kernel, over the roof's; between the listed
            sides it is interpolated, beyond them constant.
        traffic: bytes that are really moved over those of the tensors.
        node_ms: overhead instead of the device's, in ms; negative: the device's.
    """

    gmacs: float = 0.0
    align_in: int = 1
    align_out: int = 1
    align_width: int = 1
    kernel_cost: tuple[tuple[float, float], ...] = ()
    traffic: float = 1.0
    node_ms: float = -1.0


@dataclass(frozen=True)
class SlowUnit:
    """Where nodes go that the device cannot run.

    Args:
        name: of the unit, for ``compute_unit``.
        kinds: kinds of node that always go there.
        ops: ONNX op types that always go there.
        node_ms: overhead of a node there, in ms.
        gbs: rate at which it works through activations, in GB/s.
        gmacs: roof of convolutions and linears there, in G multiply-accumulates a second.
        sync_ms: handing one activation over, in either direction, in ms.
        transfer_gbs: rate of the hand-over, in GB/s.
    """

    name: str
    kinds: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    node_ms: float = 0.0
    gbs: float = 1.0
    gmacs: float = 1.0
    sync_ms: float = 0.0
    transfer_gbs: float = 1.0


@dataclass(frozen=True)
class Disturbances:
    """How a device misbehaves. The defaults are a perfectly quiet one.

    `…_on` name an op type of ONNX (graphs that hold one) or the first 8 or more hexadecimal
    digits of an artefact's SHA-256.

    Args:
        noise: sigma of the lognormal factor on every call.
        call_jitter: sigma of the lognormal factor on the price of a call alone.
        outlier_probability, outlier_factor: calls that take this many times longer.
        bimodal_probability, bimodal_factor: visits (calls in a row) in a slower mode.
        drift_per_minute: share by which calls get slower in a minute of work, loading included;
            negative: faster.
        drift_most: share that the drift ends at, in either direction; 0: it does not end.
        throttle_after_s: seconds of work until the clock is lowered; 0: never.
        throttle_factor: times it takes from then on, over those before.
        warm_gain: share saved by a call that finds all memory of its graph in the cache.
        cache_mib: size of the last-level cache, in MiB, which evicts the least recently called
            graph first; 0: it holds the graph that was called last, however large.
        fusion: share hidden of the cheaper of two convolutions in a row, so that a graph is
            faster than the sum of its nodes.
        fusion_growth: share hidden of all nodes for each convolution or linear in the graph, 0.9
            at most: deep graphs are fused more than shallow ones, which no row of a table sees.
        crash_on: calling it kills the process.
        hang_on: calling it takes an hour.
        fallback_on: it runs on another unit, and says so.
        fallback_factor: times it takes there.
        lost_after_s: seconds of work until the device no longer answers; 0: never.
        memory_mib: larger artefacts do not fit; 0: no limit.
        slower: times that this one board takes for everything, loading and the price of a call
            included. It is no trait of the kind of device, so it is no part of `Device.version`,
            nor an option of the target.
    """

    noise: float = 0.0
    call_jitter: float = 0.0
    outlier_probability: float = 0.0
    outlier_factor: float = 5.0
    bimodal_probability: float = 0.0
    bimodal_factor: float = 1.7
    drift_per_minute: float = 0.0
    drift_most: float = field(default=0.0, repr=False)
    throttle_after_s: float = 0.0
    throttle_factor: float = 1.5
    warm_gain: float = 0.0
    cache_mib: float = field(default=0.0, repr=False)
    fusion: float = 0.0
    fusion_growth: float = field(default=0.0, repr=False)
    crash_on: str = ""
    hang_on: str = ""
    fallback_on: str = ""
    fallback_factor: float = 8.0
    lost_after_s: float = 0.0
    memory_mib: float = 0.0
    slower: float = field(default=1.0, repr=False)

    @property
    def later(self) -> dict[str, float]:
        """Parameters outside the repr that the times of a kind of device depend on as well.

        Where they do not act they are left out, so that `Device.version` stays what it was.
        """
        acting = {
            "fusion_growth": self.fusion_growth,
            "drift_most": self.drift_per_minute and self.drift_most,
            "cache_mib": self.warm_gain,
        }
        return {name: getattr(self, name) for name, acts in acting.items() if acts}


@dataclass(frozen=True)
class Device:
    """All parameters of one simulated device; the sections of its TOML file.

    Args:
        name: of the target, without ``sim-``.
        device: the device that is imitated.
        processor: cpu, dsp, vpu, npu or gpu.
        runtime: the runtime that is imitated.
        precision: fp32, fp16, int8.
        unit: the unit that runs what is supported, for ``compute_unit``.
        element_bytes: bytes of a number at that precision.
        resident: keeps many graphs loaded; else one at a time.
        device_time: calls report their time without the price of a call.
        temperature_c, hot_c: at rest, and when it throttles.
        frequency_mhz: clock at rest.
        fused: op types that cost nothing right after a convolution, linear or addition.
        unsupported_ops: op types that are refused.
        unknown_ops: what op types outside the model are: ``elementwise`` or ``unsupported``.
    """

    name: str
    device: str
    processor: str
    runtime: str
    precision: str
    unit: str
    element_bytes: int
    call: Call
    memory: Memory
    kinds: Mapping[str, Kind]
    resident: bool = True
    device_time: bool = False
    temperature_c: float = 0.0
    hot_c: float = 0.0
    frequency_mhz: float = 0.0
    fused: tuple[str, ...] = ()
    unsupported_ops: tuple[str, ...] = ()
    unknown_ops: str = "elementwise"
    slow_unit: Optional[SlowUnit] = None
    disturbances: Disturbances = field(default_factory=Disturbances)

    @property
    def version(self) -> str:
        """Version of the model with a digest of the parameters that its kind's times depend on."""
        text = repr((sorted(self.kinds.items()), replace(self, kinds={})))
        text += "".join(f" {name}={value!r}" for name, value in self.disturbances.later.items())
        return f"{MODEL_VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def touched(self, graph: WorkGraph) -> int:
        """Bytes that a call of a graph brings into a cache: weights, and buffers used in turn."""
        weights = sum(node.work.weights for node in graph.nodes)
        buffers = max(sum(node.work.reads) + sum(node.work.writes) for node in graph.nodes)
        return (weights + buffers) * self.element_bytes

    def on_slow_unit(self, work: Work) -> bool:
        """Whether a node goes to the slow unit."""
        slow = self.slow_unit
        return slow is not None and (work.kind in slow.kinds or work.op_type in slow.ops)

    def is_free(self, work: Work) -> bool:
        """Whether a node costs nothing: a view, or computed on the way out of another node."""
        return work.kind == "view" or (work.follows and work.op_type in self.fused)

    def node_ms(self, work: Work) -> float:
        """Noise-free time of one node where it runs, without transfers, in ms."""
        if self.is_free(work):
            return 0.0
        moved = sum(work.reads) + sum(work.writes)
        slow = self.slow_unit
        if slow is not None and self.on_slow_unit(work):
            moving = (moved + work.weights) * self.element_bytes / (slow.gbs * _GIGA_PER_MS)
            return slow.node_ms + moving + work.macs / (slow.gmacs * _GIGA_PER_MS)
        kind = self.kinds.get("elementwise" if work.kind == "unknown" else work.kind, Kind())
        moving = sum(self._activation_ms(n) for n in (*work.reads, *work.writes)) * kind.traffic
        moving += work.weights * self.element_bytes / (self.memory.dram_gbs * _GIGA_PER_MS)
        overhead = self.memory.node_ms if kind.node_ms < 0 else kind.node_ms
        return max(_computing_ms(work, kind), moving) + overhead

    def _activation_ms(self, elements: int) -> float:
        size = elements * self.element_bytes
        on_chip = min(size, self.memory.on_chip_kib * 1024)
        return (
            on_chip / self.memory.on_chip_gbs + (size - on_chip) / self.memory.dram_gbs
        ) / _GIGA_PER_MS


def _computing_ms(work: Work, kind: Kind) -> float:
    if not kind.gmacs or not work.macs:
        return 0.0
    taps = work.kernel[0] * work.kernel[1]
    aligned = (
        work.groups
        * _up(work.in_channels, kind.align_in)
        * _up(work.out_channels, kind.align_out)
        * work.height
        * _up(work.width, kind.align_width)
    )
    cost = 1.0
    if kind.kernel_cost:
        sides, costs = zip(*kind.kernel_cost)
        cost = float(np.interp(math.sqrt(taps), sides, costs))
    return taps * aligned * cost / (kind.gmacs * _GIGA_PER_MS)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Price:
    """Noise-free time of a graph on a device.

    Attributes:
        call_ms: what it pays for being called, edges included.
        nodes_ms: for each node, in order; hand-overs to and from the slow unit included.
        hidden_ms: saved by fusion across nodes, or by the depth of the graph.
        slow: whether any node runs on the slow unit.
    """

    call_ms: float
    nodes_ms: tuple[float, ...]
    hidden_ms: float
    slow: bool

    @property
    def device_ms(self) -> float:
        """Without the price of the call."""
        return sum(self.nodes_ms) - self.hidden_ms

    @property
    def total_ms(self) -> float:
        return self.call_ms + self.device_ms


def price(graph: WorkGraph, device: Device) -> Price:
    """Noise-free time of a graph.

    Raises:
        UnsupportedOperator: the device cannot run one of its nodes.
    """
    nodes_ms: list[float] = []
    slow_tensors: set[str] = set()
    crossed: set[tuple[str, bool]] = set()
    slow_unit = device.slow_unit
    for node in graph.nodes:
        work = node.work
        unknown = work.kind == "unknown" and device.unknown_ops == "unsupported"
        if unknown or work.op_type in device.unsupported_ops:
            raise UnsupportedOperator(
                f"sim-{device.name} cannot run {work.op_type} (node {node.name})"
            )
        time_ms = device.node_ms(work)
        if slow_unit is not None:
            free = device.is_free(work)
            # What is free stays where its input lies.
            slow = (
                any(n in slow_tensors for n in node.inputs) if free else device.on_slow_unit(work)
            )
            for name in node.inputs:
                if (name in slow_tensors) != slow and (name, slow) not in crossed and not free:
                    crossed.add((name, slow))
                    size = graph.elements[name] * device.element_bytes
                    time_ms += slow_unit.sync_ms + size / (slow_unit.transfer_gbs * _GIGA_PER_MS)
            if slow:
                slow_tensors.update(node.outputs)
        nodes_ms.append(time_ms)
    hidden_ms = 0.0
    if device.disturbances.fusion:
        hidden_ms = device.disturbances.fusion * _neighbours_ms(graph, device, nodes_ms)
    if device.disturbances.fusion_growth:
        depth = sum(node.work.kind in COMPUTE_KINDS for node in graph.nodes)
        share = min(_MOST_HIDDEN, device.disturbances.fusion_growth * depth)
        hidden_ms += share * (sum(nodes_ms) - hidden_ms)
    edges = sum(graph.elements[t.name] for t in (*graph.inputs, *graph.outputs))
    call_ms = device.call.call_ms
    if device.call.transfer_gbs:
        call_ms += edges * device.element_bytes / (device.call.transfer_gbs * _GIGA_PER_MS)
    return Price(call_ms, tuple(nodes_ms), hidden_ms, bool(slow_tensors))


def _neighbours_ms(graph: WorkGraph, device: Device, nodes_ms: list[float]) -> float:
    """The cheaper of each two convolutions in a row, each one counted in one pair at most."""
    convolution_of: dict[str, int] = {}
    paired: set[int] = set()
    total = 0.0
    for index, node in enumerate(graph.nodes):
        before = convolution_of.get(node.inputs[0]) if node.inputs else None
        if node.work.kind in COMPUTE_KINDS:
            if before is not None and before not in paired:
                paired.update((before, index))
                total += min(nodes_ms[before], nodes_ms[index])
            convolution_of[node.outputs[0]] = index
        elif before is not None and device.is_free(node.work):
            convolution_of[node.outputs[0]] = before
    return total


_SECTIONS = {"call": Call, "memory": Memory, "slow_unit": SlowUnit, "disturbances": Disturbances}
_POSITIVE = {
    "element_bytes", "transfer_gbs", "load_gbs", "dram_gbs", "on_chip_gbs", "gbs", "align_in",
    "align_out", "align_width", "traffic", "throttle_factor", "outlier_factor", "bimodal_factor",
    "fallback_factor", "slower",
}  # fmt: skip
_CHOICES = {
    "processor": ("cpu", "dsp", "vpu", "npu", "gpu"),
    "unknown_ops": ("elementwise", "unsupported"),
}
_WORD = re.compile(r"[a-z0-9_.]+")
"""What a table can hold as the name of a runtime or a precision."""
_SHOWN = 300
"""Characters of a file's words that an error repeats."""

_SHARES = {"outlier_probability", "bimodal_probability", "warm_gain", "fusion", "fusion_growth"}


def load_device(name_or_path: str) -> Device:
    """Reads a shipped device by its name, or a user's TOML file by its path.

    Raises:
        BadRequest: no such device, or its file lacks a key or holds a wrong value.
    """
    if name_or_path in device_names():
        return parse_device(device_text(name_or_path), name_or_path, f"{name_or_path}.toml")
    if not os.path.isfile(name_or_path):
        raise BadRequest(
            f"simulated device '{printable(name_or_path, _SHOWN)}' is neither shipped "
            f"({', '.join(device_names())}) nor a TOML file"
        )
    path = Path(name_or_path)
    content = read_bytes(path, "device file", MAX_TOML_BYTES)
    return parse_device(content, path.stem, str(path))


def parse_device(content: Union[str, bytes], name: str, where: str) -> Device:
    """From TOML to a device; `where` names the file in errors."""
    data = parse_toml(content, f"device file {where}")
    known = {"device", "kinds", *_SECTIONS}
    for section in data:
        if section not in known:
            raise BadRequest(
                f"device file {where} has an unknown section [{section}]; "
                f"it may have {', '.join(sorted(known))}"
            )
    for section in ("device", "memory", "kinds"):
        if not isinstance(data.get(section), dict):
            raise BadRequest(f"device file {where} lacks the section [{section}]")
    sections = {
        section: _section(cls, data[section], where, section)
        for section, cls in _SECTIONS.items()
        if section in data
    }
    kinds = {}
    for kind, values in data["kinds"].items():
        if kind not in (*COMPUTE_KINDS, *TRAFFIC_KINDS):
            raise BadRequest(
                f"device file {where}: unknown kind of node '{kind}'; known are "
                f"{', '.join((*COMPUTE_KINDS, *TRAFFIC_KINDS))}"
            )
        kinds[kind] = _section(Kind, values, where, f"kinds.{kind}")
    for kind in COMPUTE_KINDS:
        if kind not in kinds or kinds[kind].gmacs <= 0:
            raise BadRequest(f"device file {where}: [kinds.{kind}] needs gmacs above 0")
    sections.setdefault("call", Call())
    given = {**data["device"], "name": name}
    device = _section(Device, given, where, "device", kinds=kinds, **sections)
    for key, choices in _CHOICES.items():
        if getattr(device, key) not in choices:
            raise BadRequest(f"device file {where}: device.{key} must be {' or '.join(choices)}")
    for key in ("runtime", "precision"):
        if not _WORD.fullmatch(getattr(device, key)):
            raise BadRequest(
                f"device file {where}: device.{key} must be lower-case letters, digits, '_' and '.'"
            )
    for kind in device.slow_unit.kinds if device.slow_unit else ():
        if kind not in KINDS:
            raise BadRequest(f"device file {where}: slow_unit.kinds has an unknown '{kind}'")
    return device


def _section(cls: Any, values: Any, where: str, section: str, **ready: Any) -> Any:
    """Fills one dataclass from one table, checking each key."""
    if not isinstance(values, dict):
        raise BadRequest(f"device file {where}: [{section}] must be a section")
    types = {key: kind for key, kind in _types(cls).items() if key not in ready}
    for key in values:
        if key not in types:
            raise BadRequest(
                f"device file {where}: {section} has no key '{key}'; "
                f"it has {', '.join(sorted(types))}"
            )
    try:
        read = {key: _value(key, types[key], value) for key, value in values.items()}
        return cls(**read, **ready)
    except ValueError as error:
        words = printable(str(error), _SHOWN)
        raise BadRequest(f"device file {where}: {section}.{words}") from error
    except TypeError as error:
        missing = str(error).rpartition(": ")[2]
        raise BadRequest(f"device file {where}: {section} lacks {missing}") from error


def _value(key: str, type_name: str, value: Any) -> Any:
    """Checks one value against the type and range of its key; raises ValueError."""
    if type_name == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"{key} must be true or false, not {value!r}")
        return value
    if type_name == "str":
        if not isinstance(value, str):
            raise ValueError(f"{key} must be text, not {value!r}")
        return value
    if type_name == "tuple[str, ...]":
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"{key} must be a list of names, not {value!r}")
        return tuple(value)
    if key == "kernel_cost":
        return _kernel_cost(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key} must be a number, not {value!r}")
    if type_name == "int" and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{key} must be a whole number of at least 1, not {value!r}")
    if key in _POSITIVE and not value > 0:
        raise ValueError(f"{key} must be above 0, not {value!r}")
    if key in _SHARES and not 0 <= value <= 1:
        raise ValueError(f"{key} must lie between 0 and 1, not {value!r}")
    if value < 0 and key not in ("drift_per_minute", "temperature_c", "hot_c"):
        raise ValueError(f"{key} must not be negative, not {value!r}")
    return value if type_name == "int" else float(value)


def _kernel_cost(value: Any) -> tuple[tuple[float, float], ...]:
    problem = f"kernel_cost must be a table such as {{ 3 = 1.0, 7 = 2.0 }}, not {value!r}"
    if not isinstance(value, dict) or not value:
        raise ValueError(problem)
    try:
        pairs = sorted((float(side), float(cost)) for side, cost in value.items())
    except (TypeError, ValueError):
        raise ValueError(problem) from None
    if not all(1 <= side < math.inf and cost > 0 for side, cost in pairs):
        raise ValueError(problem)
    return tuple(pairs)


OPTIONS = (
    "call_ms",
    "load_ms",
    "transfer_gbs",
    "unsupported_ops",
    *(f.name for f in fields(Disturbances) if f.name != "slower"),
)
"""Options of every simulated target; each replaces the parameter of its name."""


def with_options(device: Device, target: str, options: Mapping[str, str]) -> Device:
    """The device with parameters replaced by a target's options.

    Args:
        options: text by name; names are `OPTIONS`, ``unsupported_ops`` is separated by commas.

    Raises:
        BadRequest: an unknown option, or a value out of range.
    """
    changes: dict[type, dict[str, Any]] = {Call: {}, Disturbances: {}}
    for name, text in options.items():
        if name not in OPTIONS:
            raise BadRequest(
                f"target '{target}' has no option '{name}'; it takes {', '.join(OPTIONS)}"
            )
        if name == "unsupported_ops":
            ops = tuple(part.strip() for part in text.split(",") if part.strip())
            device = replace(device, unsupported_ops=ops)
            continue
        section = Disturbances if name in _types(Disturbances) else Call
        type_name = _types(section)[name]
        try:
            value: Any = text if type_name == "str" else float(text)
        except ValueError:
            raise BadRequest(
                f"target '{target}': option {name}={text!r} must be a number"
            ) from None
        try:
            # No transfer is 0 as an option, as in the file it is leaving the key out.
            if not (name == "transfer_gbs" and value == 0):
                value = _value(name, type_name, value)
        except ValueError as error:
            raise BadRequest(f"target '{target}': option {error}") from error
        changes[section][name] = value
    return replace(
        device,
        call=replace(device.call, **changes[Call]),
        disturbances=replace(device.disturbances, **changes[Disturbances]),
    )


def _types(cls: Any) -> dict[str, str]:
    return {f.name: str(f.type) for f in fields(cls)}
