"""Graphs on one device of today's OpenVINO, for the backends of its CPU, GPU and NPU."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from ..errors import (
    AgentError,
    BadRequest,
    DeviceLost,
    OutOfMemory,
    RuntimeCrashed,
    UnsupportedOperator,
)
from ._openvino_release import openvino_version
from .base import (
    Loaded,
    Sample,
    Session,
    TensorInfo,
    check_eight_bits,
    check_format,
    check_inputs,
    one_line,
    precision_flags,
    precision_of_target,
    random_inputs,
)

FORMATS = {"fp32": ("onnx",), "fp16": ("onnx",), "int8": ("onnx-qdq",)}
"""Artefact formats by the target's precision."""

_WEIGHTED = ("Convolution", "Deconvolution", "FullyConnected", "Gemm", "MatMul")
_PRECISIONS = {"fp32": ("f32",), "fp16": ("f16",), "int8": ("u8", "i8")}  # of what these read
_UNKNOWN = "precision:unknown"
"""Flag of a graph whose runtime does not tell the precision of its nodes."""

_NO_MEMORY = ("bad_alloc", "CL_MEM_OBJECT_ALLOCATION_FAILURE", "CL_OUT_OF_HOST_MEMORY",
              "Exceeded max size of memory", "OUT_OF_DEVICE_MEMORY")  # fmt: skip
_LOST = ("DEVICE_LOST", "CL_DEVICE_NOT_AVAILABLE")
_NO_COMPILER = "compiler loading failed"
NO_NPU_COMPILER = (
    "the NPU's compiler is not in this OpenVINO wheel: install Intel's NPU driver, which brings one"
)


def installed_version() -> tuple[str, str]:
    """OpenVINO's version, or why there is none that these backends drive."""
    remedy = "run: pip install 'hurricane-nas[openvino]'"
    elsewhere = "install it in another environment: one has one OpenVINO"
    return openvino_version((2024, 0), None, "2024.0 or newer", remedy, elsewhere)


@dataclass(frozen=True)
class Placement:
    """Where and how graphs are compiled.

    Args:
        target: name of the target.
        device: OpenVINO's name of the device: ``CPU``, ``GPU.1``.
        settings: of OpenVINO for that device.
        counters: whether every call reads the time of its nodes.
    """

    target: str
    device: str
    settings: Mapping[str, Any]
    counters: bool = False

    @property
    def precision(self) -> str:
        """The target's precision."""
        return precision_of_target(self.target)


class OpenvinoSession(Session):
    """One OpenVINO core whose compiled graphs differ in nothing but the graph.

    Args:
        placement: of the graphs.
        core: OpenVINO's; None: a new one.
    """

    def __init__(self, placement: Placement, core: Any = None) -> None:
        import openvino
        from openvino.frontend import FrontEndManager

        self._placement = placement
        self._core = openvino.Core() if core is None else core
        self._frontends = FrontEndManager()

    def load(self, content: bytes, format: str) -> OpenvinoGraph:
        placement = self._placement
        check_format(placement.target, FORMATS[placement.precision], format)
        try:
            # Not `read_model`, which looks into the bytes for any of the formats that it knows.
            frontend = self._frontends.load_by_framework("onnx")
            model = frontend.convert(frontend.load(io.BytesIO(content)))
        except Exception as error:
            raise _typed(error, "read") from error
        try:
            compiled = self._core.compile_model(model, placement.device, dict(placement.settings))
        except Exception as error:
            raise _typed(error, "compile") from error
        graph = OpenvinoGraph(compiled, placement)
        if placement.precision == "int8":
            check_eight_bits(placement.target, graph.inputs())
        return graph


