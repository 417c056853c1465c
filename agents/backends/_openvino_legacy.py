"""OpenVINO up to 2022.3, whose plugins are gone since: its two Python interfaces as one.

2021.4 has ``openvino.inference_engine`` (`IECore`), 2022.1 to 2022.3 have ``openvino.runtime``
(`Core`). `open_engine` takes the newer one where there are both. Everything is synchronous, with
one request for each graph. Exceptions are the runtime's own; backends know what they mean.
"""

from __future__ import annotations

import abc
import importlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import AgentError, BadRequest, OutOfMemory, UnsupportedOperator
from ..formats.onnx_file import opset_of
from ._openvino import tensor_info
from ._openvino_release import openvino_version
from .base import TensorInfo, one_line

MOST_OPSET = 13
"""Newer operator sets are read as if they were this one: some wrong, without a word."""

LARGEST_FILE_BYTES = 2**31
"""Of a graph on its way to the runtime, which reads files."""

_WHEEL = (2021, 4)
_NO_MEMORY = ("bad_alloc", "could not create a memory object")
_PLACES = re.compile(r"\[ [A-Z_]+ \]\s*|\S*/\S+\.[ch]pp:\d+\s+")
_DTYPES = {
    "FP32": "float32", "FP16": "float16", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U8": "uint8", "U16": "uint16", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Counter:
    """What the runtime tells of one layer in the last call.

    Args:
        name: of the layer; stages that belong to none are called ``<Extra>``.
        kind: of the layer, such as ``Convolution``.
        unit: what computed it, and in which precision, in the plugin's words.
        real_ms: that it took.
    """

    name: str
    kind: str
    unit: str
    real_ms: float


class Compiled(abc.ABC):
    """A graph on a device, with one request."""

    @abc.abstractmethod
    def inputs(self) -> tuple[TensorInfo, ...]:
        """Its inputs.

        Raises:
            BadRequest: a shape is not fixed.
        """

    @abc.abstractmethod
    def preset(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Puts inputs in place for the calls that follow."""

    @abc.abstractmethod
    def call(self) -> float:
        """Calls it once, and returns the wall time on the host, in ms, without Python's share."""

    @abc.abstractmethod
    def outputs(self) -> dict[str, np.ndarray]:
        """Copies of the outputs of the last call, by name."""

    @abc.abstractmethod
    def counters(self) -> list[Counter]:
        """Of the last call; a device that runs nothing yet tells units and no times."""

    @abc.abstractmethod
    def fact(self, name: str) -> Any:
        """A property of the graph on its device, or of the device."""


class Engine(abc.ABC):
    """The runtime's core, in one of its two interfaces."""

    @abc.abstractmethod
    def plugin(self, device: str) -> str:
        """The description of a device's plugin, with its build.

        Raises:
            RuntimeError: there is no such plugin, or it does not load.
        """

    @abc.abstractmethod
    def fact(self, device: str, name: str) -> Any:
        """A property of a device."""

    @abc.abstractmethod
    def read(self, path: str) -> Any:
        """A graph from an ONNX file."""

    @abc.abstractmethod
    def load(self, graph: Any, device: str, settings: Mapping[str, str]) -> Compiled:
        """Compiles a graph for a device and brings it there."""


def open_engine() -> Engine:
    """The core of the OpenVINO that is installed.

    Raises:
        ImportError: it has neither interface.
    """
    try:
        return _Runtime(importlib.import_module("openvino.runtime"))
    except ModuleNotFoundError as error:
        if error.name != "openvino.runtime":
            raise
    return _InferenceEngine(importlib.import_module("openvino.inference_engine"))


def wheel_version() -> tuple[str, str]:
    """The version of 2021.4, the last one whose wheel has MYRIAD, or why it is not there."""
    return openvino_version(_WHEEL, _WHEEL, "2021.4", "it is for Python up to 3.9: docs/ncs2.md")


def check_opset(content: bytes) -> None:
    """Refuses a graph that these releases would read wrong.

    Raises:
        UnsupportedOperator: its operator set is newer than `MOST_OPSET`.
    """
    opset = opset_of(content)
    if opset > MOST_OPSET:
        raise UnsupportedOperator(
            f"the graph has opset {opset}, and OpenVINO of this age reads up to {MOST_OPSET}; "
            f"export it with opset_version={MOST_OPSET}"
        )


def read_graph(engine: Engine, content: bytes) -> Any:
    """A graph from the bytes of an ONNX file, by way of one in the working directory.

    Raises:
        UnsupportedOperator: an operator, or its operator set is newer than `MOST_OPSET`.
        BadRequest, OutOfMemory: it cannot be read.
    """
    check_opset(content)
    try:
        with _onnx_file(content) as path:
            return engine.read(path)
    except Exception as error:
        raise reading_error(error) from error


@contextmanager
def _onnx_file(content: bytes) -> Iterator[str]:
    """The path of a file with a graph, in the working directory.

    By its ending the runtime knows the format; from memory it would guess it.
    """
    with tempfile.NamedTemporaryFile(suffix=".onnx", dir=os.getcwd()) as file:
        file.write(content)
        file.flush()
        yield file.name


def network_inputs(network: Any) -> tuple[TensorInfo, ...]:
    """The inputs of a graph of 2021.4, compiled or not.

    Raises:
        BadRequest: a shape is not fixed.
        UnsupportedOperator: an input is of a type that numpy lacks.
    """
    found = []
    for name, entry in network.input_info.items():
        shape = tuple(entry.input_data.shape)
        if not shape:  # what is open, and a single number, has no shape here
            raise BadRequest(f"input '{name}' has no fixed shape; export it with fixed sizes")
        dtype = _DTYPES.get(entry.precision)
        if dtype is None:
            raise UnsupportedOperator(f"input '{name}' is {entry.precision}")
        found.append(TensorInfo(name, dtype, shape))
    return tuple(found)


class _InferenceEngine(Engine):
    """2021.4."""

    def __init__(self, module: Any) -> None:
        self._core = module.IECore()

    def plugin(self, device: str) -> str:
        found = self._core.get_versions(device)[device]
        return f"{found.description} {found.build_number}"

    def fact(self, device: str, name: str) -> Any:
        return self._core.get_metric(device, name)

    def read(self, path: str) -> Any:
        return self._core.read_network(model=path)

    def load(self, graph: Any, device: str, settings: Mapping[str, str]) -> Compiled:
        return _ExecutableNetwork(
            self._core.load_network(graph, device, dict(settings), num_requests=1)
        )


class _ExecutableNetwork(Compiled):
    def __init__(self, network: Any) -> None:
        self._network = network
        self._request = network.requests[0]

    def inputs(self) -> tuple[TensorInfo, ...]:
        return network_inputs(self._network)

    def preset(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            self._request.input_blobs[name].buffer[...] = array

    def call(self) -> float:
        self._request.infer()
        return self._request.latency

    def outputs(self) -> dict[str, np.ndarray]:
        return {n: np.array(blob.buffer) for n, blob in self._request.output_blobs.items()}

    def counters(self) -> list[Counter]:
        return [
            Counter(name, entry["layer_type"], entry["exec_type"], entry["real_time"] / 1e3)
            for name, entry in self._request.get_perf_counts().items()
        ]

    def fact(self, name: str) -> Any:
        return self._network.get_metric(name)


class _Runtime(Engine):
    """2022.1 to 2022.3."""

    def __init__(self, module: Any) -> None:
        self._core = module.Core()

    def plugin(self, device: str) -> str:
        found = self._core.get_versions(device)[device]
        return f"{found.description} {found.build_number}"

    def fact(self, device: str, name: str) -> Any:
        return self._core.get_property(device, name)

    def read(self, path: str) -> Any:
        return self._core.read_model(path)

    def load(self, graph: Any, device: str, settings: Mapping[str, str]) -> Compiled:
        return _CompiledModel(self._core.compile_model(graph, device, dict(settings)))


class _CompiledModel(Compiled):
    def __init__(self, model: Any) -> None:
        self._model = model
        self._request = model.create_infer_request()

    def inputs(self) -> tuple[TensorInfo, ...]:
        return tuple(tensor_info(port) for port in self._model.inputs)

    def preset(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            self._request.get_tensor(name).data[...] = array

    def call(self) -> float:
        self._request.infer()
        return self._request.latency

    def outputs(self) -> dict[str, np.ndarray]:
        names = [port.get_any_name() for port in self._model.outputs]
        return {name: np.array(self._request.get_tensor(name).data) for name in names}

    def counters(self) -> list[Counter]:
        return [
            Counter(
                entry.node_name,
                entry.node_type,
                entry.exec_type,
                entry.real_time.total_seconds() * 1e3,
            )
            for entry in self._request.get_profiling_info()
        ]

    def fact(self, name: str) -> Any:
        return self._model.get_property(name)


def layer_precision(unit: str) -> str:
    """The precision at the end of a counter's unit: ``f32`` of ``jit_avx512_1x1_FP32``."""
    return unit.rpartition("_")[2].lower().replace("fp", "f")


def reason_of(error: BaseException) -> str:
    """What an exception of the runtime says, without its own kinds and source files."""
    return one_line(_PLACES.sub("", str(error)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of the runtime says that the host has no memory left."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def reading_error(error: BaseException) -> AgentError:
    """What an exception stands for that the runtime raised while it read a graph."""
    text = reason_of(error)
    if is_out_of_memory(error):
        return OutOfMemory(f"openvino: {text}")
    if "does not support the following" in text:
        return UnsupportedOperator(f"openvino: {text}")
    return BadRequest(f"openvino cannot read the graph: {text}")
