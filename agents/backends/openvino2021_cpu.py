"""OpenVINO 2021.4 on the CPU: target ``cpu-openvino2021-fp32``.

The last release that an agent on Python 3.8 or 3.9 and a Myriad X can share; beside a stick it is
the CPU to compare with. Today's OpenVINO is `openvino_cpu`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import AgentError, OutOfMemory, RuntimeCrashed, UnsupportedOperator
from ..sandbox import Needs
from ._openvino_legacy import (
    LARGEST_FILE_BYTES,
    Compiled,
    Engine,
    is_out_of_memory,
    layer_precision,
    open_engine,
    read_graph,
    reason_of,
    wheel_version,
)
from .base import (
    Context,
    Loaded,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
    allowed_cores,
    check_format,
    check_inputs,
    check_options,
    check_threads,
    cpu_targets,
    pin,
    precision_flags,
    random_inputs,
)

NEEDS = Needs(scratch_bytes=LARGEST_FILE_BYTES)
"""A folder for the graph: the runtime reads files."""

TARGET = "cpu-openvino2021-fp32"
_FORMATS = {"fp32": ("onnx",)}
_WEIGHTED = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul", "Gemm")
_DEVICE = "CPU"
_BF16_OFF = {"ENFORCE_BF16": "NO"}
"""Else it computes in bf16 where the processor can, with 4e-3 of error, and says nothing."""


def targets(context: Context) -> list[TargetInfo]:
    """The one target, with the reason where this release is not there."""
    version, reason = wheel_version()
    return cpu_targets(context, "openvino2021", version, reason, _FORMATS, {"fp32": ()})


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> LegacyCpuSession:
    """Opens the target.

    Args:
        threads: threads of inference, each pinned to a core of its own.

    Raises:
        BadRequest: an option, or too many threads.
    """
    check_options(target, (), options)
    check_threads(target, threads, len(allowed_cores()))
    # Before the import: OpenVINO looks once at the cores that it may use.
    pin(threads)
    return LegacyCpuSession(open_engine(), threads)


class LegacyCpuSession(Session):
    """One core whose compiled graphs differ in nothing but the graph."""

    def __init__(self, engine: Engine, threads: int) -> None:
        self._engine = engine
        self._settings = {
            "CPU_THREADS_NUM": str(threads),
            "CPU_THROUGHPUT_STREAMS": "1",
            "CPU_BIND_THREAD": "YES",
            **_BF16_OFF,
        }

    def load(self, content: bytes, format: str) -> LegacyCpuGraph:
        check_format(TARGET, _FORMATS["fp32"], format)
        graph = read_graph(self._engine, content)
        try:
            compiled = self._engine.load(graph, _DEVICE, self._settings)
        except Exception as error:
            raise _typed(error, UnsupportedOperator) from error
        return LegacyCpuGraph(compiled)


class LegacyCpuGraph(Loaded):
    """One compiled graph whose inputs are preset."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._inputs = compiled.inputs()
        self._preset = random_inputs(self._inputs)
        compiled.preset(self._preset)
        self.compute_unit = _DEVICE
        weighted = [c for c in compiled.counters() if c.kind in _WEIGHTED]
        self.flags = precision_flags([layer_precision(c.unit) for c in weighted], ("f32",))

    def timed_calls(self, count: int) -> list[Sample]:
        try:
            return [Sample(self._compiled.call()) for _ in range(count)]
        except Exception as error:
            raise _typed(error) from error

    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_inputs(self._inputs, inputs)
        try:
            self._compiled.preset(inputs)
            self._compiled.call()
            return self._compiled.outputs()
        except Exception as error:
            raise _typed(error) from error
        finally:
            self._compiled.preset(self._preset)

    def close(self) -> None:
        del self._compiled


def _typed(error: Exception, otherwise: type[AgentError] = RuntimeCrashed) -> AgentError:
    """The error of a kind that an exception of the runtime stands for.

    Args:
        otherwise: of one whose text is not known.
    """
    if isinstance(error, AgentError):
        return error
    kind = OutOfMemory if is_out_of_memory(error) else otherwise
    return kind(f"openvino: {reason_of(error)}")