class OpenvinoGraph(Loaded):
    """One compiled graph with an inference request whose inputs are preset."""

    def __init__(self, compiled: Any, placement: Placement) -> None:
        self._compiled = compiled
        self._counters = placement.counters
        self.compute_unit = _execution_device(compiled, placement.device)
        self.flags = _precision_flags(compiled, placement)
        self._inputs = tuple(tensor_info(port) for port in compiled.inputs)
        self._request = compiled.create_infer_request()
        # Into the request's own memory, as benchmark_app does: it is aligned, numpy's is not.
        arrays = random_inputs(self._inputs)
        for index, tensor in enumerate(self._inputs):
            self._request.get_input_tensor(index).data[...] = arrays[tensor.name]

    def timed_calls(self, count: int) -> list[Sample]:
        request, samples = self._request, []
        try:
            for _ in range(count):
                # Shared outputs: a copy of them into numpy is no part of the latency. Neither is
                # Python's call, 9 to 15 us: the request's own clock leaves it out, as
                # benchmark_app does.
                request.infer(share_outputs=True, decode_strings=False)
                device_ms = _nodes_ms(request) if self._counters else None
                samples.append(Sample(request.latency, device_ms))
        except Exception as error:
            raise _typed(error, "run") from error
        return samples

    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_inputs(self._inputs, inputs)
        request = self._compiled.create_infer_request()
        try:
            values = request.infer([inputs[tensor.name] for tensor in self._inputs])
        except Exception as error:
            raise _typed(error, "run") from error
        return {port.get_any_name(): np.array(values[port]) for port in self._compiled.outputs}

    def close(self) -> None:
        del self._request, self._compiled


def _execution_device(compiled: Any, device: str) -> str:
    """Where a compiled graph runs.

    Raises:
        UnsupportedOperator: all or some of it on another device than the one it was compiled for.
    """
    found = [str(name) for name in compiled.get_property("EXECUTION_DEVICES")]
    # GPU without a number is the first one, which may be told as GPU.0.
    named = {device} if "." in device else {device, f"{device}.0"}
    if not found or not named.issuperset(found):
        raise UnsupportedOperator(
            f"openvino runs it on {', '.join(found) or 'no device that it tells'}, not on {device}"
        )
    return found[0]


def _precision_flags(compiled: Any, placement: Placement) -> tuple[str, ...]:
    """Flags for what runs in another precision than the target's, as the runtime's graph tells."""
    wanted = placement.settings.get("INFERENCE_PRECISION_HINT")
    flags: tuple[str, ...] = ()
    if wanted is not None:
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        flags = () if hint == wanted else (f"precision:{hint}",)
    precisions = _precisions(compiled)
    if precisions is None:
        return (*flags, _UNKNOWN)
    return flags + precision_flags(precisions, _PRECISIONS[placement.precision])


def _precisions(compiled: Any) -> Optional[list[str]]:
    """Precision of each convolution and matrix product of a compiled graph; None: not told."""
    try:
        nodes = compiled.get_runtime_model().get_ops()
    except Exception:  # a plugin need not have one
        return None
    facts = [node.get_rt_info() for node in nodes]
    if not any("runtimePrecision" in fact for fact in facts):
        return None
    return [
        fact["runtimePrecision"].astype(str).lower().replace("fp", "f")  # plugins differ
        for fact in facts
        if fact["layerType"].astype(str) in _WEIGHTED
    ]


def _nodes_ms(request: Any) -> Optional[float]:
    """Time of the nodes of the last call, by the runtime's own counters; None: it has none."""
    nodes = request.get_profiling_info()
    total_ms = sum(node.real_time.total_seconds() * 1e3 for node in nodes)
    return total_ms if total_ms > 0 else None


def tensor_info(port: Any) -> TensorInfo:
    """Name, dtype and shape of an input of a compiled graph.

    Raises:
        BadRequest: the shape is not fixed.
    """
    name = port.get_any_name()
    if port.get_partial_shape().is_dynamic:
        raise BadRequest(
            f"input '{name}' has no fixed shape ({port.get_partial_shape()}); "
            "export it with fixed sizes"
        )
    return TensorInfo(
        name, np.dtype(port.get_element_type().to_dtype()).name, tuple(port.get_shape())
    )


def _typed(error: Exception, step: str) -> AgentError:
    if isinstance(error, AgentError):
        return error
    text = one_line(str(error))
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return OutOfMemory(f"openvino: {text}")
    if any(words in str(error) for words in _LOST):
        return DeviceLost(f"openvino: {text}")
    if _NO_COMPILER in str(error):
        return BadRequest(NO_NPU_COMPILER)
    if step == "compile" or (step == "read" and "OpConversionFailure" in text):
        return UnsupportedOperator(f"openvino: {text}")
    if step == "read":
        return BadRequest(f"openvino cannot read the graph: {text}")
    return RuntimeCrashed(f"openvino: {text}")
