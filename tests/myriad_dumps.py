"""Dumps of the MYRIAD compiler's internal graph, in the genuine form, of stages a test names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Dump:
    """One dump that is being written.

    Attributes:
        first_id: what addresses begin with, which differ from one dump to the next.
        inputs, outputs: numbers of the graph's.
    """

    first_id: int = 0x5581A0
    inputs: int = 1
    outputs: int = 1
    nodes: list[str] = field(default_factory=list)
    edges: list[str] = field(default_factory=list)
    stages: int = 0
    executed: int = 0
    ids: int = 0

    def tensor(
        self, dims: str, usage: str = "Intermediate", kind: str = "FP16", place: str = "BSS"
    ) -> str:
        """A tensor; ``dims`` as ``W : 28, H : 28, C : 16, N : 1``."""
        key = self._id("data")
        required = "CMX" if place == "CMX" else "DDR"
        order = "".join(word[0] for word in reversed(dims.split(", ")))
        lines = [
            f"usage = {usage}",
            "desc = [",
            f"    type = {kind}",
            f"    dimsOrder = {order}",
            f"    dims = [{dims}]",
            "]",
            "requiredStrides = [",
            "    0 = Compact",
            "]",
            f"strides = [{dims}]",
            *(
                ["content = [", "    0.371094,", "    -1.83984]"] if usage == "Const" else []
            ),  # its last bracket has no line of its own
            f"memReqs = {required}",
            f"dataLocation = {place}",
            "dataOffset = 128",
        ]
        self._node(key, "box", "cyan", f"Data {key}@HW", lines)
        return key

    def stage(
        self,
        kind: str,
        reads: Sequence[str],
        writes: Sequence[str],
        shaves: int = 0,
        extra: Sequence[str] = (),
        executed: bool = True,
        inside: str = "",
        layer: str = "0/body/Conv_output_0",
    ) -> str:
        """A stage; ``inside`` names the one that it is injected into, which was the last one."""
        key = self._id("stage")
        if inside:
            execution, order = self.executed - 1, 31
        else:
            execution, order = (self.executed if executed else -1), self.stages
            self.stages += 1
            self.executed += executed
        own = ["origLayer = [", f"    name = {layer}", "    type = Convolution", "]"]
        lines = [
            f"type = {kind}",
            *(own if layer else []),
            f"numSHAVEs = {shaves}",
            *(["extraAttrs = [", *(f"    {line}" for line in extra), "]"] if extra else []),
        ]
        self._node(key, "ellipse", "gold", f"[{execution} / {order}] Stage {key}@soc=1/2", lines)
        if inside:
            self._edge(inside, key, "Injected Stage", [], "dashed")
            self.edges.append(f"    {{\n        rank=same;\n        {inside}, {key}\n    }}\n")
        for owner in filter(None, (key, inside)):
            self._ports(owner, reads, writes)
        return key

    def convolution(
        self, source: str, dims: str, cost: int, shaves: int = 0, place: str = "CMX"
    ) -> tuple[str, str]:
        """A convolution in hardware; its stage and its output."""
        target = self.tensor(dims, place=place)
        weights = [self.tensor("C : 32", "Const", place="Blob") for _ in range(2)]
        scales = self.tensor("C : 1", "Fake", place="None")
        extra = [
            "hwOpType = CONV",
            "hwOps = [",
            "    size = 3",
            "]",
            "pad = [",
            "    enable = 0",
            "]",
            "tiling = [",
            "    mode = MODE_4_64",
            "    numDescr = 3",
            f"    cost = {cost}",
            "]",
        ]
        key = self.stage("MyriadXHwOp", [source, *weights, scales], [target], shaves, extra)
        return key, target

    def allocation(self, child: str, parent: str) -> None:
        """One tensor lies within another."""
        lines = ["mode = ROI", "extraAttrs = [", "    offset = [C : 32]", "]"]
        self._edge(child, parent, "DataToDataAllocation", lines, "dotted")

    def text(self) -> str:
        """The dump."""
        lines = [
            "batchSize = 1",
            "extraAttrs = [",
            "    index = 0",
            f"    numInputs = {self.inputs}",
            f"    numOutputs = {self.outputs}",
            "    resources = [",
            "        tilingCMXLimit = 589824",
            "    ]",
            "    usedMemory = [",
            "        BSS = 91136",
            "        CMX = 407552",
            "        blob = 61184",
            "    ]",
            "]",
        ]
        head = ["digraph ie_vpu_model_view {", "    labelloc=top;", "    labeljust=left;"]
        head.append(f'    label="{_label("Graph hurricane", lines)}"')
        return "\n".join(head) + "\n" + "".join(self.nodes) + "".join(self.edges) + "}\n"

    def _id(self, kind: str) -> str:
        self.ids += 1
        return f"{kind}_0x{self.first_id + 16 * self.ids:x}"

    def _node(self, key: str, shape: str, color: str, title: str, lines: Sequence[str]) -> None:
        self.nodes.append(
            f"    {key} [\n        shape={shape}\n        style=filled\n        fillcolor={color}\n"
            f'        label="{_label(title, lines)}"\n    ];\n'
        )

    def _edge(
        self, source: str, end: str, title: str, lines: Sequence[str], style: str = ""
    ) -> None:
        styled = f"        style={style}\n" if style else ""
        label = f'        label="{_label(title, lines)}"\n'
        self.edges.append(f"    {source} -> {end} [\n{styled}{label}    ];\n")

    def _ports(self, key: str, reads: Sequence[str], writes: Sequence[str]) -> None:
        taken = [edge for edge in self.edges if f" -> {key} [" in edge and "StageInput" in edge]
        given = [edge for edge in self.edges if edge.startswith(f"    {key} -> data")]
        for index, tensor in enumerate(reads, len(taken)):
            self._edge(tensor, key, "StageInput", [f"portInd = {index}"])
        for index, tensor in enumerate(writes, len(given)):
            self._edge(key, tensor, "StageOutput", [f"portInd = {index}"])


def _label(title: str, lines: Sequence[str]) -> str:
    """A label as the compiler writes it."""
    return "".join(f"{line}\\l" for line in (title, *lines))


def example(first_id: int = 0x5581A0, cost: int = 57) -> str:
    """A small graph with every unit and a copy injected into a convolution."""
    dump = Dump(first_id)
    entry = dump.tensor("W : 14, H : 12, C : 16, N : 1", "Input", "FP32", "Input")
    source = dump.tensor("W : 14, H : 12, C : 16, N : 1")
    dump.stage("Convert", [entry], [source], 7, ["scale = 1"], layer="")
    halves = [dump.tensor("W : 14, H : 12, C : 8, N : 1", place="BSS") for _ in range(2)]
    offsets = ["axis = C", "offsets = [", "    [C : 0],", "    [C : 8]    ]"]
    dump.stage("Split", [source], halves, extra=offsets, executed=False)
    for half in halves:
        dump.allocation(half, source)
    moved = dump.tensor("W : 14, H : 12, C : 8, N : 1", place="CMX")
    key, first = dump.convolution(halves[0], "W : 7, H : 6, C : 32, N : 1", cost)
    dump.stage("Copy", [halves[1]], [moved], extra=["swStagesPos = "], inside=key)
    _, second = dump.convolution(moved, "W : 7, H : 6, C : 32, N : 1", 2 * cost)
    both = dump.tensor("W : 7, H : 6, C : 64, N : 1", place="CMX")
    dump.stage("StubConcat", [first, second], [both], executed=False)
    gate = dump.tensor("W : 7, H : 6, C : 64, N : 1")
    unused = dump.tensor("C : 1", "Fake", place="None")
    dump.stage("Prod", [both, both, unused], [gate], 5, ["postOperation = Empty"])
    back = dump.tensor("W : 7, H : 6, C : 64, N : 1")
    dump.stage("Copy", [gate], [back], layer="")
    end = dump.tensor("W : 7, H : 6, C : 64, N : 1", "Output", "FP32", "Output")
    dump.stage("Convert", [back], [end], 7, ["scale = 1"], layer="")
    return dump.text()
