"""What the MYRIAD plugin's compiler dumps of a graph: the stages that a Myriad X executes.

OpenVINO 2021.4 writes its internal graph as a dot file (``MYRIAD_DUMP_INTERNAL_GRAPH_FILE_NAME``).
Of a hardware stage it tells a *cost*, the compiler's own figure by which it chooses a tiling:
cycles of an engine for each pixel of the output. DMA and SHAVE stages have none. These are no
latencies: nothing is known of what overlaps, of memory, or of the host.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..backends.base import one_line
from .text import BadOutput

TOOL = "MYRIAD's compiler"


class Unit(enum.Enum):
    """What executes a stage."""

    HARDWARE = "hardware"  # the neural compute engines
    SHAVE = "shave"
    DMA = "dma"
    VIRTUAL = "virtual"  # nothing: it only says how tensors lie


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: of the stage.
        type: the compiler's name for what it does: ``MyriadXHwOp``, ``Copy``, ``Prod``, …
        unit: what executes it.
        layer: the layer of the graph that it belongs to; empty: one that the compiler added.
        cycles: cost × pixels of the output, for a convolution in hardware; else 0.
        ddr_bytes: of the tensors that it reads and writes in memory outside of the chip.
        cmx_bytes: of those on the chip.
        injected: it runs within the hardware stage before it.
    """

    name: str
    type: str
    unit: Unit
    layer: str
    cycles: int
    ddr_bytes: int
    cmx_bytes: int
    injected: bool


@dataclass(frozen=True)
class StageList:
    """A compiled graph.

    Attributes:
        stages: in the order of execution; those that are injected follow the stage that has them.
        cmx_bytes: of memory on the chip that it uses.
        ddr_bytes: of memory outside of it, for tensors between stages.
        blob_bytes: of what is sent to the device, weights included.
    """

    stages: tuple[Stage, ...]
    cmx_bytes: int
    ddr_bytes: int
    blob_bytes: int

    def of(self, unit: Unit) -> tuple[Stage, ...]:
        """The stages of one unit."""
        return tuple(stage for stage in self.stages if stage.unit is unit)

    @property
    def cycles(self) -> int:
        """Of all stages in hardware."""
        return sum(stage.cycles for stage in self.stages)


def read_stages(dot: str) -> StageList:
    """Reads a dump of the internal graph.

    Raises:
        BadOutput: it is cut off, or holds what is not known; nothing of it is used.
    """
    return _Dump(dot).read()


_ID = r"(?:data|stage)_0x[0-9a-f]+"
_NODE = re.compile(rf"    ({_ID}) \[")
_EDGE = re.compile(rf"    ({_ID}) -> ({_ID}) \[")
_RANK = re.compile(rf"        ({_ID}), ({_ID})")
_STYLE = re.compile(r"        (?:shape=(?:box|ellipse)|style=\w+|fillcolor=\w+)")
_LABEL = re.compile(r'( +)label="([^"]*)"')
_HEAD = ("digraph ie_vpu_model_view {", "    labelloc=top;", "    labeljust=left;")
_TITLE = re.compile(r"\[(-1|\d+) / (\d+)\] Stage (.+)")
_FIELD = re.compile(r"([^=\[\]]+?) =(?: (.*))?")
_DIMS = re.compile(r"\[((?:[A-Z0-9]+ : \d+(?:, )?)+)\]")
_DIM = re.compile(r"([A-Z0-9]+) : (\d+)")
_BYTES = {"FP16": 2, "FP32": 4, "I8": 1, "S32": 4, "U8": 1}
_PLACES = {"Blob": "ddr", "BSS": "ddr", "Input": "ddr", "Output": "ddr", "CMX": "cmx", "None": ""}
_HARDWARE, _COPY = "MyriadXHwOp", "Copy"
_VIRTUAL_TYPES = ("Concat", "Crop", "Empty", "Expand", "Reshape", "Shrink", "Split", "StubConcat")
_PORTS = {"CONV": 4, "POOL": 4, "FC": 4}
"""Inputs of a stage in hardware: data, weights, biases and scales, of which some may be fake."""
_OTHER_EDGES = (("data", "data", "DataToDataAllocation"), ("data", "data", "DataToShapeAllocation"))
"""Edges that say how tensors lie within others."""


