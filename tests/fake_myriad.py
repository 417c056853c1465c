"""The MYRIAD plugin without a stick, behind the Python interfaces of OpenVINO 2021.4 and 2022.3.

A stick here keeps few graphs, charges for a call, gets warm and slower with work, and may be lost.
Its times are those of the simulated Myriad X for the very graph that was loaded, on a clock of its
own: nothing waits. It calls itself *simulated*, by which a backend knows that nothing is measured.
`FakeOpenvino` writes the packages into a folder, for this process and for agents, with what is
wrong with the stick in a file beside them, which is read anew at every step.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from hurricane.agents.backends._simulation_device import Price, load_device, price
from hurricane.agents.backends._simulation_graph import WorkGraph, read_graph

DEVICE = load_device("myriadx-vpu")
NAME = "Simulated Myriad X VPU"
STICK = "1.4-ma2480"
VERSIONS = {
    2021: "2021.4.2-3976-0943ed67223-simulated",
    2022: "2022.3.1-9227-cf2c7da5689-simulated",
}
HELD = "held"
EXTRA_MS = 0.35
"""Of each call, for stages that belong to no layer."""

_COLD_C, _WARMING_C, _WARMING_S = 38.0, 30.0, 60.0
_SLOWER_WARM = 0.04
_NOISE = 0.005
_KEYS = {
    "PERF_COUNT": ("YES",),
    "MYRIAD_THROUGHPUT_STREAMS": ("1",),
    "MYRIAD_ENABLE_FORCE_RESET": ("YES", "NO"),
}
_LOST = "Can not init Myriad device: NC_ERROR"


@dataclass(frozen=True)
class State:
    """What there is, and what is wrong with it.

    Args:
        sticks: names, as OpenVINO finds them.
        plugin: ``there``, ``missing`` (another wheel) or ``no libusb``.
        most_graphs: that a stick keeps.
        full: what the plugin says of one more.
        untaken: types of layers that it does not take.
        in_use: another program has the stick.
        stalled: it was left by a program that died: it takes no graph before a forced reset.
        fail_loads: so many loadings of a process fail before one works.
        lost_at_load, lost_at_call: the stick is gone for this process from there on.
        loser: id of the only process that loses it; 0: each does.
        pulled: it was pulled out: there is none for other processes.
        held_at_call: which does not go on before this changes; a file `HELD` is in the process's
            working directory then.
        hang_at_call: which does not return.
    """

    sticks: tuple[str, ...] = (STICK,)
    plugin: str = "there"
    most_graphs: int = 6
    full: str = _LOST
    untaken: tuple[str, ...] = ("Acosh", "HardSigmoid")
    in_use: bool = False
    stalled: bool = False
    fail_loads: int = 0
    lost_at_load: int = 0
    lost_at_call: int = 0
    loser: int = 0
    pulled: bool = False
    held_at_call: int = 0
    hang_at_call: int = 0

    @property
    def loses(self) -> bool:
        """Whether this process is one that loses the stick."""
        return self.loser in (0, os.getpid())


class FakeOpenvino:
    """A folder with a package ``openvino`` of a generation.

    Args:
        folder: to be searched before the one with the genuine package.
        generation: 2021 or 2022.
    """

    def __init__(self, folder: Path, generation: int) -> None:
        self.folder, self.generation = folder, generation
        package = folder / "openvino"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        module = {2021: "inference_engine", 2022: "runtime"}[generation]
        core = {2021: "IECore", 2022: "Core"}[generation]
        shutil.copy(__file__, folder)  # a worker reads nothing beside what is on its path
        (package / f"{module}.py").write_text(
            f"from {Path(__file__).stem} import {core} as _Core, Stick\n"
            f"__version__ = {VERSIONS[generation]!r}\n"
            f"_stick = Stick({str(self._file)!r})\n"
            f"def {core}():\n    return _Core(_stick)\n"
        )
        self.be()

    @property
    def _file(self) -> Path:
        return self.folder / "state.json"

    def be(self, **state: Any) -> None:
        """Changes what there is, for all processes; what is not named is as at first."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(asdict(State(**state))))
        new.replace(self._file)

    def agent(self) -> tuple[str, ...]:
        """The command ``agent`` with this package on its path."""
        code = (
            f"import sys; sys.path.insert(0, {str(self.folder)!r}); "
            "from hurricane.agents.cli import main; main()"
        )
        return (sys.executable, "-I", "-c", code)


