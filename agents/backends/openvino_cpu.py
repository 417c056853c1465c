"""OpenVINO on the CPU: targets ``cpu-openvino-fp32`` and ``cpu-openvino-int8``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import AgentError, BadRequest, OutOfMemory, RuntimeCrashed, UnsupportedOperator
from ._openvino_release import openvino_version
from .base import (
    Context,
    Loaded,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
    allowed_cores,
    check_eight_bits,
    check_format,
    check_inputs,
    check_options,
    check_threads,
    choice_of,
    cpu_targets,
    one_line,
    pin,
    precision_flags,
    precision_of_target,
    random_inputs,
)

_FORMATS = {"fp32": ("onnx",), "int8": ("onnx-qdq",)}  # by the target's precision
_OPTIONS = ("denormals_optimization",)
_WEIGHTED = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_PRECISIONS = {"fp32": ("f32",), "int8": ("u8", "i8")}  # of what these read


def targets(context: Context) -> list[TargetInfo]:
    """The targets of this backend, with the reason where the runtime is not there."""
    remedy = "run: pip install 'hurricane-nas[openvino]'"
    version, reason = openvino_version((2024, 0), None, "2024.0 or newer", remedy)
    options = dict.fromkeys(_FORMATS, _OPTIONS)
    return cpu_targets(context, "openvino", version, reason, _FORMATS, options)


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> OpenvinoSession:
    """Opens a target.

    Args:
        options: ``denormals_optimization`` (0 or 1: flush denormal numbers to zero; 0).
        threads: threads of inference, each pinned to a core of its own.

    Raises:
        BadRequest: an unknown option or value, or too many threads.
    """
    check_options(target, _OPTIONS, options)
    check_threads(target, threads, len(allowed_cores()))
    denormals = choice_of(options, "denormals_optimization", ("0", "1")) == "1"
    return OpenvinoSession(target, threads, denormals)


class OpenvinoSession(Session):
    """One OpenVINO core whose compiled graphs differ in nothing but the graph."""

    def __init__(self, target: str, threads: int, denormals_optimization: bool) -> None:
        self._target, self._precision = target, precision_of_target(target)
        # Before the import: OpenVINO looks once at the cores that it may use.
        pin(threads)
        import openvino
        from openvino.frontend import FrontEndManager

        self._core = openvino.Core()
        self._frontends = FrontEndManager()
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": True,
            # Else it takes bf16 or f16 where the processor has it, and says nothing. What a graph
            # has quantised runs in 8 bits all the same.
            "INFERENCE_PRECISION_HINT": "f32",
            "CPU_DENORMALS_OPTIMIZATION": denormals_optimization,
        }

    def load(self, content: bytes, format: str) -> OpenvinoGraph:
        check_format(self._target, _FORMATS[self._precision], format)
        try:
            # Not `read_model`, which looks into the bytes for any of the formats that it knows.
            frontend = self._frontends.load_by_framework("onnx")
            model = frontend.convert(frontend.load(io.BytesIO(content)))
        except Exception as error:
            raise _typed(error, "read") from error
        try:
            compiled = self._core.compile_model(model, "CPU", self._settings)
        except Exception as error:
            raise _typed(error, "compile") from error
        graph = OpenvinoGraph(compiled)
        if self._precision == "int8":
            check_eight_bits(self._target, graph.inputs())
        graph.flags += precision_flags(_precisions(compiled), _PRECISIONS[self._precision])
        return graph


class OpenvinoGraph(Loaded):
    """One compiled graph with an inference request whose inputs are preset."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._inputs = tuple(_tensor_info(port) for port in compiled.inputs)
        self._request = compiled.create_infer_request()
        # Into the request's own memory, as benchmark_app does: it is aligned, numpy's is not.
        arrays = random_inputs(self._inputs)
        for index, tensor in enumerate(self._inputs):
            self._request.get_input_tensor(index).data[...] = arrays[tensor.name]
        self.compute_unit = ",".join(compiled.get_property("EXECUTION_DEVICES"))
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        flags = [] if precision == "f32" else [f"precision:{precision}"]
        if self.compute_unit != "CPU":
            flags.append(f"fallback:{self.compute_unit.lower()}")
        self.flags = tuple(flags)

    def timed_calls(self, count: int) -> list[Sample]:
        request, samples = self._request, []
        try:
            for _ in range(count):
                # Shared outputs: a copy of them into numpy is no part of the latency. Neither is
                # Python's call, 9 to 15 us: the request's own clock leaves it out, as
                # benchmark_app does.
                request.infer(share_outputs=True, decode_strings=False)
                samples.append(Sample(request.latency))
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


def _precisions(compiled: Any) -> list[str]:
    """Precision of each convolution and matrix product of a compiled graph."""
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return [
        fact["runtimePrecision"].astype(str)
        for fact in facts
        if fact["layerType"].astype(str) in _WEIGHTED
    ]


def _tensor_info(port: Any) -> TensorInfo:
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
    if isinstance(error, MemoryError) or "bad_alloc" in text:
        return OutOfMemory(f"openvino: {text}")
    if step == "compile" or (step == "read" and "OpConversionFailure" in text):
        return UnsupportedOperator(f"openvino: {text}")
    if step == "read":
        return BadRequest(f"openvino cannot read the graph: {text}")
    return RuntimeCrashed(f"openvino: {text}")