@dataclass(frozen=True)
class _Tensor:
    """A tensor: its bytes, where it lies (``ddr``, ``cmx``, or nowhere), and its sizes."""

    size: int
    place: str
    usage: str
    sizes: Mapping[str, int]

    @property
    def pixels(self) -> int:
        return self.sizes.get("W", 1) * self.sizes.get("H", 1) * self.sizes.get("N", 1)


@dataclass
class _Node:
    """A stage as it stands in the dump, and what edges say of it.

    Attributes:
        execution: its number among those that are executed; -1: it is not.
        order: its number among all that are not injected into another.
    """

    execution: int
    order: int
    name: str
    fields: Mapping[str, str]
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    injects: list[str] = field(default_factory=list)


class _Dump:
    """One dump, read line by line."""

    def __init__(self, dot: str) -> None:
        self._lines: Iterator[str] = iter(())
        self._tensors: dict[str, _Tensor] = {}
        self._nodes: dict[str, _Node] = {}
        self._injected: set[str] = set()
        self._graph: Mapping[str, str] = {}
        if not dot.endswith("}\n"):
            raise self._error("is cut off", dot[-80:].rpartition("\n")[2])
        self._lines = iter(dot.split("\n")[:-1])

    def read(self) -> StageList:
        for line in _HEAD:
            self._expect(line)
        self._graph = self._fields(self._label(self._next(), 4)[1], "the graph")
        while (line := self._next()) != "}":
            self._entry(line)
        for line in self._lines:
            raise self._error("goes on after its end", line)
        self._check_edges()
        return StageList(
            tuple(self._ordered()),
            self._whole(self._graph, "extraAttrs/usedMemory/CMX", "0"),
            self._whole(self._graph, "extraAttrs/usedMemory/BSS", "0"),
            self._whole(self._graph, "extraAttrs/usedMemory/blob"),
        )

    # Lines

    def _entry(self, line: str) -> None:
        if node := _NODE.fullmatch(line):
            self._node(node[1], self._body())
        elif edge := _EDGE.fullmatch(line):
            self._edge(edge[1], edge[2], self._body())
        elif line == "    {":
            self._expect("        rank=same;")
            line = self._next()
            if not _RANK.fullmatch(line):
                raise self._error("has a line that is not known", line)
            self._expect("    }")
        else:
            raise self._error("has a line that is not known", line)

    def _body(self) -> tuple[str, list[str]]:
        """The label of a node or an edge; styles say nothing that is not in it."""
        while _STYLE.fullmatch(line := self._next()):
            pass
        label = self._label(line, 8)
        self._expect("    ];")
        return label

    def _label(self, line: str, indent: int) -> tuple[str, list[str]]:
        """A label's title and its other lines."""
        found = _LABEL.fullmatch(line)
        if found is None or len(found[1]) != indent or not found[2].endswith("\\l"):
            raise self._error("has no label where one belongs", line)
        title, *lines = found[2].split("\\l")[:-1]
        return title, lines

    def _next(self) -> str:
        for line in self._lines:
            return line
        raise self._error("is cut off")

    def _expect(self, wanted: str) -> None:
        if (line := self._next()) != wanted:
            raise self._error(f"lacks '{wanted.strip()}'", line)

    def _fields(self, lines: list[str], where: str) -> dict[str, str]:
        """Values of a label by their paths, ``extraAttrs/tiling/cost``; elements are left out."""
        found: dict[str, str] = {}
        path: list[str] = []
        for line in lines:
            text = line.strip()
            named = _FIELD.fullmatch(text)
            if named is not None and text.endswith("= ["):
                path.append(named[1])
            elif named is not None:
                key = "/".join([*path, named[1]])
                if key in found:
                    raise self._error(f"has '{key}' twice in {where}", text)
                found[key] = named[2] or ""
            closed = text.count("]") - text.count("[")
            # ``key = [`` opens one, a last line such as ``]`` or ``[C : 32]    ]`` closes one.
            if named is None and path and closed == 1:
                path.pop()
            elif closed and not (closed == -1 and named is not None and text.endswith("= [")):
                raise self._error(f"has brackets that do not match in {where}", text)
            elif named is None and not path:
                raise self._error(f"has a line that is not known in {where}", text)
        if path:
            raise self._error(f"has brackets that do not match in {where}")
        return found

    # Nodes and edges

    def _node(self, key: str, label: tuple[str, list[str]]) -> None:
        title, lines = label
        if key in self._tensors or key in self._nodes:
            raise self._error("has a node twice", title)
        fields = self._fields(lines, f"'{title}'")
        if key.startswith("data") and title.startswith("Data "):
            self._tensors[key] = self._tensor(fields, title)
        elif key.startswith("stage") and (found := _TITLE.fullmatch(title)):
            self._nodes[key] = _Node(int(found[1]), int(found[2]), found[3], fields)
        else:
            raise self._error("has a node that is not known", title)

    def _tensor(self, fields: Mapping[str, str], title: str) -> _Tensor:
        dims = _DIMS.fullmatch(self._text(fields, "desc/dims"))
        each = _BYTES.get(self._text(fields, "desc/type"))
        place = _PLACES.get(self._text(fields, "dataLocation"))
        if dims is None or each is None or place is None:
            raise self._error("has a tensor of a kind that is not known", title)
        sizes = {name: int(size) for name, size in _DIM.findall(dims[1])}
        total = each
        for size in sizes.values():
            total *= size
        return _Tensor(total, place, self._text(fields, "usage"), sizes)

    def _edge(self, source: str, end: str, label: tuple[str, list[str]]) -> None:
        title, lines = label
        for key in (source, end):
            if key not in self._tensors and key not in self._nodes:
                raise self._error("joins what is not there", title)
        kinds = (source.partition("_")[0], end.partition("_")[0])
        fields = self._fields(lines, title)
        if title == "StageInput" and kinds == ("data", "stage"):
            self._port(self._nodes[end].inputs, source, fields)
        elif title == "StageOutput" and kinds == ("stage", "data"):
            self._port(self._nodes[source].outputs, end, fields)
        elif title == "Injected Stage" and kinds == ("stage", "stage"):
            if end in self._injected or end == source:
                raise self._error("has a stage injected twice", self._nodes[end].name)
            self._injected.add(end)
            self._nodes[source].injects.append(end)
        elif (*kinds, title) not in _OTHER_EDGES:
            raise self._error("has an edge that is not known", title)

    def _port(self, ports: list[str], tensor: str, fields: Mapping[str, str]) -> None:
        if self._whole(fields, "portInd") != len(ports):
            raise self._error("has the ports of a stage in disorder")
        ports.append(tensor)

    # The whole

    def _check_edges(self) -> None:
        """Refuses a dump of which a part is missing."""
        used = [t for node in self._nodes.values() for t in (*node.inputs, *node.outputs)]
        if unused := self._tensors.keys() - set(used):
            raise self._error(f"has {len(unused)} tensors that no stage has")
        for usage, count in (("Input", "numInputs"), ("Output", "numOutputs")):
            found = sum(tensor.usage == usage for tensor in self._tensors.values())
            if found != self._whole(self._graph, f"extraAttrs/{count}"):
                raise self._error(f"has {found} tensors of usage {usage}, not as many as it says")
        own = self._own()
        executed = [node.execution for node in own if node.execution >= 0]
        if not own or [node.order for node in own] != list(range(len(own))):
            raise self._error("does not have all of its stages once")
        if executed != list(range(len(executed))):
            raise self._error("does not have all of its executed stages once, in their order")
        for node in self._nodes.values():
            if not node.inputs or not node.outputs:
                raise self._error("has a stage without inputs or outputs", node.name)

    def _own(self) -> list[_Node]:
        """The stages that are not injected into another, in their order."""
        own = (node for key, node in self._nodes.items() if key not in self._injected)
        return sorted(own, key=lambda node: node.order)

    def _ordered(self) -> Iterator[Stage]:
        for node in self._own():
            children = [self._nodes[child] for child in node.injects]
            if any(child.execution != node.execution or child.injects for child in children):
                raise self._error("has a stage injected into another than it says", node.name)
            yield self._stage(node, children, injected=False)
            for child in children:
                yield self._stage(child, [], injected=True)

    def _stage(self, node: _Node, children: list[_Node], injected: bool) -> Stage:
        kind, unit = self._unit(node, children)
        # A stage has the ports of those injected into it behind its own.
        reads = node.inputs[: len(node.inputs) - sum(len(child.inputs) for child in children)]
        writes = node.outputs[: len(node.outputs) - sum(len(child.outputs) for child in children)]
        cycles = self._cycles(node, reads, writes) if unit is Unit.HARDWARE else 0
        moved = {"ddr": 0, "cmx": 0, "": 0}
        if unit is not Unit.VIRTUAL:
            for tensor in (self._tensors[key] for key in (*reads, *writes)):
                moved[tensor.place] += tensor.size
        layer = node.fields.get("origLayer/name", "")
        return Stage(node.name, kind, unit, layer, cycles, moved["ddr"], moved["cmx"], injected)

    def _unit(self, node: _Node, children: list[_Node]) -> tuple[str, Unit]:
        kind = self._text(node.fields, "type")
        shaves = self._whole(node.fields, "numSHAVEs")
        if node.execution < 0:
            if kind in _VIRTUAL_TYPES and not shaves and not children:
                return kind, Unit.VIRTUAL
        elif kind == _HARDWARE:
            # Those of what is injected into it.
            if shaves == max((self._whole(c.fields, "numSHAVEs") for c in children), default=0):
                return kind, Unit.HARDWARE
        elif not children:
            if kind == _COPY and not shaves:
                return kind, Unit.DMA
            if kind not in (_COPY, *_VIRTUAL_TYPES) and shaves:
                return kind, Unit.SHAVE
        raise self._error(f"has a stage of type '{kind}' that is not known", node.name)

    def _cycles(self, node: _Node, reads: list[str], writes: list[str]) -> int:
        kind = self._text(node.fields, "extraAttrs/hwOpType")
        if _PORTS.get(kind) != len(reads) or len(writes) != 1:
            raise self._error(f"has a stage in hardware, {kind}, with other ports", node.name)
        self._whole(node.fields, "extraAttrs/tiling/numDescr")
        if kind == "POOL":
            return 0
        cost = self._text(node.fields, "extraAttrs/tiling/cost")
        if not re.fullmatch(r"\d+(?:\.\d+)?(?:e\+\d+)?", cost):
            raise self._error("has a cost that is no number", cost)
        return round(float(cost) * self._tensors[writes[0]].pixels)

    def _text(self, fields: Mapping[str, str], key: str) -> str:
        if key not in fields:
            raise self._error(f"lacks '{key}'")
        return fields[key]

    def _whole(self, fields: Mapping[str, str], key: str, default: str = "") -> int:
        text = fields.get(key, default) if default else self._text(fields, key)
        if not text.isdecimal():
            raise self._error(f"has no whole number as '{key}'", text)
        return int(text)

    def _error(self, what: str, line: str = "") -> BadOutput:
        shown = f": '{one_line(line, 120)}'" if line.strip() else ""
        return BadOutput(f"what {TOOL} dumped {what}{shown}")