def true_ms(model: bytes) -> float:
    """What a cold stick takes for the layers of a graph, without noise."""
    return price(read_graph(model), DEVICE).device_ms


class Stick:
    """The stick as one process sees it."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self.networks: weakref.WeakSet[Network] = weakref.WeakSet()
        self.noise: dict[str, np.random.Generator] = {}
        self.worked_ms = 0.0
        self._loads = self._calls = 0
        self._lost = self._reset = False

    @property
    def state(self) -> State:
        fields = json.loads(self._file.read_text())
        return State(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})

    def names(self) -> list[str]:
        state = self.state
        pulled = state.pulled and state.loser != os.getpid()
        return [] if self._lost or state.in_use or pulled else list(state.sticks)

    def check_plugin(self, device: str, runtime: str) -> None:
        known = device.partition(".")[0] == "MYRIAD" and self.state.plugin != "missing"
        if not known:
            raise RuntimeError(f'Device with "{device}" name is not registered in the {runtime}')
        if self.state.plugin == "no libusb":
            raise RuntimeError(
                "Failed to create plugin /x/libmyriadPlugin.so for device MYRIAD\n"
                "Please, check your environment\nCannot load library '/x/libmyriadPlugin.so': "
                "libusb-1.0.so.0: cannot open shared object file: No such file or directory"
            )

    def load(self, graph: Graph, device: str, settings: Mapping[str, str]) -> Network:
        for key, value in settings.items():
            if value not in _KEYS.get(key, ()):
                raise RuntimeError(f"[ NOT_FOUND ] {key} key is not supported for VPU")
        state = self.state
        self._loads += 1
        asked = device.partition(".")[2]
        if asked and asked not in self.names():
            raise RuntimeError(f"Myriad device: {asked} not found.")
        self._lost |= state.loses and 0 < state.lost_at_load <= self._loads
        reset = settings.get("MYRIAD_ENABLE_FORCE_RESET") == "YES"
        self._reset |= reset
        fails = self._loads <= state.fail_loads or (state.stalled and not self._reset)
        if not self.names() or fails:
            raise RuntimeError(_LOST)
        if len(self.networks) >= state.most_graphs:
            raise RuntimeError(state.full)
        if reset and self.networks:
            raise RuntimeError("a reset takes the graphs off that are there")
        for name, kind in graph.layers.items():
            if kind in state.untaken:
                raise RuntimeError(
                    "[ GENERAL_ERROR ] \n/home/jenkins/frontend.cpp:441 "
                    f'Failed to compile layer "{name}": unsupported layer type "{kind}"'
                )
        network = Network(self, graph)
        self.networks.add(network)
        return network

    def call(self, digest: str, price: Price) -> tuple[np.ndarray, float]:
        """Times of nodes, and the wall time of a call, in ms."""
        self._calls += 1
        while 0 < (state := self.state).held_at_call <= self._calls:
            Path(HELD).touch()
            time.sleep(0.01)
        if state.hang_at_call and self._calls >= state.hang_at_call:
            threading.Event().wait()
        self._lost |= state.loses and 0 < state.lost_at_call <= self._calls
        if not self.names():
            raise RuntimeError("Failed to queue inference: NC_ERROR")
        random = self.noise.setdefault(digest, np.random.default_rng(int(digest[:16], 16)))
        slower = 1.0 + _SLOWER_WARM * self._warmth()
        nodes_ms = np.array(price.nodes_ms) * slower * np.exp(_NOISE * random.standard_normal())
        wall_ms = float(nodes_ms.sum()) + price.call_ms * np.exp(_NOISE * random.standard_normal())
        self.worked_ms += wall_ms
        return nodes_ms, wall_ms

    def temperature_c(self) -> float:
        if not self.names():
            raise RuntimeError("Failed to get thermal stats: NC_ERROR")
        return _COLD_C + _WARMING_C * self._warmth()

    def fact(self, name: str) -> Any:
        if name == "AVAILABLE_DEVICES":
            return self.names()
        if not self.names():
            raise RuntimeError(
                "[ GENERAL_ERROR ] \n/home/jenkins/plugin.cpp:165 No devices available."
            )
        return {"FULL_DEVICE_NAME": NAME, "DEVICE_THERMAL": self.temperature_c()}[name]

    def _warmth(self) -> float:
        return 1.0 - float(np.exp(-self.worked_ms / 1e3 / _WARMING_S))


class Graph:
    """A graph as it was read."""

    def __init__(self, path: str) -> None:
        self.content = Path(path).read_bytes()
        model = onnx.load_from_string(self.content)
        known = {schema.name for schema in onnx.defs.get_all_schemas()}
        unknown = sorted({node.op_type for node in model.graph.node} - known)
        if unknown:
            raise RuntimeError(
                "Check 'unknown_operators.empty()' failed at graph.cpp:176:\n"
                f"nGraph does not support the following ONNX operations: {', '.join(unknown)}\n"
            )
        self.work: WorkGraph = read_graph(self.content)
        self.layers = {node.output[0]: node.op_type for node in model.graph.node}


class Network:
    """A graph on a stick, and its one request."""

    def __init__(self, stick: Stick, graph: Graph) -> None:
        self.stick, self.graph = stick, graph
        self.digest = hashlib.sha256(graph.content).hexdigest()
        self.price = price(graph.work, DEVICE)
        self.arrays = {t.name: np.zeros(t.shape, t.dtype) for t in graph.work.inputs}
        self.latency = 0.0
        self.nodes_ms = np.zeros(len(self.price.nodes_ms))

    def infer(self) -> None:
        self.nodes_ms, self.latency = self.stick.call(self.digest, self.price)

    def times_us(self) -> list[tuple[str, str, int]]:
        """Name, kind and time of each layer, in the whole microseconds that the plugin tells."""
        # Up or down by chance, for the sum of a graph is to be right on average.
        random = self.stick.noise[self.digest].random(len(self.nodes_ms))
        nodes, nodes_us = self.graph.work.nodes, (self.nodes_ms * 1e3 + random).astype(int).tolist()
        found = [(n.outputs[0], n.work.op_type, us) for n, us in zip(nodes, nodes_us, strict=True)]
        return [*found, ("<Extra>", "<Extra>", round(EXTRA_MS * 1e3))]

    def outputs(self) -> dict[str, np.ndarray]:
        model = onnx.load_from_string(self.graph.content)
        names = [tensor.name for tensor in self.graph.work.outputs]
        return dict(zip(names, ReferenceEvaluator(model).run(names, self.arrays), strict=True))


# --- 2021.4: openvino.inference_engine --------------------------------------------------------


class IECore:
    """As far as a backend uses it."""

    def __init__(self, stick: Stick) -> None:
        self._stick = stick

    def get_versions(self, device: str) -> dict[str, Any]:
        self._stick.check_plugin(device, "InferenceEngine")
        version = SimpleNamespace(description="myriadPlugin", build_number=VERSIONS[2021])
        return {device: version}

    def get_metric(self, device: str, name: str) -> Any:
        self._stick.check_plugin(device, "InferenceEngine")
        return self._stick.fact(name)

    def read_network(self, model: str) -> IENetwork:
        return IENetwork(model)

    def load_network(
        self, network: IENetwork, device: str, config: dict[str, str], num_requests: int
    ) -> ExecutableNetwork:
        self._stick.check_plugin(device, "InferenceEngine")
        assert num_requests == 1
        return ExecutableNetwork(self._stick.load(network.graph, device, config))


class IENetwork:
    def __init__(self, path: str) -> None:
        assert path.endswith(".onnx")
        self.graph = Graph(path)


class ExecutableNetwork:
    def __init__(self, network: Network) -> None:
        self._network = network
        self.input_info = {
            tensor.name: SimpleNamespace(
                input_data=SimpleNamespace(shape=list(tensor.shape)), precision="FP32"
            )
            for tensor in network.graph.work.inputs
        }
        self.requests = [InferRequest2021(network)]

    def get_metric(self, name: str) -> Any:
        return self._network.stick.fact(name)


class InferRequest2021:
    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def input_blobs(self) -> dict[str, Any]:
        return {n: SimpleNamespace(buffer=a) for n, a in self._network.arrays.items()}

    @property
    def output_blobs(self) -> dict[str, Any]:
        return {n: SimpleNamespace(buffer=a) for n, a in self._network.outputs().items()}

    @property
    def latency(self) -> float:
        return self._network.latency

    def infer(self) -> None:
        self._network.infer()

    def get_perf_counts(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "status": "EXECUTED",
                "exec_type": "MyriadXHwOp",
                "layer_type": kind,
                "real_time": us,
                "cpu_time": us,
                "execution_index": index,
            }
            for index, (name, kind, us) in enumerate(self._network.times_us())
        }


# --- 2022.1 to 2022.3: openvino.runtime -------------------------------------------------------


class Core:
    """As far as a backend uses it."""

    def __init__(self, stick: Stick) -> None:
        self._stick = stick

    def get_versions(self, device: str) -> dict[str, Any]:
        self._stick.check_plugin(device, "OpenVINO Runtime")
        version = SimpleNamespace(
            description="openvino_intel_myriad_plugin", build_number=VERSIONS[2022]
        )
        return {device: version}

    def get_property(self, device: str, name: str) -> Any:
        self._stick.check_plugin(device, "OpenVINO Runtime")
        return self._stick.fact(name)

    def read_model(self, path: str) -> Model:
        return Model(path)

    def compile_model(self, model: Model, device: str, config: dict[str, str]) -> CompiledModel:
        self._stick.check_plugin(device, "OpenVINO Runtime")
        return CompiledModel(self._stick.load(model.graph, device, config))


class Model:
    def __init__(self, path: str) -> None:
        assert path.endswith(".onnx")
        self.graph = Graph(path)


class CompiledModel:
    def __init__(self, network: Network) -> None:
        self._network = network
        self.inputs = [_Port(t.name, t.shape) for t in network.graph.work.inputs]
        self.outputs = [_Port(t.name, t.shape) for t in network.graph.work.outputs]

    def create_infer_request(self) -> InferRequest2022:
        return InferRequest2022(self._network)

    def get_property(self, name: str) -> Any:
        return self._network.stick.fact(name)


@dataclass(frozen=True)
class _Port:
    name: str
    shape: tuple[int, ...]

    def get_any_name(self) -> str:
        return self.name

    def get_partial_shape(self) -> Any:
        return SimpleNamespace(is_dynamic=False)

    def get_shape(self) -> tuple[int, ...]:
        return self.shape

    def get_element_type(self) -> Any:
        return SimpleNamespace(to_dtype=lambda: np.dtype(np.float32))


class InferRequest2022:
    def __init__(self, network: Network) -> None:
        self._network = network

    def get_tensor(self, name: str) -> Any:
        if name in self._network.arrays:
            return SimpleNamespace(data=self._network.arrays[name])
        return SimpleNamespace(data=self._network.outputs()[name])

    @property
    def latency(self) -> float:
        return self._network.latency

    def infer(self) -> None:
        self._network.infer()

    def get_profiling_info(self) -> list[Any]:
        return [
            SimpleNamespace(
                node_name=name,
                node_type=kind,
                exec_type="MyriadXHwOp",
                real_time=datetime.timedelta(microseconds=us),
            )
            for name, kind, us in self._network.times_us()
        ]
